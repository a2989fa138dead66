//! A descriptor chain that was walked, bounded and checked once.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::config::Rings;
use super::cursor::{Reader, Writer};
use super::{Held, QueueFault};
use crate::memory::Memory;
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
        Reader::new(memory, self.readable(), self.readable)
    }

    /// Writes the writable bytes from their start.
    #[must_use]
    pub fn writer<'a>(&'a self, memory: &'a Memory) -> Writer<'a> {
        Writer::new(memory, self.writable(), self.writable)
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
