//! What is known of a sandbox from outside: its identity, how it ended, and the places on the host.

pub mod identity;
pub mod outcome;
pub mod places;
pub mod storage;

pub use identity::{Hostname, Id, Name};
pub use outcome::Exit;
pub use places::Places;
pub use storage::StorageSize;
