//! The on-disk structures (kernel: fs/erofs/erofs_fs.h). Everything is little-endian.

use crate::num::fits;

/// log2 of the block size: 4096 bytes, which every kernel mounts.
const BLOCK_BITS: u8 = 12;
/// Bytes of a block.
pub(crate) const BLOCK_SIZE: usize = 1 << BLOCK_BITS;
/// The same, for offsets.
pub(crate) const BLOCK: u64 = 1 << BLOCK_BITS;
/// Where the superblock stands in the first block.
const SUPER_OFFSET: usize = 1024;
const MAGIC: u32 = 0xe0f5_e1e2;
/// Compatible features: the superblock has a checksum, times are of modification.
const FEATURE_CHECKSUM: u32 = 1;
const FEATURE_MTIME: u32 = 2;

/// Inodes are addressed in slots of this many bytes.
pub(super) const SLOT: u64 = 32;
/// Bytes of an inode of either form.
pub(super) const COMPACT_INODE: usize = 32;
pub(super) const EXTENDED_INODE: usize = 64;

/// What the superblock says of an image.
pub(super) struct Superblock {
    pub(super) root_nid: u16,
    pub(super) inodes: u64,
    /// Blocks of the whole image.
    pub(super) blocks: u32,
    pub(super) meta_block: u32,
    pub(super) xattr_block: u32,
    pub(super) uuid: [u8; 16],
}

/// What each value of a byte does to a CRC-32C.
const CRC32C: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc: u32 = byte;
        let mut bit = 0;
        while bit < 8 {
            crc = crc >> 1 ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
            bit += 1;
        }
        table[byte as usize] = crc;
        byte += 1;
    }
    table
};

/// CRC-32C as the kernel keeps it: without the final inversion.
fn crc32c(data: &[u8]) -> u32 {
    data.iter().fold(u32::MAX, |crc, byte| {
        let [low, ..] = crc.to_le_bytes();
        crc >> 8 ^ CRC32C[usize::from(low ^ byte)]
    })
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

impl Superblock {
    /// The first block of the image.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut block = vec![0; BLOCK_SIZE];
        let sb = &mut block[SUPER_OFFSET..];
        put(sb, 0, &MAGIC.to_le_bytes());
        put(sb, 8, &(FEATURE_CHECKSUM | FEATURE_MTIME).to_le_bytes());
        sb[12] = BLOCK_BITS;
        put(sb, 14, &self.root_nid.to_le_bytes());
        put(sb, 16, &self.inodes.to_le_bytes());
        // build_time stays 0: it is the time of compact inodes, and reproducible images have many
        // of them.
        put(sb, 36, &self.blocks.to_le_bytes());
        put(sb, 40, &self.meta_block.to_le_bytes());
        put(sb, 44, &self.xattr_block.to_le_bytes());
        put(sb, 48, &self.uuid);
        let crc = crc32c(sb);
        put(sb, 4, &crc.to_le_bytes());
        block
    }
}

fn le32(block: &[u8], at: usize) -> Option<u32> {
    block.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

/// Whether `block` is the first block of a whole image of `file_size` bytes as this writer makes
/// them.
pub(crate) fn check_superblock(block: &[u8; BLOCK_SIZE], file_size: u64) -> bool {
    let mut sb = block[SUPER_OFFSET..].to_vec();
    let (Some(magic), Some(crc), Some(blocks)) = (le32(&sb, 0), le32(&sb, 4), le32(&sb, 36)) else {
        return false;
    };
    sb[4..8].fill(0);
    magic == MAGIC && crc == crc32c(&sb) && u64::from(blocks) * BLOCK == file_size
}

/// How an inode's data is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DataLayout {
    /// All of it in whole blocks.
    Plain,
    /// Whole blocks, and the rest directly after the inode and its attributes.
    Inline,
}

/// An inode as it is written.
pub(super) struct Inode {
    pub(super) layout: DataLayout,
    /// Bytes of the attributes after the inode.
    pub(super) xattr_bytes: usize,
    /// Type and permission bits.
    pub(super) mode: u16,
    pub(super) links: u32,
    pub(super) size: u64,
    /// First block, or device number.
    pub(super) location: u32,
    /// Number for 32-bit stat.
    pub(super) number: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: i64,
    pub(super) mtime_nsec: u32,
}

impl Inode {
    /// Bytes of the form that the values need.
    pub(super) fn bytes(&self) -> usize {
        if self.compact().is_some() { COMPACT_INODE } else { EXTENDED_INODE }
    }

    /// The values of a compact inode, if they fit.
    fn compact(&self) -> Option<(u16, u32, u16, u16)> {
        if self.mtime != 0 || self.mtime_nsec != 0 {
            return None;
        }
        Some((
            u16::try_from(self.links).ok()?,
            u32::try_from(self.size).ok()?,
            u16::try_from(self.uid).ok()?,
            u16::try_from(self.gid).ok()?,
        ))
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let layout: u16 = match self.layout {
            DataLayout::Plain => 0,
            DataLayout::Inline => 2,
        };
        // 12 bytes count as 1, each 4 more as another.
        let xattr_count: u16 = match self.xattr_bytes {
            0 => 0,
            bytes => fits((bytes - 12) / 4 + 1, "the tree refuses more attributes than that"),
        };
        if let Some((links, size, uid, gid)) = self.compact() {
            out.extend((layout << 1).to_le_bytes());
            out.extend(xattr_count.to_le_bytes());
            out.extend(self.mode.to_le_bytes());
            out.extend(links.to_le_bytes());
            out.extend(size.to_le_bytes());
            out.extend([0; 4]);
            out.extend(self.location.to_le_bytes());
            out.extend(self.number.to_le_bytes());
            out.extend(uid.to_le_bytes());
            out.extend(gid.to_le_bytes());
            out.extend([0; 4]);
            return;
        }
        out.extend((layout << 1 | 1).to_le_bytes());
        out.extend(xattr_count.to_le_bytes());
        out.extend(self.mode.to_le_bytes());
        out.extend([0; 2]);
        out.extend(self.size.to_le_bytes());
        out.extend(self.location.to_le_bytes());
        out.extend(self.number.to_le_bytes());
        out.extend(self.uid.to_le_bytes());
        out.extend(self.gid.to_le_bytes());
        out.extend(self.mtime.to_le_bytes());
        out.extend(self.mtime_nsec.to_le_bytes());
        out.extend(self.links.to_le_bytes());
        out.extend([0; 16]);
    }
}

/// A device number as the kernel's `new_encode_dev` packs it: 12 bits of major, 20 of minor.
pub(super) fn device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_of_a_known_text() {
        // The check value of CRC-32C is 0xe3069283 with the final inversion.
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_superblock_is_recognised_and_damage_too() {
        let sb =
            Superblock { root_nid: 2, inodes: 1, blocks: 2, meta_block: 1, xattr_block: 0, uuid: [7; 16] };
        let block: [u8; BLOCK_SIZE] = sb.encode().try_into().unwrap();
        assert!(check_superblock(&block, 8192));
        assert!(!check_superblock(&block, 4096));
        for at in [1024, 1028, 1100, 4095] {
            let mut damaged = block;
            damaged[at] ^= 1;
            assert!(!check_superblock(&damaged, 8192), "{at}");
        }
    }

    #[test]
    fn device_numbers() {
        assert_eq!(device(1, 3), 0x103);
        assert_eq!(device(0xfff, 0xf_ffff), 0xffff_ffff);
        assert_eq!(device(8, 0x101), 0x10_0801);
    }
}
