//! How a driver finds and drives a device: [`core`] is the machine of status, features and queues,
//! [`mmio`] the registers in front of it.

pub mod core;
pub mod mmio;
#[cfg(test)]
mod tests;

pub use self::core::{AttachError, Transport};
pub use mmio::MmioTransport;
