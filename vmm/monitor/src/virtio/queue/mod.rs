//! A split virtqueue (virtio 1.2, 2.7) that was validated at activation: the device's end of the
//! rings.
//!
//! The guest writes into a [`QueueConfig`]; [`Queue::new`] makes rings of it only after
//! [`QueueConfig::validate`], and moves into the device's worker. No lock, no second look at the
//! addresses; indices and descriptors are read volatile and once.

mod chain;
mod config;
mod cursor;
#[cfg(test)]
mod tests;

use std::num::Wrapping;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use vm_memory::{Bytes, GuestAddress};

pub use chain::{Chain, Segment};
pub use config::{QueueConfig, Rings};
pub use cursor::{Reader, Writer};

use super::fault::DeviceFault;
pub use super::fault::{QueueConfigError, QueueFault};
use super::interrupt::Interrupt;
use super::spec::{AVAIL_NO_INTERRUPT, USED_NO_NOTIFY, feature};
use super::tally::QueueTally;
use crate::memory::{KernelQueue, Memory};
use crate::state::fields::stateful_fields;
use crate::sys::Notifier;

/// Chains that are served before the driver hears of the first, as one batch: an interrupt costs it
/// two exits.
const SIGNAL_EVERY: u16 = 16;

/// Bytes after which a worker's turn ends: what may stop or pause it is looked at between turns.
pub const TURN_BYTES: u64 = 32 << 20;

/// What serving a chain came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// Bytes written into it.
    pub written: u32,
    /// Bytes that the host moved for it, or a number that stands for as much work: [`TURN_BYTES`]
    /// is a turn's worth.
    pub moved: u64,
}

impl From<u32> for Served {
    /// Nothing was moved but what was written.
    fn from(written: u32) -> Self {
        Self { written, moved: u64::from(written) }
    }
}

/// What became of a chain for now; see [`Queue::serve_or_wait`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is done.
    Served(Served),
    /// It is put back, to be served first by the next call, and ends the turn. Whoever serves sees
    /// to it that there is one.
    PutBack,
    /// Whoever serves has it, and gives it back by [`Queue::push_used`] later.
    Kept,
}

/// The head of a chain that was popped and not yet pushed: put-back and completion ask for it, so
/// that a number from nowhere is no argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held(u16);

impl From<&Chain> for Held {
    fn from(chain: &Chain) -> Self {
        chain.held()
    }
}

/// Where the device stands in a queue, with the names that [`Queue`] has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    next_available: u16,
    next_used: u16,
    published: u16,
}
stateful_fields!(Position { next_available, next_used, published });

impl Position {
    /// Whether a device that holds no chain, and has published all, can stand here.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.next_available == self.next_used && self.next_used == self.published
    }

    /// Whether any device can stand here in a queue of this size: it holds no more chains than the
    /// ring has places.
    #[must_use]
    pub fn is_possible(&self, size: u16) -> bool {
        let held = self.next_available.wrapping_sub(self.next_used);
        let unpublished = self.next_used.wrapping_sub(self.published);
        u32::from(held) + u32::from(unpublished) <= u32::from(size)
    }
}

/// One queue as a worker owns it.
#[derive(Debug)]
pub struct Queue {
    rings: Rings,
    indirect: bool,
    event_idx: bool,
    next_available: Wrapping<u16>,
    next_used: Wrapping<u16>,
    /// `next_used` as the driver sees it: what lies behind is filled in and not published yet.
    published: Wrapping<u16>,
    doorbell: Arc<Notifier>,
    tally: Arc<QueueTally>,
}

impl Queue {
    /// A queue at the start of validated rings. `features` are those negotiated; `doorbell` is what
    /// the driver's notification wakes.
    #[must_use]
    pub fn new(rings: Rings, features: u64, doorbell: Arc<Notifier>) -> Self {
        Self {
            rings,
            indirect: features & feature::INDIRECT_DESC != 0,
            event_idx: features & feature::EVENT_IDX != 0,
            next_available: Wrapping(0),
            next_used: Wrapping(0),
            published: Wrapping(0),
            doorbell,
            tally: Arc::default(),
        }
    }

    /// The same, written down in `tally` for whoever looks at it.
    #[must_use]
    pub fn counted(mut self, tally: Arc<QueueTally>) -> Self {
        tally.begin(self.rings.size, self.rings.available);
        self.tally = tally;
        self
    }

    /// Where it stands.
    #[must_use]
    pub fn position(&self) -> Position {
        Position {
            next_available: self.next_available.0,
            next_used: self.next_used.0,
            published: self.published.0,
        }
    }

    /// The same, standing where another one stood.
    #[must_use]
    pub fn at(mut self, position: Position) -> Self {
        let Position { next_available, next_used, published } = position;
        self.next_available = Wrapping(next_available);
        self.next_used = Wrapping(next_used);
        self.published = Wrapping(published);
        self.tally.stand(next_available, next_used);
        self
    }

    /// The queue as the host's kernel is told of it, to serve it in this one's place until
    /// [`Queue::stand`]. `None`: a chain is held, or not published.
    #[must_use]
    pub fn for_kernel<'a>(&'a self, call: &'a Notifier, broken: &'a Notifier) -> Option<KernelQueue<'a>> {
        let Rings { size, descriptors, available, used } = self.rings;
        let next = self.position().is_quiet().then_some(self.next_available.0)?;
        let kick = self.doorbell.as_fd();
        let (call, broken) = (call.as_fd(), broken.as_fd());
        Some(KernelQueue { size, descriptors, available, used, next, kick, call, broken })
    }

    /// Somebody else serves the queue from here on: whoever looks is told so.
    pub fn lend(&self) {
        self.tally.lent();
    }

    /// Somebody else has served the queue up to here, and holds nothing of it.
    pub fn stand(&mut self, next: u16) {
        (self.next_available, self.next_used, self.published) =
            (Wrapping(next), Wrapping(next), Wrapping(next));
        self.tally.stand(next, next);
    }

    /// Its size: at most this many chains are held at once.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.rings.size
    }

    /// What the driver's notification wakes.
    #[must_use]
    pub fn doorbell(&self) -> &Arc<Notifier> {
        &self.doorbell
    }

    /// Takes the next chain of the driver, whole, bounded and inside its memory.
    pub fn pop(&mut self, memory: &Memory) -> Result<Option<Chain>, QueueFault> {
        if self.pending(memory)? == 0 {
            return Ok(None);
        }
        let slot = u64::from(self.next_available.0 & (self.rings.size - 1));
        let head: u16 = load(memory, self.rings.available + 4 + 2 * slot)?;
        let chain = Chain::walk(memory, &self.rings, head, self.indirect)?;
        self.next_available += 1;
        self.tally.taken(self.next_available.0);
        Ok(Some(chain))
    }

    /// Puts the chain that was popped last back, as if it had not been popped.
    pub fn unpop(&mut self, chain: Chain) {
        drop(chain);
        self.next_available -= 1;
        self.tally.taken(self.next_available.0);
    }

    /// Chains that wait to be popped.
    pub fn pending(&self, memory: &Memory) -> Result<u16, QueueFault> {
        let index: u16 = load(memory, self.rings.available + 2)?;
        let pending = (Wrapping(index) - self.next_available).0;
        if pending > self.rings.size {
            return Err(QueueFault::Available { index, seen: self.next_available.0, size: self.rings.size });
        }
        Ok(pending)
    }

    /// Fills in the next element of the used ring (2.7.8): a chain is done, with `written` bytes in
    /// its writable segments. The driver sees it after [`Queue::publish`] or [`Queue::signal`],
    /// which a worker calls once for a batch, at the latest before its turn ends.
    pub fn push_used(
        &mut self,
        memory: &Memory,
        chain: impl Into<Held>,
        written: u32,
    ) -> Result<(), QueueFault> {
        let Held(head) = chain.into();
        let slot = u64::from(self.next_used.0 & (self.rings.size - 1));
        let element = self.rings.used + 4 + 8 * slot;
        store(memory, element, u32::from(head))?;
        store(memory, element + 4, written)?;
        self.next_used += 1;
        self.tally.given(self.next_used.0);
        Ok(())
    }

    /// Makes all that was pushed since the last time visible by one write of the used index
    /// (2.7.8.2), and says whether the driver wants an interrupt for it (2.7.7): with event
    /// indices, whether its `used_event` is among the indices that this write passed.
    pub fn publish(&mut self, memory: &Memory) -> Result<bool, QueueFault> {
        if self.next_used == self.published {
            return Ok(false);
        }
        // The elements must be visible before the index that announces them: it is a release store.
        store(memory, self.rings.used + 2, self.next_used.0)?;
        // Our index store comes before the load of the driver's wish; the driver orders them the
        // other way round.
        fence(Ordering::SeqCst);
        let before = std::mem::replace(&mut self.published, self.next_used);
        if self.event_idx {
            let event: u16 = load(memory, self.rings.available + 4 + 2 * u64::from(self.rings.size))?;
            return Ok((self.next_used - Wrapping(event) - Wrapping(1)).0 < (self.next_used - before).0);
        }
        let flags: u16 = load(memory, self.rings.available)?;
        Ok(flags & AVAIL_NO_INTERRUPT == 0)
    }

    /// Publishes a batch and interrupts the driver if it wants that.
    pub fn signal(&mut self, memory: &Memory, interrupt: &Interrupt) -> Result<(), DeviceFault> {
        if self.publish(memory)? {
            interrupt.used()?;
        }
        Ok(())
    }

    /// Serves what waits, after the doorbell rang: `serve` says what each chain came to. At most
    /// one round of the ring and about [`TURN_BYTES`] are served at once, so that a driver cannot
    /// keep the loop for itself, neither by many requests nor by large ones; the doorbell brings
    /// the rest.
    pub fn serve(
        &mut self,
        memory: &Memory,
        interrupt: &Interrupt,
        mut serve: impl FnMut(&Chain) -> Result<Served, DeviceFault>,
    ) -> Result<(), DeviceFault> {
        self.serve_or_wait(memory, interrupt, |chain| serve(chain).map(Verdict::Served))
    }

    /// As [`Queue::serve`], but a chain may also be put back, or kept.
    pub fn serve_or_wait(
        &mut self,
        memory: &Memory,
        interrupt: &Interrupt,
        serve: impl FnMut(&Chain) -> Result<Verdict, DeviceFault>,
    ) -> Result<(), DeviceFault> {
        self.doorbell.consume()?;
        let served = self.serve_turn(memory, interrupt, serve);
        // What was done before a fault was done.
        self.signal(memory, interrupt)?;
        if served? { Ok(self.doorbell.notify()?) } else { Ok(()) }
    }

    /// Whether more may wait.
    fn serve_turn(
        &mut self,
        memory: &Memory,
        interrupt: &Interrupt,
        mut serve: impl FnMut(&Chain) -> Result<Verdict, DeviceFault>,
    ) -> Result<bool, DeviceFault> {
        self.disable_notifications(memory)?;
        let mut moved_in_turn = 0;
        for served in 0..self.rings.size {
            let Some(chain) = self.pop(memory)? else {
                self.signal(memory, interrupt)?;
                return Ok(self.enable_notifications(memory)?);
            };
            let Served { written, moved } = match serve(&chain)? {
                Verdict::Served(served) => served,
                Verdict::Kept => continue,
                Verdict::PutBack => {
                    self.unpop(chain);
                    return Ok(false);
                }
            };
            self.push_used(memory, &chain, written)?;
            moved_in_turn += moved;
            if moved_in_turn >= TURN_BYTES {
                break;
            }
            if served % SIGNAL_EVERY == SIGNAL_EVERY - 1 {
                self.signal(memory, interrupt)?;
            }
        }
        Ok(true)
    }

    /// Asks the driver to ring for the next chain; `true` when one came in the meantime: then look
    /// again instead of waiting.
    pub fn enable_notifications(&mut self, memory: &Memory) -> Result<bool, QueueFault> {
        if self.event_idx {
            store(memory, self.avail_event(), self.next_available.0)?;
        } else {
            store(memory, self.rings.used, 0u16)?;
        }
        fence(Ordering::SeqCst);
        Ok(self.pending(memory)? != 0)
    }

    /// Asks the driver to ring for the next chain behind all that wait, and says how many do. A
    /// chain that came meanwhile shows in [`Queue::pending`].
    pub fn notify_beyond_pending(&mut self, memory: &Memory) -> Result<u16, QueueFault> {
        let waiting = self.pending(memory)?;
        if self.event_idx {
            store(memory, self.avail_event(), (self.next_available + Wrapping(waiting)).0)?;
        } else {
            store(memory, self.rings.used, 0u16)?;
        }
        fence(Ordering::SeqCst);
        Ok(waiting)
    }

    /// Tells the driver not to ring: the worker looks by itself.
    pub fn disable_notifications(&mut self, memory: &Memory) -> Result<(), QueueFault> {
        // With event indices nothing needs to be written: the old index lies behind and is not
        // reached again for 65536 chains.
        if self.event_idx { Ok(()) } else { store(memory, self.rings.used, USED_NO_NOTIFY) }
    }

    fn avail_event(&self) -> u64 {
        self.rings.used + 4 + 8 * u64::from(self.rings.size)
    }
}

// The rings were validated, so neither of these fails; and if memory were taken away, that would be
// a fault, not a panic.

fn load<T: Word>(memory: &Memory, address: u64) -> Result<T, QueueFault> {
    let word = memory.load::<T>(GuestAddress(address), Ordering::Acquire);
    word.map(T::of_le).map_err(|_| QueueFault::Outside { address, len: size_of::<T>() as u64 })
}

fn store<T: Word>(memory: &Memory, address: u64, word: T) -> Result<(), QueueFault> {
    let result = memory.store(word.into_le(), GuestAddress(address), Ordering::Release);
    result.map_err(|_| QueueFault::Outside { address, len: size_of::<T>() as u64 })
}

/// A little-endian word of the rings.
trait Word: vm_memory::AtomicAccess {
    fn of_le(self) -> Self;
    fn into_le(self) -> Self;
}

impl Word for u16 {
    fn of_le(self) -> Self {
        Self::from_le(self)
    }
    fn into_le(self) -> Self {
        self.to_le()
    }
}

impl Word for u32 {
    fn of_le(self) -> Self {
        Self::from_le(self)
    }
    fn into_le(self) -> Self {
        self.to_le()
    }
}
