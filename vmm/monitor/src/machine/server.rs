//! The server of one machine: the event loop, written once, with the control connection on it.
//!
//! Order of waiting: a vCPU may wait for the loop, whoever holds the handle may wait for both; the loop waits for nobody. What takes
//! time (vCPUs leaving the guest, workers going home) is asked for and comes back as a message.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::assemble::{Assembled, Remains, SLOT_MACHINE, Site, lock};
use super::console::{Heard, Pump};
use super::files::Files;
use super::lifecycle::{Action, Ending, Input, Life, verdict};
use super::mailbox::{Mailbox, Message, Word};
use super::outcome::{EndReason, Event, ExitCounts, Outcome, State};
use super::requests::Holder;
use super::vcpu::{Command, sentence};
use super::wire::{self, Received, Receiver, Reply, Request};
use crate::config::{Endpoint, MachineConfig, OnReset};
use crate::hv::{self, HvError, Hypervisor, Vm};
use crate::sys::{self, Interest, Poller, Ready, Timer};
use crate::timeline::{self, Recorder, name};
use crate::virtio::device::{Registrar, Running};

/// Stack of the loop's thread.
pub(super) const STACK_BYTES: usize = 256 << 10;

/// How long the rest of a console's output may take when the machine ends.
const CONSOLE_PATIENCE: Duration = Duration::from_secs(1);

/// Keys of what the loop itself waits for.
const KEY_BELL: u32 = 0;
const KEY_CONTROL: u32 = 1;
const KEY_STOP: u32 = 2;
const KEY_TIMER: u32 = 3;

/// Serves the machine that the holder at the other end of `control` describes, until either ends. `recorder` has stamped where this
/// process or thread began, and takes the machine's stamps.
pub fn serve(control: OwnedFd, recorder: Recorder) {
    serve_on(hv::open, control, recorder);
}

/// The same on any hypervisor.
pub(super) fn serve_on<H: Hypervisor>(
    open: impl FnOnce() -> Result<H, HvError>,
    control: OwnedFd,
    recorder: Recorder,
) {
    let mut receiver = Receiver::default();
    let Ok(Received::Frame(request, descriptors)) = receiver.receive(control.as_fd()) else { return };
    let mut descriptors = descriptors.into_iter();
    // A holder that says something else first, or too little, is none.
    let (Request::Start { config }, Some(reply), Some(done)) =
        (request, descriptors.next(), descriptors.next())
    else {
        return;
    };
    recorder.stamp(name::MONITOR_CONFIG);
    let reply = Reply::new(reply);
    if config.console == Endpoint::Stdio || config.serial == Endpoint::Stdio {
        return reply.failed(&Unheld);
    }
    if let Err(error) = sys::set_nonblocking(&control) {
        return reply.failed(&error);
    }
    let hypervisor = match open() {
        Ok(hypervisor) => hypervisor,
        Err(error) => return reply.failed(&error),
    };
    let holder = Holder::new(control, receiver, done, config.on_reset);
    let server = Server {
        hypervisor: &hypervisor,
        config: *config,
        files: Files::Sent(descriptors.collect()),
        recorder: Arc::new(recorder),
        holder: Some(holder),
        stop: None,
        escape: false,
        pumps: Vec::new(),
    };
    server.run(Some(reply));
}

/// Standard input and output are not the machine's when somebody holds it.
#[derive(Debug, thiserror::Error)]
#[error(
    "serial, console: \"stdio\" is for a monitor that runs alone; a held machine has \"stream\" or \"pair\""
)]
struct Unheld;

/// Runs a machine without a holder, to its end. Descriptors of `config` are those this process was started with. `stop` is readable when the
/// machine is to end; with `escape`, Ctrl-A and x on a `stdio` endpoint end it too. `recorder` as in [`serve`].
#[must_use]
pub fn run_alone(config: MachineConfig, stop: Option<OwnedFd>, escape: bool, recorder: Recorder) -> Outcome {
    recorder.stamp(name::MONITOR_CONFIG);
    let hypervisor = match hv::open() {
        Ok(hypervisor) => hypervisor,
        Err(error) => return Outcome::of(EndReason::Error(sentence(&error))),
    };
    let files = Files::Inherited;
    let server = Server {
        hypervisor: &hypervisor,
        config,
        files,
        recorder: Arc::new(recorder),
        holder: None,
        stop,
        escape,
        pumps: Vec::new(),
    };
    server.run(None)
}

/// How a machine is driven.
pub(super) struct Server<'h, H: Hypervisor> {
    pub(super) hypervisor: &'h H,
    pub(super) config: MachineConfig,
    pub(super) files: Files,
    pub(super) recorder: Arc<Recorder>,
    /// Nobody holds it when it runs alone.
    pub(super) holder: Option<Holder>,
    /// Readable when it is to end, for a machine that runs alone.
    pub(super) stop: Option<OwnedFd>,
    pub(super) escape: bool,
    /// Consoles of the run before: what reads them stays connected through a reset.
    pub(super) pumps: Vec<Pump>,
}

/// A machine that runs: everything the loop knows.
pub(super) struct Loop<V> {
    pub(super) poller: Poller,
    pub(super) mailbox: Mailbox,
    inbox: mpsc::Receiver<Message>,
    pub(super) life: Life,
    pub(super) machine: Assembled<V>,
    workers: BTreeMap<u16, Running>,
    cpus: u32,
    created: u32,
    ended: u32,
    parked: u32,
    /// Number of the pause under way or of the last one.
    pause: u64,
    /// Workers were called home and some are still out.
    parking: bool,
    /// Everything is at rest for good.
    at_rest: bool,
    panic_told: bool,
    started: bool,
}

/// What is left when a machine's run is over.
struct Ran {
    ending: Ending,
    /// What was asked for while it ended.
    wish: Option<Ending>,
    panicked: bool,
    /// CLOCK_MONOTONIC in nanoseconds.
    ended_at: u64,
    remains: Remains,
}

impl Ran {
    /// How the machine ended, or `None` for another start.
    fn reason(&self, on_reset: OnReset) -> Option<EndReason> {
        let wish = || self.wish.as_ref().and_then(|wish| verdict(wish, self.panicked, on_reset));
        verdict(&self.ending, self.panicked, on_reset).or_else(wish)
    }
}

impl<H: Hypervisor> Server<'_, H> {
    /// Runs the machine to its end, through every reset that it survives, and says how it ended. `reply` hears whether it started.
    pub(super) fn run(mut self, mut reply: Option<Reply>) -> Outcome {
        let mut outcome = Outcome::of(EndReason::Stopped);
        let began = self.began();
        let limit = match self.time_limit() {
            Ok(limit) => limit,
            Err(error) => return failed(outcome, reply, &error),
        };
        loop {
            match self.run_once(&mut reply, limit.as_ref(), &mut outcome) {
                Err(reason) => {
                    outcome.reason = reason;
                    break;
                }
                Ok(ran) => {
                    outcome.exits.add(&ran.remains.exits);
                    if let Some(reason) = ran.reason(self.config.on_reset) {
                        outcome.reason = reason;
                        outcome.timings.run_ns = ran.ended_at.saturating_sub(began);
                        outcome.timings.teardown_ns = timeline::now_ns().saturating_sub(ran.ended_at);
                        self.recorder.stamp_at(name::GUEST_END, ran.ended_at);
                        break;
                    }
                    self.pumps = ran.remains.pumps;
                }
            }
            if let Some(holder) = &mut self.holder {
                holder.tell(&Event::Rebooting);
            }
        }
        let entered = self.recorder.at(name::FIRST_ENTRY);
        outcome.timings.first_entry_ns = entered.map_or(0, |at| at.saturating_sub(began));
        outcome.timeline = self.recorder.timeline();
        if let Some(holder) = self.holder {
            holder.end(&outcome);
        }
        outcome
    }

    /// CLOCK_MONOTONIC in nanoseconds when this server began.
    fn began(&self) -> u64 {
        self.recorder.at(name::MONITOR_MAIN).unwrap_or_else(|| self.recorder.origin_ns())
    }

    fn time_limit(&self) -> std::io::Result<Option<Timer>> {
        let Some(milliseconds) = self.config.time_limit_ms else { return Ok(None) };
        let timer = Timer::new()?;
        timer.set(Some(Duration::from_millis(milliseconds)))?;
        Ok(Some(timer))
    }

    /// From assembly to the end of one run.
    fn run_once(
        &mut self,
        reply: &mut Option<Reply>,
        limit: Option<&Timer>,
        outcome: &mut Outcome,
    ) -> Result<Ran, EndReason> {
        let refused = |error: &dyn std::error::Error, reply: &mut Option<Reply>| {
            if let Some(reply) = reply.take() {
                reply.failed(error);
            }
            EndReason::Error(sentence(error))
        };
        let mut run = match self.assemble(limit) {
            Ok(run) => run,
            Err(error) => return Err(refused(&*error, reply)),
        };
        for old in std::mem::take(&mut self.pumps) {
            if let Some(new) = run.machine.pumps.iter_mut().find(|new| new.slot() == old.slot()) {
                new.adopt(old);
            }
        }
        outcome.starts += 1;
        if outcome.starts == 1 {
            outcome.timings.assemble_ns = timeline::now_ns().saturating_sub(self.began());
        }
        if let Some(holder) = &mut self.holder {
            holder.reconnect(&run.machine);
            holder.tell(&Event::State(State::Starting));
        }
        let mut failure = None;
        while !run.at_rest {
            if let Err(error) = run.turn(self, limit, reply, &mut failure) {
                failure.get_or_insert_with(|| sentence(&error));
                run.step(Input::End(Ending::Host(sentence(&error))), self.holder.as_mut());
                if !run.can_go_on() {
                    break;
                }
            }
        }
        if !run.started
            && let Some(failure) = failure
        {
            // Something else was answered already, or nobody asked.
            if let Some(reply) = reply.take() {
                reply.answer(&wire::Answer::Failed(vec![failure]), None);
            }
        }
        Ok(run.finish())
    }

    fn assemble(&self, limit: Option<&Timer>) -> Result<Loop<H::Vm>, Box<dyn std::error::Error>> {
        let poller = Poller::new()?;
        let (mailbox, inbox) = Mailbox::new()?;
        let token = |key| Registrar::token(SLOT_MACHINE, key);
        poller.add(mailbox.bell().notifier().as_fd(), token(KEY_BELL), Interest::READ)?;
        if let Some(holder) = &self.holder {
            poller.add(holder.socket(), token(KEY_CONTROL), Interest::READ)?;
        }
        if let Some(stop) = &self.stop {
            poller.add(stop.as_fd(), token(KEY_STOP), Interest::READ)?;
        }
        if let Some(limit) = limit {
            poller.add(limit.as_fd(), token(KEY_TIMER), Interest::READ)?;
        }
        let site = Site {
            hypervisor: self.hypervisor,
            config: &self.config,
            files: &self.files,
            mailbox: &mailbox,
            recorder: &self.recorder,
            escape: self.escape,
        };
        let machine = site.assemble()?;
        Ok(Loop {
            poller,
            mailbox,
            inbox,
            life: Life::new(),
            machine,
            workers: BTreeMap::new(),
            cpus: u32::from(self.config.cpus.get()),
            created: 0,
            ended: 0,
            parked: 0,
            pause: 0,
            parking: false,
            at_rest: false,
            panic_told: false,
            started: false,
        })
    }
}

impl<V: Vm> Loop<V> {
    /// Waits for something and carries it out.
    fn turn<H: Hypervisor<Vm = V>>(
        &mut self,
        server: &mut Server<'_, H>,
        limit: Option<&Timer>,
        reply: &mut Option<Reply>,
        failure: &mut Option<String>,
    ) -> std::io::Result<()> {
        let mut ready: Vec<Ready> = Vec::new();
        self.poller.wait(&mut ready, None)?;
        for event in &ready {
            match Registrar::split(event.token) {
                (SLOT_MACHINE, KEY_BELL) => self.mailbox.bell().silence(),
                (SLOT_MACHINE, KEY_CONTROL) => self.control(server),
                (SLOT_MACHINE, KEY_STOP) => self.end(Ending::Stop, server.holder.as_mut()),
                (SLOT_MACHINE, _) => {
                    if let Some(limit) = limit {
                        limit.consume()?;
                    }
                    self.end(Ending::TimeLimit, server.holder.as_mut());
                }
                (slot, key) => {
                    if let Some(worker) = self.workers.get_mut(&slot) {
                        worker.ready(&self.poller, key, event.interest);
                    } else {
                        self.turn_pump(|pump| pump.slot() == slot, server.holder.as_mut());
                    }
                }
            }
        }
        while let Ok(message) = self.inbox.try_recv() {
            self.message(message, server.holder.as_mut(), reply, failure);
        }
        self.turn_pump(Pump::has_news, server.holder.as_mut());
        self.look_for_rest(server.holder.as_mut());
        Ok(())
    }

    fn message(
        &mut self,
        message: Message,
        mut holder: Option<&mut Holder>,
        reply: &mut Option<Reply>,
        failure: &mut Option<String>,
    ) {
        match message {
            Message::StartWorker(mut running) => {
                running.start(&self.poller);
                self.workers.insert(running.slot(), running);
            }
            Message::StopWorker(slot) => {
                if let Some(running) = self.workers.remove(&slot) {
                    running.stop(&self.poller);
                }
            }
            Message::WorkerHome => {}
            Message::Agent(word) => self.end(Ending::Agent(word), holder),
            Message::Vcpu(_, Word::Created(kicker)) => {
                self.created += 1;
                // One that is heard of late may be in the guest already, and the command to end came without a kick for it.
                if self.life.state() == State::Ending {
                    kicker.kick();
                }
                self.machine.kickers.push(kicker);
                if self.created == self.cpus {
                    self.started = true;
                    self.step(Input::Assembled, holder.as_deref_mut());
                    // The first look at who reads and writes the consoles.
                    self.turn_pump(|_| true, holder);
                    if let Some(reply) = reply.take() {
                        reply.done();
                    }
                }
            }
            Message::Vcpu(index, Word::Failed(error)) => {
                let what = format!("cannot make vCPU {index}: {}", sentence(&error));
                failure.get_or_insert_with(|| what.clone());
                self.ended += 1;
                self.end(Ending::Host(what), holder);
                self.look_for_ends(None);
            }
            Message::Vcpu(_, Word::Parked(number)) if number == self.pause => {
                self.parked += 1;
                if self.parked == self.cpus {
                    self.step(Input::VcpusParked, holder);
                }
            }
            Message::Vcpu(_, Word::Parked(_)) => {}
            Message::Vcpu(_, Word::Counter(counter)) => {
                if let Some(holder) = holder {
                    holder.counter_read(counter);
                }
            }
            Message::Vcpu(_, Word::Stopped(cause)) => self.end(Ending::Guest(cause), holder),
            Message::Vcpu(_, Word::Ended) => {
                self.ended += 1;
                self.look_for_ends(holder);
            }
        }
    }

    fn look_for_ends(&mut self, holder: Option<&mut Holder>) {
        if self.ended == self.cpus {
            self.step(Input::VcpusEnded, holder);
        }
    }

    /// Ends the machine, unless something else did before.
    pub(super) fn end(&mut self, ending: Ending, holder: Option<&mut Holder>) {
        self.step(Input::End(ending), holder);
    }

    /// Feeds the life and carries out what it says. A request that does not fit is the caller's to check before.
    pub(super) fn step(&mut self, input: Input, mut holder: Option<&mut Holder>) {
        let before = self.life.state();
        let Ok(actions) = self.life.step(input) else { return };
        for action in actions {
            self.act(action, holder.as_deref_mut());
        }
        let after = self.life.state();
        if before != after
            && let Some(holder) = holder
        {
            holder.tell(&Event::State(after));
        }
    }

    fn act(&mut self, action: Action, holder: Option<&mut Holder>) {
        match action {
            // At the start the last vCPU may have opened the gate already.
            Action::RunVcpus => self.machine.shared.gate.set(Command::Run),
            Action::ParkVcpus => {
                self.pause += 1;
                self.parked = 0;
                self.machine.shared.gate.set(Command::Park(self.pause));
                self.kick();
            }
            Action::EndVcpus => {
                self.machine.shared.gate.set(Command::End);
                self.kick();
            }
            Action::ParkDevices => {
                self.parking = true;
                for transport in &self.machine.transports {
                    lock(transport).0.pause();
                }
                // Those of this loop were posted to its own inbox, and the bell rang.
            }
            Action::RunDevices => {
                for transport in &self.machine.transports {
                    lock(transport).0.resume();
                }
            }
            Action::AnswerPause => {
                if let Some(holder) = holder {
                    holder.paused();
                }
            }
            Action::RefusePause => {
                if let Some(holder) = holder {
                    holder.not_paused();
                }
            }
            Action::TakeApart => self.at_rest = true,
        }
    }

    /// Gets every vCPU out of the guest, to look what is wanted.
    pub(super) fn kick(&self) {
        for kicker in &self.machine.kickers {
            kicker.kick();
        }
    }

    /// Whether all workers that were called are home.
    fn look_for_rest(&mut self, holder: Option<&mut Holder>) {
        let mut transports = self.machine.transports.iter();
        if self.parking && transports.all(|transport| lock(transport).0.paused(Duration::ZERO)) {
            self.parking = false;
            self.step(Input::DevicesParked, holder);
        }
    }

    fn turn_pump(&mut self, which: impl Fn(&Pump) -> bool, mut holder: Option<&mut Holder>) {
        let mut quit = false;
        for pump in &mut self.machine.pumps {
            if which(pump) {
                quit |= pump.turn(&self.poller) == Heard::Quit;
            }
        }
        let panicked = self.machine.pumps.iter().any(Pump::panicked);
        if panicked && !self.panic_told {
            self.panic_told = true;
            if let Some(holder) = holder.as_deref_mut() {
                holder.tell(&Event::PanicSeen);
            }
        }
        if quit {
            self.end(Ending::Stop, holder);
        }
    }

    /// The holder wants something, or is gone.
    fn control<H: Hypervisor<Vm = V>>(&mut self, server: &mut Server<'_, H>) {
        let Some(mut holder) = server.holder.take() else { return };
        loop {
            match holder.next() {
                Ok(Some(request)) => holder.carry_out(request, self),
                Ok(None) => break,
                // Nobody holds the machine any more: it ends at once.
                Err(_gone) => {
                    drop(self.poller.remove(holder.socket()));
                    self.end(Ending::Kill, Some(&mut holder));
                    break;
                }
            }
        }
        server.holder = Some(holder);
    }

    /// Whether a vCPU is left that can say that it ends.
    fn can_go_on(&self) -> bool {
        self.created > self.ended
    }

    /// Exits so far.
    pub(super) fn exits(&self) -> ExitCounts {
        self.machine.shared.exits()
    }

    /// Takes the machine apart after its last turn.
    fn finish(self) -> Ran {
        let ended_at = timeline::now_ns();
        let Self { poller, life, machine, workers, .. } = self;
        for (_, worker) in workers {
            worker.stop(&poller);
        }
        let (ending, wish) = life.endings();
        let ending = ending.unwrap_or(Ending::Stop);
        let mut remains = machine.take_apart();
        let patience = if ending == Ending::Kill { Duration::ZERO } else { CONSOLE_PATIENCE };
        for pump in &mut remains.pumps {
            pump.forget(&poller);
            pump.finish(patience);
        }
        let panicked = remains.pumps.iter().any(Pump::panicked);
        Ran { ending, wish, panicked, ended_at, remains }
    }
}

fn failed(mut outcome: Outcome, reply: Option<Reply>, error: &dyn std::error::Error) -> Outcome {
    outcome.reason = EndReason::Error(sentence(error));
    if let Some(reply) = reply {
        reply.failed(error);
    }
    outcome
}
