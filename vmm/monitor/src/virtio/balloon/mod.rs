//! The balloon device (virtio 1.2, 5.5), of which free page reporting alone is used: the guest says
//! which of its memory is free, and its pages go back to the host until they are touched again.
//!
//! No target is ever set, so a driver has nothing to inflate. What one puts into the inflate and
//! deflate queues all the same is given back to it and changes nothing.
//!
//! **Queues.** By the specification the reporting queue is number 4. Linux numbers the queues that
//! it uses one after the other, so that it is number 2 there, since neither statistics nor hints
//! are offered. Therefore each queue behind the first two is one for reports.
//!
//! **Contents.** A page that was given back reads as zeros. A driver that fills free pages with
//! something else says so (PAGE_POISON), and then nothing is taken from it. Pages in whose place
//! the host has mapped a file (the kernel's) would read as that file, and are left alone.

#[cfg(test)]
mod tests;

use std::any::Any;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::device::{
    ActivateError, Activation, Device, DeviceFault, Registrar, Returned, Worker, read_bytes,
};
use super::interrupt::Interrupt;
use super::queue::{Chain, Queue, Served};
use super::spec::id;
use crate::memory::{Memory, Slot};
use crate::state::{Sections, StateError, Stateful};
use crate::sys::Interest;
use crate::sys::pages::CAN_DISCARD;

/// Features and places of 5.5.3 and 5.5.4.
mod spec {
    /// The driver says what it fills free pages with.
    pub(super) const F_PAGE_POISON: u64 = 1 << 4;
    /// The driver reports free pages.
    pub(super) const F_REPORTING: u64 = 1 << 5;
    /// Bytes of the configuration space: `num_pages`, `actual`, `free_page_hint_cmd_id` and
    /// `poison_val`, four each.
    pub(super) const CONFIG_BYTES: usize = 16;
    /// Where `actual` stands.
    pub(super) const ACTUAL: usize = 4;
    /// Where `poison_val` stands.
    pub(super) const POISON: usize = 12;
    /// The first queue that is neither the inflate nor the deflate queue.
    pub(super) const FIRST_REPORTS: u32 = 2;
}

/// Linux reports 32 pieces at a time, and does without a queue that has less room.
const SIZES: [u16; 5] = [32; 5];

/// The device.
pub struct Balloon {
    slots: Arc<[Slot]>,
    counters: Arc<Counters>,
    /// What the driver says that it has inflated; nothing, of an honest one.
    actual: u32,
    /// What the driver fills free pages with.
    poison: Arc<AtomicU32>,
}

#[derive(Debug, Default)]
struct Counters {
    reported: AtomicU64,
    given_back: AtomicU64,
}

/// What guests reported since the machine started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReportCounts {
    /// Bytes that were said to be free, each as often as it was said.
    pub reported: u64,
    /// Those of them that were given back to the host.
    pub given_back: u64,
}

/// Reads what was reported, from any thread.
#[derive(Clone, Debug)]
pub struct BalloonView(Arc<Counters>);

impl BalloonView {
    /// What was reported so far.
    #[must_use]
    pub fn counts(&self) -> ReportCounts {
        let Counters { reported, given_back } = &*self.0;
        // In this order: there is never more given back than is reported.
        let given_back = given_back.load(Ordering::Acquire);
        ReportCounts { reported: reported.load(Ordering::Relaxed), given_back }
    }
}

impl Balloon {
    /// The device for the memory that `slots` are.
    #[must_use]
    pub fn new(slots: &[Slot]) -> (Self, BalloonView) {
        let counters = Arc::new(Counters::default());
        let view = BalloonView(Arc::clone(&counters));
        (Self { slots: slots.into(), counters, actual: 0, poison: Arc::default() }, view)
    }

    fn config(&self) -> [u8; spec::CONFIG_BYTES] {
        let mut bytes = [0; spec::CONFIG_BYTES];
        bytes[spec::ACTUAL..][..4].copy_from_slice(&self.actual.to_le_bytes());
        bytes[spec::POISON..][..4].copy_from_slice(&self.poison.load(Ordering::Relaxed).to_le_bytes());
        bytes
    }
}

impl Device for Balloon {
    fn id(&self) -> u32 {
        id::BALLOON
    }

    fn features(&self) -> u64 {
        if CAN_DISCARD { spec::F_REPORTING | spec::F_PAGE_POISON } else { 0 }
    }

    fn queue_sizes(&self) -> &[u16] {
        &SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_bytes(&self.config(), offset, data);
    }

    /// Both fields that are the driver's are written whole.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let Ok(bytes) = data.try_into() else { return };
        let value = u32::from_le_bytes(bytes);
        match usize::try_from(offset) {
            Ok(spec::ACTUAL) => self.actual = value,
            Ok(spec::POISON) => self.poison.store(value, Ordering::Relaxed),
            _ => {}
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        let Activation { features, memory, queues, interrupt } = activation;
        let (slots, counters, poison) = (self.slots.clone(), self.counters.clone(), self.poison.clone());
        Ok(Box::new(BalloonWorker { features, memory, queues, interrupt, slots, counters, poison }))
    }

    fn reclaim(&mut self, _state: Box<dyn Any + Send>) {}

    fn reset(&mut self) {
        self.actual = 0;
        self.poison.store(0, Ordering::Relaxed);
    }
}

/// What the driver has written. The memory that was given back is zeros in the memory's state.
impl Stateful for Balloon {
    fn save(&self, name: &str, state: &mut Sections) {
        let Self { slots: _, counters: _, actual, poison } = self;
        state.put_fields(name, 1, |fields| {
            fields.put(actual);
            fields.put(&poison.load(Ordering::Relaxed));
        });
    }

    fn restore(&mut self, name: &str, state: &mut Sections) -> Result<(), StateError> {
        let Self { slots: _, counters: _, actual, poison } = self;
        state.take_fields(name, 1, |fields| {
            *actual = fields.get()?;
            poison.store(fields.get()?, Ordering::Relaxed);
            Ok(())
        })
    }
}

struct BalloonWorker {
    features: u64,
    memory: Memory,
    queues: Vec<Option<Queue>>,
    interrupt: Interrupt,
    slots: Arc<[Slot]>,
    counters: Arc<Counters>,
    poison: Arc<AtomicU32>,
}

impl BalloonWorker {
    /// Whether pages of zeros are what the driver expects where it reported free ones.
    fn may_take(&self) -> bool {
        let poison =
            if self.features & spec::F_PAGE_POISON == 0 { 0 } else { self.poison.load(Ordering::Relaxed) };
        self.features & spec::F_REPORTING != 0 && poison == 0
    }
}

impl Worker for BalloonWorker {
    fn register(&mut self, registrar: &mut Registrar<'_>) -> Result<(), DeviceFault> {
        for (key, queue) in (0..).zip(&self.queues) {
            let Some(queue) = queue else { continue };
            registrar.add(queue.doorbell().as_fd(), key, Interest::READ)?;
            queue.doorbell().notify()?;
        }
        Ok(())
    }

    fn unregister(&mut self, registrar: &mut Registrar<'_>) {
        for queue in self.queues.iter().flatten() {
            // A descriptor that was never added is not there any more: what was wanted.
            let _ = registrar.remove(queue.doorbell().as_fd());
        }
    }

    fn ready(
        &mut self,
        key: u32,
        _ready: Interest,
        _registrar: &mut Registrar<'_>,
    ) -> Result<(), DeviceFault> {
        let takes = key >= spec::FIRST_REPORTS && self.may_take();
        let Self { features: _, memory, queues, interrupt, slots, counters, poison: _ } = self;
        let queue = usize::try_from(key).ok().and_then(|index| queues.get_mut(index)?.as_mut());
        let Some(queue) = queue else { return Ok(()) };
        queue.serve(memory, interrupt, |chain| {
            let moved = if takes { give_back(chain, slots, counters, interrupt) } else { 0 };
            Ok(Served { written: 0, moved })
        })
    }

    fn quiesce(self: Box<Self>) -> Returned {
        Returned { state: Box::new(()), queues: self.queues }
    }
}

/// Gives back what a report says is free, and returns its bytes. Segments of a chain lie inside
/// memory, but need not be pages: what is not a whole one is kept.
fn give_back(chain: &Chain, slots: &[Slot], counters: &Counters, interrupt: &Interrupt) -> u64 {
    // A chain can name the same memory again and again, for as long as it has descriptors.
    let most: u64 = slots.iter().map(Slot::len).sum();
    let mut reported = 0;
    for segment in chain.writable() {
        if reported >= most {
            break;
        }
        reported += u64::from(segment.len);
        counters.reported.fetch_add(segment.len.into(), Ordering::Relaxed);
        for slot in slots {
            match slot.give_back(segment.address, segment.len.into()) {
                Ok(given) => {
                    counters.given_back.fetch_add(given, Ordering::Release);
                }
                // The driver has done nothing wrong, and loses nothing: its pages stay.
                Err(error) => interrupt.tally().fault(&DeviceFault::Host(error)),
            }
        }
    }
    reported
}
