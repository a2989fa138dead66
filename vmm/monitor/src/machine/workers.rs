//! Runs workers where their devices say: on the loop, or on a thread each.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::confine::Confiner;
use super::mailbox::{Mailbox, Message};
use super::threads::{self, Role, Work};
use crate::sys::{Interest, Notifier, Poller, Ready};
use crate::virtio::blk::Crew;
use crate::virtio::device::{Placement, Registrar, Running, WorkerHost};
use crate::virtio::fault::DeviceFault;

/// The token of a worker thread's own bell. No device has this slot.
const ORDERS: u64 = u64::MAX;

/// Runs workers. Its threads live as long as it does.
pub(super) struct WorkerThreads {
    mailbox: Mailbox,
    confiner: Arc<Confiner>,
    threads: BTreeMap<u16, Thread>,
    crews: Mutex<Vec<(Crew, Vec<JoinHandle<()>>)>>,
}

struct Thread {
    orders: Arc<Orders>,
    /// Taken by whoever waits for its end.
    handle: Mutex<Option<JoinHandle<()>>>,
}

/// What a worker's thread is told, in order.
struct Orders {
    posted: Mutex<Posted>,
    bell: Notifier,
}

#[derive(Default)]
struct Posted {
    queue: VecDeque<Order>,
    /// The thread has ended, by a bug: nobody reads any more.
    dead: bool,
}

enum Order {
    /// Run this worker.
    Start(Running),
    /// Do this between two events.
    Do(Task),
    /// Send it home.
    Stop,
    /// Send it home, and end.
    End,
}

/// What a worker's thread does beside its worker.
pub(super) type Task = Box<dyn FnOnce() + Send>;

impl Orders {
    fn lock(&self) -> MutexGuard<'_, Posted> {
        self.posted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives an order; gives it back when nobody is there to carry it out.
    fn give(&self, order: Order) -> Result<(), Order> {
        let mut posted = self.lock();
        if posted.dead {
            return Err(order);
        }
        posted.queue.push_back(order);
        drop(posted);
        // Fails only when the counter is full, and then the bell rings already.
        let _rings = self.bell.notify();
        Ok(())
    }
}

impl WorkerThreads {
    /// With a thread for each of these slots. Each says [`Message::ThreadReady`] when it is ready.
    ///
    /// # Errors
    /// The host has no room for one more thread or descriptor.
    pub(super) fn new(
        mailbox: Mailbox,
        confiner: &Arc<Confiner>,
        slots: impl IntoIterator<Item = (u16, Work)>,
    ) -> io::Result<Self> {
        let (confiner, threads) = (Arc::clone(confiner), BTreeMap::new());
        let mut host = Self { mailbox, confiner, threads, crews: Mutex::default() };
        for (slot, work) in slots {
            let thread = host.thread(slot, work)?;
            host.threads.insert(slot, thread);
        }
        Ok(host)
    }

    /// What a thread does first: it gives up what it does not need, and says that it is ready.
    fn ready(&self, role: Role) -> impl FnOnce() -> bool + use<> {
        let (mailbox, confiner) = (self.mailbox.clone(), Arc::clone(&self.confiner));
        move || match confiner.confine_thread(role) {
            Ok(()) => {
                mailbox.post(Message::ThreadReady);
                true
            }
            Err(error) => {
                mailbox.post(Message::Unconfined(error));
                false
            }
        }
    }

    fn thread(&self, slot: u16, work: Work) -> io::Result<Thread> {
        let poller = Poller::new()?;
        let orders = Arc::new(Orders { posted: Mutex::default(), bell: Notifier::new()? });
        poller.add(orders.bell.as_fd(), ORDERS, Interest::READ)?;
        let worker = WorkerThread { orders: Arc::clone(&orders), mailbox: self.mailbox.clone() };
        let role = Role::Worker(slot, work);
        let ready = self.ready(role);
        let body = move || {
            if ready() {
                worker.serve(&poller);
            }
        };
        let handle = Mutex::new(Some(threads::spawn(role, body)?));
        Ok(Thread { orders, handle })
    }

    /// Makes `count` threads for the crew of the device in `slot`. Each says
    /// [`Message::ThreadReady`] when it is ready.
    ///
    /// # Errors
    /// As of [`WorkerThreads::new`].
    pub(super) fn add_crew(&self, slot: u16, crew: Crew, count: u8) -> io::Result<()> {
        let mut crews = self.crews.lock().unwrap_or_else(PoisonError::into_inner);
        crews.push((crew.clone(), Vec::new()));
        for number in 1..=count {
            let (crew, role) = (crew.clone(), Role::Helper(slot, number));
            let ready = self.ready(role);
            let body = move || {
                if ready() {
                    crew.serve();
                }
            };
            let handle = threads::spawn(role, body)?;
            if let Some((_, handles)) = crews.last_mut() {
                handles.push(handle);
            }
        }
        Ok(())
    }

    /// Has the thread of `slot` do something that may block. Gives it back if there is no such
    /// thread.
    pub(super) fn run(&self, slot: u16, task: Task) -> Result<(), Task> {
        let Some(thread) = self.threads.get(&slot) else { return Err(task) };
        thread.orders.give(Order::Do(task)).map_err(|order| match order {
            Order::Do(task) => task,
            _ => unreachable!("the order that was given comes back"),
        })
    }

    /// Waits for the threads to end, whose workers go home. Nothing is started from here on.
    pub(super) fn join(&self) {
        for thread in self.threads.values() {
            // One that is dead needs no order.
            let _dead = thread.orders.give(Order::End);
        }
        for thread in self.threads.values() {
            let handle = thread.handle.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(handle) = handle {
                drop(handle.join());
            }
        }
        // Workers wait for what crews do, so these end last.
        let crews = std::mem::take(&mut *self.crews.lock().unwrap_or_else(PoisonError::into_inner));
        for (crew, handles) in crews {
            crew.end();
            handles.into_iter().for_each(|handle| drop(handle.join()));
        }
    }
}

impl Drop for WorkerThreads {
    fn drop(&mut self) {
        self.join();
    }
}

impl WorkerHost for WorkerThreads {
    fn start(&self, running: Running) {
        match running.placement() {
            Placement::Shared => return self.mailbox.post(Message::StartWorker(running)),
            Placement::OwnThread => {}
        }
        let thread = self.threads.get(&running.slot());
        let thread = thread.expect("every slot whose device may want a thread has one");
        if let Err(Order::Start(running)) = thread.orders.give(Order::Start(running)) {
            let ended = io::Error::other("the thread of this device has ended");
            running.interrupt().fail(&DeviceFault::Host(ended));
            drop(running);
            self.mailbox.post(Message::WorkerHome);
        }
    }

    fn stop(&self, slot: u16) {
        match self.threads.get(&slot) {
            // One that is dead has sent its worker home.
            Some(thread) => drop(thread.orders.give(Order::Stop)),
            None => self.mailbox.post(Message::StopWorker(slot)),
        }
    }
}

/// A worker's thread.
struct WorkerThread {
    orders: Arc<Orders>,
    mailbox: Mailbox,
}

impl WorkerThread {
    fn serve(&self, poller: &Poller) {
        let mut worker: Option<Running> = None;
        let mut ready: Vec<Ready> = Vec::new();
        // A poller that fails is out of service: the worker goes home, and the driver's requests
        // wait for a reset.
        while poller.wait(&mut ready, None).is_ok() {
            for event in &ready {
                if let (Some(worker), true) = (&mut worker, event.token != ORDERS) {
                    worker.ready(poller, Registrar::split(event.token).1, event.interest);
                }
            }
            if ready.iter().any(|event| event.token == ORDERS) && !self.carry_out(poller, &mut worker) {
                break;
            }
        }
        if let Some(worker) = worker {
            worker.stop(poller);
        }
    }

    /// Carries out what was ordered; `false` at the end.
    fn carry_out(&self, poller: &Poller, worker: &mut Option<Running>) -> bool {
        let _silent = self.orders.bell.consume();
        loop {
            let Some(order) = self.orders.lock().queue.pop_front() else { return true };
            match order {
                Order::Start(mut running) => {
                    running.start(poller);
                    *worker = Some(running);
                }
                Order::Do(task) => task(),
                Order::Stop => {
                    if let Some(running) = worker.take() {
                        running.stop(poller);
                    }
                    self.mailbox.post(Message::WorkerHome);
                }
                Order::End => return false,
            }
        }
    }
}

/// Said when the worker is home, even by a panic: a vCPU may wait for it.
impl Drop for WorkerThread {
    fn drop(&mut self) {
        let mut posted = self.orders.lock();
        posted.dead = true;
        let left = std::mem::take(&mut posted.queue);
        drop(posted);
        // Workers that were never started go home by this.
        drop(left);
        self.mailbox.post(Message::WorkerHome);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::Receiver;
    use std::time::Duration;

    use super::*;
    use crate::arch::Nested;
    use crate::config::Confine;
    use crate::hv::fake::Fake;
    use crate::hv::{Hypervisor, Vm};
    use crate::machine::confine::Process;
    use crate::sys::Interest;
    use crate::virtio::device::{ReturnBox, Returned, Worker};
    use crate::virtio::interrupt::Interrupt;

    const SLOT: u16 = 3;

    /// A worker without a queue; one that is broken panics when it starts.
    struct Idle {
        broken: bool,
    }

    impl Worker for Idle {
        fn register(&mut self, _: &mut Registrar<'_>) -> Result<(), DeviceFault> {
            assert!(!self.broken, "the test says so");
            Ok(())
        }

        fn unregister(&mut self, _: &mut Registrar<'_>) {}

        fn ready(&mut self, _: u32, _: Interest, _: &mut Registrar<'_>) -> Result<(), DeviceFault> {
            Ok(())
        }

        fn quiesce(self: Box<Self>) -> Returned {
            Returned { state: Box::new(()), queues: Vec::new() }
        }
    }

    fn host() -> (WorkerThreads, Receiver<Message>) {
        let (mailbox, inbox) = Mailbox::new().unwrap();
        let confiner = Arc::new(Confiner::new(Process::Embedder, Confine::On));
        (WorkerThreads::new(mailbox, &confiner, [(SLOT, Work::Disk), (7, Work::Disk)]).unwrap(), inbox)
    }

    fn interrupt() -> Interrupt {
        let vm = Fake::new().create_vm(Nested::Hidden).unwrap();
        Interrupt::new(vm.irq_line(crate::arch::x86_64::line(5).unwrap()).unwrap())
    }

    fn running(broken: bool, interrupt: &Interrupt, home: &ReturnBox) -> Running {
        let worker = Box::new(Idle { broken });
        Running::new(SLOT, Placement::OwnThread, worker, interrupt.clone(), home.clone())
    }

    /// What was said next, by the name of its kind.
    fn said(inbox: &Receiver<Message>) -> &'static str {
        match inbox.recv_timeout(Duration::from_secs(60)) {
            Ok(Message::ThreadReady) => "ready",
            Ok(Message::WorkerHome) => "home",
            Ok(Message::StartWorker(_)) => "start",
            Ok(Message::StopWorker(_)) => "stop",
            Ok(_) => "something else",
            Err(_) => "nothing",
        }
    }

    #[test]
    fn threads_are_ready_before_there_is_work_and_serve_one_worker_after_the_other() {
        let (host, inbox) = host();
        assert_eq!([said(&inbox), said(&inbox)], ["ready"; 2]);
        let (interrupt, home) = (interrupt(), ReturnBox::default());
        for _ in 0..3 {
            host.start(running(false, &interrupt, &home));
            host.stop(SLOT);
            assert_eq!(said(&inbox), "home");
            assert!(home.take().is_some());
        }
        // A slot without a thread is the loop's.
        host.stop(1);
        assert_eq!(said(&inbox), "stop");
        // One that runs at the end goes home too.
        host.start(running(false, &interrupt, &home));
        host.join();
        assert!(home.take().is_some());
        assert_eq!(interrupt.faults(), 0);
    }

    #[test]
    fn a_thread_that_ends_by_a_bug_costs_its_device_alone() {
        let (host, inbox) = host();
        assert_eq!([said(&inbox), said(&inbox)], ["ready"; 2]);
        let (interrupt, home) = (interrupt(), ReturnBox::default());
        host.start(running(true, &interrupt, &home));
        assert_eq!(said(&inbox), "home");
        assert!(home.take().is_some(), "its queues are not lost");
        host.start(running(false, &interrupt, &home));
        assert_eq!(said(&inbox), "home");
        assert!(home.take().is_some());
        assert_eq!(interrupt.faults(), 1);
        host.stop(SLOT);
        drop(host);
    }
}
