//! A split virtqueue that was validated at activation: the device's end of the rings.

use crate::sys::Notifier;

/// One queue as a worker owns it.
#[derive(Debug)]
pub struct Queue {
    /// The rings.
    pub ring: virtio_queue::Queue,
    /// What the driver's notification wakes.
    pub doorbell: Notifier,
}
