//! The seam between a virtio device, its transport and the loop that runs its worker.
//!
//! A device is in two parts. The [`Device`] stays with the transport and answers configuration reads on vCPU threads. When the
//! driver is ready the transport moves the queues, each validated once, into a [`Worker`] that [`Device::activate`] makes, and hands
//! it to the loop that the machine chose. Reset, detach, pause and snapshot all take it back by [`Worker::quiesce`]: one path.

use std::io;
use std::os::fd::BorrowedFd;

use vm_memory::GuestMemoryMmap;

use super::interrupt::Interrupt;
use super::queue::Queue;
use crate::sys::{Interest, Poller};

/// A device as the transport sees it.
pub trait Device: Send {
    /// The virtio device id (virtio 1.2, section 5).
    fn id(&self) -> u32;

    /// Feature bits offered, without those of the transport (VERSION_1 and ring features are added by it).
    fn features(&self) -> u64;

    /// The largest size of each queue, powers of two up to 32768.
    fn queue_sizes(&self) -> &[u16];

    /// Reads the configuration space. Bytes beyond its end read as 0.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes the configuration space. Writes that the specification does not allow are ignored.
    fn write_config(&mut self, offset: u64, data: &[u8]);

    /// Makes the worker. The driver has accepted `activation.features`, a subset of those offered.
    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Worker>, ActivateError>;

    /// Takes back what a worker of this device returned, so that the driver may start again from reset.
    fn reclaim(&mut self, state: Box<dyn std::any::Any + Send>);
}

/// What a worker is made of.
pub struct Activation {
    /// Features both sides agreed on, all 64 bits.
    pub features: u64,
    /// Guest memory, for the worker's own use.
    pub memory: GuestMemoryMmap,
    /// The queues in order; one the driver left disabled is `None`.
    pub queues: Vec<Option<Queue>>,
    /// How the worker interrupts the driver.
    pub interrupt: Interrupt,
}

/// Why a device did not start; the transport answers with NEEDS_RESET.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver left a queue disabled that the device cannot work without.
    #[error("queue {0} is needed and was not enabled")]
    MissingQueue(usize),
    /// The host side could not be prepared.
    #[error("cannot prepare the device's host side")]
    Host(#[source] io::Error),
}

/// The running part of a device. It lives on one loop and is never shared.
pub trait Worker: Send {
    /// Registers what the worker waits for: queue doorbells and host descriptors. Called when it starts and when it runs again after a pause.
    fn register(&mut self, registrar: &mut Registrar<'_>) -> io::Result<()>;

    /// Something registered under `key` is ready. Never blocks: the loop has other devices.
    fn ready(&mut self, key: u32, ready: Interest, registrar: &mut Registrar<'_>);

    /// Drains or cancels what is in flight and gives back device state and queues. Its registrations are removed by the loop.
    fn quiesce(self: Box<Self>) -> Returned;
}

/// What a worker leaves behind: enough to start it again, or to write it down.
pub struct Returned {
    /// For [`Device::reclaim`].
    pub state: Box<dyn std::any::Any + Send>,
    /// The queues in their order.
    pub queues: Vec<Option<Queue>>,
}

/// A worker's view of its loop's poller: every registration is filed under the worker's slot, so the loop can remove them all.
pub struct Registrar<'a> {
    poller: &'a Poller,
    slot: u16,
}

impl<'a> Registrar<'a> {
    /// A registrar for the worker in `slot`.
    pub fn new(poller: &'a Poller, slot: u16) -> Self {
        Self { poller, slot }
    }

    /// The poller's token of `key`: the slot in the upper half.
    #[must_use]
    pub fn token(slot: u16, key: u32) -> u64 {
        (u64::from(slot) << 32) | u64::from(key)
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
