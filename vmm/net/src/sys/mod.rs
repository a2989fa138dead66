//! What the system is asked for that no safe interface has, and readiness.

mod confine;
mod inherited;
mod peer;
#[cfg(target_os = "linux")]
mod poller;
#[cfg(not(target_os = "linux"))]
#[path = "poller_kqueue.rs"]
mod poller;
mod process;
mod received;
#[cfg(target_os = "linux")]
mod routes;
#[cfg(not(target_os = "linux"))]
#[path = "routes_elsewhere.rs"]
mod routes;
mod sockets;

pub use confine::{ConfineError, DENIED_EXIT, Role, confine, keep_privileges_down, may_open_files};
pub use inherited::{close_all_but, forget_environment, inherited};
pub use peer::{identity, peer_user};
pub use poller::Poller;
pub use process::in_a_child;
pub use received::{read_with_descriptors, write_with_descriptors};
pub use routes::Routes;
pub use sockets::{
    CLOSE_ON_EXEC, KEEPS_MESSAGES, NO_NETWORK, QUIET, accept, message_pair, socket, stream_pair,
};

/// A descriptor that became ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// As given to [`Poller::add`].
    pub token: u64,
    /// There may be something to read, an end or an error.
    pub readable: bool,
    /// There may be room to write, or an error.
    pub writable: bool,
    /// The peer has said that nothing more comes, or there is an error.
    pub ended: bool,
    /// Urgent data is among what there is to read: a read may end before it.
    pub urgent: bool,
}
