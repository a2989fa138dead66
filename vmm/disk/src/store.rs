//! What an image lies in: bytes at positions that can be read, written and made durable.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::buffer::{ReadBuffer, WriteBuffer, wide};
use crate::number::at_most;

/// A file, for formats that keep their own metadata in it. No call moves a position. A file of
/// tests records its writes, so that a crash can be played at each of them.
pub trait Store: Send + Sync {
    /// Size in bytes now.
    ///
    /// # Errors
    /// The host's.
    fn len(&self) -> io::Result<u64>;

    /// `true` without a byte.
    ///
    /// # Errors
    /// As [`Store::len`].
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Reads from byte `offset` on into the bytes `range` of `into`; returns the number of bytes, 0
    /// at the end or for an empty range.
    ///
    /// # Errors
    /// The host's.
    fn read_into(&self, into: &mut dyn ReadBuffer, range: Range<usize>, offset: u64) -> io::Result<usize>;

    /// Writes the bytes `range` of `from` at byte `offset`; returns the number of bytes. What lies
    /// between the end and `offset` reads as zeroes afterwards.
    ///
    /// # Errors
    /// The host's.
    fn write_from(&self, from: &dyn WriteBuffer, range: Range<usize>, offset: u64) -> io::Result<usize>;

    /// Makes it `bytes` long; what is added reads as zeroes.
    ///
    /// # Errors
    /// The host's.
    fn set_len(&self, bytes: u64) -> io::Result<()>;

    /// Returns when everything written before is on stable storage.
    ///
    /// # Errors
    /// The host's.
    fn sync(&self) -> io::Result<()>;

    /// Gives the space of a range back, which then reads as zeroes.
    ///
    /// # Errors
    /// The host's; `Unsupported` where it cannot.
    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Fills `into` from byte `offset` on; what lies behind the end is zero.
    ///
    /// # Errors
    /// The host's.
    fn read_padded(&self, mut into: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < into.len() {
            let end = into.len();
            match self.read_into(&mut into, done..end, offset.saturating_add(wide(done)))? {
                0 => {
                    into[done..].fill(0);
                    return Ok(());
                }
                read => done += read,
            }
        }
        Ok(())
    }

    /// Writes the bytes `range` of `from` at byte `offset`, all of them.
    ///
    /// # Errors
    /// The host's; some of them may have been written.
    fn write_whole(&self, from: &dyn WriteBuffer, range: Range<usize>, offset: u64) -> io::Result<()> {
        let mut done = range.start;
        while done < range.end {
            let at = offset + wide(done - range.start);
            match self.write_from(from, done..range.end, at)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => done += written,
            }
        }
        Ok(())
    }

    /// Writes `bytes` at byte `offset`, all of them.
    ///
    /// # Errors
    /// As [`Store::write_whole`].
    fn write_bytes(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_whole(&bytes, 0..bytes.len(), offset)
    }

    /// Writes zeroes.
    ///
    /// # Errors
    /// As [`Store::write_whole`].
    fn write_zero_bytes(&self, offset: u64, len: u64) -> io::Result<()> {
        static ZEROES: [u8; 65536] = [0; 65536];
        let mut done = 0;
        while done < len {
            let piece = at_most(len - done, ZEROES.len());
            self.write_bytes(&ZEROES[..piece], offset + done)?;
            done += wide(piece);
        }
        Ok(())
    }
}

impl<S: Store + ?Sized> Store for Arc<S> {
    fn len(&self) -> io::Result<u64> {
        (**self).len()
    }

    fn read_into(&self, into: &mut dyn ReadBuffer, range: Range<usize>, offset: u64) -> io::Result<usize> {
        (**self).read_into(into, range, offset)
    }

    fn write_from(&self, from: &dyn WriteBuffer, range: Range<usize>, offset: u64) -> io::Result<usize> {
        (**self).write_from(from, range, offset)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        (**self).set_len(bytes)
    }

    fn sync(&self) -> io::Result<()> {
        (**self).sync()
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        (**self).punch_hole(offset, len)
    }
}
