//! Counting what is removed.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;

use crate::trusted::{TrustError, TrustedDir, io_error};

/// Bytes of a block as the system counts those of a file.
const STAT_BLOCK: u64 = 512;

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Removed {
    /// Number of files.
    pub files: u64,
    /// Bytes that they took on the disk.
    pub bytes: u64,
    /// Another process uses the store, so that files were left for the next time.
    pub busy: bool,
}

impl Removed {
    /// Adds another count.
    pub fn add(&mut self, other: Self) {
        self.files += other.files;
        self.bytes += other.bytes;
        self.busy |= other.busy;
    }

    /// Removes the file `name`, if it is there, and counts it.
    pub(crate) fn remove(&mut self, dir: &TrustedDir, name: &OsStr) -> Result<(), TrustError> {
        let Some(file) = dir.read(name)? else { return Ok(()) };
        let found = file.metadata().map_err(|source| io_error("look at", &dir.path().join(name), source))?;
        dir.remove(name)?;
        self.files += 1;
        self.bytes += found.blocks() * STAT_BLOCK;
        Ok(())
    }
}
