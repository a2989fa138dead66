//! What differs between operating systems below the hypervisor: wake-ups, polling, nameless files, descriptors over sockets, the
//! terminal.

pub mod anonymous;
mod entry;
pub mod files;
pub mod host;
mod inherited;
mod killer;
mod leave;
mod notifier;
mod number;
pub mod pages;
mod passing;
mod poller;

mod random;
mod range;
pub mod signals;
pub mod terminal;
mod timer;
pub mod unix;

pub use entry::begin;
pub use inherited::{close_all_but, inherited};
pub use killer::Killer;
pub use leave::leave_behind;
pub use notifier::Notifier;
pub use number::{at_most, fits};
pub use passing::{Arrived, MAX_DESCRIPTORS, receive, send, set_nonblocking, stream_pair};
pub use poller::{Interest, Poller, Ready};
pub use random::random;
pub use range::{punch_hole, zero_range};
pub use timer::Timer;
