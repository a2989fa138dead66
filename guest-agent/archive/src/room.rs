//! How much a copy may write.

use std::fmt;

use crate::ArchiveError;
use crate::error::shown;

/// Bytes that a file takes beside its contents, and of which its contents take a multiple.
const BLOCK: u64 = 4096;

/// How much a copy may write: more is an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes on the disk.
    pub bytes: u64,
    /// Files and directories.
    pub files: u64,
}

impl Room {
    /// As much as there is, for what may use all of it.
    pub const ALL: Self = Self { bytes: u64::MAX, files: u64::MAX };
}

impl Default for Room {
    fn default() -> Self {
        Self::ALL
    }
}

impl fmt::Display for Room {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} bytes and {} files may be written at the destination", self.bytes, self.files)
    }
}

/// What was written of it.
#[derive(Debug)]
pub(crate) struct Used {
    room: Room,
    bytes: u64,
    files: u64,
    /// Block of the present file behind the last one that was counted.
    block: u64,
}

impl Used {
    pub(crate) fn of(room: Room) -> Self {
        Self { room, bytes: 0, files: 0, block: 0 }
    }

    /// Counts a file, with so many bytes beside its contents.
    pub(crate) fn file(&mut self, path: &[u8], bytes: u64) -> Result<(), ArchiveError> {
        (self.files, self.block) = (self.files.saturating_add(1), 0);
        self.bytes(path, BLOCK.saturating_add(bytes))
    }

    /// Counts the blocks of contents from `from` to `to`, which come in their order.
    pub(crate) fn contents(&mut self, path: &[u8], from: u64, to: u64) -> Result<(), ArchiveError> {
        let (first, end) = ((from / BLOCK).max(self.block), to.div_ceil(BLOCK));
        self.block = end;
        self.bytes(path, end.saturating_sub(first).saturating_mul(BLOCK))
    }

    fn bytes(&mut self, path: &[u8], bytes: u64) -> Result<(), ArchiveError> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.room.bytes || self.files > self.room.files {
            return Err(ArchiveError::Full { path: shown(path), room: self.room });
        }
        Ok(())
    }
}
