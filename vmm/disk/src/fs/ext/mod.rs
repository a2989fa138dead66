//! ext2, ext3 and ext4 (Documentation/filesystems/ext4 of Linux), only read.
//!
//! Checksums are compared where the file system has them. A journal that was not closed is applied
//! in memory: every block that it holds is read from it.

mod dir;
mod journal;
#[cfg(test)]
mod journal_tests;
mod map;
mod superblock;

use self::journal::{ESCAPED, Log, Replay};
use self::superblock::{Checksums, SIZE, Superblock};
use super::crc32c::crc32c;
use super::{Budget, Entry, FsError, Node, NodeKind, Volume};
use crate::le::{u16_at, u32_at};
use crate::number::{at_most, fits};
use crate::traits::ReadAt;

const ROOT: u32 = 2;
const FLAG_ENCRYPT: u32 = 0x800;
const FLAG_COMPRESSED: u32 = 0x4;
const FLAG_EXTENTS: u32 = 0x8_0000;
const FLAG_INLINE: u32 = 0x1000_0000;

/// An ext file system.
pub struct Ext<'a> {
    disk: &'a dyn ReadAt,
    superblock: Superblock,
    replay: Replay,
    notes: Vec<String>,
    budget: Budget,
}

/// An inode.
struct Inode {
    number: u32,
    mode: u16,
    size: u64,
    flags: u32,
    generation: u32,
    /// The 60 bytes that say where its blocks are.
    block: [u8; 60],
    /// All of it.
    raw: Vec<u8>,
}

impl Inode {
    fn extents(&self) -> bool {
        self.flags & FLAG_EXTENTS != 0
    }

    fn inline(&self) -> bool {
        self.flags & FLAG_INLINE != 0
    }

    fn kind(&self) -> NodeKind {
        match self.mode >> 12 {
            8 => NodeKind::File,
            4 => NodeKind::Directory,
            10 => NodeKind::Link,
            _ => NodeKind::Other,
        }
    }
}

impl<'a> Ext<'a> {
    /// Opens the file system that fills `disk`.
    ///
    /// # Errors
    /// [`FsError`]; a journal that cannot be applied is one.
    pub fn open(disk: &'a dyn ReadAt) -> Result<Self, FsError> {
        if disk.len() < 2048 {
            return FsError::corrupt("it is shorter than its superblock");
        }
        let mut raw = [0; SIZE];
        disk.read_exact_at(&mut raw, 1024)?;
        let superblock = Superblock::parse(&raw, disk.len())?;
        let mut ext =
            Self { disk, superblock, replay: Replay::new(), notes: Vec::new(), budget: Budget::new() };
        if let Some(number) = ext.superblock.journal {
            let inode = ext.inode(number)?;
            if inode.kind() != NodeKind::File || inode.inline() {
                return FsError::corrupt("its journal is no file");
            }
            let replay = journal::replay(&JournalFile { ext: &ext, inode: &inode })?;
            if !replay.is_empty() {
                ext.notes.push(format!(
                    "it was not unmounted; {} blocks were taken from its journal, in memory",
                    replay.len()
                ));
            }
            ext.replay = replay;
            // The superblock may be one of them.
            ext.read_bytes(1024, &mut raw)?;
            ext.superblock = Superblock::parse(&raw, disk.len())?;
        }
        Ok(ext)
    }

    /// Reads bytes of the file system as they are when the journal is applied.
    fn read_bytes(&self, at: u64, into: &mut [u8]) -> Result<(), FsError> {
        self.disk.read_exact_at(&mut &mut *into, at)?;
        if self.replay.is_empty() || into.is_empty() {
            return Ok(());
        }
        let unit = self.superblock.unit();
        let end = at + fits::<_, u64>(into.len(), "hosts of Nelly have 64 bits");
        let mut block = vec![0; self.superblock.block_size];
        for (number, moved) in self.replay.range(at / unit..end.div_ceil(unit)) {
            self.disk.read_exact_at(&mut block, moved.block * unit)?;
            if moved.escaped {
                block[..4].copy_from_slice(&ESCAPED);
            }
            let start = number * unit;
            let (from, to) = (start.max(at), (start + unit).min(end));
            let place = |byte: u64, base: u64| fits::<_, usize>(byte - base, "inside the buffer");
            into[place(from, at)..place(to, at)]
                .copy_from_slice(&block[place(from, start)..place(to, start)]);
        }
        Ok(())
    }

    fn read_block(&self, number: u64, into: &mut [u8]) -> Result<(), FsError> {
        if number >= self.superblock.blocks {
            return FsError::corrupt(format!("block {number} lies outside"));
        }
        self.read_bytes(number * self.superblock.unit(), into)
    }

    fn block(&self, number: u64) -> Result<Vec<u8>, FsError> {
        let mut block = vec![0; self.superblock.block_size];
        self.read_block(number, &mut block)?;
        Ok(block)
    }

    fn inode(&self, number: u32) -> Result<Inode, FsError> {
        let corrupt = |what: &str| FsError::corrupt(format!("inode {number} {what}"));
        let superblock = &self.superblock;
        if number == 0 || number > superblock.inodes {
            return corrupt("does not exist");
        }
        let (group, index) =
            ((number - 1) / superblock.inodes_per_group, (number - 1) % superblock.inodes_per_group);
        let at = self.inode_table(group)? * superblock.unit()
            + u64::from(index) * fits::<_, u64>(superblock.inode_size, "at most 64 KiB");
        let size = fits::<_, u64>(superblock.inode_size, "at most 64 KiB");
        if at.checked_add(size).is_none_or(|end| end > superblock.blocks * superblock.unit()) {
            return corrupt("lies outside");
        }
        let mut raw = vec![0; superblock.inode_size];
        self.read_bytes(at, &mut raw)?;
        let mut block = [0; 60];
        block.copy_from_slice(&raw[0x28..0x64]);
        let mode = u16_at(&raw, 0);
        let file = mode >> 12 == 8;
        let high = if file || superblock.large_directories { u64::from(u32_at(&raw, 0x6c)) << 32 } else { 0 };
        let inode = Inode {
            number,
            mode,
            size: u64::from(u32_at(&raw, 4)) | high,
            flags: u32_at(&raw, 0x20),
            generation: u32_at(&raw, 0x64),
            block,
            raw,
        };
        if !self.sum_matches(&inode) {
            return corrupt("does not match its checksum");
        }
        // No file has more than 2^32 blocks.
        if inode.size > superblock.unit() << 32 {
            return corrupt("is longer than it can be");
        }
        Ok(inode)
    }

    /// The first block of the inodes of a group.
    fn inode_table(&self, group: u32) -> Result<u64, FsError> {
        let corrupt = |what: &str| FsError::corrupt(format!("group {group} {what}"));
        let superblock = &self.superblock;
        let at = superblock.descriptor_at(group);
        let mut raw = vec![0; superblock.descriptor_size];
        let size = fits::<_, u64>(raw.len(), "at most 1024");
        if at + size > superblock.blocks * superblock.unit() {
            return corrupt("has a descriptor that lies outside");
        }
        self.read_bytes(at, &mut raw)?;
        if let Checksums::All(seed) = superblock.checksums {
            let stored = u16_at(&raw, 0x1e);
            let mut summed = raw.clone();
            summed[0x1e..0x20].fill(0);
            let sum = crc32c(crc32c(seed, &group.to_le_bytes()), &summed);
            if sum & 0xffff != u32::from(stored) {
                return corrupt("has a descriptor that does not match its checksum");
            }
        }
        let high = if raw.len() >= 64 { u64::from(u32_at(&raw, 0x28)) << 32 } else { 0 };
        let block = u64::from(u32_at(&raw, 8)) | high;
        if block == 0 || block >= superblock.blocks {
            return corrupt("has inodes that lie outside");
        }
        Ok(block)
    }

    /// The sum that those of an inode's own blocks continue.
    fn inode_seed(&self, inode: &Inode) -> Option<u32> {
        let Checksums::All(seed) = self.superblock.checksums else { return None };
        let seed = crc32c(seed, &inode.number.to_le_bytes());
        Some(crc32c(seed, &inode.generation.to_le_bytes()))
    }

    fn sum_matches(&self, inode: &Inode) -> bool {
        let Some(seed) = self.inode_seed(inode) else { return true };
        let mut summed = inode.raw.clone();
        let mut stored = u32::from(u16_at(&summed, 0x7c));
        summed[0x7c..0x7e].fill(0);
        let mut mask = 0xffff;
        if summed.len() >= 132 && u16_at(&summed, 0x80) >= 4 {
            stored |= u32::from(u16_at(&summed, 0x82)) << 16;
            summed[0x82..0x84].fill(0);
            mask = u32::MAX;
        }
        crc32c(seed, &summed) & mask == stored
    }

    /// Refuses what is not stored as it is.
    fn readable(&self, inode: &Inode) -> Result<(), FsError> {
        let refused = [(FLAG_ENCRYPT, "encrypted"), (FLAG_COMPRESSED, "compressed")];
        match refused.iter().find(|(flag, _)| inode.flags & flag != 0) {
            Some((_, what)) => {
                Err(FsError::Unsupported(format!("has an {what} file or directory, inode {}", inode.number)))
            }
            None => Ok(()),
        }
    }

    fn of_node(&self, node: Node) -> Result<Inode, FsError> {
        match u32::try_from(node.place) {
            Ok(number) => self.inode(number),
            Err(_) => FsError::corrupt("an inode has an impossible number"),
        }
    }

    fn read_inode(&self, inode: &Inode, into: &mut [u8], offset: u64) -> Result<usize, FsError> {
        self.readable(inode)?;
        let want = at_most(inode.size.saturating_sub(offset), into.len());
        if want == 0 {
            return Ok(0);
        }
        if inode.inline() {
            let data = self.inline_data(inode)?;
            let rest = usize::try_from(offset).ok().and_then(|at| data.get(at..)).unwrap_or_default();
            let some = rest.len().min(want);
            into[..some].copy_from_slice(&rest[..some]);
            return Ok(some);
        }
        let unit = self.superblock.unit();
        let (index, within) = (offset / unit, offset % unit);
        let run = self.run(inode, index)?;
        let have = run.count.min(u64::MAX / unit) * unit - within;
        let some = at_most(have, want);
        match run.block {
            Some(block) => self.read_bytes(block * unit + within, &mut into[..some])?,
            None => into[..some].fill(0),
        }
        Ok(some)
    }
}

/// The journal as its own inode has it.
struct JournalFile<'a> {
    ext: &'a Ext<'a>,
    inode: &'a Inode,
}

impl Log for JournalFile<'_> {
    fn block_size(&self) -> usize {
        self.ext.superblock.block_size
    }

    fn blocks(&self) -> u64 {
        self.inode.size / self.ext.superblock.unit()
    }

    fn place(&self, index: u64) -> Result<u64, FsError> {
        match self.ext.run(self.inode, index)?.block {
            Some(block) => Ok(block),
            None => FsError::corrupt("its journal has a hole"),
        }
    }

    fn read(&self, place: u64, into: &mut [u8]) -> Result<(), FsError> {
        self.ext.read_block(place, into)
    }
}

impl Volume for Ext<'_> {
    fn root(&self) -> Result<Node, FsError> {
        self.node(Entry::Inode(u64::from(ROOT)))
    }

    fn entries(&self, directory: Node, each: &mut dyn FnMut(&str, Entry) -> bool) -> Result<(), FsError> {
        let inode = self.of_node(directory)?;
        if inode.kind() != NodeKind::Directory {
            return FsError::corrupt(format!("inode {} is no directory", inode.number));
        }
        self.walk_directory(&inode, each)
    }

    fn node(&self, entry: Entry) -> Result<Node, FsError> {
        match entry {
            Entry::Inode(place) => {
                let inode = self.of_node(Node { kind: NodeKind::Other, size: 0, place })?;
                Ok(Node { kind: inode.kind(), size: inode.size, place })
            }
            Entry::Node(node) => Ok(node),
        }
    }

    fn same_name(&self, a: &str, b: &str) -> bool {
        a == b
    }

    fn read(&self, file: Node, into: &mut [u8], offset: u64) -> Result<usize, FsError> {
        self.read_inode(&self.of_node(file)?, into, offset)
    }

    fn link(&self, link: Node) -> Result<String, FsError> {
        let inode = self.of_node(link)?;
        if inode.kind() != NodeKind::Link || inode.size == 0 || inode.size > 4095 {
            return FsError::corrupt(format!("inode {} is no sound symbolic link", inode.number));
        }
        let mut text = vec![0; fits(inode.size, "at most 4095")];
        if inode.size < 60 && !inode.extents() && !inode.inline() {
            self.readable(&inode)?;
            let len = text.len();
            text.copy_from_slice(&inode.block[..len]);
        } else {
            let mut done = 0;
            while done < text.len() {
                match self.read_inode(&inode, &mut text[done..], fits(done, "at most 4095"))? {
                    0 => {
                        return FsError::corrupt(format!("inode {} is no sound symbolic link", inode.number));
                    }
                    read => done += read,
                }
            }
        }
        // What is no UTF-8 names nothing that is looked for.
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }
}
