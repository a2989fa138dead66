//! Answers, encoded.

use std::time::Duration;

use crate::errno::Errno;
use crate::wire::request::{LockKind, LockRange, OUT_HEADER};

/// `fuse_attr`, 88 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attr {
    /// Number of the inode, which programs of the guest see.
    pub ino: u64,
    /// Bytes of the file.
    pub size: u64,
    /// Blocks of 512 bytes that it occupies.
    pub blocks: u64,
    /// Time of access: seconds since 1970 and nanoseconds.
    pub atime: (i64, u32),
    /// Time of change of the contents.
    pub mtime: (i64, u32),
    /// Time of change of the inode.
    pub ctime: (i64, u32),
    /// Kind and permissions.
    pub mode: u32,
    /// Names that it has.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of the device that it stands for, as `new_encode_dev` of Linux writes it.
    pub rdev: u32,
    /// Bytes of the blocks in which it is best read.
    pub block_size: u32,
}

impl Attr {
    fn encode(&self) -> [u8; 88] {
        let mut out = [0; 88];
        let longs = [
            self.ino,
            self.size,
            self.blocks,
            self.atime.0.cast_unsigned(),
            self.mtime.0.cast_unsigned(),
            self.ctime.0.cast_unsigned(),
        ];
        let words = [
            self.atime.1,
            self.mtime.1,
            self.ctime.1,
            self.mode,
            self.nlink,
            self.uid,
            self.gid,
            self.rdev,
            self.block_size,
            0,
        ];
        for (place, value) in out.chunks_exact_mut(8).zip(longs) {
            place.copy_from_slice(&value.to_le_bytes());
        }
        for (place, value) in out[48..].chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&value.to_le_bytes());
        }
        out
    }
}

/// `fuse_entry_out`: an inode under a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The driver's number of the inode; 0: there is none.
    pub node: u64,
    /// How long the name and the attributes are valid.
    pub valid: Duration,
    /// The attributes.
    pub attr: Attr,
}

/// `fuse_entry_out`. A number of an inode is never used again, so that its generation is 0.
#[must_use]
pub fn entry_out(entry: &Entry) -> [u8; 128] {
    let mut out = [0; 128];
    let seconds = entry.valid.as_secs().to_le_bytes();
    let nanos = entry.valid.subsec_nanos().to_le_bytes();
    out[..8].copy_from_slice(&entry.node.to_le_bytes());
    out[16..24].copy_from_slice(&seconds);
    out[24..32].copy_from_slice(&seconds);
    out[32..36].copy_from_slice(&nanos);
    out[36..40].copy_from_slice(&nanos);
    out[40..].copy_from_slice(&entry.attr.encode());
    out
}

/// `fuse_attr_out`.
#[must_use]
pub fn attr_out(attr: &Attr, valid: Duration) -> [u8; 104] {
    let mut out = [0; 104];
    out[..8].copy_from_slice(&valid.as_secs().to_le_bytes());
    out[8..12].copy_from_slice(&valid.subsec_nanos().to_le_bytes());
    out[16..].copy_from_slice(&attr.encode());
    out
}

/// `fuse_open_out`: a handle and flags (FOPEN_...).
#[must_use]
pub fn open_out(handle: u64, flags: u32) -> [u8; 16] {
    let mut out = [0; 16];
    out[..8].copy_from_slice(&handle.to_le_bytes());
    out[8..12].copy_from_slice(&flags.to_le_bytes());
    out
}

/// `fuse_lk_out`: the lock that is in the way, or an unlocked range.
#[must_use]
pub fn lock_out(lock: &LockRange) -> [u8; 24] {
    let mut out = [0; 24];
    let kind: u32 = match lock.kind {
        LockKind::Read => 0,
        LockKind::Write => 1,
        LockKind::Unlock => 2,
    };
    out[..8].copy_from_slice(&lock.start.to_le_bytes());
    out[8..16].copy_from_slice(&lock.end.to_le_bytes());
    out[16..20].copy_from_slice(&kind.to_le_bytes());
    out
}

/// `fuse_kstatfs`: space of the file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatFs {
    /// Blocks, of `fragment` bytes.
    pub blocks: u64,
    /// Free ones.
    pub free: u64,
    /// Free ones that users may have.
    pub available: u64,
    /// Inodes.
    pub files: u64,
    /// Free ones.
    pub files_free: u64,
    /// Bytes of a block that is best read.
    pub block_size: u32,
    /// Bytes of the blocks that are counted.
    pub fragment: u32,
}

impl StatFs {
    /// `fuse_statfs_out`.
    #[must_use]
    pub fn encode(&self) -> [u8; 80] {
        let mut out = [0; 80];
        let longs = [self.blocks, self.free, self.available, self.files, self.files_free];
        for (place, value) in out.chunks_exact_mut(8).zip(longs) {
            place.copy_from_slice(&value.to_le_bytes());
        }
        // bsize, namelen, frsize
        for (place, value) in out[40..].chunks_exact_mut(4).zip([self.block_size, 255, self.fragment]) {
            place.copy_from_slice(&value.to_le_bytes());
        }
        out
    }
}

/// `fuse_out_header` of an answer whose body has `body` bytes.
///
/// # Panics
/// The body has 4 GiB or more, which no buffer of an answer has.
#[must_use]
pub fn out_header(unique: u64, error: Option<Errno>, body: usize) -> [u8; OUT_HEADER] {
    let mut out = [0; OUT_HEADER];
    let len: u32 = nelly_disk::number::fits(OUT_HEADER + body, "an answer has less than 4 GiB");
    out[..4].copy_from_slice(&len.to_le_bytes());
    out[4..8].copy_from_slice(&(-error.map_or(0, Errno::number)).to_le_bytes());
    out[8..].copy_from_slice(&unique.to_le_bytes());
    out
}

/// Bytes of `fuse_dirent` with a name of `name` bytes, `fuse_direntplus` if `plus`: records are
/// padded to 8 bytes.
fn dirent_len(name: usize, plus: bool) -> usize {
    (if plus { 128 } else { 0 } + 24 + name).next_multiple_of(8)
}

/// Whether another entry fits behind `used` bytes in `room`.
#[must_use]
pub fn fits_dirent(used: usize, room: usize, name: usize, plus: bool) -> bool {
    used.checked_add(dirent_len(name, plus)).is_some_and(|end| end <= room)
}

/// Appends `fuse_dirent`, or `fuse_direntplus` with `entry`. `offset` is where the next entry
/// is, `kind` a DT_ number.
pub fn dirent(into: &mut Vec<u8>, entry: Option<&Entry>, ino: u64, offset: u64, kind: u32, name: &[u8]) {
    let start = into.len();
    if let Some(entry) = entry {
        into.extend_from_slice(&entry_out(entry));
    }
    let len: u32 = nelly_disk::number::fits(name.len(), "a name has at most 255 bytes");
    into.extend_from_slice(&ino.to_le_bytes());
    into.extend_from_slice(&offset.to_le_bytes());
    into.extend_from_slice(&len.to_le_bytes());
    into.extend_from_slice(&kind.to_le_bytes());
    into.extend_from_slice(name);
    // Padding is zero: nothing of this process leaves it.
    into.resize(start + dirent_len(name.len(), entry.is_some()), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_layout_of_linux() {
        let attr = Attr {
            ino: 1,
            size: 2,
            blocks: 3,
            atime: (-4, 5),
            mtime: (6, 7),
            ctime: (8, 9),
            mode: 10,
            nlink: 11,
            uid: 12,
            gid: 13,
            rdev: 14,
            block_size: 15,
        };
        let out = attr.encode();
        let long = |at: usize| u64::from_le_bytes(*out[at..].first_chunk().unwrap());
        let word = |at: usize| u32::from_le_bytes(*out[at..].first_chunk().unwrap());
        assert_eq!([0, 8, 16, 32, 40].map(long), [1, 2, 3, 6, 8]);
        assert_eq!(long(24).cast_signed(), -4);
        let words = [48, 52, 56, 60, 64, 68, 72, 76, 80, 84].map(word);
        assert_eq!(words, [5, 7, 9, 10, 11, 12, 13, 14, 15, 0]);
        let entry = Entry { node: 77, valid: Duration::from_millis(1500), attr };
        let out = entry_out(&entry);
        assert_eq!((out[0], out[16], out[24]), (77, 1, 1));
        assert_eq!(out[32..36], 500_000_000_u32.to_le_bytes());
        assert_eq!(out[40..], attr.encode());
        assert_eq!(attr_out(&attr, Duration::ZERO)[16..], attr.encode());
        let header = out_header(9, Some(Errno::NOENT), 0);
        assert_eq!(header[..8], [16, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff]);
    }

    #[test]
    fn entries_are_padded_with_zeroes_and_bounded() {
        let mut out = Vec::new();
        dirent(&mut out, None, 5, 6, 8, b"abc");
        assert_eq!(out.len(), 32);
        assert_eq!(out[16], 3);
        assert_eq!(&out[24..], b"abc\0\0\0\0\0");
        dirent(&mut out, Some(&Entry::default()), 5, 6, 4, b"12345678");
        assert_eq!(out.len(), 32 + 160);
        assert!(fits_dirent(0, 32, 3, false) && !fits_dirent(1, 32, 3, false));
        assert!(fits_dirent(0, 160, 8, true) && !fits_dirent(0, 159, 8, true));
        assert!(!fits_dirent(usize::MAX, usize::MAX, 8, true));
    }
}
