//! A driver's end of the rings and a loop of one turn, for tests of devices: no machine, no thread,
//! no clock.

mod workers;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

pub use workers::{LoopControl, OneSlot, WorkerLoop};

use super::device::{Activation, Device, ReturnBox, Returned, Running, WorkerHost as _};
use super::interrupt::Interrupt;
use super::queue::{Queue, QueueConfig};
use super::spec::{descriptor as flag, feature};
use crate::hv::IrqLine;
use crate::memory::{Backing, Memory, Slot, view};
use crate::sys::Notifier;

/// A megabyte, the unit tests think in.
pub const MIB: usize = 1 << 20;

/// Guest memory of `bytes` from address 0.
///
/// # Panics
/// When the host has no memory.
#[must_use]
pub fn memory(bytes: usize) -> Memory {
    Memory::from_ranges(&[(GuestAddress(0), bytes)]).expect("memory for a test")
}

/// The same in a memory file that other processes may map.
///
/// # Panics
/// When it cannot be mapped.
#[must_use]
pub fn shared_memory(bytes: u64) -> Memory {
    let slot = Slot::new(0, 0, bytes, Backing::SharedFile, false).expect("memory for a test");
    view(&[slot]).expect("one slot overlaps nothing")
}

/// A line that counts its edges.
#[derive(Default)]
pub struct CountingLine(AtomicU64);

impl CountingLine {
    /// Edges since the last call.
    pub fn take(&self) -> u64 {
        self.0.swap(0, Ordering::SeqCst)
    }
}

impl IrqLine for CountingLine {
    fn pulse(&self) -> std::io::Result<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn set(&self, _high: bool) -> std::io::Result<()> {
        Ok(())
    }
}

/// One part of a request.
#[derive(Clone, Debug)]
pub enum Part {
    /// Bytes for the device.
    Read(Vec<u8>),
    /// Room for its answer.
    Write(u32),
}

/// A chain that came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Used {
    /// Its head.
    pub head: u16,
    /// `len` of the used ring.
    pub len: u32,
    /// All writable bytes, as the device left them (they start as 0xa5).
    pub data: Vec<u8>,
}

/// Descriptors and writable segments of a chain.
type Outstanding = (Vec<u16>, Vec<(u64, u32)>);

/// The driver's end of one queue. Buffers come from a region of their own and are reused when
/// nothing is outstanding.
pub struct DriverQueue {
    memory: Memory,
    config: QueueConfig,
    free: Vec<u16>,
    /// By head.
    outstanding: Vec<Option<Outstanding>>,
    heap: (u64, u64),
    at: u64,
    next_available: u16,
    seen_used: u16,
}

impl DriverQueue {
    /// A queue of `size` whose rings and buffers take `bytes` from guest address `base`
    /// (page-aligned).
    ///
    /// # Panics
    /// When the rings do not fit.
    #[must_use]
    pub fn new(memory: &Memory, base: u64, bytes: u64, size: u16) -> Self {
        let n = u64::from(size);
        let available = base + 16 * n;
        let used = (available + 6 + 2 * n).next_multiple_of(4);
        let heap = (used + 6 + 8 * n).next_multiple_of(4096);
        assert!(heap < base + bytes, "rings do not fit");
        let config = QueueConfig { max_size: size, size, ready: true, descriptors: base, available, used };
        for address in (base..heap).step_by(8) {
            memory.write_obj(0u64, GuestAddress(address)).expect("rings in memory");
        }
        Self {
            memory: memory.clone(),
            config,
            free: (0..size).rev().collect(),
            outstanding: vec![None; usize::from(size)],
            heap: (heap, base + bytes),
            at: heap,
            next_available: 0,
            seen_used: 0,
        }
    }

    /// As a driver writes it into the transport.
    #[must_use]
    pub fn config(&self) -> QueueConfig {
        self.config
    }

    /// The device's end, with a doorbell of its own.
    ///
    /// # Panics
    /// When the configuration is not valid, which a test should check by [`QueueConfig::validate`].
    #[must_use]
    pub fn device_end(&self, features: u64) -> Queue {
        let rings = self.config.validate(&self.memory).expect("valid rings");
        Queue::new(rings, features, Arc::new(Notifier::new().expect("a notifier")))
    }

    /// Reserves `len` bytes of buffer.
    ///
    /// # Panics
    /// When the region is full.
    pub fn allocate(&mut self, len: u64) -> u64 {
        let address = self.at;
        assert!(address + len <= self.heap.1, "no room for a buffer of {len}");
        self.at = (address + len).next_multiple_of(16);
        address
    }

    /// Makes a request available and returns its head.
    ///
    /// # Panics
    /// When the queue is full.
    pub fn add(&mut self, parts: &[Part]) -> u16 {
        let descriptors: Vec<u16> =
            parts.iter().map(|_| self.free.pop().expect("a free descriptor")).collect();
        let mut writable = Vec::new();
        for (i, part) in parts.iter().enumerate() {
            let (address, len, flags) = self.place(part, &mut writable);
            let next = descriptors.get(i + 1).copied();
            let flags = flags | if next.is_some() { flag::NEXT } else { 0 };
            self.descriptor(descriptors[i], address, len, flags, next.unwrap_or(0));
        }
        let head = descriptors[0];
        self.outstanding[usize::from(head)] = Some((descriptors, writable));
        self.offer(head);
        head
    }

    /// As [`DriverQueue::add`], by one indirect descriptor.
    ///
    /// # Panics
    /// When the queue is full.
    pub fn add_indirect(&mut self, parts: &[Part]) -> u16 {
        let head = self.free.pop().expect("a free descriptor");
        let len = u32::try_from(parts.len()).expect("few parts") * flag::SIZE;
        let table = self.allocate(u64::from(len));
        let mut writable = Vec::new();
        for (i, part) in parts.iter().enumerate() {
            let (address, len, flags) = self.place(part, &mut writable);
            let last = i + 1 == parts.len();
            let next = if last { 0 } else { u16::try_from(i + 1).expect("few parts") };
            let flags = flags | if last { 0 } else { flag::NEXT };
            self.write_descriptor(table + 16 * i as u64, address, len, flags, next);
        }
        self.descriptor(head, table, len, flag::INDIRECT, 0);
        self.outstanding[usize::from(head)] = Some((vec![head], writable));
        self.offer(head);
        head
    }

    fn place(&mut self, part: &Part, writable: &mut Vec<(u64, u32)>) -> (u64, u32, u16) {
        match part {
            Part::Read(bytes) => {
                let address = self.allocate(bytes.len() as u64);
                self.memory.write_slice(bytes, GuestAddress(address)).expect("a buffer");
                (address, u32::try_from(bytes.len()).expect("a small buffer"), 0)
            }
            Part::Write(len) => {
                let address = self.allocate(u64::from(*len));
                let blank = vec![0xa5; usize::try_from(*len).expect("a small buffer")];
                self.memory.write_slice(&blank, GuestAddress(address)).expect("a buffer");
                writable.push((address, *len));
                (address, *len, flag::WRITE)
            }
        }
    }

    /// Writes descriptor `index` as it is given, sound or not.
    pub fn descriptor(&mut self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        self.write_descriptor(self.config.descriptors + 16 * u64::from(index), address, len, flags, next);
    }

    /// Writes a descriptor at a guest address, for indirect tables.
    ///
    /// # Panics
    /// When `at` is outside memory.
    pub fn write_descriptor(&mut self, at: u64, address: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0u8; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.memory.write_slice(&bytes, GuestAddress(at)).expect("a descriptor in memory");
    }

    /// Puts `head` into the available ring as it is, sound or not.
    ///
    /// # Panics
    /// When the ring is outside memory.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.next_available % self.config.size);
        self.memory
            .write_obj(head.to_le(), GuestAddress(self.config.available + 4 + 2 * slot))
            .expect("a ring");
        self.set_available(self.next_available.wrapping_add(1));
    }

    /// Moves the available index, soundly or not.
    ///
    /// # Panics
    /// When the ring is outside memory.
    pub fn set_available(&mut self, index: u16) {
        self.next_available = index;
        let address = GuestAddress(self.config.available + 2);
        self.memory.store(index.to_le(), address, Ordering::Release).expect("a ring");
    }

    /// Writes `flags` of the available ring.
    ///
    /// # Panics
    /// When the ring is outside memory.
    pub fn set_flags(&mut self, flags: u16) {
        self.memory.write_obj(flags.to_le(), GuestAddress(self.config.available)).expect("a ring");
    }

    /// Writes `used_event`: with EVENT_IDX, an interrupt is wanted when the used index passes
    /// `index`.
    ///
    /// # Panics
    /// When the ring is outside memory.
    pub fn set_used_event(&mut self, index: u16) {
        let address = self.config.available + 4 + 2 * u64::from(self.config.size);
        self.memory.write_obj(index.to_le(), GuestAddress(address)).expect("a ring");
    }

    /// Reads the device's wish: `flags` of the used ring and `avail_event`.
    ///
    /// # Panics
    /// When the ring is outside memory.
    #[must_use]
    pub fn device_wish(&self) -> (u16, u16) {
        let read = |address| u16::from_le(self.memory.read_obj(GuestAddress(address)).expect("a ring"));
        (read(self.config.used), read(self.config.used + 4 + 8 * u64::from(self.config.size)))
    }

    /// The same driver in another machine whose memory has the same contents.
    #[must_use]
    pub fn moved(&self, memory: &Memory) -> Self {
        Self {
            memory: memory.clone(),
            free: self.free.clone(),
            outstanding: self.outstanding.clone(),
            ..*self
        }
    }

    /// Descriptors that are free.
    #[must_use]
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Whether no descriptor is free.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// The used index as far as [`DriverQueue::used`] has come.
    #[must_use]
    pub fn used_index(&self) -> u16 {
        self.seen_used
    }

    /// Takes the next chain that came back.
    ///
    /// # Panics
    /// When the device returned a chain it was not given: that is a fault of the device under test.
    pub fn used(&mut self) -> Option<Used> {
        let index: u16 =
            self.memory.load(GuestAddress(self.config.used + 2), Ordering::Acquire).expect("a ring");
        if u16::from_le(index) == self.seen_used {
            return None;
        }
        let element = self.config.used + 4 + 8 * u64::from(self.seen_used % self.config.size);
        let read = |address| u32::from_le(self.memory.read_obj(GuestAddress(address)).expect("a ring"));
        let (head, len) = (u16::try_from(read(element)).expect("a head"), read(element + 4));
        self.seen_used = self.seen_used.wrapping_add(1);
        let (descriptors, writable) = self.outstanding[usize::from(head)]
            .take()
            .expect("only chains that were made available come back");
        self.free.extend(descriptors);
        let mut data = Vec::new();
        for (address, len) in writable {
            let mut piece = vec![0; usize::try_from(len).expect("a small buffer")];
            self.memory.read_slice(&mut piece, GuestAddress(address)).expect("a buffer");
            data.extend(piece);
        }
        if self.outstanding.iter().all(Option::is_none) {
            self.at = self.heap.0;
        }
        assert!(u64::from(len) <= data.len() as u64, "the device claims {len} bytes of {}", data.len());
        Some(Used { head, len, data })
    }
}

/// A device under test: its driver's queues, its worker on a loop of one turn, its interrupt line.
pub struct Bench {
    /// Guest memory.
    pub memory: Memory,
    /// The driver's ends.
    pub queues: Vec<DriverQueue>,
    /// Edges of the interrupt line.
    pub line: Arc<CountingLine>,
    /// The device's interrupt, with its fault count.
    pub interrupt: Interrupt,
    doorbells: Vec<Arc<Notifier>>,
    workers: WorkerLoop,
    home: ReturnBox,
}

/// The slot of a device under test.
const SLOT: u16 = 1;
/// Bytes of guest memory for each queue.
const SHARE: u64 = 8 << 20;
/// Features of the rings that a driver takes.
const RINGS: u64 = feature::INDIRECT_DESC | feature::EVENT_IDX | feature::VERSION_1;

impl Bench {
    /// Activates `device` with all its features (or `features`, if given) and queues of `size`; 8
    /// MiB of guest memory a queue.
    ///
    /// # Panics
    /// When the device does not start.
    pub fn new(device: &mut dyn Device, size: u16, features: Option<u64>) -> Self {
        let bytes = SHARE * device.queue_sizes().len() as u64;
        Self::over(memory(usize::try_from(bytes).expect("8 MiB a queue")), device, size, features)
    }

    /// The same in memory that other processes may map.
    ///
    /// # Panics
    /// When the device does not start.
    pub fn shared(device: &mut dyn Device, size: u16, features: Option<u64>) -> Self {
        Self::over(shared_memory(SHARE * device.queue_sizes().len() as u64), device, size, features)
    }

    /// The same in memory of two regions, the second of which begins at `at`.
    ///
    /// # Panics
    /// When the device does not start.
    pub fn split(device: &mut dyn Device, size: u16, at: u64) -> Self {
        let bytes = SHARE * device.queue_sizes().len() as u64;
        let slot = |number, from, to| {
            Slot::new(number, from, to - from, Backing::SharedFile, false).expect("memory for a test")
        };
        let memory = view(&[slot(0, 0, at), slot(1, at, bytes)]).expect("two slots side by side");
        Self::over(memory, device, size, None)
    }

    /// The same in this memory, of which each queue takes 8 MiB from address 0 on.
    ///
    /// # Panics
    /// When the device does not start.
    pub fn over(memory: Memory, device: &mut dyn Device, size: u16, features: Option<u64>) -> Self {
        let queues = (0..device.queue_sizes().len() as u64)
            .map(|index| DriverQueue::new(&memory, index * SHARE, SHARE, size))
            .collect::<Vec<_>>();
        let line = Arc::new(CountingLine::default());
        let interrupt = Interrupt::new(line.clone());
        let features = features.unwrap_or_else(|| device.features() | RINGS & !device.withheld());
        let ends: Vec<_> = queues.iter().map(|queue| Some(queue.device_end(features))).collect();
        let mut bench = Self {
            memory,
            queues,
            line,
            interrupt,
            doorbells: Vec::new(),
            workers: WorkerLoop::default(),
            home: ReturnBox::default(),
        };
        bench.resume(device, features, ends);
        bench
    }

    /// Starts a worker on queues that [`Bench::stop`] returned.
    ///
    /// # Panics
    /// When the device does not start.
    pub fn resume(&mut self, device: &mut dyn Device, features: u64, queues: Vec<Option<Queue>>) {
        self.doorbells =
            queues.iter().map(|queue| queue.as_ref().expect("a queue").doorbell().clone()).collect();
        let activation =
            Activation { features, memory: self.memory.clone(), queues, interrupt: self.interrupt.clone() };
        let worker = device.activate(activation).expect("the device starts");
        let (interrupt, home) = (self.interrupt.clone(), self.home.clone());
        self.workers.control().start(Running::new(SLOT, device.placement(), worker, interrupt, home));
        self.turn();
    }

    /// Rings the doorbell of `queue` and lets the worker run until nothing is ready. Returns its
    /// turns.
    ///
    /// # Panics
    /// When a worker never comes to rest.
    pub fn kick(&mut self, queue: usize) -> usize {
        self.doorbells[queue].notify().expect("a doorbell");
        self.turn()
    }

    /// Lets the worker run until nothing is ready. Returns its turns.
    ///
    /// # Panics
    /// When a worker never comes to rest.
    pub fn turn(&mut self) -> usize {
        self.workers.turn()
    }

    /// Waits up to `timeout` for something to be ready, then [`Bench::turn`].
    ///
    /// # Panics
    /// When a worker never comes to rest.
    pub fn wait(&mut self, timeout: Duration) {
        self.is_ready(timeout);
        self.turn();
    }

    /// Waits up to `timeout` for something to be ready, and leaves it so.
    ///
    /// # Panics
    /// When `timeout` is beyond the clock.
    pub fn is_ready(&self, timeout: Duration) -> bool {
        self.workers.is_ready(timeout)
    }

    /// Quiesces the worker.
    ///
    /// # Panics
    /// When it was stopped before.
    pub fn stop(&mut self) -> Returned {
        self.workers.control().stop(SLOT);
        self.turn();
        self.home.take().expect("a running worker that returns")
    }
}
