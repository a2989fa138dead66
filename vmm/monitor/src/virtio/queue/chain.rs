//! A descriptor chain that was walked, bounded and checked once, and cursors over its bytes.

use std::io;
use std::os::fd::BorrowedFd;

use virtio_queue::desc::split::Descriptor;
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend};

use super::config::Rings;
use super::{Held, QueueFault};
use crate::memory::{IoVecs, Memory};
use crate::sys::{at_most, fits};
use crate::virtio::spec::descriptor as flag;

/// Most descriptors of an indirect table. A driver may go beyond the queue's size there (Linux
/// does), so the bound is ours.
const INDIRECT_MAX: u32 = 1024;

/// A piece of guest memory that lies whole inside RAM. Never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest physical address.
    pub address: u64,
    /// Bytes, at least 1.
    pub len: u32,
}

/// A request of the driver: segments the device reads, then segments it writes. Owns no memory, so
/// it may be kept while a request is under way; give it back with [`super::Queue::push_used`] under
/// [`Chain::head`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    head: u16,
    segments: Vec<Segment>,
    /// Index of the first segment the device writes.
    split: usize,
    readable: u32,
    writable: u32,
}

impl Chain {
    /// Walks the chain that starts at descriptor `head`. Every descriptor is copied out of guest
    /// memory once, so what was checked is what is used.
    pub(super) fn walk(
        memory: &Memory,
        rings: &Rings,
        head: u16,
        indirect: bool,
    ) -> Result<Self, QueueFault> {
        let mut chain = Self { head, segments: Vec::with_capacity(4), split: 0, readable: 0, writable: 0 };
        let mut table = Table { address: rings.descriptors, entries: u32::from(rings.size), indirect: false };
        let mut budget = table.entries;
        let mut index = head;
        loop {
            if budget == 0 {
                return Err(QueueFault::Loop { head });
            }
            budget -= 1;
            let descriptor = table.read(memory, index)?;
            let flags = descriptor.flags();
            let next = flags & flag::NEXT != 0;
            if flags & flag::INDIRECT != 0 {
                if !indirect || table.indirect || next {
                    return Err(QueueFault::Indirect { head });
                }
                table = Table::indirect(&descriptor).ok_or(QueueFault::Indirect { head })?;
                budget = table.entries;
                index = 0;
                continue;
            }
            chain.push(memory, &descriptor, flags & flag::WRITE != 0)?;
            if !next {
                return Ok(chain);
            }
            index = descriptor.next();
        }
    }

    fn push(&mut self, memory: &Memory, descriptor: &Descriptor, write: bool) -> Result<(), QueueFault> {
        let (address, len) = (descriptor.addr().0, descriptor.len());
        if !write && self.split < self.segments.len() {
            return Err(QueueFault::ReadAfterWrite { head: self.head });
        }
        if len == 0 {
            return Ok(());
        }
        let inside = address.checked_add(u64::from(len)).is_some()
            && usize::try_from(len).is_ok_and(|len| memory.check_range(GuestAddress(address), len));
        if !inside {
            return Err(QueueFault::Outside { address, len: u64::from(len) });
        }
        // A chain may hold 2^32 bytes (2.7.5.2); together they must fit the length field of the
        // used ring.
        let total = self.readable.checked_add(self.writable).and_then(|total| total.checked_add(len));
        total.ok_or(QueueFault::TooLong { head: self.head })?;
        if write {
            self.writable += len;
        } else {
            self.readable += len;
            self.split += 1;
        }
        self.segments.push(Segment { address, len });
        Ok(())
    }

    /// What names this chain in the used ring.
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes the device may read.
    #[must_use]
    pub fn readable_len(&self) -> u32 {
        self.readable
    }

    /// Bytes the device may write.
    #[must_use]
    pub fn writable_len(&self) -> u32 {
        self.writable
    }

    /// Segments the device reads, in order.
    #[must_use]
    pub fn readable(&self) -> &[Segment] {
        &self.segments[..self.split]
    }

    /// Segments the device writes, in order.
    #[must_use]
    pub fn writable(&self) -> &[Segment] {
        &self.segments[self.split..]
    }

    /// Reads the readable bytes from their start.
    #[must_use]
    pub fn reader<'a>(&'a self, memory: &'a Memory) -> Reader<'a> {
        Reader(Cursor { memory, segments: self.readable(), offset: 0, left: self.readable, done: 0 })
    }

    /// Writes the writable bytes from their start.
    #[must_use]
    pub fn writer<'a>(&'a self, memory: &'a Memory) -> Writer<'a> {
        Writer(Cursor { memory, segments: self.writable(), offset: 0, left: self.writable, done: 0 })
    }

    pub(super) fn held(&self) -> Held {
        Held(self.head)
    }
}

/// A table of descriptors: the queue's, or an indirect one.
struct Table {
    address: u64,
    entries: u32,
    indirect: bool,
}

impl Table {
    fn indirect(descriptor: &Descriptor) -> Option<Self> {
        let entries = descriptor.len() / flag::SIZE;
        let sound = descriptor.len().is_multiple_of(flag::SIZE) && (1..=INDIRECT_MAX).contains(&entries);
        sound.then_some(Self { address: descriptor.addr().0, entries, indirect: true })
    }

    fn read(&self, memory: &Memory, index: u16) -> Result<Descriptor, QueueFault> {
        if u32::from(index) >= self.entries {
            return Err(QueueFault::Index { index, entries: self.entries });
        }
        let outside = QueueFault::Outside {
            address: self.address,
            len: u64::from(self.entries) * u64::from(flag::SIZE),
        };
        let address = self.address.checked_add(u64::from(index) * u64::from(flag::SIZE)).ok_or(outside)?;
        memory.read_obj(GuestAddress(address)).map_err(|_| outside)
    }
}

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

impl Reader<'_> {
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

impl Writer<'_> {
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
