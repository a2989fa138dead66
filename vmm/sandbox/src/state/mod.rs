//! What is known of a sandbox from outside: its identity and record, its state directory with its
//! lock and its disk, and the places on the host.

pub mod boot;
pub mod change;
pub mod directory;
mod error;
pub mod events;
pub mod identity;
pub mod logs;
pub mod networks;
pub mod outcome;
pub mod places;
pub mod record;
pub mod runtime;
pub mod storage;
pub mod time;

pub use boot::{BaseFile, BootRecord, SshRecord};
pub use change::Change;
pub use directory::{Listed, SandboxDir, SandboxLock, Sandboxes};
pub use error::StateError;
pub use identity::{Hostname, Id, Name};
pub use outcome::Exit;
pub use places::Places;
pub use record::{Condition, SandboxRecord, SandboxState, Status};
pub use runtime::RuntimeDir;
pub use storage::StorageSize;
pub use time::Timestamp;
