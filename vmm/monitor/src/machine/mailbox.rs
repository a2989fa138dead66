//! The machine's one control queue: what vCPU threads and workers' threads tell the loop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::{fmt, io};

use super::saving::SaveError;
use crate::hv::{HvError, Kicker};
use crate::state::Sections;
use crate::sys::Notifier;
use crate::timeline::GuestCounter;
use crate::virtio::device::Running;
use crate::virtio::tally::Fault;
use crate::virtio::vsock::PowerWord;

/// One message.
pub(super) enum Message {
    /// A driver started a device whose worker shares the loop.
    StartWorker(Running),
    /// The worker of a slot is wanted back.
    StopWorker(u16),
    /// The thread of a worker is ready.
    ThreadReady,
    /// It ended, for it could not give up what it does not need.
    Unconfined(io::Error),
    /// A worker on a thread of its own went home.
    WorkerHome,
    /// From a vCPU's thread.
    Vcpu(u32, VcpuEvent),
    /// The guest's agent said how it ends.
    Agent(PowerWord),
    /// The first fault of its kind in the device of a slot.
    Fault(u16, Fault),
}

/// What a vCPU's thread says.
pub(super) enum VcpuEvent {
    /// The vCPU exists; how to get it out of the guest.
    Created(Arc<dyn Kicker>),
    /// It could not be made or loaded; the thread has ended.
    Failed(HvError),
    /// It is out of the guest with nothing pending, for the pause of this number.
    Parked(u64),
    /// Its state, for the save of this number.
    Saved(u64, Result<Sections, HvError>),
    /// The files of the save of this number are written, or not.
    Written(u64, Result<(), SaveError>),
    /// It is out of the guest for the look of this number; whether it sleeps for good.
    Looked(u64, bool),
    /// What the guest's counter shows, when the hypervisor can tell.
    Counter(Option<GuestCounter>),
    /// It will not enter the guest again.
    Stopped(Cause),
    /// Its thread ends.
    Ended,
}

/// Why a vCPU stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The guest wrote to a register that switches off.
    PowerOff,
    /// The guest wrote to a register that resets.
    Reset,
    /// Triple fault.
    TripleFault,
    /// Every vCPU halted for good; whether the kernel said that it was to switch off.
    Halt {
        /// It said so.
        power_off: bool,
    },
    /// The guest did what the hypervisor cannot run, or the hypervisor failed.
    Fault(String),
}

/// The queue's posting end: from any thread, never waits.
#[derive(Clone)]
pub(super) struct Mailbox {
    sender: mpsc::Sender<Message>,
    bell: Arc<Bell>,
}

/// Wakes the loop once, however often it is rung before the loop looks.
pub(super) struct Bell {
    rung: AtomicBool,
    notifier: Notifier,
}

impl Bell {
    /// Wakes the loop.
    pub(super) fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            // A notification fails only when the process has no descriptors left to lose.
            drop(self.notifier.notify());
        }
    }

    /// The loop is awake: what is posted from here on rings again.
    pub(super) fn silence(&self) {
        drop(self.notifier.consume());
        self.rung.store(false, Ordering::Release);
    }

    pub(super) fn notifier(&self) -> &Notifier {
        &self.notifier
    }
}

impl Mailbox {
    /// A queue and its reading end.
    pub(super) fn new() -> io::Result<(Self, mpsc::Receiver<Message>)> {
        let (sender, receiver) = mpsc::channel();
        let bell = Arc::new(Bell { rung: AtomicBool::new(false), notifier: Notifier::new()? });
        Ok((Self { sender, bell }, receiver))
    }

    /// Posts. After the loop's end nobody listens, and nobody needs to.
    pub(super) fn post(&self, message: Message) {
        if self.sender.send(message).is_ok() {
            self.bell.ring();
        }
    }

    pub(super) fn bell(&self) -> &Arc<Bell> {
        &self.bell
    }
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mailbox")
    }
}
