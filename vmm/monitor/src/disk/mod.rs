//! The bytes behind virtio-blk; knows no device.

mod raw;

use std::io;

use crate::memory::IoVecs;

pub use raw::{DiskError, RawDisk};

/// Bytes of a sector, the unit of every request.
pub const SECTOR: u64 = 512;

/// A disk's bytes. Requests reach it with offsets inside [`Disk::len`], in whole sectors; every call may block.
pub trait Disk: Send {
    /// Bytes, a multiple of [`SECTOR`], fixed while the disk is in use.
    fn len(&self) -> u64;

    /// `true` for a disk without a byte.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether writing is refused.
    fn read_only(&self) -> bool;

    /// The size in bytes of the blocks that the host writes best, a power of two from 512.
    fn block_size(&self) -> u32;

    /// Reads into `pieces` from byte `offset`; as a file, it may read less, but at least one byte.
    fn read_at(&self, pieces: &IoVecs<'_>, offset: u64) -> io::Result<usize>;

    /// Writes `pieces` at byte `offset`; as a file, it may write less.
    fn write_at(&self, pieces: &IoVecs<'_>, offset: u64) -> io::Result<usize>;

    /// Returns when everything written before is on stable storage.
    fn flush(&self) -> io::Result<()>;

    /// The range's contents are no longer wanted.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;

    /// The range reads as zeroes from now on; with `unmap` it may give its space back.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()>;
}
