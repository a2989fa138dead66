//! Cursors over the bytes of segments, which were checked when their chains were walked.

use std::io;
use std::os::fd::BorrowedFd;

use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend};

use super::{QueueFault, Segment};
use crate::memory::{IoVecs, Memory};
use crate::sys::{at_most, fits};

/// A place in a list of segments.
#[derive(Clone)]
struct Cursor<'a> {
    memory: &'a Memory,
    /// Those not yet passed.
    segments: &'a [Segment],
    /// Bytes passed of the first of them.
    offset: u32,
    left: u32,
    done: u32,
}

impl Cursor<'_> {
    /// Passes at most `max` bytes that lie in one segment and says where they are.
    fn step(&mut self, max: u32) -> Option<(GuestAddress, u32)> {
        let (first, rest) = self.segments.split_first()?;
        let len = (first.len - self.offset).min(max).min(self.left);
        if len == 0 {
            return None;
        }
        let address = GuestAddress(first.address + u64::from(self.offset));
        self.offset += len;
        self.left -= len;
        self.done += len;
        if self.offset == first.len {
            self.segments = rest;
            self.offset = 0;
        }
        Some((address, len))
    }

    fn skip(&mut self, mut bytes: u32) {
        while bytes > 0 {
            match self.step(bytes) {
                Some((_, len)) => bytes -= len,
                None => return,
            }
        }
    }

    /// Copies `len` bytes piece by piece; `copy` gets the address, the offset within the buffer and
    /// the bytes of a piece.
    fn copy(
        &mut self,
        len: usize,
        mut copy: impl FnMut(&Memory, GuestAddress, usize, usize) -> Result<(), vm_memory::GuestMemoryError>,
    ) -> Result<usize, QueueFault> {
        let mut at = 0;
        while at < len {
            // A longer rest comes in further pieces.
            let want = at_most(len - at, u32::MAX);
            let Some((address, piece)) = self.step(want) else { break };
            let bytes = usize_of(piece);
            copy(self.memory, address, at, bytes)
                .map_err(|_| QueueFault::Outside { address: address.0, len: u64::from(piece) })?;
            at += bytes;
        }
        Ok(at)
    }

    /// The next bytes, at most `max`, as pieces for one system call. The cursor does not move.
    fn vecs(&self, max: u32) -> Result<IoVecs<'_>, QueueFault> {
        let mut ahead = self.clone();
        let mut vecs = IoVecs::with_capacity(self.segments.len());
        let mut left = max.min(self.left);
        while let Some((address, len)) = ahead.step(left) {
            left -= len;
            for slice in self.memory.get_slices(address, usize_of(len)) {
                let slice =
                    slice.map_err(|_| QueueFault::Outside { address: address.0, len: u64::from(len) })?;
                if !vecs.push(&slice) {
                    return Ok(vecs);
                }
            }
        }
        Ok(vecs)
    }

    fn transfer(
        &mut self,
        max: u32,
        call: impl FnOnce(&mut IoVecs<'_>) -> io::Result<usize>,
    ) -> Result<io::Result<usize>, QueueFault> {
        let mut vecs = self.vecs(max)?;
        if vecs.is_empty() {
            return Ok(Ok(0));
        }
        let result = call(&mut vecs);
        drop(vecs);
        if let Ok(bytes) = &result {
            self.skip(fits(
                *bytes,
                "the system never moves more than it was given, which was less than 4 GiB",
            ));
        }
        Ok(result)
    }
}

fn usize_of(len: u32) -> usize {
    fits(len, "usize has at least 32 bits on every host of Nelly")
}

/// Reads what the driver sent, from front to back.
#[derive(Clone)]
pub struct Reader<'a>(Cursor<'a>);

impl<'a> Reader<'a> {
    /// Reads these segments, which hold `bytes`.
    pub(super) fn new(memory: &'a Memory, segments: &'a [Segment], bytes: u32) -> Self {
        Self(Cursor { memory, segments, offset: 0, left: bytes, done: 0 })
    }

    /// Bytes not yet read.
    #[must_use]
    pub fn left(&self) -> u32 {
        self.0.left
    }

    /// Reads as much as there is into `buffer`; returns how much that was.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, QueueFault> {
        self.0.copy(buffer.len(), |memory, address, at, len| {
            memory.read_slice(&mut buffer[at..at + len], address)
        })
    }

    /// Fills `buffer`.
    pub fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), QueueFault> {
        let wanted = buffer.len();
        if self.read(buffer)? == wanted { Ok(()) } else { Err(QueueFault::Short { wanted: wanted as u64 }) }
    }

    /// Reads a plain value in the guest's byte order.
    pub fn read_obj<T: ByteValued + Default>(&mut self) -> Result<T, QueueFault> {
        let mut value = T::default();
        self.read_exact(value.as_mut_slice())?;
        Ok(value)
    }

    /// Passes over at most `bytes`.
    pub fn skip(&mut self, bytes: u32) {
        self.0.skip(bytes);
    }

    /// Writes at most `max` of the next bytes to a stream, without a copy, and passes over what was
    /// written. The outer error is the guest's, the inner one the host's.
    pub fn write_to(&mut self, stream: BorrowedFd<'_>, max: u32) -> Result<io::Result<usize>, QueueFault> {
        self.0.transfer(max, |vecs| vecs.write(stream))
    }

    /// Sends at most `max` of the next bytes on a socket, without a signal when the peer is gone;
    /// otherwise as [`Reader::write_to`].
    pub fn send_to(&mut self, socket: BorrowedFd<'_>, max: u32) -> Result<io::Result<usize>, QueueFault> {
        self.0.transfer(max, |vecs| vecs.send(socket))
    }

    /// Passes at most `max` of the next bytes to `call` as pieces, and over as many as it says it
    /// moved. The outer error is the guest's, the inner one that of `call`.
    pub fn transfer(
        &mut self,
        max: u32,
        call: impl FnOnce(&mut IoVecs<'_>) -> io::Result<usize>,
    ) -> Result<io::Result<usize>, QueueFault> {
        self.0.transfer(max, call)
    }
}

/// Writes the device's answer, from front to back.
#[derive(Clone)]
pub struct Writer<'a>(Cursor<'a>);

impl<'a> Writer<'a> {
    /// Writes these segments, which hold `bytes`.
    pub(super) fn new(memory: &'a Memory, segments: &'a [Segment], bytes: u32) -> Self {
        Self(Cursor { memory, segments, offset: 0, left: bytes, done: 0 })
    }

    /// Writes segments of several chains as if they were of one.
    ///
    /// # Panics
    /// They hold 2^32 bytes or more.
    #[must_use]
    pub fn over(memory: &'a Memory, segments: &'a [Segment]) -> Self {
        let bytes = segments.iter().map(|segment| u64::from(segment.len)).sum::<u64>();
        Self::new(memory, segments, fits(bytes, "whoever gathers chains stops long before"))
    }

    /// Bytes that still fit.
    #[must_use]
    pub fn left(&self) -> u32 {
        self.0.left
    }

    /// Bytes written (and skipped) so far: what goes into the used ring.
    #[must_use]
    pub fn written(&self) -> u32 {
        self.0.done
    }

    /// Writes as much of `buffer` as fits; returns how much that was.
    pub fn write(&mut self, buffer: &[u8]) -> Result<usize, QueueFault> {
        self.0
            .copy(buffer.len(), |memory, address, at, len| memory.write_slice(&buffer[at..at + len], address))
    }

    /// Writes all of `buffer`.
    pub fn write_all(&mut self, buffer: &[u8]) -> Result<(), QueueFault> {
        let wanted = buffer.len();
        if self.write(buffer)? == wanted { Ok(()) } else { Err(QueueFault::Short { wanted: wanted as u64 }) }
    }

    /// Passes over at most `bytes`.
    pub fn skip(&mut self, bytes: u32) {
        self.0.skip(bytes);
    }

    /// Reads at most `max` bytes from a stream into the next bytes, without a copy; `Ok(Ok(0))` at
    /// its end. The outer error is the guest's, the inner one the host's.
    pub fn read_from(&mut self, stream: BorrowedFd<'_>, max: u32) -> Result<io::Result<usize>, QueueFault> {
        self.0.transfer(max, |vecs| vecs.read(stream))
    }

    /// Passes at most `max` of the next bytes to `call` as pieces, and over as many as it says it
    /// moved. The outer error is the guest's, the inner one that of `call`.
    pub fn transfer(
        &mut self,
        max: u32,
        call: impl FnOnce(&mut IoVecs<'_>) -> io::Result<usize>,
    ) -> Result<io::Result<usize>, QueueFault> {
        self.0.transfer(max, call)
    }
}
