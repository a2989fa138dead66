//! Buffers for reading and writing disks.
//!
//! The buffer may be guest memory, which can change at any time, so it is not available as a Rust
//! slice; all bytes are moved by methods of its owner.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use crate::number::fits;

/// A buffer that is filled by a read. Ranges and positions are in bytes from its beginning.
///
/// All methods panic on accesses beyond [`ReadBuffer::size`], which are bugs of the caller.
pub trait ReadBuffer {
    /// Size in bytes.
    fn size(&self) -> usize;

    /// Reads from `file` at byte `offset` into the bytes `range`, with one system call. Returns the
    /// number of bytes, 0 at the end of the file or for an empty range.
    ///
    /// # Errors
    /// The error of the system call, except EINTR, after which it is repeated.
    fn read_file(&mut self, range: Range<usize>, file: BorrowedFd<'_>, offset: u64) -> io::Result<usize>;

    /// Copies `bytes` to position `at`.
    fn copy_in(&mut self, at: usize, bytes: &[u8]);

    /// Fills the bytes `range` with zeroes.
    fn zero(&mut self, range: Range<usize>);
}

/// A buffer whose bytes are written to a file. Ranges, positions and panics are as in
/// [`ReadBuffer`].
pub trait WriteBuffer {
    /// Size in bytes.
    fn size(&self) -> usize;

    /// Writes the bytes `range` to `file` at byte `offset`, with one system call. Returns the
    /// number of bytes written.
    ///
    /// # Errors
    /// As [`ReadBuffer::read_file`].
    fn write_file(&self, range: Range<usize>, file: BorrowedFd<'_>, offset: u64) -> io::Result<usize>;

    /// Copies bytes from position `at` to `bytes`.
    fn copy_out(&self, at: usize, bytes: &mut [u8]);
}

impl<T: AsMut<[u8]> + AsRef<[u8]>> ReadBuffer for T {
    fn size(&self) -> usize {
        self.as_ref().len()
    }

    fn read_file(&mut self, range: Range<usize>, file: BorrowedFd<'_>, offset: u64) -> io::Result<usize> {
        let into = &mut self.as_mut()[range];
        Ok(rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut *into, offset))?)
    }

    fn copy_in(&mut self, at: usize, bytes: &[u8]) {
        self.as_mut()[at..][..bytes.len()].copy_from_slice(bytes);
    }

    fn zero(&mut self, range: Range<usize>) {
        self.as_mut()[range].fill(0);
    }
}

impl<T: AsRef<[u8]>> WriteBuffer for T {
    fn size(&self) -> usize {
        self.as_ref().len()
    }

    fn write_file(&self, range: Range<usize>, file: BorrowedFd<'_>, offset: u64) -> io::Result<usize> {
        let from = &self.as_ref()[range];
        Ok(rustix::io::retry_on_intr(|| rustix::io::pwrite(file, from, offset))?)
    }

    fn copy_out(&self, at: usize, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.as_ref()[at..][..bytes.len()]);
    }
}

/// A range of a buffer, as a buffer.
pub struct Within<'a> {
    whole: &'a mut dyn ReadBuffer,
    start: usize,
    size: usize,
}

impl<'a> Within<'a> {
    /// The bytes `range` of `whole`.
    ///
    /// # Panics
    /// The range is not within the buffer, which is a bug of the caller.
    pub fn new(whole: &'a mut dyn ReadBuffer, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= whole.size(),
            "a bug: a range lies within its buffer"
        );
        Self { whole, start: range.start, size: range.len() }
    }

    fn outer(&self, range: &Range<usize>) -> Range<usize> {
        assert!(range.start <= range.end && range.end <= self.size, "a bug: a range lies within its buffer");
        self.start + range.start..self.start + range.end
    }
}

impl ReadBuffer for Within<'_> {
    fn size(&self) -> usize {
        self.size
    }

    fn read_file(&mut self, range: Range<usize>, file: BorrowedFd<'_>, offset: u64) -> io::Result<usize> {
        let range = self.outer(&range);
        self.whole.read_file(range, file, offset)
    }

    fn copy_in(&mut self, at: usize, bytes: &[u8]) {
        let end = at.checked_add(bytes.len());
        let range = self.outer(&(at..end.unwrap_or(usize::MAX)));
        self.whole.copy_in(range.start, bytes);
    }

    fn zero(&mut self, range: Range<usize>) {
        let range = self.outer(&range);
        self.whole.zero(range);
    }
}

/// Converts a size in memory to one on a disk.
pub(crate) fn wide(size: usize) -> u64 {
    fits(size, "hosts of Nelly have 64 bits")
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn host_buffers_take_and_give() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"__hello world").unwrap();
        let mut buffer = [b'.'; 8];
        assert_eq!(buffer.read_file(1..6, file.as_fd(), 2).unwrap(), 5);
        buffer.copy_in(6, b"!!");
        assert_eq!(&buffer, b".hello!!");
        buffer.zero(0..1);
        let mut back = vec![0; 3];
        buffer.copy_out(0, &mut back);
        assert_eq!(back, b"\0he");
        assert_eq!(b"HELLO".as_slice().write_file(0..4, file.as_fd(), 2).unwrap(), 4);
        let mut rest = vec![0; 20];
        assert_eq!(rest.read_file(0..20, file.as_fd(), 0).unwrap(), 13);
        assert_eq!(&rest[..13], b"__HELLo world");
        assert_eq!(rest.read_file(0..20, file.as_fd(), 13).unwrap(), 0, "the file's end");
        assert!(rest.read_file(0..20, file.as_fd(), u64::MAX).is_err());
    }

    #[test]
    fn a_range_is_never_left() {
        let mut buffer = [1; 8];
        let mut outer = Within::new(&mut buffer, 2..7);
        let mut inner = Within::new(&mut outer, 1..4);
        assert_eq!(inner.size(), 3);
        inner.copy_in(1, &[7, 8]);
        inner.zero(0..1);
        assert_eq!(buffer, [1, 1, 1, 0, 7, 8, 1, 1]);
        let misuses: [fn(&mut Within<'_>); 4] = [
            |within| within.copy_in(2, &[0; 2]),
            |within| within.copy_in(usize::MAX, &[0; 2]),
            |within| within.zero(0..4),
            |within| _ = Within::new(within, 3..4),
        ];
        for misuse in misuses {
            let caught = std::panic::catch_unwind(|| {
                let mut buffer = [1; 8];
                misuse(&mut Within::new(&mut buffer, 2..5));
            });
            assert!(caught.is_err());
        }
    }
}
