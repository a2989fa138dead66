//! A device's interrupt: the transport's status register, the line behind it, and the device's word
//! that it cannot go on.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::fault::DeviceFault;
use super::tally::{FaultSink, Tally};
use crate::hv::SharedLine;
use crate::state::StateError;
use crate::state::fields::{FieldReader, FieldWriter};

/// The driver should look at the used rings (virtio 1.2, 4.2.2: InterruptStatus bit 0).
pub const USED_RING: u32 = 1;
/// The configuration changed (bit 1).
pub const CONFIG_CHANGE: u32 = 2;

/// Interrupts the driver. Cloning shares the registers behind it.
#[derive(Clone)]
pub struct Interrupt {
    shared: Arc<InterruptState>,
}

struct InterruptState {
    line: SharedLine,
    /// The registers that a device changes while its driver runs.
    status: AtomicU32,
    generation: AtomicU32,
    needs_reset: AtomicBool,
    broken: AtomicU64,
    tally: Tally,
}

impl Interrupt {
    /// An interrupt on `line` with nothing pending.
    #[must_use]
    pub fn new(line: SharedLine) -> Self {
        Self::counting(line, Tally::new(None))
    }

    /// The same, whose device's first fault of each kind `told` hears of.
    #[must_use]
    pub fn telling(line: SharedLine, told: FaultSink) -> Self {
        Self::counting(line, Tally::new(Some(told)))
    }

    fn counting(line: SharedLine, tally: Tally) -> Self {
        Self {
            shared: Arc::new(InterruptState {
                line,
                status: AtomicU32::new(0),
                generation: AtomicU32::new(0),
                needs_reset: AtomicBool::new(false),
                broken: AtomicU64::new(0),
                tally,
            }),
        }
    }

    /// What the slot counts.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.shared.tally
    }

    /// Tells the driver that a used ring moved.
    pub fn used(&self) -> io::Result<()> {
        self.raise(USED_RING)
    }

    /// Tells the driver that the configuration space changed.
    pub fn config_changed(&self) -> io::Result<()> {
        self.shared.generation.fetch_add(1, Ordering::SeqCst);
        self.raise(CONFIG_CHANGE)
    }

    /// The device cannot go on until the driver resets it (2.1.2): NEEDS_RESET appears in the
    /// status and the driver is told. Counted.
    pub fn fail(&self, fault: &DeviceFault) {
        self.shared.broken.fetch_add(1, Ordering::Relaxed);
        self.shared.tally.fault(fault);
        self.shared.needs_reset.store(true, Ordering::SeqCst);
        // An interrupt that cannot be delivered leaves a driver that reads NEEDS_RESET when it
        // looks.
        let _ = self.config_changed();
    }

    fn raise(&self, bit: u32) -> io::Result<()> {
        self.shared.tally.interrupt();
        self.shared.status.fetch_or(bit, Ordering::SeqCst);
        self.shared.line.pulse()
    }

    /// The InterruptStatus register.
    #[must_use]
    pub fn status(&self) -> u32 {
        self.shared.status.load(Ordering::SeqCst)
    }

    /// The driver's InterruptACK of `bits`.
    pub fn acknowledge(&self, bits: u32) {
        self.shared.status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// The ConfigGeneration register.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.shared.generation.load(Ordering::SeqCst)
    }

    /// Whether the device waits for a reset.
    #[must_use]
    pub fn needs_reset(&self) -> bool {
        self.shared.needs_reset.load(Ordering::SeqCst)
    }

    /// How often the guest (or its host side) brought the device to NEEDS_RESET since the machine
    /// started.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.shared.broken.load(Ordering::Relaxed)
    }

    /// Writes down the registers and what the slot counts.
    pub(super) fn save(&self, fields: &mut FieldWriter) {
        let InterruptState { line: _, status, generation, needs_reset, broken, tally } = &*self.shared;
        fields.put(&status.load(Ordering::SeqCst));
        fields.put(&generation.load(Ordering::SeqCst));
        fields.put(&needs_reset.load(Ordering::SeqCst));
        fields.put(&broken.load(Ordering::Relaxed));
        tally.save(fields);
    }

    /// Takes them back. The line stays still: what it did before was saved by whoever it leads to.
    pub(super) fn restore(&self, fields: &mut FieldReader<'_>) -> Result<(), StateError> {
        let status: u32 = fields.get()?;
        if status & !(USED_RING | CONFIG_CHANGE) != 0 {
            return Err(fields.unfit(format!("there is no interrupt {status:#x}")));
        }
        self.shared.status.store(status, Ordering::SeqCst);
        self.shared.generation.store(fields.get()?, Ordering::SeqCst);
        self.shared.needs_reset.store(fields.get()?, Ordering::SeqCst);
        self.shared.broken.store(fields.get()?, Ordering::Relaxed);
        self.shared.tally.restore(fields)
    }

    /// Back to the state before the driver came; faults stay counted.
    pub fn reset(&self) {
        self.shared.status.store(0, Ordering::SeqCst);
        self.shared.needs_reset.store(false, Ordering::SeqCst);
    }
}
