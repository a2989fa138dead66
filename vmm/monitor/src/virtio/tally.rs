//! What can be seen of a slot and its queues from outside while the device runs: written by whoever
//! has the part, read by anybody, and never behind the lock of the device, which may be busy with
//! an access of the guest.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::{Bytes, GuestAddress};

use super::fault::DeviceFault;
use super::spec::id;
use crate::memory::Memory;
use crate::state::StateError;
use crate::state::fields::{FieldReader, FieldWriter};
use crate::sys::fits;

/// Most records of faults that a slot keeps. Kinds are few: those of the device that is there fit,
/// and some of devices that were there before it, which come and go as often as a holder likes.
pub const FAULTS_MOST: usize = 24;

/// Most bytes of the sentence on a first fault.
const SENTENCE_MOST: usize = 256;

/// Told of the first fault of each kind, on the thread that met it: must not block.
pub type FaultSink = Box<dyn Fn(&Fault) + Send + Sync>;

/// What a device is, for as long as it is in its slot.
#[derive(Debug)]
pub struct Identity {
    /// The virtio device id.
    pub device_id: u32,
    /// What it is called beside its kind: a disk's id.
    pub name: Option<String>,
    /// Its queues, in order.
    pub queues: Vec<Arc<QueueTally>>,
}

/// Faults of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The virtio device id of the device.
    pub device_id: u32,
    /// What the device is called beside its kind.
    pub name: Option<String>,
    /// The kind, see [`DeviceFault::kind`].
    pub kind: &'static str,
    /// What the first of them was.
    pub first: String,
    /// So many there were.
    pub count: u64,
}

/// What one slot counts.
#[derive(Default)]
pub struct Tally {
    identity: Mutex<Option<Arc<Identity>>>,
    status: AtomicU8,
    ignored: AtomicU64,
    interrupts: AtomicU64,
    waits_for_room: AtomicBool,
    /// One of each kind and device, at most [`FAULTS_MOST`].
    faults: Mutex<Vec<Fault>>,
    told: Option<FaultSink>,
}

impl Tally {
    /// Of an empty slot. `told` hears of the first fault of each kind.
    #[must_use]
    pub fn new(told: Option<FaultSink>) -> Self {
        Self { told, ..Self::default() }
    }

    /// A device is in the slot, or none is any more.
    pub(super) fn identify(&self, identity: Option<Identity>) {
        *self.identity.lock().unwrap_or_else(PoisonError::into_inner) = identity.map(Arc::new);
    }

    /// What is in the slot; `None`: nothing.
    #[must_use]
    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is counted of queue `index`, if there is one.
    pub(super) fn queue(&self, index: usize) -> Option<Arc<QueueTally>> {
        self.identity()?.queues.get(index).cloned()
    }

    pub(super) fn set_status(&self, status: u8) {
        self.status.store(status, Ordering::Relaxed);
    }

    /// The device status as the driver left it.
    #[must_use]
    pub fn status(&self) -> u8 {
        self.status.load(Ordering::Relaxed)
    }

    pub(super) fn ignore(&self) {
        self.ignored.fetch_add(1, Ordering::Relaxed);
    }

    /// Accesses so far that the specification forbids; they were ignored.
    #[must_use]
    pub fn ignored(&self) -> u64 {
        self.ignored.load(Ordering::Relaxed)
    }

    pub(super) fn interrupt(&self) {
        self.interrupts.fetch_add(1, Ordering::Relaxed);
    }

    /// Interrupts so far.
    #[must_use]
    pub fn interrupts(&self) -> u64 {
        self.interrupts.load(Ordering::Relaxed)
    }

    pub(super) fn set_waits_for_room(&self, waits: bool) {
        self.waits_for_room.store(waits, Ordering::Relaxed);
    }

    /// Whether requests wait because the host's file system is full.
    #[must_use]
    pub fn waits_for_room(&self) -> bool {
        self.waits_for_room.load(Ordering::Relaxed)
    }

    /// Counts a fault, whether the device needs a reset after it or not.
    pub fn fault(&self, fault: &DeviceFault) {
        let kind = fault.kind();
        let identity = self.identity();
        let device_id = identity.as_ref().map_or(id::NONE, |identity| identity.device_id);
        let name = identity.as_ref().and_then(|identity| identity.name.as_ref());
        let mut faults = self.lock();
        let is_same =
            |same: &&mut Fault| (same.kind, same.device_id, same.name.as_ref()) == (kind, device_id, name);
        if let Some(same) = faults.iter_mut().find(is_same) {
            same.count = same.count.saturating_add(1);
            return;
        }
        let mut first = match std::error::Error::source(fault) {
            None => fault.to_string(),
            Some(source) => format!("{fault}: {source}"),
        };
        first.truncate(first.floor_char_boundary(SENTENCE_MOST));
        if faults.len() >= FAULTS_MOST {
            let of_another = |other: &Fault| (other.device_id, other.name.as_ref()) != (device_id, name);
            let oldest = faults.iter().position(of_another).unwrap_or(0);
            faults.remove(oldest);
        }
        let fresh = Fault { device_id, name: name.cloned(), kind, first, count: 1 };
        faults.push(fresh.clone());
        drop(faults);
        if let Some(told) = &self.told {
            told(&fresh);
        }
    }

    /// Writes down what was counted. What is in the slot is another's to say.
    pub(super) fn save(&self, fields: &mut FieldWriter) {
        // A worker that starts again finds out by itself whether it waits for room.
        let Self { identity: _, status: _, ignored, interrupts, waits_for_room: _, faults: _, told: _ } =
            self;
        fields.put(&ignored.load(Ordering::Relaxed));
        fields.put(&interrupts.load(Ordering::Relaxed));
        let faults = self.lock();
        fields.put(&fits::<_, u32>(faults.len(), "one of each kind and device, and kinds are few"));
        for Fault { device_id, name, kind, first, count } in &*faults {
            fields.put(device_id);
            fields.put(&name.is_some());
            fields.put_text(cut(name.as_deref().unwrap_or_default()));
            fields.put_text(kind);
            fields.put_text(cut(first));
            fields.put(count);
        }
    }

    /// Goes on counting from what was written down. Nobody is told of faults that were told of.
    pub(super) fn restore(&self, fields: &mut FieldReader<'_>) -> Result<(), StateError> {
        self.ignored.store(fields.get()?, Ordering::Relaxed);
        self.interrupts.store(fields.get()?, Ordering::Relaxed);
        let mut faults = Vec::new();
        let count = fields.get::<u32>()?;
        if fits::<_, usize>(count, "usize has at least 32 bits") > FAULTS_MOST {
            return Err(fields.unfit("it has more records of faults than a slot keeps"));
        }
        for _ in 0..count {
            let device_id = fields.get()?;
            let (is_named, name) = (fields.get::<bool>()?, fields.get_text(TEXT_MAX)?);
            let kind = fields.get_text(TEXT_MAX)?;
            let kind = DeviceFault::KINDS.into_iter().find(|known| *known == kind);
            let kind = kind.ok_or_else(|| fields.unfit("it has a fault of an unknown kind"))?;
            let (first, count) = (fields.get_text(SENTENCE_MOST)?, fields.get()?);
            faults.push(Fault { device_id, name: is_named.then_some(name), kind, first, count });
        }
        *self.lock() = faults;
        Ok(())
    }

    /// Faults so far of all devices that were in the slot, by kind, in the order in which the kinds
    /// came. Of more than [`FAULTS_MOST`] the oldest of devices that are gone were forgotten.
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Fault>> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Most bytes of a text that is written down.
const TEXT_MAX: usize = 1024;

/// As much of a text as is written down.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_MAX)]
}

/// What a queue's worker writes down of it.
#[derive(Debug, Default)]
pub struct QueueTally {
    /// Entries of its rings; 0: the driver does not use it.
    size: AtomicU16,
    /// Where the available ring lies.
    available: AtomicU64,
    next_available: AtomicU16,
    next_used: AtomicU16,
    chains: AtomicU64,
    /// Somebody else serves it now, and alone knows where it stands.
    is_lent: AtomicBool,
    /// Somebody else has served it, so that `chains` is short of what they gave back.
    was_lent: AtomicBool,
}

/// A queue at one moment. Indices run freely from 0 to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuePosition {
    /// Entries of its rings.
    pub size: u16,
    /// The available index as the driver's memory has it.
    pub driver_available: u16,
    /// The next entry of the available ring that the device takes; `None`: somebody else serves
    /// the queue.
    pub next_available: Option<u16>,
    /// The next entry of the used ring that the device fills; `None` as well.
    pub next_used: Option<u16>,
}

impl QueueTally {
    /// A queue begins, with so many entries and its available ring at a guest physical address.
    pub(super) fn begin(&self, size: u16, available: u64) {
        self.available.store(available, Ordering::Relaxed);
        self.stand(0, 0);
        self.size.store(size, Ordering::Release);
    }

    /// The driver forgot it.
    pub(super) fn end(&self) {
        self.size.store(0, Ordering::Release);
    }

    pub(super) fn taken(&self, next_available: u16) {
        self.next_available.store(next_available, Ordering::Relaxed);
    }

    pub(super) fn given(&self, next_used: u16) {
        self.next_used.store(next_used, Ordering::Relaxed);
        self.chains.fetch_add(1, Ordering::Relaxed);
    }

    /// The queue stands here, and is served here.
    pub(super) fn stand(&self, next_available: u16, next_used: u16) {
        self.taken(next_available);
        self.next_used.store(next_used, Ordering::Relaxed);
        self.is_lent.store(false, Ordering::Release);
    }

    /// Somebody else serves the queue until it stands somewhere again.
    pub(super) fn lent(&self) {
        self.was_lent.store(true, Ordering::Relaxed);
        self.is_lent.store(true, Ordering::Release);
    }

    /// So many chains were given back; `None`: nobody has counted all of them.
    pub(super) fn set_chains(&self, chains: Option<u64>) {
        self.chains.store(chains.unwrap_or(0), Ordering::Relaxed);
        self.was_lent.store(chains.is_none(), Ordering::Relaxed);
    }

    /// Chains that were given back since the machine started; `None`: somebody else gave some back,
    /// and nobody has counted those.
    #[must_use]
    pub fn chains(&self) -> Option<u64> {
        let is_whole = !self.was_lent.load(Ordering::Relaxed);
        is_whole.then(|| self.chains.load(Ordering::Relaxed))
    }

    /// Where it stands; `None`: the driver does not use it.
    #[must_use]
    pub fn position(&self, memory: &Memory) -> Option<QueuePosition> {
        let size = self.size.load(Ordering::Acquire);
        let index = GuestAddress(self.available.load(Ordering::Relaxed) + 2);
        // Rings in use were checked to lie in memory, which does not shrink.
        let driver_available: u16 = memory.load(index, Ordering::Acquire).ok()?;
        let is_here = !self.is_lent.load(Ordering::Acquire);
        let stands = |next: &AtomicU16| is_here.then(|| next.load(Ordering::Relaxed));
        (size > 0).then(|| QueuePosition {
            size,
            driver_available: u16::from_le(driver_available),
            next_available: stands(&self.next_available),
            next_used: stands(&self.next_used),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::fault::QueueFault;

    #[test]
    fn the_first_fault_of_each_kind_is_told_and_all_are_counted() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let hears = told.clone();
        let tally = Tally::new(Some(Box::new(move |fault| hears.lock().unwrap().push(fault.clone()))));
        let index = |index| DeviceFault::Queue(QueueFault::Index { index, entries: 64 });
        for n in 64..100 {
            tally.fault(&index(n));
        }
        tally.fault(&DeviceFault::Queue(QueueFault::Loop { head: 3 }));
        tally.fault(&index(1000));
        let kinds = ["descriptor_index", "descriptor_loop"];
        let firsts = [
            "the driver broke a queue: descriptor 64 of 64",
            "the driver broke a queue: descriptor chain 3 does not end",
        ];
        for (counts, faults) in [([37, 1], tally.faults()), ([1, 1], told.lock().unwrap().clone())] {
            for (n, fault) in faults.iter().enumerate() {
                assert_eq!((fault.kind, fault.first.as_str(), fault.count), (kinds[n], firsts[n], counts[n]));
            }
            assert_eq!(faults.len(), 2);
        }
    }

    #[test]
    fn devices_that_come_and_go_leave_no_more_than_so_many_records() {
        let tally = Tally::new(None);
        let put = |name: &str| {
            let name = Some(name.to_owned());
            tally.identify(Some(Identity { device_id: id::BLOCK, name, queues: Vec::new() }));
        };
        let faults = [QueueFault::Loop { head: 3 }, QueueFault::Index { index: 9, entries: 8 }];
        for n in 0..1000 {
            put(&n.to_string());
            for fault in faults {
                tally.fault(&DeviceFault::Queue(fault));
                tally.fault(&DeviceFault::Queue(fault));
            }
        }
        let kept = tally.faults();
        assert_eq!(kept.len(), FAULTS_MOST);
        let last: Vec<_> =
            kept.iter().rev().take(2).map(|fault| (fault.name.as_deref(), fault.count)).collect();
        assert_eq!(last, [(Some("999"), 2), (Some("999"), 2)]);
        // Whatever is there keeps its records.
        assert_eq!(kept[0].name.as_deref(), Some("988"));
    }

    #[test]
    fn a_state_with_more_faults_than_a_slot_keeps_is_refused() {
        let state = |count: usize| {
            let tally = Tally::new(None);
            tally.fault(&DeviceFault::Queue(QueueFault::Loop { head: 3 }));
            let one = tally.faults().remove(0);
            *tally.lock() = vec![one; count];
            let mut fields = FieldWriter::default();
            tally.save(&mut fields);
            fields.into_bytes()
        };
        for (count, fits) in [(0, true), (FAULTS_MOST, true), (FAULTS_MOST + 1, false)] {
            let bytes = state(count);
            let restored = Tally::new(None).restore(&mut FieldReader::new("test", &bytes));
            assert_eq!(restored.is_ok(), fits, "{count}");
        }
    }

    #[test]
    fn a_long_sentence_is_cut() {
        let tally = Tally::new(None);
        tally.fault(&DeviceFault::Host(std::io::Error::other("ä".repeat(1000))));
        assert!(tally.faults()[0].first.len() <= SENTENCE_MOST);
    }
}
