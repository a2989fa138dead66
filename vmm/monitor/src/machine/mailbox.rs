//! The machine's one control queue: what vCPU threads and workers' threads tell the loop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::{fmt, io};

use crate::hv::Kicker;
use crate::sys::{Interest, Notifier, Poller, Ready};
use crate::timeline::GuestCounter;
use crate::virtio::device::{Placement, Registrar, Running, WorkerHost};
use crate::virtio::fault::DeviceFault;
use crate::virtio::tally::Fault;
use crate::virtio::vsock::PowerWord;

/// One message.
pub(super) enum Message {
    /// A driver started a device whose worker shares the loop.
    StartWorker(Running),
    /// The worker of a slot is wanted back.
    StopWorker(u16),
    /// A worker on a thread of its own went home.
    WorkerHome,
    /// From a vCPU's thread.
    Vcpu(u32, Word),
    /// The guest's agent said how it ends.
    Agent(PowerWord),
    /// The first fault of its kind in the device of a slot.
    Fault(u16, Fault),
}

/// What a vCPU's thread says.
pub(super) enum Word {
    /// The vCPU exists; how to get it out of the guest.
    Created(Arc<dyn Kicker>),
    /// It could not be made or loaded; the thread has ended.
    Failed(crate::hv::HvError),
    /// It is out of the guest with nothing pending, for the pause of this number.
    Parked(u64),
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

/// Runs workers where their devices say: on the loop, or on a thread each.
pub(super) struct Host {
    mailbox: Mailbox,
    threads: Mutex<Vec<WorkerThread>>,
}

struct WorkerThread {
    slot: u16,
    stop: Arc<Notifier>,
    thread: JoinHandle<()>,
}

/// Stack of a worker's thread.
const WORKER_STACK_BYTES: usize = 128 << 10;
/// The token of a worker thread's own notifier. No device has this slot.
const STOP_TOKEN: u64 = u64::MAX;

impl Host {
    pub(super) fn new(mailbox: Mailbox) -> Self {
        Self { mailbox, threads: Mutex::new(Vec::new()) }
    }

    /// Waits for the worker threads, all of which were told to stop.
    pub(super) fn join(&self) {
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for worker in threads {
            drop(worker.stop.notify());
            drop(worker.thread.join());
        }
    }

    /// Starts a worker's thread. It waits for what its device serves, and for nobody of the machine; the loop is told when it is home.
    /// The order of locks stands in `vcpu`.
    fn spawn(&self, running: Running) -> io::Result<WorkerThread> {
        let (slot, poller, stop) = (running.slot(), Poller::new()?, Arc::new(Notifier::new()?));
        poller.add(std::os::fd::AsFd::as_fd(&*stop), STOP_TOKEN, Interest::READ)?;
        let mailbox = self.mailbox.clone();
        let thread = std::thread::Builder::new()
            .name(format!("nelly-dev-{slot}"))
            .stack_size(WORKER_STACK_BYTES)
            .spawn(move || {
                // Said when the worker is home, even by a panic: a vCPU may wait for it.
                let _said = SayHome(mailbox);
                run_worker(running, &poller);
            })?;
        Ok(WorkerThread { slot, stop, thread })
    }
}

/// Tells the loop that a worker on a thread of its own is home.
struct SayHome(Mailbox);

impl Drop for SayHome {
    fn drop(&mut self) {
        self.0.post(Message::WorkerHome);
    }
}

/// The loop of a worker that has it to itself.
fn run_worker(mut running: Running, poller: &Poller) {
    running.start(poller);
    let mut ready: Vec<Ready> = Vec::new();
    // A poller that fails is out of service: the worker goes home, and the driver's requests wait for a reset.
    while poller.wait(&mut ready, None).is_ok() {
        if ready.iter().any(|ready| ready.token == STOP_TOKEN) {
            break;
        }
        for event in &ready {
            running.ready(poller, Registrar::split(event.token).1, event.interest);
        }
    }
    running.stop(poller);
}

impl WorkerHost for Host {
    fn start(&self, running: Running) {
        match running.placement() {
            Placement::Shared => return self.mailbox.post(Message::StartWorker(running)),
            Placement::OwnThread => {}
        }
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.retain(|worker| !worker.thread.is_finished());
        let interrupt = running.interrupt().clone();
        match self.spawn(running) {
            Ok(worker) => threads.push(worker),
            // The worker went home with the failed thread.
            Err(out_of_threads) => {
                interrupt.fail(&DeviceFault::Host(out_of_threads));
                self.mailbox.post(Message::WorkerHome);
            }
        }
    }

    fn stop(&self, slot: u16) {
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        match threads.iter().rev().find(|worker| worker.slot == slot) {
            Some(worker) => drop(worker.stop.notify()),
            None => self.mailbox.post(Message::StopWorker(slot)),
        }
    }
}
