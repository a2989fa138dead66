//! The holder of a machine, as the loop sees it: whom to tell, and what was asked for that a
//! machine which starts again must get too.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::assemble::Assembled;
use super::files::Files;
use super::lifecycle::Unfit;
use super::outcome::{Event, Outcome};
use super::saving::SaveError;
use super::wire::{self, Answer, ControlRequest, Received, Receiver, Reply};
use crate::config::{DeviceName, DiskConfig, OnReset};
use crate::hv::Vm;
use crate::timeline::GuestCounter;
use crate::virtio::blk::GrowError;
use crate::virtio::mem::BadSize;

/// Why a request was refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("the machine has no {0}")]
    NoDevice(DeviceName),
    #[error("the {0} of this machine {1}")]
    Cannot(DeviceName, &'static str),
    #[error("the machine starts with {0} bytes of memory and cannot have less")]
    TooLittle(u64),
    #[error(transparent)]
    Size(#[from] BadSize),
    #[error("the {device} cannot be changed")]
    Disk {
        device: DeviceName,
        #[source]
        source: GrowError,
    },
    #[error("the machine was started already")]
    Started,
    #[error("the machine ended before it came to rest")]
    Ending,
    #[error(
        "a descriptor of the request did not arrive: the monitor has no room for more, raise its limit on open files"
    )]
    Descriptor,
    #[error("the guest did not accept on port {port}")]
    Connect {
        port: u32,
        #[source]
        source: io::Error,
    },
    #[error("the host failed")]
    Host(#[from] io::Error),
    #[error(transparent)]
    Unfit(#[from] Unfit),
    #[error("the machine is being saved")]
    Saving,
    #[error(transparent)]
    Save(#[from] SaveError),
}

/// Whoever is at the other end of the control connection.
pub(super) struct Holder {
    control: OwnedFd,
    receiver: Receiver,
    done: OwnedFd,
    pub(super) watchers: Vec<OwnedFd>,
    pub(super) pausers: Vec<Reply>,
    /// Who waits for the guest's counter.
    pub(super) counter_readers: Vec<Reply>,
    /// Kept where a machine may start again: its new socket device gets them too.
    pub(super) listeners: Vec<(u32, OwnedFd)>,
    pub(super) may_start_again: bool,
    /// What the guest shall have, likewise.
    pub(super) memory_bytes: Option<u64>,
    /// Slots that are being emptied, what was in them, and who waits for it.
    pub(super) detaching: Vec<(usize, DeviceName, Reply)>,
    /// Disks that were put into slots and are not yet remembered, each with its file.
    pub(super) attached: Vec<(DiskConfig, Files)>,
    /// What is out of its slot and not yet forgotten.
    pub(super) detached: Vec<(DeviceName, Reply)>,
}

impl Holder {
    pub(super) fn new(control: OwnedFd, receiver: Receiver, done: OwnedFd, on_reset: OnReset) -> Self {
        Self {
            control,
            receiver,
            done,
            watchers: Vec::new(),
            pausers: Vec::new(),
            counter_readers: Vec::new(),
            listeners: Vec::new(),
            may_start_again: on_reset == OnReset::Reboot,
            memory_bytes: None,
            detaching: Vec::new(),
            attached: Vec::new(),
            detached: Vec::new(),
        }
    }

    /// The control connection, for the poller.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }

    /// Whether it has not closed the connection.
    pub(super) fn is_there(&self) -> bool {
        let mut connection = [PollFd::new(&self.control, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Nothing was asked for but what is always told: that the other end is closed.
        !matches!(poll(&mut connection, Some(&now)), Ok(1..))
    }

    /// The next request that is there; `None` when none is. An error means that the holder is gone,
    /// or talks nonsense.
    pub(super) fn next(&mut self) -> io::Result<Option<(ControlRequest, Vec<OwnedFd>)>> {
        match self.receiver.receive(self.control.as_fd())? {
            Received::Frame(request, descriptors) => Ok(Some((request, descriptors))),
            Received::Nothing => Ok(None),
            Received::End => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Tells everybody who wants to know. A watcher that does not read is dropped: the loop waits
    /// for nobody.
    pub(super) fn tell(&mut self, event: &Event) {
        self.watchers.retain(|watcher| wire::send(watcher.as_fd(), event, &[]).is_ok());
    }

    /// The last word.
    pub(super) fn end(mut self, outcome: &Outcome) {
        self.tell(&Event::Ended(outcome.clone()));
        // A holder that is gone does not care.
        drop(wire::send(self.done.as_fd(), outcome, &[]));
    }

    pub(super) fn paused(&mut self) {
        self.pausers.drain(..).for_each(Reply::done);
    }

    pub(super) fn not_paused(&mut self) {
        self.pausers.drain(..).for_each(|reply| reply.failed(&Refusal::Ending));
    }

    /// Looks which slots have become empty. To be done before one of them may be filled again.
    pub(super) fn look_for_detached<V: Vm>(&mut self, machine: &Assembled<V>) {
        let waiting = self.detaching.drain(..);
        let (done, rest): (Vec<_>, Vec<_>) = waiting.partition(|(slot, ..)| machine.is_vacant(*slot));
        self.detaching = rest;
        self.detached.extend(done.into_iter().map(|(_, device, reply)| (device, reply)));
    }

    /// vCPU 0 has read the guest's counter.
    pub(super) fn counter_read(&mut self, counter: Option<GuestCounter>) {
        let answer = Answer::GuestCounter(counter);
        self.counter_readers.drain(..).for_each(|reply| reply.answer(&answer, None));
    }

    /// Gives the devices of a machine that starts again what those of the one before were asked
    /// for: listeners and memory.
    pub(super) fn reconnect<V>(&mut self, machine: &Assembled<V>) {
        if let Some(bytes) = self.memory_bytes {
            // It was taken once, and the machine is the same.
            drop(request_memory(bytes, machine));
        }
        let Some(vsock) = &machine.vsock else { return };
        for (port, channel) in &self.listeners {
            if let Ok(channel) = channel.try_clone() {
                vsock.listen(*port, channel);
            }
        }
    }
}

/// Asks the guest to have `bytes` of memory in all.
pub(super) fn request_memory<V>(bytes: u64, machine: &Assembled<V>) -> Result<(), Refusal> {
    let Some(control) = &machine.memory else { return Err(Refusal::NoDevice(DeviceName::Memory)) };
    let boot = machine.ram.size();
    Ok(control.request(bytes.checked_sub(boot).ok_or(Refusal::TooLittle(boot))?)?)
}
