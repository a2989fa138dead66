//! What is read, and what is written.

use std::io;
use std::os::fd::BorrowedFd;

use crate::buffer::{ReadBuffer, Within, WriteBuffer, wide};

/// Bytes of a sector, the unit of every request of a block device.
pub const SECTOR: u64 = 512;

/// Most bytes a disk can have: the largest offset of a file, in whole sectors.
pub const BYTES_MAX: u64 = (1 << 63) - SECTOR;

/// Most bytes that one call asks for: systems refuse or cut what is 2 GiB or more.
const CALL_MAX: usize = 1 << 30;

/// Bytes that are read by their position. Every call may block, and none moves a position of a
/// file.
pub trait ReadAt: Send + Sync {
    /// Bytes there are: fixed while this is in use, unless it is a disk that is made larger.
    fn len(&self) -> u64;

    /// `true` without a byte.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads from byte `offset` on into the start of `into`. As a file it may read less than fits,
    /// but at least one byte, unless `into` has no room or `offset` is [`ReadAt::len`] or more:
    /// then it reads none.
    ///
    /// # Errors
    /// The host's. `UnexpectedEof` when what is below has lost bytes since it was opened.
    fn read_at(&self, into: &mut dyn ReadBuffer, offset: u64) -> io::Result<usize>;

    /// Fills `into` from byte `offset` on.
    ///
    /// # Errors
    /// As [`ReadAt::read_at`]; `UnexpectedEof` when fewer bytes are there. `into` then holds some
    /// of them.
    fn read_exact_at(&self, into: &mut dyn ReadBuffer, offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < into.size() {
            let end = into.size().min(done.saturating_add(CALL_MAX));
            let from = offset.checked_add(wide(done)).ok_or(io::ErrorKind::UnexpectedEof)?;
            let read = self.read_at(&mut Within::new(into, done..end), from)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            assert!(read <= end - done, "a bug: no more is read than was asked for");
            done += read;
        }
        Ok(())
    }

    /// What is at byte `offset`, which is inside, and for how many of `len` bytes, at least one,
    /// from there on. Data may be zeroes that nobody knows of.
    ///
    /// # Errors
    /// As [`ReadAt::read_at`].
    fn extent(&self, offset: u64, len: u64) -> io::Result<Extent> {
        let len = len.min(self.len().saturating_sub(offset));
        Ok(Extent { len, kind: ExtentKind::Data, depth: 0, host: None })
    }

    /// The place in a file where the `len` bytes from `offset` on lie as they are, and stay: nobody
    /// changes them or cuts them off, so that they may be mapped instead of read. `None` when
    /// nobody promised that, or they lie in no one file.
    fn mappable(&self, offset: u64, len: u64) -> Option<Mappable<'_>> {
        let _ = (offset, len);
        None
    }
}

/// A range that is one kind of thing; see [`ReadAt::extent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its bytes, at least one.
    pub len: u64,
    /// What it is.
    pub kind: ExtentKind,
    /// How many backing files below the image it lies.
    pub depth: u32,
    /// Where it lies in its file, if it lies there as it is.
    pub host: Option<u64>,
}

/// What a range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Bytes.
    Data,
    /// Bytes that are compressed.
    Compressed,
    /// Zeroes that need not be read.
    Zero,
}

/// See [`ReadAt::mappable`].
#[derive(Clone, Copy, Debug)]
pub struct Mappable<'a> {
    /// Open for reading.
    pub file: BorrowedFd<'a>,
    /// Where the bytes begin in it.
    pub offset: u64,
}

/// A block device's bytes. Its length is a multiple of [`SECTOR`]; requests lie inside it, in whole
/// sectors.
pub trait Disk: ReadAt {
    /// Whether writing is refused.
    fn read_only(&self) -> bool;

    /// The size in bytes of the blocks that the host writes best, a power of two from 512.
    fn block_size(&self) -> u32;

    /// Writes from the start of `from` at byte `offset`; as a file, it may write less, but at least
    /// one byte.
    ///
    /// # Errors
    /// The host's; `InvalidInput` beyond the disk's end.
    fn write_at(&self, from: &dyn WriteBuffer, offset: u64) -> io::Result<usize>;

    /// Returns when everything written before is on stable storage.
    ///
    /// # Errors
    /// The host's.
    fn flush(&self) -> io::Result<()>;

    /// Returns when the files have everything that was written, as another process would read them:
    /// nothing waits in this process any more. What waits in the host's cache is not looked at.
    ///
    /// # Errors
    /// The host's.
    fn settle(&self) -> io::Result<()> {
        Ok(())
    }

    /// The range's contents are no longer wanted.
    ///
    /// # Errors
    /// The host's.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;

    /// The range reads as zeroes from now on; with `unmap` it may give its space back.
    ///
    /// # Errors
    /// The host's.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()>;

    /// Bytes that are discarded as a whole: less gives no space back. A power of two from 512.
    fn discard_size(&self) -> u32 {
        self.block_size()
    }

    /// Makes the disk `bytes` long while it is in use; what is added reads as zeroes. It is durable
    /// when this returns.
    ///
    /// # Errors
    /// `Unsupported`: it has the size that it has. `InvalidInput`: it would be smaller, or not
    /// whole sectors. `FileTooLarge`: its format or its host cannot have it. Else the host's.
    fn grow(&self, bytes: u64) -> io::Result<()> {
        let _ = bytes;
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Bytes in memory: what was unpacked or made.
impl ReadAt for Vec<u8> {
    fn len(&self) -> u64 {
        wide(self.as_slice().len())
    }

    fn read_at(&self, into: &mut dyn ReadBuffer, offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|at| self.get(at..)).unwrap_or_default();
        let part = &rest[..rest.len().min(into.size())];
        into.copy_in(0, part);
        Ok(part.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_in_memory_are_read_like_a_file() {
        let bytes: Vec<u8> = (0..10).collect();
        let reader: &dyn ReadAt = &bytes;
        let table: [(u64, usize, &[u8]); 5] =
            [(0, 3, &[0, 1, 2]), (8, 5, &[8, 9]), (10, 5, &[]), (u64::MAX, 5, &[]), (3, 0, &[])];
        for (offset, room, found) in table {
            let mut buffer = vec![0xff; room];
            let read = reader.read_at(&mut buffer, offset).unwrap();
            assert_eq!(&buffer[..read], found, "{offset} {room}");
        }
        let mut all = [0; 10];
        reader.read_exact_at(&mut all, 0).unwrap();
        assert_eq!(all, bytes[..]);
        for offset in [1, 10, u64::MAX, u64::MAX - 4] {
            let error = reader.read_exact_at(&mut all, offset).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{offset}");
        }
        assert!(reader.mappable(0, 10).is_none());
    }
}
