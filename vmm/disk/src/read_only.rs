//! Anything that can be read, as a disk that cannot be written.

use std::io;

use crate::buffer::{ReadBuffer, Within, WriteBuffer};
use crate::number::at_most;
use crate::traits::{BYTES_MAX, Disk, Mappable, ReadAt, SECTOR};

/// A disk over any reader. A last sector that the reader fills in part only is a whole one to the
/// guest, zero to its end.
#[derive(Debug)]
pub struct ReadOnly<R>(R);

impl<R: ReadAt> ReadOnly<R> {
    /// A disk with the bytes of `reader`, at most [`BYTES_MAX`] of them.
    ///
    /// # Errors
    /// `FileTooLarge`: it says that it has more.
    pub fn new(reader: R) -> io::Result<Self> {
        if reader.len() > BYTES_MAX { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(Self(reader)) }
    }
}

impl<R: ReadAt> ReadAt for ReadOnly<R> {
    fn len(&self) -> u64 {
        self.0.len().next_multiple_of(SECTOR)
    }

    fn read_at(&self, into: &mut dyn ReadBuffer, offset: u64) -> io::Result<usize> {
        let (bytes, room) = (self.0.len(), into.size());
        if offset < bytes {
            let want = at_most(bytes - offset, room);
            return self.0.read_at(&mut Within::new(into, 0..want), offset);
        }
        let zeros = at_most(self.len().saturating_sub(offset), room);
        into.zero(0..zeros);
        Ok(zeros)
    }

    fn mappable(&self, offset: u64, len: u64) -> Option<Mappable<'_>> {
        self.0.mappable(offset, len)
    }
}

impl<R: ReadAt> Disk for ReadOnly<R> {
    fn read_only(&self) -> bool {
        true
    }

    fn block_size(&self) -> u32 {
        512
    }

    fn write_at(&self, _from: &dyn WriteBuffer, _offset: u64) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn write_zeroes(&self, _offset: u64, _len: u64, _unmap: bool) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Endless;

    #[test]
    fn the_last_sector_is_whole_and_nothing_is_written() {
        let disk = ReadOnly::new(vec![7; 700]).unwrap();
        assert_eq!((disk.len(), disk.read_only()), (1024, true));
        let mut buffer = [0xff; 1024];
        disk.read_exact_at(&mut buffer, 0).unwrap();
        assert_eq!((&buffer[..700], &buffer[700..]), (&[7; 700][..], &[0; 324][..]));
        assert_eq!(disk.read_at(&mut buffer, 1024).unwrap(), 0);
        assert_eq!(disk.read_at(&mut buffer, u64::MAX).unwrap(), 0);
        let refused = [
            disk.write_at(&[0; 512], 0).err(),
            disk.discard(0, 512).err(),
            disk.write_zeroes(0, 512, true).err(),
        ];
        for error in refused {
            assert_eq!(error.unwrap().kind(), io::ErrorKind::ReadOnlyFilesystem);
        }
        disk.flush().unwrap();
        let largest = ReadOnly::new(Endless(BYTES_MAX)).unwrap();
        assert_eq!(largest.len(), BYTES_MAX);
        assert_eq!(ReadOnly::new(Endless(u64::MAX)).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }
}
