//! A device's interrupt: the transport's status register and the line behind it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::irq::SharedLine;

/// The driver should look at the used rings (virtio 1.2, 4.2.2: InterruptStatus bit 0).
const USED_RING: u32 = 1;
/// The configuration changed (bit 1).
const CONFIG_CHANGE: u32 = 2;

/// Interrupts the driver. Cloning shares the status register.
#[derive(Clone)]
pub struct Interrupt {
    status: Arc<AtomicU32>,
    line: SharedLine,
}

impl Interrupt {
    /// An interrupt on `line` with nothing pending.
    #[must_use]
    pub fn new(line: SharedLine) -> Self {
        Self { status: Arc::new(AtomicU32::new(0)), line }
    }

    /// Tells the driver that a used ring moved.
    pub fn used(&self) -> io::Result<()> {
        self.raise(USED_RING)
    }

    /// Tells the driver that the configuration space changed.
    pub fn config_changed(&self) -> io::Result<()> {
        self.raise(CONFIG_CHANGE)
    }

    fn raise(&self, bit: u32) -> io::Result<()> {
        self.status.fetch_or(bit, Ordering::SeqCst);
        self.line.pulse()
    }

    /// The InterruptStatus register.
    #[must_use]
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// The driver's InterruptACK of `bits`.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }
}
