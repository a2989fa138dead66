//! The server of one machine: the event loop, written once, with the control connection on it.
//! The order of waiting stands in `threads`.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use super::assemble::{Assembly, SLOT_MACHINE};
use super::confine::{Confiner, Process};
use super::console::Pump;
use super::faults::FaultLog;
use super::files::{Files, Handed};
use super::halt::KEY_HALT;
use super::holder::{Holder, Refusal};
use super::lifecycle::{Ending, Input};
use super::mailbox::Mailbox;
use super::outcome::{EndReason, Event, Outcome, State};
use super::running::{Loop, Ran};
use super::snapshot::Snapshot;
use super::wire::{self, Received, Receiver, Reply, Start};
use crate::config::{DeviceName, Endpoint, MachineConfig};
use crate::hv::{self, HvError, Hypervisor};
use crate::sys::{self, Interest, Poller, Ready, Timer};
use crate::text::chain;
use crate::timeline::{Recorder, name};
use crate::virtio::device::Registrar;

/// Most messages of one turn: vCPUs that reset devices without end send without end.
const MESSAGES: usize = 64;

/// Keys of what the loop itself waits for.
const KEY_BELL: u32 = 0;
const KEY_CONTROL: u32 = 1;
const KEY_STOP: u32 = 2;
const KEY_TIMER: u32 = 3;

/// Serves the machine that the holder at the other end of `control` describes, until either ends.
/// `recorder` has stamped where this process or thread began, and takes the machine's stamps. What
/// the guest breaks is said on `log`, unless the holder has a place for it.
pub fn serve(control: OwnedFd, recorder: Recorder, log: Option<OwnedFd>, process: Process) {
    serve_on(hv::open, control, recorder, log, process);
}

/// The same on any hypervisor.
pub(super) fn serve_on<H: Hypervisor>(
    open: impl FnOnce() -> Result<H, HvError>,
    control: OwnedFd,
    recorder: Recorder,
    log: Option<OwnedFd>,
    process: Process,
) {
    let mut receiver = Receiver::new(sys::MAX_DESCRIPTORS);
    let Ok(Received::Frame(start, descriptors)) = receiver.receive_start(control.as_fd()) else { return };
    let mut descriptors = descriptors.into_iter();
    // A holder without a socket for the answer is none.
    let Some(reply) = descriptors.next().map(Reply::new) else { return };
    let Start { config, log: logged, snapshot: saved, labels } = match start {
        Ok(start) => start,
        Err(error) => return reply.failed(&error),
    };
    // One that does not want to hear of the end neither; the reply tells that nothing came of it.
    let Some(done) = descriptors.next() else { return };
    let log = if logged { descriptors.next() } else { log };
    let snapshot = match (saved, saved.then(|| (descriptors.next(), descriptors.next()))) {
        (true, Some((Some(state), Some(memory)))) => Some(Snapshot { state, memory }),
        (true, _) => return reply.failed(&Refusal::Descriptor),
        (false, _) => None,
    };
    recorder.stamp(name::MONITOR_CONFIG);
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
    let confiner = Confiner::new(process, config.confine).telling(done.as_fd());
    let holder = Holder::new(control, receiver, done, config.on_reset);
    let server = Server {
        hypervisor: &hypervisor,
        confiner: Arc::new(confiner),
        config,
        files: Handed { files: descriptors.collect(), labels }.into(),
        recorder: Arc::new(recorder),
        holder: Some(holder),
        snapshot,
        stop: None,
        escape: false,
        pumps: Vec::new(),
        log: FaultLog::new(log),
    };
    server.run(Some(reply));
}

/// Standard input and output are not the machine's when somebody holds it.
#[derive(Debug, thiserror::Error)]
#[error(
    "serial, console: \"stdio\" is for a monitor that runs alone; a held machine has \"stream\" or \"pair\""
)]
struct Unheld;

/// Runs a machine without a holder, to its end. Descriptors of `config` are those this process was
/// started with. `stop` is readable when the machine is to end; with `escape`, Ctrl-A and x on a
/// `stdio` endpoint end it too. `recorder` and `log` as in [`serve`].
#[must_use]
pub fn run_alone(
    mut config: MachineConfig,
    stop: Option<OwnedFd>,
    escape: bool,
    recorder: Recorder,
    log: Option<OwnedFd>,
) -> Outcome {
    recorder.stamp(name::MONITOR_CONFIG);
    let hypervisor = match hv::open() {
        Ok(hypervisor) => hypervisor,
        Err(error) => return Outcome::of(EndReason::Error(chain(&error))),
    };
    // Once, before anything runs: the machine starts again with the same descriptors.
    let files = match Handed::inherited(&mut config) {
        Ok(files) => files.into(),
        Err(error) => return Outcome::of(EndReason::Error(chain(&error))),
    };
    let server = Server {
        hypervisor: &hypervisor,
        confiner: Arc::new(Confiner::new(Process::Own, config.confine)),
        config,
        files,
        recorder: Arc::new(recorder),
        holder: None,
        snapshot: None,
        stop,
        escape,
        pumps: Vec::new(),
        log: FaultLog::new(log),
    };
    server.run(None)
}

/// How a machine is driven.
pub(super) struct Server<'h, H: Hypervisor> {
    pub(super) hypervisor: &'h H,
    pub(super) confiner: Arc<Confiner>,
    pub(super) config: MachineConfig,
    pub(super) files: Files,
    pub(super) recorder: Arc<Recorder>,
    /// Nobody holds it when it runs alone.
    pub(super) holder: Option<Holder>,
    /// What it goes on from, when it does not boot. After a reset it does.
    pub(super) snapshot: Option<Snapshot>,
    /// Readable when it is to end, for a machine that runs alone.
    pub(super) stop: Option<OwnedFd>,
    pub(super) escape: bool,
    /// Consoles of the run before: what reads them stays connected through a reset.
    pub(super) pumps: Vec<Pump>,
    pub(super) log: FaultLog,
}

impl<H: Hypervisor> Server<'_, H> {
    /// Runs the machine to its end, through every reset that it survives, and says how it ended.
    /// `reply` hears whether it started.
    pub(super) fn run(mut self, mut reply: Option<Reply>) -> Outcome {
        let mut outcome = Outcome::of(EndReason::Stopped);
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
                    outcome.add_faults(ran.remains.faults.clone());
                    if let Some(reason) = ran.reason(self.config.on_reset) {
                        outcome.reason = reason;
                        outcome.hint = ran
                            .was_no_kernel()
                            .then(|| self.files.name(&self.config.kernel))
                            .map(|name| format!("{name} does not look like a Linux kernel"));
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
        outcome.timeline = self.recorder.timeline();
        outcome.confinement = self.confiner.done();
        if let Some(holder) = self.holder {
            holder.end(&outcome);
        }
        outcome
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
            EndReason::Error(chain(error))
        };
        let snapshot = self.snapshot.take();
        let mut run = match self.assemble(limit, snapshot) {
            Ok(run) => run,
            Err(error) => return Err(refused(&*error, reply)),
        };
        for old in std::mem::take(&mut self.pumps) {
            if let Some(new) = run.machine.pumps.iter_mut().find(|new| new.slot() == old.slot()) {
                new.adopt(old);
            }
        }
        outcome.starts += 1;
        run.starts = outcome.starts;
        if let Some(holder) = &mut self.holder {
            holder.reconnect(&run.machine);
            holder.tell(&Event::State(State::Starting));
        }
        let mut failure = None;
        while !run.at_rest {
            if let Err(error) = self.turn(&mut run, limit, reply, &mut failure) {
                failure.get_or_insert_with(|| chain(&error));
                run.step(Input::End(Ending::Host(chain(&error))), self.holder.as_mut());
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

    fn assemble(
        &self,
        limit: Option<&Timer>,
        snapshot: Option<Snapshot>,
    ) -> Result<Loop<H::Vm>, Box<dyn std::error::Error>> {
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
        let assembly = Assembly {
            hypervisor: self.hypervisor,
            config: &self.config,
            files: &self.files,
            mailbox: &mailbox,
            recorder: &self.recorder,
            confiner: &self.confiner,
            escape: self.escape,
            wanted: &|| self.holder.as_ref().is_none_or(Holder::is_there),
        };
        let machine = match snapshot {
            None => assembly.assemble()?,
            Some(snapshot) => assembly.assemble_saved(snapshot)?,
        };
        Ok(Loop::new(poller, (mailbox, inbox), machine, u32::from(self.config.cpus.get())))
    }

    /// Waits for something and carries it out.
    fn turn(
        &mut self,
        run: &mut Loop<H::Vm>,
        limit: Option<&Timer>,
        reply: &mut Option<Reply>,
        failure: &mut Option<String>,
    ) -> std::io::Result<()> {
        let mut ready: Vec<Ready> = Vec::new();
        run.poller.wait(&mut ready, None)?;
        for event in &ready {
            match Registrar::split(event.token) {
                (SLOT_MACHINE, KEY_BELL) => run.mailbox.bell().silence(),
                (SLOT_MACHINE, KEY_CONTROL) => self.control(run),
                (SLOT_MACHINE, KEY_HALT) => run.look_for_halt()?,
                (SLOT_MACHINE, KEY_STOP) => run.end(Ending::Stop, self.holder.as_mut()),
                (SLOT_MACHINE, _) => {
                    if let Some(limit) = limit {
                        limit.consume()?;
                    }
                    run.end(Ending::TimeLimit, self.holder.as_mut());
                }
                (slot, key) => {
                    if let Some(worker) = run.workers.get_mut(&slot) {
                        worker.ready(&run.poller, key, event.interest);
                    } else {
                        run.turn_pump(|pump| pump.slot() == slot, self.holder.as_mut());
                    }
                }
            }
        }
        for served in 1..=MESSAGES {
            let Ok(message) = run.inbox.try_recv() else { break };
            run.message(message, self.holder.as_mut(), reply, failure);
            if served == MESSAGES {
                // The rest comes next, after everything else that is ready.
                run.mailbox.bell().ring();
            }
        }
        for fault in run.faults.drain(..) {
            // A machine that starts again does not say again what was said.
            if self.log.say(&fault)
                && let Some(holder) = &mut self.holder
            {
                holder.tell(&Event::Fault(fault));
            }
        }
        run.turn_pump(Pump::has_news, self.holder.as_mut());
        run.look_for_rest(self.holder.as_mut());
        self.remember_attached();
        self.forget_detached(run);
        Ok(())
    }

    /// What was put into the machine is there when it starts again. To be done before what was
    /// taken out is forgotten, which may be the same.
    fn remember_attached(&mut self) {
        let Some(holder) = &mut self.holder else { return };
        for (mut disk, files) in holder.attached.drain(..) {
            self.files.adopt(files, &mut disk);
            self.config.disks.push(disk);
            // Without a spare slot it was that of another device.
            self.config.spare_slots = self.config.spare_slots.saturating_sub(1);
        }
    }

    /// What was taken out of the machine is not there when it starts again, and nothing of it is
    /// held until then.
    fn forget_detached(&mut self, run: &Loop<H::Vm>) {
        let Some(holder) = &mut self.holder else { return };
        holder.look_for_detached(&run.machine);
        for (device, reply) in holder.detached.drain(..) {
            match device {
                DeviceName::Rng => self.config.rng = false,
                DeviceName::Disk(id) => {
                    if let Some(index) = self.config.disks.iter().position(|disk| disk.id == id) {
                        let mut disk = self.config.disks.remove(index);
                        for (_, _, source) in disk.files("disk") {
                            if !self.config.files().iter().any(|(_, _, other)| **other == *source) {
                                self.files.forget(source);
                            }
                        }
                        // The slot stays.
                        self.config.spare_slots += 1;
                    }
                }
                DeviceName::Serial
                | DeviceName::Console
                | DeviceName::Vsock
                | DeviceName::Memory
                | DeviceName::Balloon
                | DeviceName::Network(_)
                | DeviceName::Share(_) => {}
            }
            reply.done();
        }
    }

    /// The holder wants something, or is gone.
    fn control(&mut self, run: &mut Loop<H::Vm>) {
        let Some(mut holder) = self.holder.take() else { return };
        loop {
            match holder.next() {
                Ok(Some(request)) => holder.carry_out(request, run),
                Ok(None) => break,
                // Nobody holds the machine any more: it ends at once.
                Err(_gone) => {
                    drop(run.poller.remove(holder.socket()));
                    run.end(Ending::Kill, Some(&mut holder));
                    break;
                }
            }
        }
        self.holder = Some(holder);
    }
}

fn failed(mut outcome: Outcome, reply: Option<Reply>, error: &dyn std::error::Error) -> Outcome {
    outcome.reason = EndReason::Error(chain(error));
    if let Some(reply) = reply {
        reply.failed(error);
    }
    outcome
}
