//! The block device (virtio 1.2, 5.2) over any [`Disk`]. Data moves between the disk and guest
//! memory without a copy.
//!
//! A write for which the host's file system has no room does not fail: guests take an error of a
//! disk for a broken one, and their file systems do not survive all of them. The request is put
//! back into the queue, and those behind it wait with it, until trying again every 200 ms
//! succeeds. No write is in flight meanwhile: a reset, a pause and the machine's end do not wait
//! for room.
//!
//! Reads and flushes of a disk that makes them wait are done by a [`Crew`] of threads, so that
//! several wait at once; those that the host answers from its memory are faster done by the worker
//! itself. Writes go to the host's memory, and are the worker's.

mod control;
mod counters;
mod crew;
mod rate;
mod request;
#[cfg(test)]
mod tests;
mod worker;

use std::any::Any;
use std::io;
use std::sync::Arc;

use nelly_disk::{Disk, SECTOR};

use self::control::Shared;
pub use self::control::{BlockControl, GrowError};
pub use self::counters::DiskCounts;
pub use self::crew::Crew;
use self::worker::BlockWorker;
use super::device::{ActivateError, Activation, Device, Placement, Worker};
use super::spec::id;
use crate::config::{DiskLimits, SectorSize};
use crate::state::fields::plain;
use crate::state::{Sections, StateError, Stateful};

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

/// The device.
pub struct Block {
    shared: Arc<Shared>,
    crew: Option<Crew>,
    name: String,
    id: [u8; spec::ID_BYTES],
    features: u64,
    sector: SectorSize,
}

impl Block {
    /// A device named `id` (cut to 20 bytes) over `disk`, with one request queue, and sectors of
    /// 512 bytes.
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
            shared: Arc::new(Shared::new(disk)),
            crew: None,
            sector: SectorSize::default(),
        }
    }

    /// The same, with threads that serve beside the worker.
    #[must_use]
    pub fn with_crew(self, crew: Crew) -> Self {
        Self { crew: Some(crew), ..self }
    }

    /// The same, with sectors of another size.
    ///
    /// # Errors
    /// `InvalidInput`: the disk does not consist of whole ones.
    pub fn with_sectors(self, sector: SectorSize) -> io::Result<Self> {
        let bytes = self.shared.disk.len();
        if !bytes.is_multiple_of(sector.get().into()) {
            let text = format!("{bytes} bytes are not a number of whole sectors of {} bytes", sector.get());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Ok(Self { sector, ..self })
    }

    /// The same, with limits.
    #[must_use]
    pub fn with_limits(self, limits: DiskLimits) -> Self {
        self.shared.set_limits(limits);
        self
    }

    /// What changes the device while it is in use.
    #[must_use]
    pub fn control(&self) -> BlockControl {
        BlockControl::new(&self.shared, self.sector)
    }

    /// The configuration space (5.2.4).
    fn config(&self) -> [u8; CONFIG_BYTES] {
        let disk = &self.shared.disk;
        let mut config = [0; CONFIG_BYTES];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        let sector = self.sector.get().max(disk.block_size());
        put(0, &(disk.len() / SECTOR).to_le_bytes());
        put(8, &spec::SIZE_MAX.to_le_bytes());
        put(12, &spec::SEG_MAX.to_le_bytes());
        put(20, &sector.to_le_bytes());
        put(36, &spec::RANGE_SECTORS_MAX.to_le_bytes());
        put(40, &spec::DISCARD_RANGES_MAX.to_le_bytes());
        // discard_sector_alignment: less gives no space back.
        put(44, &(sector.max(disk.discard_size()) / 512).to_le_bytes());
        put(48, &spec::RANGE_SECTORS_MAX.to_le_bytes());
        put(52, &spec::ZERO_RANGES_MAX.to_le_bytes());
        // write_zeroes_may_unmap
        put(56, &[1]);
        config
    }
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
        super::device::read_bytes(&self.config(), offset, data);
    }

    fn placement(&self) -> Placement {
        Placement::OwnThread
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        let queue = activation.take_queue(0)?;
        self.shared.begin(&activation.interrupt, queue.doorbell());
        let worker = BlockWorker::new(&self.shared, self.id, self.crew.clone(), queue, activation)?;
        Ok(Box::new(worker))
    }

    fn reclaim(&mut self, _state: Box<dyn Any + Send>) {
        self.shared.pause();
    }

    fn reset(&mut self) {
        self.shared.forget();
    }
}

/// What the driver was shown. A restored machine has the same disk behind it, of which this checks
/// the outside; its contents are whoever restores it to see to.
impl Stateful for Block {
    fn save(&self, name: &str, state: &mut Sections) {
        // The short id is the beginning of the name, and limits are the machine's.
        let Self { shared: _, crew: _, name: id, id: _, features, sector: _ } = self;
        let config = self.config();
        state.put_fields(name, 1, |fields| {
            fields.put_text(id);
            fields.put(&(features & spec::F_RO != 0));
            fields.put(&capacity(&config));
            fields.put(&config);
        });
    }

    fn restore(&mut self, name: &str, state: &mut Sections) -> Result<(), StateError> {
        let config = self.config();
        state.take_fields(name, 1, |fields| {
            let (id, here) = (fields.get_text(TEXT_MAX)?, plain(&self.name));
            if id != here {
                return Err(fields.unfit(format!("it is that of the disk {id:?}, and here is {here:?}")));
            }
            if fields.get::<bool>()? != (self.features & spec::F_RO != 0) {
                return Err(fields.unfit("one of the two disks is read-only, and the other is not"));
            }
            let (sectors, here) = (fields.get::<u64>()?, capacity(&config));
            if sectors != here {
                return Err(fields.unfit(format!("the disk had {sectors} sectors, and has {here} here")));
            }
            if fields.get::<[u8; CONFIG_BYTES]>()? != config {
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
