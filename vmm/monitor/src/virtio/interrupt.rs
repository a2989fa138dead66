//! A device's interrupt: the transport's status register, the line behind it, and the device's word that it cannot go on.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::fault::DeviceFault;
use super::spec::{self, register};
use crate::irq::SharedLine;
use crate::memory::RegisterPage;

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
    words: Words,
    needs_reset: AtomicBool,
    faults: AtomicU64,
    last_fault: Mutex<Option<String>>,
}

/// Where the registers are that a device changes while its driver runs.
enum Words {
    Own {
        status: AtomicU32,
        generation: AtomicU32,
    },
    /// In the page that the guest reads.
    Shown(RegisterPage),
}

impl Words {
    fn status(&self) -> &AtomicU32 {
        match self {
            Self::Own { status, .. } => status,
            Self::Shown(page) => page.word(register::INTERRUPT_STATUS),
        }
    }

    fn generation(&self) -> &AtomicU32 {
        match self {
            Self::Own { generation, .. } => generation,
            Self::Shown(page) => page.word(register::CONFIG_GENERATION),
        }
    }
}

impl Interrupt {
    /// An interrupt on `line` with nothing pending.
    #[must_use]
    pub fn new(line: SharedLine) -> Self {
        Self::with(line, Words::Own { status: AtomicU32::new(0), generation: AtomicU32::new(0) })
    }

    /// The same with its registers in a page that the guest may be shown.
    #[must_use]
    pub fn shown(line: SharedLine, page: RegisterPage) -> Self {
        Self::with(line, Words::Shown(page))
    }

    fn with(line: SharedLine, words: Words) -> Self {
        Self {
            shared: Arc::new(Shared {
                line,
                words,
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
        self.shared.words.generation().fetch_add(1, Ordering::SeqCst);
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
        if let Words::Shown(page) = &self.shared.words {
            page.word(register::STATUS).fetch_or(u32::from(spec::status::NEEDS_RESET), Ordering::SeqCst);
        }
        // An interrupt that cannot be delivered leaves a driver that reads NEEDS_RESET when it looks.
        let _ = self.config_changed();
    }

    fn raise(&self, bit: u32) -> io::Result<()> {
        self.shared.words.status().fetch_or(bit, Ordering::SeqCst);
        self.shared.line.pulse()
    }

    /// The InterruptStatus register.
    #[must_use]
    pub fn status(&self) -> u32 {
        self.shared.words.status().load(Ordering::SeqCst)
    }

    /// The driver's InterruptACK of `bits`.
    pub fn acknowledge(&self, bits: u32) {
        self.shared.words.status().fetch_and(!bits, Ordering::SeqCst);
    }

    /// The ConfigGeneration register.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.shared.words.generation().load(Ordering::SeqCst)
    }

    /// Whether the device waits for a reset.
    #[must_use]
    pub fn needs_reset(&self) -> bool {
        self.shared.needs_reset.load(Ordering::SeqCst)
    }

    /// Puts the device's status into the page that the guest reads, if there is one. A worker that fails meanwhile is not lost.
    pub(super) fn show_device_status(&self, status: u8) {
        if let Words::Shown(page) = &self.shared.words {
            let word = page.word(register::STATUS);
            word.store(u32::from(status), Ordering::SeqCst);
            if self.needs_reset() {
                word.fetch_or(u32::from(spec::status::NEEDS_RESET), Ordering::SeqCst);
            }
        }
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
        self.shared.words.status().store(0, Ordering::SeqCst);
        self.shared.needs_reset.store(false, Ordering::SeqCst);
    }

    /// Puts pending bits back, as a snapshot had them, and the edge that the driver may have missed.
    pub fn restore(&self, status: u32, needs_reset: bool) -> io::Result<()> {
        self.shared.words.status().store(status, Ordering::SeqCst);
        self.shared.needs_reset.store(needs_reset, Ordering::SeqCst);
        if status == 0 { Ok(()) } else { self.shared.line.pulse() }
    }
}
