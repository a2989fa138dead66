//! The worker: takes requests, serves them or has the crew serve them, and gives them back.

use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::control::Shared;
use super::crew::Crew;
use super::request::Requests;
use super::spec;
use crate::memory::Memory;
use crate::sys::{Interest, Notifier, Timer};
use crate::virtio::device::{ActivateError, Activation, DeviceFault, Registrar, Returned, Worker};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::{Chain, Held, Queue, Served, Verdict};

/// How often a request is tried again for which the host's file system has no room.
const AGAIN: Duration = Duration::from_millis(200);

/// Requests that take longer on average are given to the crew. To hand one over and to hear of its
/// end costs about a tenth of that.
const SLOW: Duration = Duration::from_micros(100);

/// What the driver's notification comes under.
const KEY_DOORBELL: u32 = 0;
/// What the time for another try comes under.
const KEY_AGAIN: u32 = 1;
/// What the crew's word that something is done comes under.
const KEY_DONE: u32 = 2;

/// How long requests of a kind take. They begin as slow ones: what a machine reads first is seldom
/// in the host's memory.
#[derive(Clone, Copy, Debug)]
struct Pace(Duration);

impl Pace {
    const NEW: Self = Self(Duration::from_micros(400));

    fn is_slow(self) -> bool {
        self.0 > SLOW
    }

    fn add(&mut self, took: Duration) {
        self.0 = (self.0 * 3 + took) / 4;
    }
}

/// Requests that the crew may serve: those that need no room on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read = 0,
    Flush = 1,
}

/// What the crew has done.
struct Done {
    held: Held,
    kind: Kind,
    took: Duration,
    served: Result<Served, DeviceFault>,
}

/// What the worker and the crew share.
struct Common {
    requests: Requests,
    memory: Memory,
    done: Mutex<Vec<Done>>,
    added: Condvar,
    /// Rings when something is done.
    bell: Notifier,
}

impl Common {
    fn done(&self) -> MutexGuard<'_, Vec<Done>> {
        // Nothing panics while it is held.
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that the crew has. It is told of whatever becomes of it.
struct Errand {
    common: Arc<Common>,
    done: Option<Done>,
}

impl Errand {
    fn new(common: &Arc<Common>, chain: &Chain, kind: Kind) -> Self {
        // What is told if a bug ends the thread.
        let served = Err(DeviceFault::Protocol("a request that was given to a thread was not served"));
        let done = Done { held: Held::from(chain), kind, took: Duration::ZERO, served };
        Self { common: Arc::clone(common), done: Some(done) }
    }

    fn run(mut self, chain: &Chain) {
        let Some(done) = &mut self.done else { return };
        let begun = Instant::now();
        let served = self.common.requests.serve(&self.common.memory, chain);
        done.took = begun.elapsed();
        done.served = served.and_then(|served| {
            served.ok_or(DeviceFault::Protocol("a request that needs no room was refused for it"))
        });
    }
}

impl Drop for Errand {
    fn drop(&mut self) {
        if let Some(done) = self.done.take() {
            self.common.done().push(done);
            self.common.added.notify_all();
            // Fails only when the counter is full, and then it rings already.
            let _rings = self.common.bell.notify();
        }
    }
}

/// Why the first request waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waits {
    /// For a thread of the crew, whose bell rings.
    Crew,
    /// For room on the host.
    Room,
    /// For its turn under the disk's limits.
    Rate(Duration),
}

/// What the worker does is done, or put back, before the next request is taken; so between two
/// events only the crew has requests.
pub(super) struct BlockWorker {
    common: Arc<Common>,
    shared: Arc<Shared>,
    crew: Option<Crew>,
    queue: Queue,
    interrupt: Interrupt,
    /// Requests that the crew has.
    out: usize,
    paces: [Pace; 2],
    /// The first request has had its turn under the limits, and waits for room.
    paid: bool,
    /// Ticks while the first request waits for room or its turn. Most machines never make one.
    timer: Option<Timer>,
}

impl BlockWorker {
    pub(super) fn new(
        shared: &Arc<Shared>,
        id: [u8; spec::ID_BYTES],
        crew: Option<Crew>,
        queue: Queue,
        activation: Activation,
    ) -> Result<Self, ActivateError> {
        let Activation { features, memory, queues: _, interrupt } = activation;
        // A driver that will never ask for a flush expects that what it wrote is safe (5.2.6.2).
        let write_through = features & spec::F_FLUSH == 0;
        let requests = Requests { shared: Arc::clone(shared), id, features, write_through };
        let bell = Notifier::new().map_err(ActivateError::Host)?;
        let common = Common { requests, memory, done: Mutex::default(), added: Condvar::new(), bell };
        Ok(Self {
            common: Arc::new(common),
            shared: Arc::clone(shared),
            crew,
            queue,
            interrupt,
            out: 0,
            paces: [Pace::NEW; 2],
            paid: false,
            timer: None,
        })
    }

    /// Serves what waits. Says why the first request waits, if it does.
    fn serve(&mut self) -> Result<Option<Waits>, DeviceFault> {
        let Self { common, shared, crew, queue, interrupt, out, paces, paid, .. } = self;
        let crew = crew.as_ref();
        // What the crew is given beside what it is at keeps its threads from waiting for this one.
        let most = crew.map_or(0, |crew| 2 * crew.size());
        let mut waits = None;
        queue.serve_or_wait(&common.memory, interrupt, |chain| {
            let kind = if most > 0 { common.requests.kind(&common.memory, chain) } else { None };
            if let (Some(kind), Some(crew)) = (kind, crew)
                && paces[kind as usize].is_slow()
            {
                if *out >= most {
                    waits = Some(Waits::Crew);
                    return Ok(Verdict::PutBack);
                }
                if let Err(wait) = shared.take(|| bytes(chain)) {
                    waits = Some(Waits::Rate(wait));
                    return Ok(Verdict::PutBack);
                }
                let (errand, chain) = (Errand::new(common, chain, kind), chain.clone());
                *out += 1;
                crew.give(move || errand.run(&chain));
                return Ok(Verdict::Kept);
            }
            if !*paid && let Err(wait) = shared.take(|| bytes(chain)) {
                waits = Some(Waits::Rate(wait));
                return Ok(Verdict::PutBack);
            }
            let begun = kind.map(|kind| (kind, Instant::now()));
            let served = common.requests.serve(&common.memory, chain)?;
            if let Some((kind, begun)) = begun {
                paces[kind as usize].add(begun.elapsed());
            }
            *paid = served.is_none();
            waits = paid.then_some(Waits::Room);
            Ok(served.map_or(Verdict::PutBack, Verdict::Served))
        })?;
        Ok(waits)
    }

    /// Gives back what the crew has done.
    fn give_back(&mut self) -> Result<(), DeviceFault> {
        let done = std::mem::take(&mut *self.common.done());
        let mut result = Ok(());
        for Done { held, kind, took, served } in done {
            self.out -= 1;
            self.paces[kind as usize].add(took);
            let given = served
                .and_then(|served| Ok(self.queue.push_used(&self.common.memory, held, served.written)?));
            // The first fault is the one to be told, when all of them are back.
            result = result.and(given);
        }
        let signalled = self.queue.signal(&self.common.memory, &self.interrupt);
        result.and(signalled)
    }

    fn wait(&mut self, waits: Option<Waits>, registrar: &mut Registrar<'_>) -> Result<(), DeviceFault> {
        let full = waits == Some(Waits::Room);
        let was_full = self.interrupt.tally().waits_for_room();
        if full && !was_full {
            self.interrupt.tally().fault(&DeviceFault::NoRoom);
        }
        if full != was_full {
            self.interrupt.tally().set_waits_for_room(full);
        }
        let period = match waits {
            Some(Waits::Room) => AGAIN,
            Some(Waits::Rate(wait)) => wait,
            Some(Waits::Crew) | None => {
                self.wait_no_more(registrar);
                return Ok(());
            }
        };
        match &self.timer {
            Some(timer) => timer.set(Some(period))?,
            None => {
                let timer = Timer::new()?;
                timer.set(Some(period))?;
                registrar.add(timer.as_fd(), KEY_AGAIN, Interest::READ)?;
                self.timer = Some(timer);
            }
        }
        Ok(())
    }

    fn wait_no_more(&mut self, registrar: &mut Registrar<'_>) {
        if let Some(timer) = self.timer.take() {
            // One that was never added is not there any more: what was wanted.
            let _ = registrar.remove(timer.as_fd());
        }
    }
}

/// Bytes that a request moves, with its header and its status.
fn bytes(chain: &Chain) -> u64 {
    u64::from(chain.readable_len()) + u64::from(chain.writable_len())
}

impl Requests {
    /// What of a request the crew may serve. What cannot be read is a fault when it is served.
    fn kind(&self, memory: &Memory, chain: &Chain) -> Option<Kind> {
        let mut word = [0; 4];
        chain.reader(memory).read_exact(&mut word).ok()?;
        match u32::from_le_bytes(word) {
            spec::T_IN => Some(Kind::Read),
            spec::T_FLUSH => Some(Kind::Flush),
            _ => None,
        }
    }
}

impl Worker for BlockWorker {
    fn register(&mut self, registrar: &mut Registrar<'_>) -> Result<(), DeviceFault> {
        registrar.add(self.queue.doorbell().as_fd(), KEY_DOORBELL, Interest::READ)?;
        if self.crew.is_some() {
            registrar.add(self.common.bell.as_fd(), KEY_DONE, Interest::READ)?;
        }
        Ok(self.queue.doorbell().notify()?)
    }

    fn unregister(&mut self, registrar: &mut Registrar<'_>) {
        self.wait_no_more(registrar);
        self.interrupt.tally().set_waits_for_room(false);
        // A descriptor that was never added is not there any more: what was wanted.
        let _ = registrar.remove(self.queue.doorbell().as_fd());
        if self.crew.is_some() {
            let _ = registrar.remove(self.common.bell.as_fd());
        }
    }

    fn ready(
        &mut self,
        key: u32,
        _ready: Interest,
        registrar: &mut Registrar<'_>,
    ) -> Result<(), DeviceFault> {
        match key {
            KEY_AGAIN => {
                if let Some(timer) = &self.timer {
                    timer.consume()?;
                }
            }
            KEY_DONE => {
                self.common.bell.consume()?;
                self.give_back()?;
            }
            _ => {}
        }
        let waits = self.serve()?;
        self.wait(waits, registrar)
    }

    /// The crew comes to the end of what it has: reads and flushes of one disk.
    fn quiesce(mut self: Box<Self>) -> Returned {
        while self.out > 0 {
            {
                let mut done = self.common.done();
                while done.is_empty() {
                    done = self.common.added.wait(done).unwrap_or_else(PoisonError::into_inner);
                }
            }
            // After it the queue does not stand where it says.
            if let Err(fault) = self.give_back() {
                self.interrupt.fail(&fault);
            }
        }
        // Whoever copies the disk while the machine is paused, or saves the machine, has all of it.
        if let Err(error) = self.shared.disk.settle() {
            self.interrupt.tally().fault(&error.into());
        }
        Returned { state: Box::new(()), queues: vec![Some(self.queue)] }
    }
}
