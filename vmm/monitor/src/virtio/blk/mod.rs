//! The block device (virtio 1.2, 5.2) over any [`Disk`]. Data moves between the disk and guest
//! memory without a copy.
//!
//! A write for which the host's file system has no room does not fail: guests take an error of a
//! disk for a broken one, and their file systems do not survive all of them. The request is put
//! back into the queue, and those behind it wait with it, until trying again every [`AGAIN`]
//! succeeds. Nothing is in flight meanwhile: a reset, a pause and the machine's end wait for
//! nothing.

mod request;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nelly_disk::{Disk, SECTOR};

use self::request::Requests;
use super::device::{ActivateError, Activation, Device, DeviceFault, Placement, Registrar, Returned, Worker};
use super::interrupt::Interrupt;
use super::queue::Queue;
use super::spec::id;
use crate::memory::Memory;
use crate::state::fields::plain;
use crate::state::{Sections, StateError, Stateful};
use crate::sys::{Interest, Timer};

/// Features and limits (5.2.3, 5.2.4).
pub mod spec {
    /// `size_max` counts.
    pub const F_SIZE_MAX: u64 = 1 << 1;
    /// `seg_max` counts.
    pub const F_SEG_MAX: u64 = 1 << 2;
    /// Writing is refused.
    pub const F_RO: u64 = 1 << 5;
    /// `blk_size` counts.
    pub const F_BLK_SIZE: u64 = 1 << 6;
    /// The driver may ask for a flush.
    pub const F_FLUSH: u64 = 1 << 9;
    /// The driver may discard.
    pub const F_DISCARD: u64 = 1 << 13;
    /// The driver may write zeroes.
    pub const F_WRITE_ZEROES: u64 = 1 << 14;

    /// Request types (5.2.6).
    pub const T_IN: u32 = 0;
    /// Write.
    pub const T_OUT: u32 = 1;
    /// Flush.
    pub const T_FLUSH: u32 = 4;
    /// The device's name.
    pub const T_GET_ID: u32 = 8;
    /// Discard.
    pub const T_DISCARD: u32 = 11;
    /// Write zeroes.
    pub const T_WRITE_ZEROES: u32 = 13;

    /// Status: done.
    pub const S_OK: u8 = 0;
    /// Status: failed.
    pub const S_IOERR: u8 = 1;
    /// Status: unknown request.
    pub const S_UNSUPP: u8 = 2;

    /// Bytes of the device's name.
    pub const ID_BYTES: usize = 20;
    /// Requests a queue holds.
    pub const QUEUE_SIZE: u16 = 256;
    /// Data segments of a request: a queue's worth without header and status.
    pub const SEG_MAX: u32 = 254;
    /// Bytes of a data segment. With [`SEG_MAX`] it keeps a driver below [`REQUEST_BYTES_MAX`].
    pub const SIZE_MAX: u32 = 256 << 10;
    /// Bytes that one request may read or write: what is longer would keep whoever pauses or stops
    /// the machine waiting.
    pub const REQUEST_BYTES_MAX: u64 = 64 << 20;
    const _: () = assert!(SEG_MAX as u64 * SIZE_MAX as u64 <= REQUEST_BYTES_MAX);
    /// Sectors of one range to discard or zero: 32 MiB, so that no request takes long.
    pub const RANGE_SECTORS_MAX: u32 = 65536;
    /// Ranges of one request to discard.
    pub const DISCARD_RANGES_MAX: u32 = 32;
    /// Ranges of one request to zero. Where the host's file system cannot make zeroes, they are
    /// written.
    pub const ZERO_RANGES_MAX: u32 = 2;
    const _: () = assert!(ZERO_RANGES_MAX as u64 * RANGE_SECTORS_MAX as u64 * 512 <= REQUEST_BYTES_MAX);
}

/// Bytes of the configuration space.
const CONFIG_BYTES: usize = 60;

/// The device. Its disk is with the worker while there is one.
pub struct Block {
    disk: Option<Box<dyn Disk>>,
    name: String,
    id: [u8; spec::ID_BYTES],
    features: u64,
    config: [u8; CONFIG_BYTES],
}

impl Block {
    /// A device named `id` (cut to 20 bytes) over `disk`, with one request queue: requests are
    /// served one by one.
    #[must_use]
    pub fn new(disk: Box<dyn Disk>, id: &str) -> Self {
        let mut cut = [0; spec::ID_BYTES];
        for (to, from) in cut.iter_mut().zip(id.bytes()) {
            *to = from;
        }
        let writing = if disk.read_only() { spec::F_RO } else { spec::F_DISCARD | spec::F_WRITE_ZEROES };
        Self {
            name: id.to_owned(),
            id: cut,
            features: spec::F_SIZE_MAX | spec::F_SEG_MAX | spec::F_BLK_SIZE | spec::F_FLUSH | writing,
            config: config(&*disk),
            disk: Some(disk),
        }
    }
}

/// The configuration space (5.2.4).
fn config(disk: &dyn Disk) -> [u8; CONFIG_BYTES] {
    let mut config = [0; CONFIG_BYTES];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &(disk.len() / SECTOR).to_le_bytes());
    put(8, &spec::SIZE_MAX.to_le_bytes());
    put(12, &spec::SEG_MAX.to_le_bytes());
    put(20, &disk.block_size().to_le_bytes());
    put(36, &spec::RANGE_SECTORS_MAX.to_le_bytes());
    put(40, &spec::DISCARD_RANGES_MAX.to_le_bytes());
    // discard_sector_alignment
    put(44, &(disk.block_size() / 512).to_le_bytes());
    put(48, &spec::RANGE_SECTORS_MAX.to_le_bytes());
    put(52, &spec::ZERO_RANGES_MAX.to_le_bytes());
    // write_zeroes_may_unmap
    put(56, &[1]);
    config
}

impl Device for Block {
    fn id(&self) -> u32 {
        id::BLOCK
    }

    fn name(&self) -> Option<String> {
        Some(self.name.clone())
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &[spec::QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::device::read_bytes(&self.config, offset, data);
    }

    fn placement(&self) -> Placement {
        Placement::OwnThread
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        let queue = activation.take_queue(0)?;
        let Activation { features, memory, queues: _, interrupt } = activation;
        let disk = self.disk.take().ok_or_else(|| ActivateError::Host(io::ErrorKind::ResourceBusy.into()))?;
        // A driver that will never ask for a flush expects that what it wrote is safe (5.2.6.2).
        let write_through = features & spec::F_FLUSH == 0;
        let requests = Requests { disk, id: self.id, features, write_through };
        Ok(Box::new(BlockWorker { requests, queue, memory, interrupt, waiting: None }))
    }

    fn reclaim(&mut self, state: Box<dyn Any + Send>) {
        if let Ok(disk) = state.downcast::<Box<dyn Disk>>() {
            self.disk = Some(*disk);
        }
    }
}

/// What the driver was shown. A restored machine has the same disk behind it, of which this checks
/// the outside; its contents are whoever restores it to see to.
impl Stateful for Block {
    fn save(&self, name: &str, state: &mut Sections) {
        // The short id is the beginning of the name.
        let Self { disk: _, name: id, id: _, features, config } = self;
        state.put_fields(name, 1, |fields| {
            fields.put_text(id);
            fields.put(&(features & spec::F_RO != 0));
            fields.put(&capacity(config));
            fields.put(config);
        });
    }

    fn restore(&mut self, name: &str, state: &mut Sections) -> Result<(), StateError> {
        state.take_fields(name, 1, |fields| {
            let (id, here) = (fields.get_text(TEXT_MAX)?, plain(&self.name));
            if id != here {
                return Err(fields.unfit(format!("it is that of the disk {id:?}, and here is {here:?}")));
            }
            if fields.get::<bool>()? != (self.features & spec::F_RO != 0) {
                return Err(fields.unfit("one of the two disks is read-only, and the other is not"));
            }
            let (sectors, here) = (fields.get::<u64>()?, capacity(&self.config));
            if sectors != here {
                return Err(fields.unfit(format!("the disk had {sectors} sectors, and has {here} here")));
            }
            if fields.get::<[u8; CONFIG_BYTES]>()? != self.config {
                return Err(fields.unfit("the disk has other blocks or limits than it had"));
            }
            Ok(())
        })
    }
}

/// Most bytes of a name that is read.
const TEXT_MAX: usize = 1024;

fn capacity(config: &[u8; CONFIG_BYTES]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *config;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// How often a request is tried again for which the host's file system has no room.
const AGAIN: Duration = Duration::from_millis(200);

/// What the driver's notification comes under.
const KEY_DOORBELL: u32 = 0;
/// What the time for another try comes under.
const KEY_AGAIN: u32 = 1;

/// A request is done, or put back, before the next one is taken, so between two events nothing is
/// in flight.
struct BlockWorker {
    requests: Requests,
    queue: Queue,
    memory: Memory,
    interrupt: Interrupt,
    /// Ticks while the first request waits for room on the host. Most machines never make one.
    waiting: Option<Timer>,
}

impl BlockWorker {
    /// Serves what waits. `true`: the first request waits for room.
    fn serve(&mut self) -> Result<bool, DeviceFault> {
        let Self { requests, queue, memory, interrupt, .. } = self;
        let mut full = false;
        queue.serve_or_wait(memory, interrupt, |chain| {
            let served = requests.serve(memory, chain)?;
            full = served.is_none();
            Ok(served)
        })?;
        Ok(full)
    }

    fn wait(&mut self, registrar: &mut Registrar<'_>) -> Result<(), DeviceFault> {
        let timer = Timer::new()?;
        timer.set(Some(AGAIN))?;
        registrar.add(timer.as_fd(), KEY_AGAIN, Interest::READ)?;
        self.waiting = Some(timer);
        self.interrupt.tally().set_waits_for_room(true);
        self.interrupt.tally().fault(&DeviceFault::NoRoom);
        Ok(())
    }

    fn wait_no_more(&mut self, registrar: &mut Registrar<'_>) {
        if let Some(timer) = self.waiting.take() {
            // One that was never added is not there any more: what was wanted.
            let _ = registrar.remove(timer.as_fd());
            self.interrupt.tally().set_waits_for_room(false);
        }
    }
}

impl Worker for BlockWorker {
    fn register(&mut self, registrar: &mut Registrar<'_>) -> Result<(), DeviceFault> {
        registrar.add(self.queue.doorbell().as_fd(), KEY_DOORBELL, Interest::READ)?;
        Ok(self.queue.doorbell().notify()?)
    }

    fn unregister(&mut self, registrar: &mut Registrar<'_>) {
        self.wait_no_more(registrar);
        // A descriptor that was never added is not there any more: what was wanted.
        let _ = registrar.remove(self.queue.doorbell().as_fd());
    }

    fn ready(
        &mut self,
        key: u32,
        _ready: Interest,
        registrar: &mut Registrar<'_>,
    ) -> Result<(), DeviceFault> {
        if key == KEY_AGAIN
            && let Some(timer) = &self.waiting
        {
            timer.consume()?;
        }
        match (self.serve()?, self.waiting.is_some()) {
            (true, false) => self.wait(registrar),
            (false, true) => {
                self.wait_no_more(registrar);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn quiesce(self: Box<Self>) -> Returned {
        Returned { state: Box::new(self.requests.disk), queues: vec![Some(self.queue)] }
    }
}
