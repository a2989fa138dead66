//! What the system is asked for that no safe interface has, and readiness.

mod confine;
mod inherited;
mod peer;
mod poller;

pub use confine::keep_privileges_down;
pub use inherited::{close_all_but, forget_environment, inherited};
pub use peer::peer_user;
pub use poller::{Poller, Ready};
