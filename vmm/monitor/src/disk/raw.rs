//! A raw disk: a regular file or a block device, byte for byte.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{Disk, SECTOR};
use crate::memory::IoVecs;
use crate::sys::{self, at_most, fits};

/// A raw image or block device. The lock on it (many readers, or one writer) goes with the open file description.
#[derive(Debug)]
pub struct RawDisk {
    file: File,
    read_only: bool,
    /// Bytes the file has, perhaps no whole sectors.
    bytes: u64,
}

/// Why a disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Opening failed.
    #[error("cannot open the disk {path}")]
    Open {
        /// As given.
        path: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Its size cannot be told: a directory, a pipe or a terminal.
    #[error("the disk is no regular file and no block device")]
    Kind,
    /// Its size cannot be told.
    #[error("cannot find out the disk's size")]
    Size(#[source] io::Error),
    /// Another machine or process uses it.
    #[error("the disk is in use: one writer, or any number of readers, may hold it")]
    Locked,
    /// The lock cannot be had.
    #[error("cannot lock the disk")]
    Lock(#[source] io::Error),
}

impl RawDisk {
    /// Opens and locks `path`.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, DiskError> {
        let file = OpenOptions::new().read(true).write(!read_only).open(path);
        let file = file.map_err(|source| DiskError::Open { path: path.display().to_string(), source })?;
        Self::new(file, read_only)
    }

    /// Locks and takes a file that is open for reading and, unless `read_only`, for writing.
    pub fn new(mut file: File, read_only: bool) -> Result<Self, DiskError> {
        use std::os::unix::fs::FileTypeExt;
        let kind = file.metadata().map_err(DiskError::Size)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(DiskError::Kind);
        }
        let lock = if read_only { file.try_lock_shared() } else { file.try_lock() };
        match lock {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DiskError::Locked),
            // A file system without locks: there is nothing to hold.
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(error)) => return Err(DiskError::Lock(error)),
        }
        // A block device's metadata says 0; its end does not.
        let bytes = file.seek(SeekFrom::End(0)).map_err(DiskError::Size)?;
        Ok(Self { file, read_only, bytes })
    }

    /// Bytes of the file, perhaps no whole sectors.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.bytes
    }
}

impl Disk for RawDisk {
    /// A last sector that the file fills in part only is a whole one to the guest.
    fn len(&self) -> u64 {
        self.bytes.div_ceil(SECTOR) * SECTOR
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn block_size(&self) -> u32 {
        512
    }

    fn read_at(&self, pieces: &IoVecs<'_>, offset: u64) -> io::Result<usize> {
        match pieces.read_at(self.file.as_fd(), offset)? {
            // The rest of the last sector reads as zeroes. Anything before it was there when the disk was opened.
            0 if offset >= self.bytes => {
                let rest = fits(self.len().saturating_sub(offset), "hosts of Nelly have 64 bits");
                pieces.zero(rest)
            }
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            bytes => Ok(bytes),
        }
    }

    fn write_at(&self, pieces: &IoVecs<'_>, offset: u64) -> io::Result<usize> {
        match pieces.write_at(self.file.as_fd(), offset)? {
            0 => Err(io::ErrorKind::WriteZero.into()),
            bytes => Ok(bytes),
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        match sys::punch_hole(self.file.as_fd(), offset, len) {
            // Discarding is a hint.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            result => result,
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        // A range that goes beyond the file's end (in its last sector) makes the file longer: only writing does.
        let fast = if offset + len > self.bytes {
            Err(io::ErrorKind::Unsupported.into())
        } else if unmap {
            sys::punch_hole(self.file.as_fd(), offset, len)
        } else {
            sys::zero_range(self.file.as_fd(), offset, len)
        };
        match fast {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => zeroes(&self.file, offset, len),
            result => result,
        }
    }
}

fn zeroes(file: &File, mut offset: u64, mut len: u64) -> io::Result<()> {
    static ZEROES: [u8; 65536] = [0; 65536];
    while len > 0 {
        let piece = at_most(len, ZEROES.len());
        file.write_all_at(&ZEROES[..piece], offset)?;
        offset += piece as u64;
        len -= piece as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

    use super::*;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap()
    }

    fn read(disk: &RawDisk, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let memory = memory();
        memory.write_slice(&[0xa5; 0x10000], GuestAddress(0)).unwrap();
        let mut vecs = IoVecs::with_capacity(1);
        vecs.push(&memory.get_slice(GuestAddress(0), len).unwrap());
        let read = disk.read_at(&vecs, offset)?;
        let mut bytes = vec![0; read];
        memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        Ok(bytes)
    }

    #[test]
    fn the_last_part_of_a_sector_reads_as_zeroes() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 700]).unwrap();
        let disk = RawDisk::new(file, false).unwrap();
        assert_eq!((disk.len(), disk.file_bytes()), (1024, 700));
        assert_eq!(read(&disk, 512, 512).unwrap(), [7; 188]);
        assert_eq!(read(&disk, 700, 324).unwrap(), [0; 324]);
        assert_eq!(read(&disk, 700, 5000).unwrap(), [0; 324], "nothing lies beyond the last sector");
        disk.write_zeroes(512, 512, true).unwrap();
        assert_eq!(disk.file.metadata().unwrap().len(), 1024);
    }

    #[test]
    fn a_file_that_shrank_is_an_error_and_no_zeroes() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 1024]).unwrap();
        let disk = RawDisk::new(file, false).unwrap();
        disk.file.set_len(512).unwrap();
        assert_eq!(read(&disk, 512, 512).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn one_writer_or_many_readers() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let open = |read_only| RawDisk::open(path.path(), read_only);
        let (first, second) = (open(true).unwrap(), open(true).unwrap());
        assert!(matches!(open(false), Err(DiskError::Locked)));
        drop((first, second));
        let writer = open(false).unwrap();
        assert!(matches!(open(true), Err(DiskError::Locked)));
        assert!(matches!(open(false), Err(DiskError::Locked)));
        drop(writer);
        open(false).unwrap();
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        assert!(matches!(RawDisk::open(Path::new("/"), true), Err(DiskError::Kind)));
        assert!(matches!(RawDisk::open(Path::new("/dev/null"), true), Err(DiskError::Kind)));
        assert!(matches!(RawDisk::open(Path::new("/no/such/disk"), true), Err(DiskError::Open { .. })));
    }

    #[test]
    fn discarded_and_zeroed_ranges_read_as_zeroes_and_keep_the_size() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 65536]).unwrap();
        let disk = RawDisk::new(file, false).unwrap();
        disk.write_zeroes(4096, 8192, false).unwrap();
        disk.write_zeroes(16384, 4096, true).unwrap();
        zeroes(&disk.file, 32768, 512).unwrap();
        assert_eq!(read(&disk, 3584, 512).unwrap(), [7; 512]);
        assert_eq!(read(&disk, 4096, 8192).unwrap(), [0; 8192]);
        assert_eq!(read(&disk, 16384, 4096).unwrap(), [0; 4096]);
        assert_eq!(read(&disk, 32768, 1024).unwrap()[511..513], [0, 7]);
        disk.discard(65024, 512).unwrap();
        assert_eq!(disk.file.metadata().unwrap().len(), 65536);
    }
}
