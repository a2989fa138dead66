//! A loop for workers, and the slot that a driver finds a device in: what every machine that is put
//! together for a test has.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{CountingLine, memory};
use crate::hv::SharedLine;
use crate::memory::Memory;
use crate::sys::{Interest, Notifier, Poller};
use crate::virtio::device::{Registrar, Running, WorkerHost};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::transport::{MmioTransport, Transport};

/// The token of the loop's own wake-up: no worker has the last key of the last slot.
const WAKE: u64 = u64::MAX;
/// Turns after which a worker that is told nothing new is taken for one that never comes to rest.
const MOST_TURNS: usize = 100_000;

enum Message {
    Start(Running),
    Stop(u16),
    End,
}

/// What a [`WorkerLoop`] is told by, from any thread. It is carried out, in order, when the loop
/// comes round.
pub struct LoopControl {
    messages: Mutex<Vec<Message>>,
    wake: Notifier,
}

impl LoopControl {
    fn tell(&self, message: Message) {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner).push(message);
        self.wake.notify().expect("a notifier");
    }
}

impl WorkerHost for LoopControl {
    fn start(&self, running: Running) {
        self.tell(Message::Start(running));
    }

    fn stop(&self, slot: u16) {
        self.tell(Message::Stop(slot));
    }
}

/// One loop for every worker. It turns when it is told to, or on a thread of its own.
pub struct WorkerLoop {
    control: Arc<LoopControl>,
    workers: BTreeMap<u16, Running>,
    poller: Poller,
    stops: usize,
    ended: bool,
}

impl Default for WorkerLoop {
    fn default() -> Self {
        let wake = Notifier::new().expect("a notifier");
        let poller = Poller::new().expect("a poller");
        poller.add(wake.as_fd(), WAKE, Interest::READ).expect("a poller");
        let control = Arc::new(LoopControl { messages: Mutex::default(), wake });
        Self { control, workers: BTreeMap::new(), poller, stops: 0, ended: false }
    }
}

impl WorkerLoop {
    /// Who runs workers here.
    #[must_use]
    pub fn control(&self) -> Arc<LoopControl> {
        Arc::clone(&self.control)
    }

    /// An empty slot whose device's worker runs here.
    #[must_use]
    pub fn slot(&self, number: u16, memory: &Memory, line: SharedLine) -> MmioTransport {
        MmioTransport(Transport::new(number, memory.clone(), Interrupt::new(line), self.control()))
    }

    /// How often it was told to stop a worker.
    #[must_use]
    pub fn stops(&self) -> usize {
        self.stops
    }

    /// Carries out what it was told, then lets the workers run until nothing is ready. Returns
    /// their turns.
    ///
    /// # Panics
    /// When a worker never comes to rest, or a second one starts in a slot.
    pub fn turn(&mut self) -> usize {
        self.carry_out();
        (0..MOST_TURNS).find(|_| !self.serve(Duration::ZERO)).expect("the workers come to rest")
    }

    /// Runs on a thread of its own for as long as `work` takes.
    ///
    /// # Panics
    /// As `work` does, and as [`WorkerLoop::turn`].
    pub fn beside<T>(mut self, work: impl FnOnce() -> T) -> T {
        /// The loop ends with the work, also with one that panics.
        struct End(Arc<LoopControl>);

        impl Drop for End {
            fn drop(&mut self) {
                self.0.tell(Message::End);
            }
        }

        let end = End(self.control());
        std::thread::scope(move |scope| {
            let _end = end;
            scope.spawn(move || {
                while !self.ended {
                    self.serve(Duration::from_secs(60));
                    self.carry_out();
                }
            });
            work()
        })
    }

    /// Waits up to `timeout` for something to be ready, and leaves it so.
    ///
    /// # Panics
    /// When `timeout` is beyond the clock.
    pub fn is_ready(&self, timeout: Duration) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let timeout = Timespec::try_from(timeout).expect("a short time");
        poll(&mut [PollFd::new(&self.poller.as_fd(), PollFlags::IN)], Some(&timeout))
            .is_ok_and(|count| count > 0)
    }

    fn carry_out(&mut self) {
        self.control.wake.consume().expect("a notifier");
        let messages =
            std::mem::take(&mut *self.control.messages.lock().unwrap_or_else(PoisonError::into_inner));
        for message in messages {
            match message {
                Message::Start(mut running) => {
                    running.start(&self.poller);
                    assert!(self.workers.insert(running.slot(), running).is_none(), "one worker a slot");
                }
                Message::Stop(slot) => {
                    self.stops += 1;
                    if let Some(running) = self.workers.remove(&slot) {
                        running.stop(&self.poller);
                    }
                }
                Message::End => self.ended = true,
            }
        }
    }

    /// Passes on what is ready, or comes within `timeout`; `false` when nothing did.
    fn serve(&mut self, timeout: Duration) -> bool {
        let mut ready = Vec::new();
        self.poller.wait(&mut ready, Some(timeout)).expect("a poller");
        for event in ready.iter().filter(|event| event.token != WAKE) {
            let (slot, key) = Registrar::split(event.token);
            let running = self.workers.get_mut(&slot).expect("what is registered has a worker");
            running.ready(&self.poller, key, event.interest);
        }
        !ready.is_empty()
    }
}

/// The least machine: memory, one slot, the line that its device interrupts by, and a loop that
/// turns when it is told to.
pub struct OneSlot {
    /// Guest memory, from address 0.
    pub memory: Memory,
    /// The slot.
    pub mmio: MmioTransport,
    /// Its line.
    pub line: Arc<CountingLine>,
    /// Where its device's worker runs.
    pub workers: WorkerLoop,
}

impl OneSlot {
    /// Slot `number`, empty, in a machine of this much memory.
    #[must_use]
    pub fn new(number: u16, bytes: usize) -> Self {
        let (memory, line, workers) =
            (memory(bytes), Arc::new(CountingLine::default()), WorkerLoop::default());
        let mmio = workers.slot(number, &memory, line.clone());
        Self { memory, mmio, line, workers }
    }
}
