//! Readers that only tests want.

use std::io;

use crate::buffer::{ReadBuffer, Within};
use crate::traits::ReadAt;

/// So many bytes, of no file: each is its position's lowest byte.
#[derive(Debug)]
pub(crate) struct Endless(pub(crate) u64);

impl ReadAt for Endless {
    fn len(&self) -> u64 {
        self.0
    }

    fn read_at(&self, into: &mut dyn ReadBuffer, offset: u64) -> io::Result<usize> {
        let left = self.0.saturating_sub(offset);
        let bytes: Vec<u8> = (0..left).take(into.size()).map(|at| (offset + at).to_le_bytes()[0]).collect();
        into.copy_in(0, &bytes);
        Ok(bytes.len())
    }
}

/// At most `1` bytes at a time of the reader `0`, as a file may give them.
#[derive(Debug)]
pub(crate) struct Slow<R>(pub(crate) R, pub(crate) usize);

impl<R: ReadAt> ReadAt for Slow<R> {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read_at(&self, into: &mut dyn ReadBuffer, offset: u64) -> io::Result<usize> {
        let some = into.size().min(self.1);
        self.0.read_at(&mut Within::new(into, 0..some), offset)
    }
}
