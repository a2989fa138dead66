//! Interrupt lines: what a device holds to interrupt the guest, whatever the hypervisor.

use std::io;
use std::sync::Arc;

/// One interrupt line of the machine, from a device to the interrupt controller.
///
/// Cheap to call from any thread; a call is at most one system call.
pub trait IrqLine: Send + Sync {
    /// An edge: the line goes up and down. What virtio and the 8250 use here.
    fn pulse(&self) -> io::Result<()>;

    /// Sets the level of a level-triggered line.
    fn set(&self, high: bool) -> io::Result<()>;
}

/// A line shared by the parts of one device.
pub type SharedLine = Arc<dyn IrqLine>;
