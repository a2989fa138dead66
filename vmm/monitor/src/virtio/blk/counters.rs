//! What a disk has done, seen from outside.

use std::sync::atomic::{AtomicU64, Ordering};

use super::spec;

/// What a disk has done since the machine started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskCounts {
    /// Reads that succeeded.
    pub reads: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// Writes that succeeded.
    pub writes: u64,
    /// Their bytes.
    pub written_bytes: u64,
    /// Flushes that succeeded.
    pub flushes: u64,
    /// Discards and writes of zeroes that succeeded.
    pub discards: u64,
    /// Requests that were answered with an error.
    pub failed: u64,
    /// Requests that were held back, because the disk's limits allowed no more at the time.
    pub throttled: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    written_bytes: AtomicU64,
    flushes: AtomicU64,
    discards: AtomicU64,
    failed: AtomicU64,
    throttled: AtomicU64,
}

fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

impl Counters {
    /// A request of this kind, with so many bytes of data, was answered.
    pub(super) fn answered(&self, kind: u32, status: u8, bytes: u32) {
        let (requests, moved) = match kind {
            _ if status != spec::S_OK => (&self.failed, None),
            spec::T_IN => (&self.reads, Some(&self.read_bytes)),
            spec::T_OUT => (&self.writes, Some(&self.written_bytes)),
            spec::T_FLUSH => (&self.flushes, None),
            spec::T_DISCARD | spec::T_WRITE_ZEROES => (&self.discards, None),
            // To ask for the disk's name does nothing to it.
            _ => return,
        };
        add(requests, 1);
        if let Some(moved) = moved {
            add(moved, bytes.into());
        }
    }

    /// A request is held back by the limits.
    pub(super) fn throttled(&self) {
        add(&self.throttled, 1);
    }

    pub(super) fn read(&self) -> DiskCounts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DiskCounts {
            reads: of(&self.reads),
            read_bytes: of(&self.read_bytes),
            writes: of(&self.writes),
            written_bytes: of(&self.written_bytes),
            flushes: of(&self.flushes),
            discards: of(&self.discards),
            failed: of(&self.failed),
            throttled: of(&self.throttled),
        }
    }
}
