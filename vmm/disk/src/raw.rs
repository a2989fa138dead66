//! A raw disk: a regular file or a block device, byte for byte.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::buffer::{ReadBuffer, WriteBuffer, wide};
use crate::concat::ConcatError;
use crate::file::{self, OpenError};
use crate::number::at_most;
use crate::sys;
use crate::traits::{BYTES_MAX, Disk, Extent, ExtentKind, ReadAt, SECTOR};

/// A raw image or block device. Its lock (several readers, or one writer) belongs to the open file
/// description.
#[derive(Debug)]
pub struct RawDisk {
    file: File,
    read_only: bool,
    /// Size of the file in bytes, not necessarily a multiple of the sector size.
    bytes: AtomicU64,
}

/// Why a disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Opening failed.
    #[error("cannot open the disk {path}")]
    Open {
        /// The path.
        path: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The files of the disk are too large together.
    #[error("the files of the disk are too large together")]
    Parts(#[from] ConcatError),
    /// It is larger than any disk can be.
    #[error("the disk is too large")]
    TooLarge(#[source] io::Error),
    /// It is not seekable, or its size is unknown.
    #[error("the file cannot be used as a disk")]
    File(#[from] OpenError),
    /// It is locked by another machine or process.
    #[error(
        "the disk is in use by another machine or command: it can be opened by one writer or by several readers"
    )]
    Locked,
    /// Locking failed.
    #[error("cannot lock the disk")]
    Lock(#[source] io::Error),
}

impl RawDisk {
    /// Opens and locks `path`.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn open(path: &Path, read_only: bool) -> Result<Self, DiskError> {
        let file = OpenOptions::new().read(true).write(!read_only).open(path);
        let file = file.map_err(|source| DiskError::Open { path: path.display().to_string(), source })?;
        Self::new(file, read_only)
    }

    /// Locks an open file, which must be readable and, unless `read_only`, writable.
    ///
    /// # Errors
    /// [`DiskError`], except [`DiskError::Open`].
    pub fn new(file: File, read_only: bool) -> Result<Self, DiskError> {
        let bytes = file::size(file.as_fd())?;
        lock(&file, read_only)?;
        Ok(Self { file, read_only, bytes: AtomicU64::new(bytes) })
    }

    /// Size of the file in bytes, not necessarily a multiple of the sector size.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    fn writable(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        match offset.checked_add(len) {
            Some(end) if end <= self.len() => Ok(()),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

impl ReadAt for RawDisk {
    /// An incomplete last sector counts as a whole one.
    fn len(&self) -> u64 {
        self.file_bytes().next_multiple_of(SECTOR)
    }

    fn read_at(&self, into: &mut dyn ReadBuffer, offset: u64) -> io::Result<usize> {
        let want = at_most(self.len().saturating_sub(offset), into.size());
        if want == 0 {
            return Ok(0);
        }
        match into.read_file(0..want, self.file.as_fd(), offset)? {
            // The rest of the last sector reads as zeroes. Anything before it existed when the
            // disk was opened.
            0 if offset >= self.file_bytes() => {
                into.zero(0..want);
                Ok(want)
            }
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            bytes => Ok(bytes),
        }
    }

    fn extent(&self, offset: u64, len: u64) -> io::Result<Extent> {
        self.extent_of(offset, len)
    }
}

impl RawDisk {
    fn extent_of(&self, offset: u64, len: u64) -> io::Result<Extent> {
        let len = len.min(self.len().saturating_sub(offset));
        let zero = |len| Ok(Extent { len, kind: ExtentKind::Zero, depth: 0, host: None });
        match sys::data_from(self.file.as_fd(), offset) {
            Ok(None) => zero(len),
            Ok(Some(data)) if data > offset => zero(len.min(data - offset)),
            Ok(Some(_)) => {
                let hole = sys::hole_from(self.file.as_fd(), offset)?;
                // One that is there since may be nearer than the data was.
                let len = len.min(hole.saturating_sub(offset)).max(1);
                Ok(Extent { len, kind: ExtentKind::Data, depth: 0, host: Some(offset) })
            }
            // A block device, or a file system that does not tell.
            Err(_) => Ok(Extent { len, kind: ExtentKind::Data, depth: 0, host: Some(offset) }),
        }
    }
}

impl Disk for RawDisk {
    fn read_only(&self) -> bool {
        self.read_only
    }

    fn block_size(&self) -> u32 {
        512
    }

    fn write_at(&self, from: &dyn WriteBuffer, offset: u64) -> io::Result<usize> {
        self.writable(offset, wide(from.size()))?;
        match from.write_file(0..from.size(), self.file.as_fd(), offset)? {
            0 if from.size() > 0 => Err(io::ErrorKind::WriteZero.into()),
            bytes => Ok(bytes),
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.writable(offset, len)?;
        match sys::punch_hole(self.file.as_fd(), offset, len) {
            // Discarding is a hint.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            result => result,
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.writable(offset, len)?;
        // A range that extends beyond the end of the file (in its last sector) would need to extend
        // the file, which only writing does.
        let fast = if offset + len > self.file_bytes() {
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

    /// A block device must have become as large before.
    fn grow(&self, bytes: u64) -> io::Result<()> {
        if self.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        if bytes < self.len() || !bytes.is_multiple_of(SECTOR) || bytes > BYTES_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let there = file::size(self.file.as_fd()).map_err(io::Error::other)?;
        if there < bytes {
            // By the descriptor alone: the standard library's way is one by names, too, which a
            // confined process may not go.
            let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&self.file)?.st_mode);
            if !kind.is_file() {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            self.file.set_len(bytes)?;
        }
        self.file.sync_all()?;
        self.bytes.store(bytes, Ordering::Release);
        Ok(())
    }
}

/// Locks a file for one writer or several readers, against Nelly and QEMU. The locks are the open
/// file's: to lock what is locked by whoever passed it on changes nothing.
pub(crate) fn lock(file: &File, read_only: bool) -> Result<(), DiskError> {
    let lock = loop {
        match if read_only { file.try_lock_shared() } else { file.try_lock() } {
            // A file system of the network waits even where the caller does not.
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            lock => break lock,
        }
    };
    match lock {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(DiskError::Locked),
        // The file system does not support locks.
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
        Err(TryLockError::Error(error)) => return Err(DiskError::Lock(error)),
    }
    match sys::lock_as_qemu(file, read_only) {
        Ok(true) => Ok(()),
        Ok(false) => Err(DiskError::Locked),
        // The system or the file system does not support locks of ranges.
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
        Err(error) => Err(DiskError::Lock(error)),
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

    use super::*;

    fn read(disk: &RawDisk, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0xa5; len];
        let read = disk.read_at(&mut bytes, offset)?;
        bytes.truncate(read);
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
    fn what_was_written_behind_the_files_end_is_read_again() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 700]).unwrap();
        let disk = RawDisk::new(file, false).unwrap();
        assert_eq!(disk.write_at(&[5; 512], 512).unwrap(), 512);
        assert_eq!(read(&disk, 700, 324).unwrap(), [5; 324]);
        assert_eq!(read(&disk, 512, 512).unwrap(), [5; 512]);
    }

    #[test]
    fn nothing_is_written_beyond_the_end_nor_where_only_reading_is_allowed() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 1024]).unwrap();
        let other = file.try_clone().unwrap();
        let disk = RawDisk::new(file, false).unwrap();
        for (offset, len) in [(512, 1024), (1024, 512), (u64::MAX, 512), (u64::MAX - 511, 512), (0, 1536)] {
            let data = vec![1; usize::try_from(len).unwrap()];
            let refused = [
                disk.write_at(&data, offset).err(),
                disk.discard(offset, len).err(),
                disk.write_zeroes(offset, len, false).err(),
            ];
            for error in refused {
                assert_eq!(error.unwrap().kind(), io::ErrorKind::InvalidInput, "{offset} {len}");
            }
        }
        drop(disk);
        let disk = RawDisk::new(other, true).unwrap();
        let refused = [
            disk.write_at(&[1; 512], 0).err(),
            disk.discard(0, 512).err(),
            disk.write_zeroes(0, 512, true).err(),
        ];
        for error in refused {
            assert_eq!(error.unwrap().kind(), io::ErrorKind::ReadOnlyFilesystem);
        }
        assert_eq!(read(&disk, 0, 4096).unwrap(), [7; 1024]);
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
    fn it_grows_and_never_shrinks() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 700]).unwrap();
        let other = file.try_clone().unwrap();
        let disk = RawDisk::new(file, false).unwrap();
        for bytes in [512, 700, 1025, u64::MAX] {
            assert_eq!(disk.grow(bytes).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{bytes}");
        }
        assert_eq!(disk.write_at(&[5; 512], 1024).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        disk.grow(4096).unwrap();
        assert_eq!((disk.len(), other.metadata().unwrap().len()), (4096, 4096));
        assert_eq!(read(&disk, 700, 4096).unwrap(), [0; 3396]);
        assert_eq!(disk.write_at(&[5; 512], 1024).unwrap(), 512);
        let disk = RawDisk::new(other, true).unwrap();
        assert_eq!(disk.grow(8192).unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
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
        assert!(matches!(RawDisk::open(Path::new("/"), true), Err(DiskError::File(OpenError::Kind))));
        assert!(matches!(RawDisk::open(Path::new("/dev/null"), true), Err(DiskError::File(OpenError::Kind))));
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
