//! The device on its loop: its queues, its peer, and what is waited for.

use std::any::Any;
use std::io;
use std::os::fd::AsFd;

use super::backend::{Backend, Offer, Sent, closed};
use super::control::{self, Command};
use super::counters::NetworkView;
use super::header::Offloads;
use super::pair::{Around, ReceiveQueue, TransmitQueue, Turn};
use super::spec::{control as answer, feature};
use crate::memory::Memory;
use crate::sys::{Interest, Notifier};
use crate::virtio::device::{ActivateError, Activation, DeviceFault, Registrar, Returned, Worker};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::{Queue, Served};

/// Keys of registrations: five for each pair.
const KEY_RECEIVE: u32 = 0;
const KEY_TRANSMIT: u32 = 1;
const KEY_PEER: u32 = 2;
const KEY_USED: u32 = 3;
const KEY_BROKEN: u32 = 4;
const KEYS: u32 = 5;
const KEY_CONTROL: u32 = u32::MAX;
const KEY_OWN: u32 = u32::MAX - 1;

/// Bytes that a command stands for: a turn has sixteen.
const COMMAND_WORK: u64 = crate::virtio::queue::TURN_BYTES / 16;

/// What is left between two workers.
pub(super) struct Rest {
    /// None: the link is down.
    pub(super) backend: Option<Box<dyn Backend>>,
    /// Pairs of queues that the driver uses.
    pub(super) pairs: u16,
    /// What the driver takes, where that is not what it negotiated.
    pub(super) takes: Option<Offloads>,
    /// The link is up as far as the driver was told.
    pub(super) told_up: bool,
}

struct Pair {
    receive: ReceiveQueue,
    transmit: TransmitQueue,
    /// The driver has no buffers, or the pair is not in use.
    starved: bool,
    /// The peer has no room.
    full: bool,
    /// What the peer's descriptor is registered for.
    registered: Option<Interest>,
    /// Somebody else serves the queues, the host's kernel or the peer: what it wakes.
    given: Option<Bells>,
    /// This worker wants a turn: of frames to the guest, and of those from it.
    wanted: [bool; 2],
}

/// By these whoever serves a pair tells of it.
struct Bells {
    /// The driver is to be interrupted.
    used: Notifier,
    /// The rings are broken.
    broken: Notifier,
}

impl Pair {
    fn queues(&self) -> [(u32, &Queue); 2] {
        [(KEY_RECEIVE, &self.receive.queue), (KEY_TRANSMIT, &self.transmit.queue)]
    }
}

/// See the module.
pub(super) struct NetworkWorker {
    pairs: Vec<Option<Pair>>,
    control: Option<Queue>,
    /// Where the control queue is among all queues, and how many those are.
    control_index: usize,
    queues: usize,
    rest: Rest,
    features: u64,
    memory: Memory,
    interrupt: Interrupt,
    view: NetworkView,
    /// Rings for the turns that this worker wants: those who serve queues have the driver's
    /// doorbells, too, and may make whoever rings them wait.
    own: Notifier,
    /// Whose turn is the next of those, two for each pair.
    next: usize,
}

impl NetworkWorker {
    pub(super) fn new(
        mut activation: Activation,
        rest: &mut Option<Rest>,
        view: NetworkView,
    ) -> Result<Self, ActivateError> {
        let queues = activation.queues.len();
        let features = activation.features;
        let several = features & feature::MQ != 0;
        // Without MQ there is one pair, and the control queue behind it (5.1.2).
        let control_index = if several { queues - 1 } else { 2 };
        let mut pairs = Vec::new();
        for index in 0..if several { (queues - 1) / 2 } else { 1 } {
            pairs.push(match (activation.take_queue(2 * index), activation.take_queue(2 * index + 1)) {
                (Ok(receive), Ok(transmit)) => Some(Pair {
                    receive: ReceiveQueue::new(receive),
                    transmit: TransmitQueue { queue: transmit },
                    starved: true,
                    full: false,
                    registered: None,
                    given: None,
                    wanted: [false; 2],
                }),
                (Err(error), _) | (_, Err(error)) if index == 0 => return Err(error),
                // The driver leaves this pair alone.
                _ => None,
            });
        }
        let own = Notifier::new().map_err(ActivateError::Host)?;
        let Some(rest) = rest.take() else {
            return Err(ActivateError::Host(io::Error::other("its last worker has not come back")));
        };
        let control = activation.take_queue(control_index).ok();
        let Activation { features, memory, queues: _, interrupt } = activation;
        Ok(Self {
            pairs,
            control,
            control_index,
            queues,
            rest,
            features,
            memory,
            interrupt,
            view,
            own,
            next: 0,
        })
    }

    fn takes(&self) -> Offloads {
        self.rest.takes.unwrap_or_else(|| Offloads::of_guest(self.features))
    }

    /// One pair, the peer, and what both need.
    fn parts(
        &mut self,
        pair: usize,
    ) -> Option<(&mut Pair, Option<&mut (dyn Backend + 'static)>, Around<'_>)> {
        let takes = self.takes();
        let Self { pairs, rest, features, memory, interrupt, view, .. } = self;
        let around = Around {
            memory,
            interrupt,
            view,
            sends: Offloads::of_host(*features),
            takes,
            mergeable: *features & feature::MRG_RXBUF != 0,
        };
        let backend = rest.backend.as_deref_mut();
        Some((pairs.get_mut(pair)?.as_mut()?, backend, around))
    }

    fn in_use(&self, pair: usize) -> bool {
        pair < usize::from(self.rest.pairs)
    }

    /// Frames to the guest.
    fn receive(&mut self, index: usize, registrar: &mut Registrar<'_>) -> Result<(), DeviceFault> {
        if !self.in_use(index) {
            return Ok(());
        }
        let Some((pair, Some(backend), around)) = self.parts(index) else { return Ok(()) };
        if pair.given.is_some() {
            return Ok(());
        }
        pair.starved = false;
        match pair.receive.turn(index, backend, &around)? {
            Turn::Done | Turn::Full => {}
            // What the back end has read ahead shows on no descriptor.
            Turn::More => {
                pair.wanted[0] = true;
                self.own.notify()?;
            }
            Turn::Starved => pair.starved = true,
            Turn::Gone(error) => return self.lose(error, registrar),
        }
        self.wait_for(index, registrar)
    }

    /// Frames of the guest.
    fn transmit(&mut self, index: usize, registrar: &mut Registrar<'_>) -> Result<(), DeviceFault> {
        if !self.in_use(index) {
            return Ok(());
        }
        let Some((pair, backend, around)) = self.parts(index) else { return Ok(()) };
        if pair.full || pair.given.is_some() {
            // The peer's descriptor brings the rest, or somebody else sees to it.
            return Ok(());
        }
        match pair.transmit.turn(index, backend, &around)? {
            Turn::Done | Turn::Starved => {}
            Turn::More => {
                pair.wanted[1] = true;
                self.own.notify()?;
            }
            Turn::Full => pair.full = true,
            // The rest of its frames is dropped.
            Turn::Gone(error) => return self.lose(error, registrar),
        }
        self.wait_for(index, registrar)
    }

    /// The peer has room again.
    fn flush(&mut self, index: usize, registrar: &mut Registrar<'_>) -> Result<(), DeviceFault> {
        let Some((pair, Some(backend), _)) = self.parts(index) else { return Ok(()) };
        match backend.flush() {
            Sent::Full => Ok(()),
            Sent::Taken | Sent::Refused => {
                pair.full = false;
                self.transmit(index, registrar)
            }
            Sent::Gone(error) => self.lose(error, registrar),
        }
    }

    /// Waits for what the pair can use: frames while there are buffers, room while there are
    /// frames.
    fn wait_for(&mut self, index: usize, registrar: &mut Registrar<'_>) -> Result<(), DeviceFault> {
        let in_use = self.in_use(index);
        let Some((pair, Some(backend), _)) = self.parts(index) else { return Ok(()) };
        // Without buffers nothing is waited for but the end of the peer.
        let reads = !pair.starved && pair.given.is_none();
        let wanted = Interest { readable: reads, writable: pair.full };
        let wanted = in_use.then_some(wanted);
        if wanted == pair.registered {
            return Ok(());
        }
        let (peer, key) = (backend.descriptor(index), key(index, KEY_PEER));
        match (pair.registered, wanted) {
            (None, Some(interest)) => registrar.add(peer, key, interest)?,
            (Some(_), Some(interest)) => registrar.modify(peer, key, interest)?,
            (_, None) => registrar.remove(peer)?,
        }
        pair.registered = wanted;
        Ok(())
    }

    /// The peer is gone: the link is down, and stays so.
    fn lose(&mut self, error: io::Error, registrar: &mut Registrar<'_>) -> Result<(), DeviceFault> {
        self.ignore_peer(registrar);
        self.begin();
        for index in 0..self.pairs.len() {
            self.withdraw(index, registrar)?;
        }
        self.note_astray();
        self.rest.backend = None;
        self.view.set_up(false);
        self.interrupt.tally().fault(&DeviceFault::Host(error));
        for pair in self.pairs.iter_mut().flatten() {
            pair.full = false;
            pair.wanted[1] = true;
        }
        self.own.notify()?;
        self.tell_link()
    }

    fn ignore_peer(&mut self, registrar: &mut Registrar<'_>) {
        let Some(backend) = &self.rest.backend else { return };
        for (index, pair) in self.pairs.iter_mut().enumerate() {
            let Some(pair) = pair else { continue };
            if pair.registered.take().is_some() {
                // One that is not there any more: what was wanted.
                let _ = registrar.remove(backend.descriptor(index));
            }
        }
    }

    /// Tells the driver of the link when it has changed.
    fn tell_link(&mut self) -> Result<(), DeviceFault> {
        let is_up = self.view.is_up();
        if self.rest.told_up != is_up {
            self.rest.told_up = is_up;
            if self.features & feature::STATUS != 0 {
                self.interrupt.config_changed()?;
            }
        }
        Ok(())
    }

    /// Tells the peer what the driver takes.
    fn tell_peer(&mut self, registrar: &mut Registrar<'_>) -> Result<(), DeviceFault> {
        let takes = self.takes();
        let Some((pair, Some(backend), _)) = self.parts(0) else { return Ok(()) };
        match backend.tell(takes) {
            Sent::Full => pair.full = true,
            Sent::Taken | Sent::Refused => {}
            Sent::Gone(error) => return self.lose(error, registrar),
        }
        self.wait_for(0, registrar)
    }

    /// Pairs are about to be offered or taken back.
    fn begin(&mut self) {
        if let Some(backend) = &mut self.rest.backend {
            backend.begin();
        }
    }

    /// Offers a pair in use to whoever may serve it, and takes back one that is not.
    fn offer(&mut self, index: usize, registrar: &mut Registrar<'_>) -> Result<(), DeviceFault> {
        if !self.in_use(index) {
            return self.withdraw(index, registrar);
        }
        let Self { pairs, rest, features, memory, .. } = self;
        let (Some(Some(pair)), Some(backend)) = (pairs.get_mut(index), &mut rest.backend) else {
            return Ok(());
        };
        if pair.given.is_some() {
            return Ok(());
        }
        let bells = Bells { used: Notifier::new()?, broken: Notifier::new()? };
        let queues = [&pair.receive.queue, &pair.transmit.queue];
        let (features, memory) = (*features, &*memory);
        let offer = Offer { memory, features, queues, used: &bells.used, broken: &bells.broken };
        match backend.offer(index, &offer) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => return self.lose(error, registrar),
        }
        // From here on it is taken back, whatever fails.
        for (_, queue) in pair.queues() {
            queue.lend();
        }
        let bells = pair.given.insert(bells);
        registrar.add(bells.used.as_fd(), key(index, KEY_USED), Interest::READ)?;
        registrar.add(bells.broken.as_fd(), key(index, KEY_BROKEN), Interest::READ)?;
        for (_, queue) in pair.queues() {
            registrar.remove(queue.doorbell().as_fd())?;
        }
        self.count_given();
        Ok(())
    }

    /// Serves a pair here again that somebody else served.
    fn withdraw(&mut self, index: usize, registrar: &mut Registrar<'_>) -> Result<(), DeviceFault> {
        let taken = self.take_back(index, registrar);
        let Some(Some(pair)) = self.pairs.get_mut(index) else { return Ok(()) };
        if taken? {
            for (which, queue) in pair.queues() {
                registrar.add(queue.doorbell().as_fd(), key(index, which), Interest::READ)?;
            }
            // What the driver rang for in between.
            pair.wanted = [true; 2];
            self.own.notify()?;
        }
        Ok(())
    }

    /// Whether somebody else served a pair, which they do no more.
    fn take_back(&mut self, index: usize, registrar: &mut Registrar<'_>) -> Result<bool, DeviceFault> {
        let Self { pairs, rest, .. } = self;
        let (Some(Some(pair)), Some(backend)) = (pairs.get_mut(index), &mut rest.backend) else {
            return Ok(false);
        };
        let Some(bells) = pair.given.take() else { return Ok(false) };
        for bell in [&bells.used, &bells.broken] {
            // One that was never added is not there: what was wanted.
            let _ = registrar.remove(bell.as_fd());
        }
        let stands = backend.take_back(index);
        if let Ok([receive, transmit]) = stands {
            pair.receive.queue.stand(receive);
            pair.transmit.queue.stand(transmit);
        }
        self.note_astray();
        // An interrupt may have been on its way.
        self.interrupt.used()?;
        self.count_given();
        Ok(stands.map(|_| true)?)
    }

    /// Whoever looks at the machine must know of a peer that may write to its memory.
    fn note_astray(&self) {
        if self.rest.backend.as_ref().is_some_and(|backend| backend.is_astray()) {
            self.view.set_astray();
        }
    }

    fn count_given(&self) {
        let pairs = self.pairs.iter().flatten().filter(|pair| pair.given.is_some()).count();
        let server = self.rest.backend.as_ref().map(|backend| backend.server());
        self.view.set_given(server, crate::sys::fits(pairs, "there are at most eight pairs"));
    }

    /// Puts pairs of queues into use.
    fn use_pairs(&mut self, pairs: u16, registrar: &mut Registrar<'_>) -> Result<bool, DeviceFault> {
        let wanted = usize::from(pairs);
        if wanted == 0 || self.pairs.len() < wanted || self.pairs[..wanted].iter().any(Option::is_none) {
            return Ok(false);
        }
        if let Some(backend) = &mut self.rest.backend
            && let Err(error) = backend.use_pairs(wanted)
        {
            self.interrupt.tally().fault(&DeviceFault::Host(error));
            return Ok(false);
        }
        self.rest.pairs = pairs;
        self.view.set_pairs(pairs);
        self.begin();
        for index in 0..self.pairs.len() {
            self.offer(index, registrar)?;
            if let Some(pair) = &mut self.pairs[index] {
                // What came before waits.
                if pair.given.is_some() {
                    for (_, queue) in pair.queues() {
                        queue.doorbell().notify_shared()?;
                    }
                }
                pair.wanted = [pair.given.is_none(); 2];
                self.own.notify()?;
                pair.full &= index < wanted;
            }
            self.wait_for(index, registrar)?;
        }
        Ok(true)
    }

    /// One of the turns that this worker wants; whatever else is ready has its own in between.
    fn own_turn(&mut self, registrar: &mut Registrar<'_>) -> Result<(), DeviceFault> {
        self.own.consume()?;
        let places = 2 * self.pairs.len();
        let pairs = &mut self.pairs;
        let mut is_wanted = |place: &usize| match &mut pairs[place / 2] {
            Some(pair) => std::mem::take(&mut pair.wanted[place % 2]),
            None => false,
        };
        let wanted = (0..places).map(|n| (self.next + n) % places).find(|place| is_wanted(place));
        let Some(place) = wanted else { return Ok(()) };
        self.next = place + 1;
        if self.pairs.iter().flatten().any(|pair| pair.wanted != [false; 2]) {
            self.own.notify()?;
        }
        if place % 2 == 0 { self.receive(place / 2, registrar) } else { self.transmit(place / 2, registrar) }
    }

    /// Commands of the driver.
    fn command(&mut self, registrar: &mut Registrar<'_>) -> Result<(), DeviceFault> {
        let Some(mut queue) = self.control.take() else { return Ok(()) };
        let (memory, interrupt) = (self.memory.clone(), self.interrupt.clone());
        let served = queue.serve(&memory, &interrupt, |chain| {
            let done = match control::read(chain, &memory, self.features)? {
                Command::Unknown => false,
                Command::Pairs(pairs) => self.use_pairs(pairs, registrar)?,
                Command::Takes(takes) => {
                    self.rest.takes = Some(takes);
                    self.tell_peer(registrar)?;
                    true
                }
            };
            let said = if done { answer::OK } else { answer::ERR };
            chain.writer(&memory).write_all(&[said])?;
            Ok(Served { written: 1, moved: COMMAND_WORK })
        });
        self.control = Some(queue);
        served
    }
}

/// The key of one registration of a pair.
fn key(index: usize, which: u32) -> u32 {
    crate::sys::fits::<_, u32>(index, "there are at most eight pairs") * KEYS + which
}

impl Worker for NetworkWorker {
    fn register(&mut self, registrar: &mut Registrar<'_>) -> Result<(), DeviceFault> {
        for (index, pair) in self.pairs.iter().enumerate() {
            let Some(pair) = pair else { continue };
            for (which, queue) in pair.queues() {
                registrar.add(queue.doorbell().as_fd(), key(index, which), Interest::READ)?;
            }
        }
        registrar.add(self.own.as_fd(), KEY_OWN, Interest::READ)?;
        if let Some(control) = &self.control {
            registrar.add(control.doorbell().as_fd(), KEY_CONTROL, Interest::READ)?;
            control.doorbell().notify()?;
        }
        self.tell_peer(registrar)?;
        if !self.use_pairs(self.rest.pairs, registrar)? && !self.use_pairs(1, registrar)? {
            return Err(DeviceFault::Protocol("the driver uses pairs of queues that it has not set up"));
        }
        self.tell_link()
    }

    fn unregister(&mut self, registrar: &mut Registrar<'_>) {
        self.ignore_peer(registrar);
        self.begin();
        for index in 0..self.pairs.len() {
            if let Err(fault) = self.take_back(index, registrar) {
                // Nobody knows what of the queues is done.
                self.interrupt.fail(&fault);
            }
        }
        let pairs = self.pairs.iter().flatten();
        let queues = pairs.flat_map(|pair| [&pair.receive.queue, &pair.transmit.queue]);
        let doorbells = queues.chain(&self.control).map(|queue| queue.doorbell().as_fd());
        for doorbell in doorbells.chain([self.own.as_fd()]) {
            // A descriptor that was never added is not there any more: what was wanted.
            let _ = registrar.remove(doorbell);
        }
    }

    fn ready(&mut self, key: u32, ready: Interest, registrar: &mut Registrar<'_>) -> Result<(), DeviceFault> {
        if key == KEY_CONTROL {
            return self.command(registrar);
        }
        if key == KEY_OWN {
            return self.own_turn(registrar);
        }
        let index = crate::sys::fits::<_, usize>(key / KEYS, "usize has at least 32 bits");
        let Some(Some(pair)) = self.pairs.get(index) else { return Ok(()) };
        match key % KEYS {
            // Given away by an event before this one: who serves it waits for the same doorbell.
            KEY_RECEIVE | KEY_TRANSMIT if pair.given.is_some() => Ok(()),
            KEY_RECEIVE => {
                pair.receive.queue.doorbell().consume_shared()?;
                self.receive(index, registrar)
            }
            KEY_TRANSMIT => {
                pair.transmit.queue.doorbell().consume_shared()?;
                self.transmit(index, registrar)
            }
            KEY_USED => match &pair.given {
                Some(bells) if bells.used.consume_shared()? => Ok(self.interrupt.used()?),
                _ => Ok(()),
            },
            KEY_BROKEN => match &pair.given {
                Some(bells) if bells.broken.consume_shared()? => {
                    Err(DeviceFault::Protocol("whoever serves a pair of queues found its rings broken"))
                }
                _ => Ok(()),
            },
            // What was taken off the poller in this turn may still be told of.
            _ => match pair.registered {
                None => Ok(()),
                // A peer of vhost-user is gone; or a tap was, when the kernel was given the queues
                // (if it goes later, nobody is told, as under every monitor with vhost-net).
                Some(Interest::NONE) if pair.given.is_some() => self.lose(closed(), registrar),
                // Only a hang-up is told of then. What waits and has no room is lost.
                Some(Interest::NONE) => {
                    self.receive(index, registrar)?;
                    let is_starved = matches!(&self.pairs[index], Some(pair) if pair.starved);
                    if is_starved && self.rest.backend.is_some() {
                        self.lose(closed(), registrar)?;
                    }
                    Ok(())
                }
                Some(interest) => {
                    if ready.writable && interest.writable {
                        self.flush(index, registrar)?;
                    }
                    if ready.readable && interest.readable {
                        self.receive(index, registrar)?;
                    }
                    Ok(())
                }
            },
        }
    }

    fn quiesce(self: Box<Self>) -> Returned {
        let Self { pairs, control, control_index, queues, rest, view, .. } = *self;
        let mut returned: Vec<Option<Queue>> = (0..queues).map(|_| None).collect();
        for (index, pair) in pairs.into_iter().enumerate() {
            let Some(Pair { receive, transmit, .. }) = pair else { continue };
            returned[2 * index] = Some(receive.into_queue());
            returned[2 * index + 1] = Some(transmit.queue);
        }
        if control_index < queues {
            returned[control_index] = control;
        }
        view.set_pairs(0);
        Returned { state: Box::new(rest) as Box<dyn Any + Send>, queues: returned }
    }
}
