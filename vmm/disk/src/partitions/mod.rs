//! Partition tables: GPT (UEFI 2.10, section 5) and MBR with extended partitions, of disks with
//! sectors of 512 or 4096 bytes.
//!
//! A table is believed as a whole or refused as a whole: a partition that is empty, overlaps
//! another one or lies beyond the disk's end means that what reads the disk later would see
//! something else than we do.

mod gpt;
mod mbr;
#[cfg(test)]
mod tests;

use std::io;

use crate::buffer::{ReadBuffer, Within};
use crate::number::at_most;
use crate::traits::{Mappable, ReadAt};

/// Most partitions of a table that is read. GPT has room for 128 by default.
pub const PARTITIONS_MAX: usize = 256;

/// Why a partition table is refused.
#[derive(Debug, thiserror::Error)]
pub enum PartitionError {
    /// The disk cannot be read.
    #[error("cannot read the partition table")]
    Read(#[from] io::Error),
    /// The GPT is broken in both places.
    #[error("the GPT is not valid: {primary}; nor is its backup: {backup}")]
    Gpt {
        /// What is wrong with the first.
        primary: String,
        /// What is wrong with the second.
        backup: String,
    },
    /// The MBR, or a partition of it, cannot be.
    #[error("the MBR is not valid: {0}")]
    Mbr(String),
}

/// What a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableKind {
    /// GUID partition table.
    Gpt,
    /// Master boot record.
    Mbr,
}

impl std::fmt::Display for TableKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Gpt => "GPT",
            Self::Mbr => "MBR",
        })
    }
}

/// The type of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartitionType {
    /// GPT's, as the bytes lie on the disk.
    Guid([u8; 16]),
    /// MBR's.
    Byte(u8),
}

impl std::fmt::Display for PartitionType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Guid(bytes) => f.pad(&gpt::guid(bytes)),
            Self::Byte(byte) => f.pad(&format!("{byte:#04x}")),
        }
    }
}

impl PartitionType {
    /// Whether it is GPT's type that is written `guid`, in small letters.
    #[must_use]
    pub fn is_guid(&self, guid: &str) -> bool {
        matches!(self, Self::Guid(_)) && self.to_string() == guid
    }
}

/// A partition, inside its disk and apart from all others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number as Linux counts, from 1; MBR's logical partitions from 5.
    pub number: u32,
    /// Its first byte on the disk.
    pub start: u64,
    /// Its bytes, at least one sector.
    pub len: u64,
    /// Its type.
    pub kind: PartitionType,
    /// What `PARTUUID=` calls it, in small letters.
    pub uuid: String,
    /// GPT's name of it (`PARTLABEL=`), without control characters.
    pub name: String,
}

/// A partition table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionTable {
    /// What it is.
    pub kind: TableKind,
    /// Bytes of the sectors that it counts in, 512 or 4096.
    pub sector: u32,
    /// The disk's own id: a GUID, or eight digits.
    pub disk: String,
    /// In the order of the table; what is empty is left out.
    pub partitions: Vec<Partition>,
    /// What is wrong and does not matter, for people.
    pub notes: Vec<String>,
}

/// Reads the partition table of a disk; `None` when it has none, so that a file system may fill it.
/// Sectors of GPT are those that its header is found by. MBR says nothing of them: `sector` counts,
/// 512 or 4096.
///
/// # Errors
/// [`PartitionError`].
pub fn read_partitions(disk: &dyn ReadAt, sector: u32) -> Result<Option<PartitionTable>, PartitionError> {
    if disk.len() < 512 {
        return Ok(None);
    }
    let mut first = [0; 512];
    disk.read_exact_at(&mut first, 0)?;
    // Linux, too, believes a GPT only behind an MBR that announces it.
    if mbr::announces_gpt(&first) {
        return gpt::read(disk).map(Some);
    }
    mbr::read(disk, &first, sector)
}

/// Refuses partitions that share a byte, or a byte with nobody: those beyond the end.
fn distinct(partitions: &[Partition], end: u64) -> Result<(), String> {
    let mut sorted: Vec<&Partition> = partitions.iter().collect();
    sorted.sort_by_key(|partition| partition.start);
    for partition in &sorted {
        // Both were counted in sectors of a disk that has fewer than 2^63 bytes.
        let stop = partition.start.checked_add(partition.len);
        if stop.is_none_or(|stop| stop > end) {
            return Err(format!(
                "partition {} ends behind the disk, which has {end} bytes",
                partition.number
            ));
        }
    }
    for pair in sorted.windows(2) {
        if pair[0].start + pair[0].len > pair[1].start {
            return Err(format!("partitions {} and {} overlap", pair[0].number, pair[1].number));
        }
    }
    Ok(())
}

/// A part of something that can be read.
pub struct Part<'a> {
    whole: &'a dyn ReadAt,
    start: u64,
    len: u64,
}

impl<'a> Part<'a> {
    /// The `len` bytes from `start` on, which may be cut at the whole's end.
    #[must_use]
    pub fn new(whole: &'a dyn ReadAt, start: u64, len: u64) -> Self {
        let len = len.min(whole.len().saturating_sub(start));
        Self { whole, start, len }
    }
}

impl ReadAt for Part<'_> {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, into: &mut dyn ReadBuffer, offset: u64) -> io::Result<usize> {
        let want = at_most(self.len.saturating_sub(offset), into.size());
        if want == 0 {
            return Ok(0);
        }
        self.whole.read_at(&mut Within::new(into, 0..want), self.start + offset)
    }

    fn mappable(&self, offset: u64, len: u64) -> Option<Mappable<'_>> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len);
        if inside { self.whole.mappable(self.start + offset, len) } else { None }
    }
}
