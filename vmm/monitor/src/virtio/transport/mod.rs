//! How a driver finds and drives a device: [`core`] is the machine of status, features and queues, [`mmio`] the registers in front of it,
//! [`window`] the page in which a guest reads them without an exit.

pub mod core;
pub mod mmio;
#[cfg(test)]
mod tests;
mod window;

pub use self::core::{AttachError, Transport, TransportState};
pub use mmio::MmioTransport;
pub use window::{PageHost, Window};
