//! A device's interrupt: the transport's status register, the line behind it, and the device's word that it cannot go on.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::fault::DeviceFault;
use crate::hv::SharedLine;

/// The driver should look at the used rings (virtio 1.2, 4.2.2: InterruptStatus bit 0).
pub const USED_RING: u32 = 1;
/// The configuration changed (bit 1).
pub const CONFIG_CHANGE: u32 = 2;

/// Interrupts the driver. Cloning shares the registers behind it.
#[derive(Clone)]
pub struct Interrupt {
    shared: Arc<Shared>,
}

struct Shared {
    line: SharedLine,
    /// The registers that a device changes while its driver runs.
    status: AtomicU32,
    generation: AtomicU32,
    needs_reset: AtomicBool,
    faults: AtomicU64,
    last_fault: Mutex<Option<String>>,
}

impl Interrupt {
    /// An interrupt on `line` with nothing pending.
    #[must_use]
    pub fn new(line: SharedLine) -> Self {
        Self {
            shared: Arc::new(Shared {
                line,
                status: AtomicU32::new(0),
                generation: AtomicU32::new(0),
                needs_reset: AtomicBool::new(false),
                faults: AtomicU64::new(0),
                last_fault: Mutex::new(None),
            }),
        }
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

    /// The device cannot go on until the driver resets it (2.1.2): NEEDS_RESET appears in the status and the driver is told. Counted.
    pub fn fail(&self, fault: &DeviceFault) {
        self.shared.faults.fetch_add(1, Ordering::Relaxed);
        let text = match std::error::Error::source(fault) {
            None => fault.to_string(),
            Some(source) => format!("{fault}: {source}"),
        };
        *self.shared.last_fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
        self.shared.needs_reset.store(true, Ordering::SeqCst);
        // An interrupt that cannot be delivered leaves a driver that reads NEEDS_RESET when it looks.
        let _ = self.config_changed();
    }

    fn raise(&self, bit: u32) -> io::Result<()> {
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

    /// How often the guest (or its host side) brought the device to NEEDS_RESET since the machine started.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.shared.faults.load(Ordering::Relaxed)
    }

    /// What the last of them was.
    #[must_use]
    pub fn last_fault(&self) -> Option<String> {
        self.shared.last_fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Back to the state before the driver came; faults stay counted.
    pub fn reset(&self) {
        self.shared.status.store(0, Ordering::SeqCst);
        self.shared.needs_reset.store(false, Ordering::SeqCst);
    }
}
