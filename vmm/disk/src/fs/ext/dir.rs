//! Directories. All are read from their first block to their last: the index of a large one looks
//! like entries without names.

use super::super::crc32c::crc32c;
use super::super::{Entry, FsError, NAMES_MAX};
use super::{Ext, Inode};
use crate::le::{u16_at, u32_at};
use crate::number::fits;

/// Most bytes of a directory: [`NAMES_MAX`] names of 255 bytes, half empty.
const BYTES_MAX: u64 = 64 << 20;

/// Calls `each` with every entry in `bytes`, a block or a part of one, until it returns `false`;
/// returns whether it never did.
fn walk(bytes: &[u8], count: &mut usize, each: &mut dyn FnMut(&str, Entry) -> bool) -> Result<bool, FsError> {
    let broken = |what| FsError::corrupt(format!("a directory has an entry {what}"));
    let mut at = 0;
    while bytes.len() - at >= 8 {
        let entry = &bytes[at..];
        let (inode, name_len) = (u32_at(entry, 0), usize::from(entry[6]));
        let len = match u16_at(entry, 4) {
            // Lengths of large blocks do not fit.
            0 | u16::MAX if bytes.len() >= 65536 => 65536,
            len => usize::from(len & 0xfffc) | usize::from(len & 3) << 16,
        };
        if len < 8 || len > entry.len() || 8 + name_len > len {
            return broken("that does not lie in it");
        }
        at += len;
        let name = &entry[8..8 + name_len];
        if inode == 0 || matches!(name, b"." | b"..") {
            continue;
        }
        if name.is_empty() || name.contains(&0) || name.contains(&b'/') {
            return broken("whose name cannot be");
        }
        *count += 1;
        if *count > NAMES_MAX {
            return Err(FsError::TooLarge { what: "a directory".to_owned(), max: NAMES_MAX as u64 });
        }
        // Names that are no UTF-8 are none that anything here looks for.
        if !each(&String::from_utf8_lossy(name), Entry::Inode(u64::from(inode))) {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Ext<'_> {
    pub(super) fn walk_directory(
        &self,
        inode: &Inode,
        each: &mut dyn FnMut(&str, Entry) -> bool,
    ) -> Result<(), FsError> {
        self.readable(inode)?;
        // Also one without blocks takes a while.
        self.budget.spend(4096)?;
        let mut count = 0;
        if inode.inline() {
            let data = self.inline_data(inode)?;
            // The number of the directory above, then entries; more of them in the attribute.
            let (first, rest) = data.split_at(data.len().min(60));
            if walk(first.get(4..).unwrap_or_default(), &mut count, each)? && !rest.is_empty() {
                walk(rest, &mut count, each)?;
            }
            return Ok(());
        }
        if inode.size > BYTES_MAX {
            return Err(FsError::TooLarge { what: "a directory".to_owned(), max: BYTES_MAX });
        }
        let mut block = vec![0; self.superblock.block_size];
        for index in 0..inode.size / self.superblock.unit() {
            self.budget.spend(self.superblock.unit())?;
            let run = self.run(inode, index)?;
            let Some(place) = run.block else {
                return FsError::corrupt(format!("directory {} has a hole", inode.number));
            };
            self.read_block(place, &mut block)?;
            self.check_directory(inode, &block)?;
            if !walk(&block, &mut count, each)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The last twelve bytes of a block look like an entry and hold its sum. Blocks of an index
    /// have theirs elsewhere.
    fn check_directory(&self, inode: &Inode, block: &[u8]) -> Result<(), FsError> {
        let Some(seed) = self.inode_seed(inode) else { return Ok(()) };
        let (body, tail) = block.split_at(block.len() - 12);
        let is_tail = tail[..8] == [0, 0, 0, 0, 12, 0, 0, 0xde];
        if is_tail && crc32c(seed, body) != u32_at(tail, 8) {
            return FsError::corrupt(format!(
                "a block of directory {} does not match its checksum",
                inode.number
            ));
        }
        Ok(())
    }

    /// The data of an inode that holds them itself: 60 bytes in the place of its blocks, the rest
    /// in the attribute `system.data`.
    pub(super) fn inline_data(&self, inode: &Inode) -> Result<Vec<u8>, FsError> {
        let broken = || FsError::corrupt(format!("inode {} has broken data inside", inode.number));
        let size = fits::<_, usize>(inode.size.min(65536), "at most 64 KiB");
        let mut data = inode.block.to_vec();
        if let Some(value) = attribute(&inode.raw, 7, b"data") {
            let Some(value) = value else { return broken() };
            data.extend_from_slice(value);
        }
        if data.len() < size {
            return broken();
        }
        data.truncate(size);
        Ok(data)
    }
}

/// The value of an attribute in the inode itself; the inner `None` when it lies outside.
fn attribute<'a>(raw: &'a [u8], index: u8, name: &[u8]) -> Option<Option<&'a [u8]>> {
    if raw.len() < 132 {
        return None;
    }
    let start = 128 + usize::from(u16_at(raw, 128));
    let area = raw.get(start..)?;
    if area.len() < 4 || u32_at(area, 0) != 0xea02_0000 {
        return None;
    }
    let area = &area[4..];
    let mut at = 0;
    while area.len() - at >= 16 && u32_at(area, at) != 0 {
        let entry = &area[at..];
        let len = usize::from(entry[0]);
        let found = entry.get(16..16 + len)?;
        if entry[1] == index && found == name {
            let offset = usize::from(u16_at(entry, 2));
            let size: usize = fits(u32_at(entry, 8), "hosts of Nelly have 64 bits");
            return Some(area.get(offset..).and_then(|rest| rest.get(..size)));
        }
        at = (at + 16 + len).next_multiple_of(4);
        if at > area.len() {
            return None;
        }
    }
    None
}
