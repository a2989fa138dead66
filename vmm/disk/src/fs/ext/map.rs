//! Where the blocks of a file are: extents, or the older lists of blocks.

use super::super::FsError;
use super::super::crc32c::crc32c;
use super::{Ext, Inode};
use crate::le::{u16_at, u32_at};
use crate::number::fits;

/// Deepest tree of extents that the kernel makes.
const DEPTH_MAX: u16 = 5;

/// Blocks that follow one another: of the disk, or of zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) block: Option<u64>,
    pub(super) count: u64,
}

impl Ext<'_> {
    /// What block `index` of a file is, and for how many blocks.
    pub(super) fn run(&self, inode: &Inode, index: u64) -> Result<Run, FsError> {
        let run = if inode.extents() { self.extent(inode, index)? } else { self.listed(inode, index)? };
        if let Some(block) = run.block
            && block.checked_add(run.count).is_none_or(|end| end > self.superblock.blocks)
        {
            return FsError::corrupt(format!("a block of inode {} lies outside", inode.number));
        }
        Ok(run)
    }

    fn extent(&self, inode: &Inode, index: u64) -> Result<Run, FsError> {
        let broken = || FsError::corrupt(format!("inode {} has a broken tree of extents", inode.number));
        let mut node = inode.block.to_vec();
        let (mut depth, mut end) = (None, u64::MAX);
        loop {
            let (entries, most, here) = (u16_at(&node, 2), u16_at(&node, 4), u16_at(&node, 6));
            let room = (node.len() - 12) / 12;
            let sound = u16_at(&node, 0) == 0xf30a && entries <= most && usize::from(most) <= room;
            if !sound || here > DEPTH_MAX || depth.is_some_and(|above: u16| above != here + 1) {
                return broken();
            }
            depth = Some(here);
            let all = &node[12..12 + 12 * usize::from(entries)];
            let starts: Vec<u64> = all.chunks_exact(12).map(|entry| u64::from(u32_at(entry, 0))).collect();
            if starts.windows(2).any(|pair| pair[0] >= pair[1]) {
                return broken();
            }
            let at = starts.partition_point(|start| *start <= index);
            if let Some(next) = starts.get(at) {
                end = end.min(*next);
            }
            let hole = Run { block: None, count: end - index };
            let Some(at) = at.checked_sub(1) else { return Ok(hole) };
            let entry = &all[12 * at..12 * at + 12];
            if here == 0 {
                let len = u64::from(u16_at(entry, 4));
                // Longer ones are allocated and were never written.
                let (len, written) = if len > 32768 { (len - 32768, false) } else { (len, true) };
                let within = index - starts[at];
                if len == 0 || starts[at] + len > end {
                    return broken();
                }
                if within >= len {
                    return Ok(hole);
                }
                let start = u64::from(u16_at(entry, 6)) << 32 | u64::from(u32_at(entry, 8));
                return Ok(Run { block: written.then_some(start + within), count: len - within });
            }
            let child = u64::from(u16_at(entry, 8)) << 32 | u64::from(u32_at(entry, 4));
            node = self.block(child)?;
            let tail = 12 + 12 * usize::from(u16_at(&node, 4));
            if let Some(seed) = self.inode_seed(inode)
                && tail + 4 <= node.len()
                && crc32c(seed, &node[..tail]) != u32_at(&node, tail)
            {
                return FsError::corrupt(format!(
                    "extents of inode {} do not match their checksum",
                    inode.number
                ));
            }
        }
    }

    /// The lists of ext2 and ext3: twelve blocks, then blocks of numbers, one to three deep.
    fn listed(&self, inode: &Inode, index: u64) -> Result<Run, FsError> {
        let each = self.superblock.unit() / 4;
        let number = |bytes: &[u8], at: u64| u32_at(bytes, 4 * fits::<_, usize>(at, "inside a block"));
        if index < 12 {
            return Ok(single(number(&inode.block, index)));
        }
        let (mut left, mut span, mut slot) = (index - 12, each, 12);
        while left >= span {
            left -= span;
            span *= each;
            slot += 1;
            if slot == 15 {
                return FsError::corrupt(format!("inode {} is longer than it can be", inode.number));
            }
        }
        let mut block = number(&inode.block, slot);
        while span > 1 {
            if block == 0 {
                return Ok(Run { block: None, count: span - left });
            }
            let list = self.block(u64::from(block))?;
            span /= each;
            block = number(&list, left / span);
            left %= span;
        }
        Ok(single(block))
    }
}

fn single(block: u32) -> Run {
    Run { block: (block != 0).then_some(u64::from(block)), count: 1 }
}
