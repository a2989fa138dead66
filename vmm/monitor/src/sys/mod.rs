//! What differs between operating systems below the hypervisor: wake-ups, polling, nameless files,
//! descriptors over sockets, the terminal.

pub mod anonymous;
mod entry;
pub mod files;
mod heap;
pub mod host;
mod inherited;
mod leave;
mod notifier;
pub mod pages;
mod passing;
mod poller;
mod process;
mod program;
mod random;
#[cfg(test)]
mod refusing;
mod removals;
#[cfg(target_os = "macos")]
pub(crate) mod seatbelt;
pub mod signals;
pub mod tap;
pub mod terminal;
mod timer;
pub mod unix;
pub mod vhost;
pub mod vhost_user;

pub use entry::begin;
pub use heap::Heap;
pub use inherited::{close_all_but, inherited};
pub use leave::leave_behind;
pub use nelly_disk::number::{at_most, fits};
pub use notifier::Notifier;
pub use passing::{Arrived, MAX_DESCRIPTORS, receive, send, set_nonblocking, stream_pair};
pub use poller::{Interest, Poller, Ready};
pub use process::{ProcessHandle, ProcessUsage};
pub use program::Program;
pub use random::random;
#[cfg(test)]
pub(crate) use refusing::cannot_send;
pub use removals::Removals;
pub use timer::Timer;

/// Whether the host had no memory for a call. It may have some in a moment.
#[must_use]
pub fn lacks_memory(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::NOBUFS | Errno::NOMEM))
}
