//! Interrupt lines: what a device holds to interrupt the guest, whatever the hypervisor.

pub use crate::hv::{IrqLine, SharedLine};
