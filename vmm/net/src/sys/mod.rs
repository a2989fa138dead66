//! What the system is asked for that no safe interface has, and readiness.

mod confine;
mod inherited;
mod peer;
mod poller;
mod process;
mod received;

pub use confine::{ConfineError, DENIED_EXIT, Role, confine, keep_privileges_down, may_open_files};
pub use inherited::{close_all_but, forget_environment, inherited};
pub use peer::peer_user;
pub use poller::{Poller, Ready};
pub use process::in_a_child;
pub use received::{read_with_descriptors, write_with_descriptors};
