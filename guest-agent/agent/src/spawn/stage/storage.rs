//! The disk of writable layers: an ext4 file system that the host made, and that grows to the size
//! of its disk when it is mounted.
//!
//! On it lie `upper` and `work`, the directories of the container's overlay, and `volumes/NAME`.
//! Whoever is root in a container with all rights may have written anything to it: it is read as
//! what it is, and a name that is no directory is refused.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, FileExt};

use super::{Named, StageError};
use crate::sys;

/// `noinit_itable`: what the host added to the disk reads as zeros, so that growing writes none.
/// `discard`: space that is freed here is freed on the host.
const OPTIONS: &str = "noinit_itable,discard";

/// Mounts the disk on `place`, which replays its journal, and lets its file system fill it.
pub(super) fn mount(device: &str, place: &str) -> Result<(), StageError> {
    sys::mount(device, place, "ext4", 0, OPTIONS).map_err(|error| {
        let what = match error.raw_os_error() {
            Some(libc::EINVAL | libc::EUCLEAN | libc::EBADMSG | libc::EIO | libc::EFBIG) => {
                format!("mount the disk {device} of the writable layer (it is damaged, or has no ext4 file system)")
            }
            _ => format!("mount the disk {device} of the writable layer"),
        };
        StageError::Step(what, error)
    })?;
    grow(device, place).step(|| format!("grow the file system to the size of the disk {device}"))
}

/// Byte offsets in an ext4 superblock, itself at 1024 (kernel: fs/ext4/ext4.h).
const SUPERBLOCK_AT: u64 = 1024;
const BLOCKS_LOW: usize = 0x4;
const LOG_BLOCK_SIZE: usize = 0x18;
const BLOCKS_HIGH: usize = 0x150;

fn grow(device: &str, place: &str) -> io::Result<()> {
    let mut disk = File::open(device)?;
    let bytes = disk.seek(SeekFrom::End(0))?;
    // Of the block device, which shares its cache with the mounted file system.
    let mut superblock = [0; 1024];
    disk.read_exact_at(&mut superblock, SUPERBLOCK_AT)?;
    drop(disk);
    match blocks_to_have(&superblock, bytes) {
        Some(blocks) => sys::resize_ext4(&File::open(place)?, blocks),
        None => Ok(()),
    }
}

/// The number of blocks that fit into `bytes`, if that is more than the file system has.
fn blocks_to_have(superblock: &[u8; 1024], bytes: u64) -> Option<u64> {
    let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|index| superblock[at + index]));
    let block = 1024_u64.checked_shl(word(LOG_BLOCK_SIZE)).filter(|block| (1024..=65536).contains(block))?;
    let have = u64::from(word(BLOCKS_HIGH)) << 32 | u64::from(word(BLOCKS_LOW));
    Some(bytes / block).filter(|blocks| *blocks > have)
}

/// Makes a directory unless it is there. A link or a file in its place is refused.
pub(super) fn make_directory(path: &str) -> Result<(), StageError> {
    match DirBuilder::new().mode(0o755).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let found = fs::symlink_metadata(path).step(|| format!("look at {path}"))?;
            if found.is_dir() { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ENOTDIR)) }
        }
        made => made,
    }
    .step(|| format!("make {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock(log: u32, low: u32, high: u32) -> [u8; 1024] {
        let mut bytes = [0; 1024];
        for (at, word) in [(LOG_BLOCK_SIZE, log), (BLOCKS_LOW, low), (BLOCKS_HIGH, high)] {
            bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn it_grows_by_whole_blocks_and_never_shrinks() {
        for (log, low, high, bytes, wanted) in [
            (2, 16384, 0, 64 << 20, None),
            (2, 16384, 0, (64 << 20) + 4095, None),
            (2, 16384, 0, (64 << 20) + 4096, Some(16385)),
            (2, 16384, 0, 1 << 40, Some(1 << 28)),
            (0, 1, 0, 4096, Some(4)),
            (2, 0, 1, 1 << 44, None),
            (2, 1, 1, 1 << 45, Some(1 << 33)),
            (2, 16384, 0, 1 << 20, None),
            (60, 1, 0, 1 << 20, None),
            (u32::MAX, 1, 0, 1 << 20, None),
        ] {
            assert_eq!(
                blocks_to_have(&superblock(log, low, high), bytes),
                wanted,
                "{log} {low} {high} {bytes}"
            );
        }
    }

    #[test]
    fn what_is_no_directory_is_not_taken_for_one() {
        let top = tempfile::tempdir().expect("a directory");
        let at = |name: &str| top.path().join(name).to_str().expect("UTF-8").to_owned();
        make_directory(&at("a")).expect("made");
        make_directory(&at("a")).expect("there");
        std::os::unix::fs::symlink("a", at("link")).expect("linked");
        fs::write(at("file"), "").expect("written");
        for name in ["link", "file"] {
            let error = make_directory(&at(name)).expect_err(name).to_string();
            assert!(error.contains(&at(name)), "{error}");
        }
    }
}
