//! What changes a disk while it is in use: its size and its limits.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use nelly_disk::Disk;

use super::counters::{Counters, DiskCounts};
use super::rate::{Bucket, Limiter};
use crate::config::{DiskLimits, SectorSize};
use crate::sys::Notifier;
use crate::sys::host::monotonic_ns;
use crate::virtio::interrupt::Interrupt;

/// What the device, its worker and whoever changes it share.
pub(super) struct Shared {
    pub(super) disk: Box<dyn Disk>,
    pub(super) counters: Counters,
    limiter: Mutex<Limiter>,
    driver: Mutex<Driver>,
}

/// The driver, as far as it must hear of a change.
#[derive(Default)]
struct Driver {
    /// It was not told of the disk's size yet.
    untold: bool,
    /// Of one that is ready and not paused: its interrupt, and what wakes the worker.
    there: Option<(Interrupt, Arc<Notifier>)>,
}

impl Driver {
    /// An interrupt that cannot be delivered leaves a driver that sees the new size when it looks.
    fn tell(&mut self) {
        if let (true, Some((interrupt, _))) = (self.untold, &self.there) {
            let _ = interrupt.config_changed();
            self.untold = false;
        }
    }
}

impl Shared {
    pub(super) fn new(disk: Box<dyn Disk>) -> Self {
        Self { disk, counters: Counters::default(), limiter: Mutex::default(), driver: Mutex::default() }
    }

    fn driver(&self) -> MutexGuard<'_, Driver> {
        self.driver.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn limiter(&self) -> MutexGuard<'_, Limiter> {
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A driver is ready, or goes on after a pause.
    pub(super) fn begin(&self, interrupt: &Interrupt, doorbell: &Arc<Notifier>) {
        let mut driver = self.driver();
        driver.there = Some((interrupt.clone(), Arc::clone(doorbell)));
        driver.tell();
    }

    pub(super) fn pause(&self) {
        self.driver().there = None;
    }

    /// The next driver reads what the size is.
    pub(super) fn forget(&self) {
        *self.driver() = Driver::default();
        self.limiter().held = false;
    }

    pub(super) fn set_limits(&self, limits: DiskLimits) {
        let bucket = |rate: Option<_>| rate.map(Bucket::new);
        {
            let mut limiter = self.limiter();
            limiter.bytes = bucket(limits.bytes_per_second);
            limiter.operations = bucket(limits.operations_per_second);
        }
        if let Some((_, doorbell)) = &self.driver().there {
            // Fails only when the counter is full, and then it rings already.
            let _rings = doorbell.notify();
        }
    }

    /// Takes what the first request costs. Its `bytes` are asked for only if there are limits. One
    /// that is held back asks again, and is counted once.
    pub(super) fn take(&self, bytes: impl FnOnce() -> u64) -> Result<(), Duration> {
        let mut limiter = self.limiter();
        let taken = if limiter.limits() { limiter.take(monotonic_ns(), bytes()) } else { Ok(()) };
        if taken.is_err() && !limiter.held {
            self.counters.throttled();
        }
        limiter.held = taken.is_err();
        taken
    }
}

/// Why a disk is not made larger.
#[derive(Debug, thiserror::Error)]
pub enum GrowError {
    /// It would lose what is at its end.
    #[error("it has {has} bytes, and is never made smaller than it is")]
    Smaller {
        /// Bytes that it has.
        has: u64,
    },
    /// Not whole sectors.
    #[error("{bytes} bytes are not a number of whole sectors of {sector} bytes")]
    Sectors {
        /// Bytes that were asked for.
        bytes: u64,
        /// Bytes of a sector.
        sector: u32,
    },
    /// It is only read, or consists of several files.
    #[error("it is only read")]
    ReadOnly,
    /// It was taken out of the machine.
    #[error("it was taken out of the machine")]
    Gone,
    /// The host refuses.
    #[error("the host cannot make it larger")]
    Host(#[source] io::Error),
}

/// Changes a disk. It does not keep it.
#[derive(Clone)]
pub struct BlockControl {
    shared: Weak<Shared>,
    sector: SectorSize,
}

impl BlockControl {
    pub(super) fn new(shared: &Arc<Shared>, sector: SectorSize) -> Self {
        Self { shared: Arc::downgrade(shared), sector }
    }

    /// What the disk has done; `None` of one that was taken out of the machine.
    #[must_use]
    pub fn counts(&self) -> Option<DiskCounts> {
        self.shared.upgrade().map(|shared| shared.counters.read())
    }

    /// Makes the disk `bytes` long, and tells the driver. Waits for the host: a driver that is not
    /// there, or is paused, hears of it later.
    ///
    /// # Errors
    /// [`GrowError`]; the disk has the size that it had.
    pub fn grow(&self, bytes: u64) -> Result<(), GrowError> {
        let shared = self.shared.upgrade().ok_or(GrowError::Gone)?;
        let (has, sector) = (shared.disk.len(), self.sector.get());
        if shared.disk.read_only() {
            return Err(GrowError::ReadOnly);
        }
        if bytes < has {
            return Err(GrowError::Smaller { has });
        }
        if !bytes.is_multiple_of(sector.into()) {
            return Err(GrowError::Sectors { bytes, sector });
        }
        shared.disk.grow(bytes).map_err(GrowError::Host)?;
        let mut driver = shared.driver();
        driver.untold |= bytes > has;
        driver.tell();
        Ok(())
    }

    /// Changes the limits from now on. Waits for nothing.
    ///
    /// # Errors
    /// [`GrowError::Gone`].
    pub fn set_limits(&self, limits: DiskLimits) -> Result<(), GrowError> {
        self.shared.upgrade().ok_or(GrowError::Gone)?.set_limits(limits);
        Ok(())
    }
}
