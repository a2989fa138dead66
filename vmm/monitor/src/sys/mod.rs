//! What differs between operating systems below the hypervisor: wake-ups, polling, the terminal.

mod notifier;
mod poller;

pub use notifier::Notifier;
pub use poller::{Interest, Poller, Ready};
