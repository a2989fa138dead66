//! What differs between operating systems below the hypervisor: wake-ups, polling, the terminal.

mod notifier;
mod passing;
mod poller;
mod timer;
pub mod unix;

pub use notifier::Notifier;
pub use passing::{MAX_DESCRIPTORS, receive, send, set_nonblocking, stream_pair};
pub use poller::{Interest, Poller, Ready};
pub use timer::Timer;
