//! The superblock: what the file system is, checked before anything else is read.

use super::super::FsError;
use super::super::crc32c::crc32c;
use crate::le::{u16_at, u32_at};
use crate::number::fits;

/// Bytes of it, from byte 1024 of the file system on.
pub(super) const SIZE: usize = 1024;

const COMPAT_HAS_JOURNAL: u32 = 4;
const COMPAT_SPARSE_SUPER2: u32 = 0x200;
const INCOMPAT_RECOVER: u32 = 4;
const INCOMPAT_META_BG: u32 = 0x10;
const INCOMPAT_64BIT: u32 = 0x80;
const INCOMPAT_CSUM_SEED: u32 = 0x2000;
const INCOMPAT_LARGEDIR: u32 = 0x4000;
/// Of those that change what a reader sees: file types in directories, recovery, meta_bg, extents,
/// 64bit, mmp, flex_bg, ea_inode, csum_seed, largedir, inline_data, encrypt (refused where it is
/// met), casefold (names are looked for exactly).
const INCOMPAT_KNOWN: u32 =
    0x2 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x1_0000 | 0x2_0000;
const RO_COMPAT_SPARSE_SUPER: u32 = 1;
const RO_COMPAT_GDT_CSUM: u32 = 0x10;
const RO_COMPAT_METADATA_CSUM: u32 = 0x400;

/// What the superblock says.
#[derive(Clone, Debug)]
pub(super) struct Superblock {
    pub(super) block_size: usize,
    pub(super) blocks: u64,
    pub(super) inodes: u32,
    pub(super) inode_size: usize,
    pub(super) inodes_per_group: u32,
    pub(super) descriptor_size: usize,
    /// The group checksums are CRC-16, or the metadata has CRC-32C; or neither.
    pub(super) checksums: Checksums,
    /// The inode of a journal that has to be applied.
    pub(super) journal: Option<u32>,
    pub(super) large_directories: bool,
    blocks_per_group: u32,
    first_block: u32,
    first_meta_group: Option<u32>,
    sparse: Sparse,
}

/// Which checksums there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checksums {
    None,
    Groups,
    All(u32),
}

/// Which groups begin with a copy of the superblock.
#[derive(Clone, Copy, Debug)]
enum Sparse {
    All,
    Powers,
    Two(u32, u32),
}

impl Superblock {
    /// Reads the superblock of a file system on `bytes` bytes.
    pub(super) fn parse(raw: &[u8; SIZE], bytes: u64) -> Result<Self, FsError> {
        let corrupt = |what: String| FsError::corrupt(what);
        let (compat, incompat, ro_compat) = (u32_at(raw, 0x5c), u32_at(raw, 0x60), u32_at(raw, 0x64));
        if u16_at(raw, 0x38) != 0xef53 {
            return corrupt("its superblock has no magic number".to_owned());
        }
        if let Some(error) = refused(incompat) {
            return Err(error);
        }
        let all = ro_compat & RO_COMPAT_METADATA_CSUM != 0;
        if all && crc32c(u32::MAX, &raw[..0x3fc]) != u32_at(raw, 0x3fc) {
            return corrupt("the checksum of its superblock does not match".to_owned());
        }
        let log = u32_at(raw, 0x18);
        if log > 6 {
            return corrupt(format!("its blocks have 2^{} bytes", u64::from(log) + 10));
        }
        let block_size = 1024_usize << log;
        let high = if incompat & INCOMPAT_64BIT != 0 { u64::from(u32_at(raw, 0x150)) << 32 } else { 0 };
        let blocks = u64::from(u32_at(raw, 4)) | high;
        let size = fits::<_, u64>(block_size, "at most 64 KiB");
        if blocks > bytes / size {
            return corrupt(format!("it has {blocks} blocks of {size} bytes, more than the partition has"));
        }
        let dynamic = u32_at(raw, 0x4c) > 0;
        let inode_size = if dynamic { usize::from(u16_at(raw, 0x58)) } else { 128 };
        let descriptor_size =
            if incompat & INCOMPAT_64BIT != 0 { usize::from(u16_at(raw, 0xfe)) } else { 32 };
        if !(128..=block_size).contains(&inode_size) || !inode_size.is_power_of_two() {
            return corrupt(format!("its inodes have {inode_size} bytes"));
        }
        if !(32..=1024).contains(&descriptor_size) || !descriptor_size.is_power_of_two() {
            return corrupt(format!("its group descriptors have {descriptor_size} bytes"));
        }
        let (blocks_per_group, inodes_per_group) = (u32_at(raw, 0x20), u32_at(raw, 0x28));
        let first_block = u32_at(raw, 0x14);
        if blocks_per_group < 8
            || inodes_per_group == 0
            || u64::from(first_block) >= blocks
            || first_block > 1
        {
            return corrupt("its groups have impossible sizes".to_owned());
        }
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&raw[0x68..0x78]);
        let seed =
            if incompat & INCOMPAT_CSUM_SEED != 0 { u32_at(raw, 0x270) } else { crc32c(u32::MAX, &uuid) };
        let sparse = if compat & COMPAT_SPARSE_SUPER2 != 0 {
            Sparse::Two(u32_at(raw, 0x24c), u32_at(raw, 0x250))
        } else if ro_compat & RO_COMPAT_SPARSE_SUPER != 0 {
            Sparse::Powers
        } else {
            Sparse::All
        };
        let dirty = compat & COMPAT_HAS_JOURNAL != 0 && incompat & INCOMPAT_RECOVER != 0;
        Ok(Self {
            block_size,
            blocks,
            inodes: u32_at(raw, 0),
            inode_size,
            inodes_per_group,
            descriptor_size,
            checksums: match (all, ro_compat & RO_COMPAT_GDT_CSUM != 0) {
                (true, _) => Checksums::All(seed),
                (false, true) => Checksums::Groups,
                (false, false) => Checksums::None,
            },
            journal: dirty.then(|| u32_at(raw, 0xe0)),
            large_directories: incompat & INCOMPAT_LARGEDIR != 0,
            blocks_per_group,
            first_block,
            first_meta_group: (incompat & INCOMPAT_META_BG != 0).then(|| u32_at(raw, 0x104)),
            sparse,
        })
    }

    /// Bytes of a block.
    pub(super) fn unit(&self) -> u64 {
        fits(self.block_size, "at most 64 KiB")
    }

    /// Where the descriptor of `group` begins, in bytes of the file system.
    pub(super) fn descriptor_at(&self, group: u32) -> u64 {
        let size: u32 = fits(self.descriptor_size, "at most 1024");
        let each: u32 = fits(self.block_size / self.descriptor_size, "at most 2048");
        let (table_block, within) = (group / each, group % each);
        let block = match self.first_meta_group {
            Some(first) if table_block >= first => {
                let leader = table_block * each;
                let start =
                    u64::from(self.first_block) + u64::from(leader) * u64::from(self.blocks_per_group);
                start + u64::from(self.has_copy(leader))
            }
            _ => u64::from(self.first_block) + 1 + u64::from(table_block),
        };
        block * self.unit() + u64::from(within * size)
    }

    fn has_copy(&self, group: u32) -> bool {
        let power = |base: u32| {
            let mut power = 1_u64;
            while power < u64::from(group) {
                power *= u64::from(base);
            }
            power == u64::from(group)
        };
        match self.sparse {
            _ if group == 0 => true,
            Sparse::All => true,
            Sparse::Powers => group == 1 || power(3) || power(5) || power(7),
            Sparse::Two(first, second) => group == first || group == second,
        }
    }
}

fn refused(incompat: u32) -> Option<FsError> {
    let named = [(1, "compression"), (8, "a journal on another device, or is one"), (0x1000, "dirdata")];
    if let Some((_, name)) = named.iter().find(|(bit, _)| incompat & bit != 0) {
        return Some(FsError::Unsupported(format!("has {name}, which is not supported")));
    }
    let unknown = incompat & !INCOMPAT_KNOWN;
    (unknown != 0).then(|| FsError::Unsupported(format!("has unknown incompatible features ({unknown:#x})")))
}
