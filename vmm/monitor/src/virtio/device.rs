//! The seam between a virtio device, its transport and the loop that runs its worker.
//!
//! A device is in two parts. The [`Device`] stays with the transport and answers configuration
//! reads on vCPU threads. When the driver is ready the transport moves the queues, each validated
//! once, into a [`Worker`] that [`Device::activate`] makes, wraps it as [`Running`] and gives that
//! to the [`WorkerHost`] that the machine chose. Reset, detach and pause all take it back by
//! [`Running::stop`]: one path.

use std::any::Any;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};

pub use super::fault::{ActivateError, DeviceFault};
use super::interrupt::Interrupt;
use super::queue::Queue;
use crate::memory::Memory;
use crate::state::Stateful;
use crate::sys::{Interest, Poller, at_most};

/// Where a worker runs: a device says it, the machine acts on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Placement {
    /// On the loop that all such workers share: nothing that they do waits.
    #[default]
    Shared,
    /// On a thread of its own: its requests block (file I/O).
    OwnThread,
}

/// A device as the transport sees it.
///
/// Its state is asked for, and comes back, when it has no worker: before the first one, or when the
/// last one's return was given to [`Device::reclaim`]. Then everything that it has to say is here;
/// where its queues stand is the transport's to say. What a driver reads in the configuration space
/// stays as it was: a device that would show another one refuses the state.
pub trait Device: Send + Stateful {
    /// The virtio device id (virtio 1.2, section 5).
    fn id(&self) -> u32;

    /// What it is called beside its kind.
    fn name(&self) -> Option<String> {
        None
    }

    /// Feature bits offered, without those of the transport (VERSION_1 and ring features are added
    /// by it).
    fn features(&self) -> u64;

    /// Features of the transport and its rings that this device cannot have: whoever walks its
    /// rings does not know of them.
    fn withheld(&self) -> u64 {
        0
    }

    /// The largest size of each queue, powers of two up to 32768.
    fn queue_sizes(&self) -> &[u16];

    /// Reads the configuration space; `data` is zeroed. Bytes beyond its end stay 0.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes the configuration space. Writes that the specification does not allow are ignored.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Where its worker is to run.
    fn placement(&self) -> Placement {
        Placement::Shared
    }

    /// Makes the worker. The driver has accepted `activation.features`, a subset of those offered.
    /// After a pause the queues are those that the last worker returned, and [`Device::reclaim`]
    /// was called with its state, but not [`Device::reset`].
    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Worker>, ActivateError>;

    /// Takes back what a worker of this device returned.
    fn reclaim(&mut self, state: Box<dyn Any + Send>);

    /// The driver reset the device: forget everything that belonged to it. Comes after
    /// [`Device::reclaim`].
    fn reset(&mut self) {}
}

/// What a worker is made of.
pub struct Activation {
    /// Features both sides agreed on, all 64 bits.
    pub features: u64,
    /// Guest memory, for the worker's own use.
    pub memory: Memory,
    /// The queues in order; one the driver left disabled is `None`.
    pub queues: Vec<Option<Queue>>,
    /// How the worker interrupts the driver.
    pub interrupt: Interrupt,
}

impl Activation {
    /// Takes queue `index`, which the device cannot work without.
    pub fn take_queue(&mut self, index: usize) -> Result<Queue, ActivateError> {
        self.queues.get_mut(index).and_then(Option::take).ok_or(ActivateError::MissingQueue(index))
    }
}

/// The running part of a device. It lives on one loop and is never shared.
pub trait Worker: Send {
    /// Registers what the worker waits for: queue doorbells and host descriptors. Called once, when
    /// it starts; what was made available before that must be looked at too (the driver may have
    /// rung before, or while the machine was paused).
    fn register(&mut self, registrar: &mut Registrar<'_>) -> Result<(), DeviceFault>;

    /// Removes every registration. Called once, before [`Worker::quiesce`] or after a fault.
    fn unregister(&mut self, registrar: &mut Registrar<'_>);

    /// Something registered under `key` is ready. Never waits for a peer: the loop may have other
    /// devices. After an error the worker is unregistered and only [`Worker::quiesce`] is called.
    fn ready(&mut self, key: u32, ready: Interest, registrar: &mut Registrar<'_>) -> Result<(), DeviceFault>;

    /// Drains or cancels what is in flight and gives back device state and queues.
    fn quiesce(self: Box<Self>) -> Returned;
}

/// What a worker leaves behind: enough to start it again, or to write it down.
pub struct Returned {
    /// For [`Device::reclaim`].
    pub state: Box<dyn Any + Send>,
    /// The queues in their order.
    pub queues: Vec<Option<Queue>>,
}

/// Who runs workers: the machine. Both calls return at once and are carried out in order.
pub trait WorkerHost: Send + Sync {
    /// Runs a worker: the loop calls [`Running::start`], then [`Running::ready`] for every event
    /// with its slot.
    fn start(&self, running: Running);

    /// Stops the worker of `slot`: the loop calls [`Running::stop`] when it comes round. A slot
    /// without worker is ignored.
    fn stop(&self, slot: u16);
}

/// The way home for what a worker leaves behind: the loop deposits, the transport collects.
#[derive(Clone, Default)]
pub struct ReturnBox(Arc<Mutex<Option<Returned>>>);

impl ReturnBox {
    fn deposit(&self, returned: Returned) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(returned);
    }

    /// What was deposited, if anything was.
    #[must_use]
    pub fn take(&self) -> Option<Returned> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A worker in the hands of a loop. A fault parks it until the driver resets the device; dropping
/// it returns it like [`Running::stop`].
pub struct Running {
    slot: u16,
    placement: Placement,
    worker: Option<Box<dyn Worker>>,
    interrupt: Interrupt,
    home: ReturnBox,
    registered: bool,
}

impl Running {
    /// Wraps the worker of the device in `slot`; `home` is where it returns to.
    #[must_use]
    pub fn new(
        slot: u16,
        placement: Placement,
        worker: Box<dyn Worker>,
        interrupt: Interrupt,
        home: ReturnBox,
    ) -> Self {
        Self { slot, placement, worker: Some(worker), interrupt, home, registered: false }
    }

    /// Its slot: the upper half of its tokens.
    #[must_use]
    pub fn slot(&self) -> u16 {
        self.slot
    }

    /// Its device's interrupt, and what its slot counts.
    #[must_use]
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// Where it is to run, see [`Device::placement`].
    #[must_use]
    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// Registers with the loop's poller.
    pub fn start(&mut self, poller: &Poller) {
        self.registered = true;
        let slot = self.slot;
        self.guarded(poller, |worker| worker.register(&mut Registrar::new(poller, slot)));
    }

    /// Passes an event on. Events that were under way when the worker was parked are ignored.
    pub fn ready(&mut self, poller: &Poller, key: u32, ready: Interest) {
        if self.registered {
            let slot = self.slot;
            self.guarded(poller, |worker| worker.ready(key, ready, &mut Registrar::new(poller, slot)));
        }
    }

    /// Takes the worker off the poller and sends what it leaves behind to the transport.
    pub fn stop(mut self, poller: &Poller) {
        self.park(poller);
    }

    fn guarded(&mut self, poller: &Poller, step: impl FnOnce(&mut dyn Worker) -> Result<(), DeviceFault>) {
        let Some(worker) = self.worker.as_deref_mut() else { return };
        if let Err(fault) = step(worker) {
            self.park(poller);
            self.interrupt.fail(&fault);
        }
    }

    fn park(&mut self, poller: &Poller) {
        if std::mem::take(&mut self.registered)
            && let Some(worker) = self.worker.as_deref_mut()
        {
            worker.unregister(&mut Registrar::new(poller, self.slot));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(worker) = self.worker.take() {
            self.home.deposit(worker.quiesce());
        }
    }
}

/// A worker's view of its loop's poller: its keys are filed under its slot.
pub struct Registrar<'a> {
    poller: &'a Poller,
    slot: u16,
}

impl<'a> Registrar<'a> {
    /// A registrar for the worker in `slot`.
    #[must_use]
    pub fn new(poller: &'a Poller, slot: u16) -> Self {
        Self { poller, slot }
    }

    /// The poller's token of `key`: the slot in the upper half.
    #[must_use]
    pub fn token(slot: u16, key: u32) -> u64 {
        (u64::from(slot) << 32) | u64::from(key)
    }

    /// Slot and key of a token.
    #[must_use]
    pub fn split(token: u64) -> (u16, u32) {
        #[expect(clippy::cast_possible_truncation, reason = "the halves of a token are what is wanted")]
        let halves = ((token >> 32) as u16, token as u32);
        halves
    }

    /// Waits (level-triggered) for `interest` on `fd`.
    pub fn add(&mut self, fd: BorrowedFd<'_>, key: u32, interest: Interest) -> io::Result<()> {
        self.poller.add(fd, Self::token(self.slot, key), interest)
    }

    /// Changes what is waited for.
    pub fn modify(&mut self, fd: BorrowedFd<'_>, key: u32, interest: Interest) -> io::Result<()> {
        self.poller.modify(fd, Self::token(self.slot, key), interest)
    }

    /// Waits no more. To be called before the descriptor is closed.
    pub fn remove(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.poller.remove(fd)
    }
}

/// Answers a read of a configuration space that is held as bytes. What lies beyond its end is left
/// as it was.
pub fn read_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    let from = at_most(offset, config.len());
    for (to, from) in data.iter_mut().zip(&config[from..]) {
        *to = *from;
    }
}
