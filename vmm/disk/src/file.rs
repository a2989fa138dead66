//! A file that is only read, and one that a format's engine writes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, SeekFrom};

use crate::buffer::{ReadBuffer, WriteBuffer};
use crate::number::{at_most, fits};
use crate::store::Store;
use crate::sys;
use crate::traits::{Mappable, ReadAt};

/// Why a file cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A directory, a pipe or a terminal has no bytes at positions.
    #[error("it is neither a regular file nor a block device")]
    Kind,
    /// The system does not tell.
    #[error("cannot determine its size")]
    Size(#[source] io::Error),
}

/// A regular file or a block device, whose size is asked for once: one that is cut short later
/// fails to be read, and what is appended is not seen.
#[derive(Debug)]
pub struct FileReader<F> {
    file: F,
    len: u64,
    immutable: bool,
}

impl<F: AsFd> FileReader<F> {
    /// Reads `file`, which is open for it. Its position is neither used nor, of a regular file,
    /// moved.
    ///
    /// # Errors
    /// It is something else, or its size cannot be told.
    pub fn new(file: F) -> Result<Self, OpenError> {
        let len = size(file.as_fd())?;
        Ok(Self { file, len, immutable: false })
    }

    /// The same with the caller's word that nobody can change or cut the file while it is used (a
    /// sealed memory file, a file of our own cache): its pages may be mapped. Truncation under a
    /// mapping would end the process by SIGBUS.
    #[must_use]
    pub fn immutable(self) -> Self {
        Self { immutable: true, ..self }
    }
}

impl<F: AsFd + Send + Sync> ReadAt for FileReader<F> {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, into: &mut dyn ReadBuffer, offset: u64) -> io::Result<usize> {
        let want = at_most(self.len.saturating_sub(offset), into.size());
        if want == 0 {
            return Ok(0);
        }
        match into.read_file(0..want, self.file.as_fd(), offset)? {
            // It had these bytes when it was opened.
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => Ok(read),
        }
    }

    fn mappable(&self, offset: u64, len: u64) -> Option<Mappable<'_>> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len);
        (self.immutable && inside).then(|| Mappable { file: self.file.as_fd(), offset })
    }
}

impl Store for File {
    fn len(&self) -> io::Result<u64> {
        size(self.as_fd()).map_err(io::Error::other)
    }

    fn read_into(&self, into: &mut dyn ReadBuffer, range: Range<usize>, offset: u64) -> io::Result<usize> {
        if range.is_empty() { Ok(0) } else { into.read_file(range, self.as_fd(), offset) }
    }

    fn write_from(&self, from: &dyn WriteBuffer, range: Range<usize>, offset: u64) -> io::Result<usize> {
        if range.is_empty() { Ok(0) } else { from.write_file(range, self.as_fd(), offset) }
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        Self::set_len(self, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        sys::punch_hole(self.as_fd(), offset, len)
    }
}

/// Bytes of a regular file or a block device. A block device's metadata says 0; its end does not,
/// and asking for it moves its position.
pub(crate) fn size(file: BorrowedFd<'_>) -> Result<u64, OpenError> {
    let failed = |error: rustix::io::Errno| OpenError::Size(error.into());
    let meta = rustix::fs::fstat(file).map_err(failed)?;
    match FileType::from_raw_mode(meta.st_mode) {
        FileType::RegularFile => Ok(fits(meta.st_size, "no file has less than no bytes")),
        FileType::BlockDevice => rustix::fs::seek(file, SeekFrom::End(0)).map_err(failed),
        _ => Err(OpenError::Kind),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;
    use crate::testing::Slow;

    fn file_of(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn a_file_is_what_it_was_when_it_was_opened() {
        let mut file = file_of(b"0123456789");
        let reader = FileReader::new(&file).unwrap();
        let mut buffer = [b'.'; 8];
        assert_eq!(reader.read_at(&mut buffer, 6).unwrap(), 4);
        assert_eq!(&buffer, b"6789....");
        for offset in [10, 11, u64::MAX] {
            assert_eq!(reader.read_at(&mut buffer, offset).unwrap(), 0);
        }
        assert_eq!((&file).stream_position().unwrap(), 10, "where writing left it");
        // What is appended is not seen, and what is cut off is an error.
        (&file).write_all(b"abc").unwrap();
        assert_eq!((reader.len(), reader.read_at(&mut buffer, 6).unwrap()), (10, 4));
        file.set_len(7).unwrap();
        assert_eq!(reader.read_at(&mut buffer, 6).unwrap(), 1);
        let error = reader.read_at(&mut buffer, 7).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(reader.read_exact_at(&mut buffer, 0).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        file.flush().unwrap();
    }

    #[test]
    fn only_an_immutable_file_is_mappable_and_only_inside() {
        let file = file_of(&[1; 100]);
        let reader = FileReader::new(&file).unwrap();
        assert!(reader.mappable(0, 100).is_none());
        let reader = reader.immutable();
        assert_eq!(reader.mappable(20, 80).unwrap().offset, 20);
        for (offset, len) in [(20, 81), (101, 0), (u64::MAX, 1), (1, u64::MAX)] {
            assert!(reader.mappable(offset, len).is_none(), "{offset} {len}");
        }
    }

    #[test]
    fn what_has_no_positions_is_refused() {
        let (pipe, _writer) = std::io::pipe().unwrap();
        assert!(matches!(FileReader::new(&pipe), Err(OpenError::Kind)));
        for path in ["/", "/dev/null"] {
            assert!(matches!(FileReader::new(File::open(path).unwrap()), Err(OpenError::Kind)), "{path}");
        }
    }

    #[test]
    fn short_reads_are_continued() {
        let reader = Slow(FileReader::new(file_of(&(0..100).collect::<Vec<u8>>())).unwrap(), 3);
        let mut buffer = [0; 50];
        reader.read_exact_at(&mut buffer, 20).unwrap();
        assert!(buffer.iter().copied().eq(20..70));
    }
}
