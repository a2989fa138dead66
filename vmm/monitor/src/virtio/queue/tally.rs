//! Where a queue stands, for whoever looks at it while its worker has it.

use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::config::Rings;
use super::load;
use crate::memory::Memory;

/// What a queue's worker writes down of it. A look at it waits for nobody.
#[derive(Debug, Default)]
pub struct QueueTally {
    /// `None`: the driver does not use the queue.
    rings: Mutex<Option<Rings>>,
    next_available: AtomicU16,
    next_used: AtomicU16,
    chains: AtomicU64,
}

/// A queue at one moment. Indices run freely from 0 to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuePosition {
    /// Entries of its rings.
    pub size: u16,
    /// The available index as the driver's memory has it.
    pub driver_available: u16,
    /// The next entry of the available ring that the device takes.
    pub next_available: u16,
    /// The next entry of the used ring that the device fills.
    pub next_used: u16,
}

impl QueueTally {
    /// A queue begins.
    pub(super) fn begin(&self, rings: Rings) {
        self.taken(0);
        self.next_used.store(0, Ordering::Relaxed);
        *self.rings() = Some(rings);
    }

    /// The driver forgot it.
    pub(in crate::virtio) fn end(&self) {
        *self.rings() = None;
    }

    pub(super) fn taken(&self, next_available: u16) {
        self.next_available.store(next_available, Ordering::Relaxed);
    }

    pub(super) fn given(&self, next_used: u16) {
        self.next_used.store(next_used, Ordering::Relaxed);
        self.chains.fetch_add(1, Ordering::Relaxed);
    }

    /// Chains that were given back since the machine started.
    #[must_use]
    pub fn chains(&self) -> u64 {
        self.chains.load(Ordering::Relaxed)
    }

    /// Where it stands; `None`: the driver does not use it.
    #[must_use]
    pub fn position(&self, memory: &Memory) -> Option<QueuePosition> {
        let rings = (*self.rings())?;
        Some(QueuePosition {
            size: rings.size,
            // Rings in use were checked to lie in memory, which does not shrink.
            driver_available: load(memory, rings.available + 2).ok()?,
            next_available: self.next_available.load(Ordering::Relaxed),
            next_used: self.next_used.load(Ordering::Relaxed),
        })
    }

    fn rings(&self) -> MutexGuard<'_, Option<Rings>> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
