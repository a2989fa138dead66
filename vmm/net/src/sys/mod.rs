//! What the system is asked for that no safe interface has, and readiness.

mod confine;
mod inherited;
mod passed;
mod peer;
mod poller;
mod process;

pub use confine::{ConfineError, DENIED_EXIT, Role, confine, keep_privileges_down, may_open_files};
pub use inherited::{close_all_but, forget_environment, inherited};
pub use passed::read_with_file;
pub use peer::peer_user;
pub use poller::{Poller, Ready};
pub use process::in_a_child;
