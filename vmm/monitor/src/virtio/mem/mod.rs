//! The memory device (virtio 1.2, 5.15): memory that the guest gets while it runs.
//!
//! The region is one memory slot that the hypervisor has from the start, and nothing of it is
//! touched before the guest does: to plug a block in changes a bit, and to unplug it gives its
//! pages back to the host. The driver decides which blocks, the device how many: as many as the
//! holder of the machine requests, see [`MemoryControl`].
//!
//! A guest can touch a block that is not plugged in, as it can touch any RAM. It then reads zeros,
//! and what it writes costs the host memory that the machine was configured to have, never more:
//! the slot is the bound. The device offers UNPLUGGED_INACCESSIBLE (5.15.3), so that a driver that
//! takes it does neither, and serves drivers that do not take it alike: 5.15.6 lets those read
//! unplugged blocks.

mod blocks;
mod spec;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::device::{
    ActivateError, Activation, Device, DeviceFault, Registrar, Returned, Worker, read_bytes,
};
use super::interrupt::Interrupt;
use super::queue::{Chain, Queue, Served};
use super::spec::id;
use crate::memory::{Memory, Slot};
use crate::state::{Sections, StateError, Stateful};
use crate::sys::Interest;
use blocks::{BLOCK, Blocks, MemoryRequest};

/// The device.
pub struct MemoryDevice {
    slot: Slot,
    shared: Arc<Mutex<MemoryState>>,
    /// `None` while a worker has them.
    blocks: Option<Blocks>,
}

/// What vCPU threads, the worker and the machine's loop see of it.
struct MemoryState {
    requested: u64,
    plugged: u64,
    /// The driver was not told of `requested` yet.
    untold: bool,
    /// Of a driver that is ready and not paused.
    interrupt: Option<Interrupt>,
}

impl MemoryState {
    /// Tells a driver that is there.
    fn tell(&mut self) -> io::Result<()> {
        match &self.interrupt {
            Some(interrupt) if std::mem::take(&mut self.untold) => interrupt.config_changed(),
            _ => Ok(()),
        }
    }
}

fn lock(shared: &Mutex<MemoryState>) -> MutexGuard<'_, MemoryState> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Requests memory of the device, from any thread.
#[derive(Clone)]
pub struct MemoryControl {
    shared: Arc<Mutex<MemoryState>>,
    region: u64,
}

/// A size that cannot be requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes cannot be plugged in: a multiple of {BLOCK} up to {region} can")]
pub struct BadSize {
    bytes: u64,
    region: u64,
}

impl MemoryControl {
    /// Asks the driver to have `bytes` plugged in, no more and no less. Never waits: a driver that
    /// comes up later, or is paused, hears of it then. That it follows is up to the guest.
    ///
    /// # Errors
    /// Not a multiple of 2 MiB, or more than the region.
    pub fn request(&self, bytes: u64) -> Result<(), BadSize> {
        if bytes > self.region || !bytes.is_multiple_of(BLOCK) {
            return Err(BadSize { bytes, region: self.region });
        }
        let mut shared = lock(&self.shared);
        shared.untold |= shared.requested != bytes;
        shared.requested = bytes;
        // An interrupt that cannot be delivered leaves a driver that sees the new size when it
        // looks.
        let _ = shared.tell();
        Ok(())
    }

    /// Bytes requested, and bytes plugged in.
    #[must_use]
    pub fn sizes(&self) -> (u64, u64) {
        let shared = lock(&self.shared);
        (shared.requested, shared.plugged)
    }
}

impl MemoryDevice {
    /// The device for the region that `slot` is, with nothing requested. Its guest address and
    /// length are multiples of 2 MiB.
    #[must_use]
    pub fn new(slot: Slot) -> (Self, MemoryControl) {
        let shared = MemoryState { requested: 0, plugged: 0, untold: false, interrupt: None };
        let shared = Arc::new(Mutex::new(shared));
        let control = MemoryControl { shared: Arc::clone(&shared), region: slot.len() };
        let blocks = Some(Blocks::new(slot.guest(), slot.len()));
        (Self { slot, shared, blocks }, control)
    }

    fn config(&self) -> [u8; spec::CONFIG_BYTES] {
        let shared = lock(&self.shared);
        // The whole region is usable from the start: it is bounded by what is requested.
        let region = self.slot.len();
        let words =
            [BLOCK, spec::NODE_NONE, self.slot.guest(), region, region, shared.plugged, shared.requested];
        let mut bytes = [0; spec::CONFIG_BYTES];
        for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

impl Device for MemoryDevice {
    fn id(&self) -> u32 {
        id::MEMORY
    }

    fn features(&self) -> u64 {
        spec::F_UNPLUGGED_INACCESSIBLE
    }

    fn queue_sizes(&self) -> &[u16] {
        &[8]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_bytes(&self.config(), offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        let queue = activation.take_queue(0)?;
        let Activation { features: _, memory, queues: _, interrupt } = activation;
        let missing = || ActivateError::Host(io::Error::other("another worker has the blocks"));
        let blocks = self.blocks.take().ok_or_else(missing)?;
        let (slot, shared) = (self.slot.clone(), Arc::clone(&self.shared));
        Ok(Box::new(MemoryWorker { queue, memory, interrupt, slot, shared, blocks }))
    }

    /// What is plugged in stays so, through a reset by the driver too (5.15.6): a new driver
    /// unplugs it if it wants.
    fn reclaim(&mut self, state: Box<dyn Any + Send>) {
        if let Ok(blocks) = state.downcast::<Blocks>() {
            self.blocks = Some(*blocks);
        }
    }
}

/// Which blocks are plugged in, and what the driver was told. What is in the blocks, plugged in or
/// not, is the memory's state.
impl Stateful for MemoryDevice {
    /// # Panics
    /// A worker has the blocks.
    fn save(&self, name: &str, state: &mut Sections) {
        let Self { slot, shared, blocks } = self;
        let blocks = blocks.as_ref().expect("a device has no worker when it says its state");
        // What is plugged in is counted again, and the interrupt is that of a worker.
        let MemoryState { requested, plugged: _, untold, interrupt: _ } = &*lock(shared);
        state.put_fields(name, 1, |fields| {
            fields.put(&slot.guest());
            fields.put(&slot.len());
            fields.put(requested);
            fields.put(untold);
            fields.put_list(blocks.bitmap().iter());
        });
    }

    /// # Panics
    /// As [`MemoryDevice::save`].
    fn restore(&mut self, name: &str, state: &mut Sections) -> Result<(), StateError> {
        let Self { slot, shared, blocks } = self;
        let blocks = blocks.as_mut().expect("a device has no worker when its state comes back");
        let mut shared = lock(shared);
        state.take_fields(name, 1, |fields| {
            fields.expect("first address", &slot.guest())?;
            fields.expect("length", &slot.len())?;
            let requested: u64 = fields.get()?;
            if requested > slot.len() || !requested.is_multiple_of(BLOCK) {
                return Err(fields.unfit(format!("{requested} bytes cannot have been requested")));
            }
            shared.requested = requested;
            shared.untold = fields.get()?;
            if !blocks.set_bitmap(fields.get_list(blocks.bitmap().len())?) {
                return Err(fields.unfit("blocks are plugged in that the region has not"));
            }
            shared.plugged = blocks.plugged_bytes();
            Ok(())
        })
    }
}

struct MemoryWorker {
    queue: Queue,
    memory: Memory,
    interrupt: Interrupt,
    slot: Slot,
    shared: Arc<Mutex<MemoryState>>,
    blocks: Blocks,
}

impl Worker for MemoryWorker {
    fn register(&mut self, registrar: &mut Registrar<'_>) -> Result<(), DeviceFault> {
        registrar.add(self.queue.doorbell().as_fd(), 0, Interest::READ)?;
        let mut shared = lock(&self.shared);
        shared.interrupt = Some(self.interrupt.clone());
        shared.tell()?;
        Ok(self.queue.doorbell().notify()?)
    }

    fn unregister(&mut self, registrar: &mut Registrar<'_>) {
        lock(&self.shared).interrupt = None;
        // A descriptor that was never added is not there any more: what was wanted.
        let _ = registrar.remove(self.queue.doorbell().as_fd());
    }

    fn ready(
        &mut self,
        _key: u32,
        _ready: Interest,
        _registrar: &mut Registrar<'_>,
    ) -> Result<(), DeviceFault> {
        let Self { queue, memory, interrupt, slot, shared, blocks } = self;
        queue.serve(memory, interrupt, |chain| serve(memory, chain, slot, shared, blocks).map(Served::from))
    }

    fn quiesce(self: Box<Self>) -> Returned {
        lock(&self.shared).interrupt = None;
        Returned { state: Box::new(self.blocks), queues: vec![Some(self.queue)] }
    }
}

/// Serves one chain and returns the bytes written into it. A chain that is too short for a request
/// or its answer is a fault.
fn serve(
    memory: &Memory,
    chain: &Chain,
    slot: &Slot,
    shared: &Mutex<MemoryState>,
    blocks: &mut Blocks,
) -> Result<u32, DeviceFault> {
    let mut bytes = [0; spec::REQUEST_BYTES];
    chain.reader(memory).read_exact(&mut bytes)?;
    let mut writer = chain.writer(memory);
    // Before anything changes: a driver that is not told must not have been obeyed.
    if writer.left() < spec::RESPONSE_BYTES {
        return Err(DeviceFault::Protocol("a memory request without room for its answer"));
    }
    // One lock for both numbers, so that nobody sees more plugged in than is requested.
    let mut shared = lock(shared);
    let mut discard =
        |range: std::ops::Range<u64>| slot.discard(range.start, range.end - range.start).is_ok();
    let response = blocks.serve(MemoryRequest::parse(&bytes), shared.requested, &mut discard);
    shared.plugged = blocks.plugged_bytes();
    drop(shared);
    writer.write_all(&response.bytes())?;
    Ok(writer.written())
}
