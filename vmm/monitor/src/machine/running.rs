//! A machine that runs: what its event loop knows, and what it does with what vCPUs, workers and
//! consoles say.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::Duration;

use super::assemble::{Assembled, Remains, lock};
use super::console::{Lost, Pump, PumpEvent};
use super::faults::named;
use super::halt::HaltWatch;
use super::holder::Holder;
use super::inspection::Inspection;
use super::lifecycle::{Action, Ending, Input, Life, verdict};
use super::mailbox::{Cause, Mailbox, Message, VcpuEvent};
use super::outcome::{DeviceFaults, EndReason, Event, ExitCounts, State};
use super::saving::Saving;
use super::threads::Role;
use super::vcpu::Command;
use super::wire::Reply;
use crate::config::OnReset;
use crate::hv::Vm;
use crate::sys::Poller;
use crate::text::chain;
use crate::timeline;
use crate::virtio::device::Running;

/// How long the rest of a console's output may take when the machine ends.
const CONSOLE_PATIENCE: Duration = Duration::from_secs(1);

/// A machine that runs: everything the loop knows.
pub(super) struct Loop<V> {
    pub(super) poller: Poller,
    pub(super) mailbox: Mailbox,
    pub(super) inbox: mpsc::Receiver<Message>,
    pub(super) life: Life,
    pub(super) machine: Assembled<V>,
    pub(super) workers: BTreeMap<u16, Running>,
    pub(super) halt: HaltWatch,
    pub(super) saving: Option<Saving>,
    /// Saves so far.
    pub(super) saves: u64,
    pub(super) cpus: u32,
    created: u32,
    /// Threads that have said that they are ready: vCPUs at the gate, workers' threads.
    ready_threads: usize,
    ended: u32,
    parked: u32,
    /// Number of the pause under way or of the last one.
    pause: u64,
    /// Workers were called home and some are still out.
    parking: bool,
    /// Everything is at rest for good.
    pub(super) at_rest: bool,
    panic_told: bool,
    pub(super) started: bool,
    /// Times that the guest was started, this one counted.
    pub(super) starts: u32,
    /// First faults of their kinds, to be told.
    pub(super) faults: Vec<DeviceFaults>,
}

/// What is left when a machine's run is over.
pub(super) struct Ran {
    ending: Ending,
    /// What was asked for while it ended.
    wish: Option<Ending>,
    panicked: bool,
    /// CLOCK_MONOTONIC in nanoseconds.
    pub(super) ended_at: u64,
    pub(super) remains: Remains,
}

impl Ran {
    /// How the machine ended, or `None` for another start.
    pub(super) fn reason(&self, on_reset: OnReset) -> Option<EndReason> {
        let wish = || self.wish.as_ref().and_then(|wish| verdict(wish, self.panicked, on_reset));
        let reason = verdict(&self.ending, self.panicked, on_reset).or_else(wish)?;
        // Output that was lost while the guest ended well, or after it, is no good end.
        Some(match self.remains.pumps.iter().find_map(Pump::lost) {
            Some(Lost::Failed(what)) if reason.exit_code() == 0 => EndReason::Error(what.clone()),
            _ => reason,
        })
    }
}

impl Ran {
    /// Whether the guest failed before it had done anything, of a file that does not even say that
    /// it is a kernel.
    pub(super) fn was_no_kernel(&self) -> bool {
        let failed = matches!(self.ending, Ending::Guest(Cause::TripleFault | Cause::Fault(_)));
        let exits = &self.remains.exits;
        failed && !self.remains.says_kernel && exits.port_write + exits.memory_write == 0
    }
}

impl<V: Vm> Loop<V> {
    /// A machine whose threads are about to be ready.
    pub(super) fn new(
        poller: Poller,
        (mailbox, inbox): (Mailbox, mpsc::Receiver<Message>),
        machine: Assembled<V>,
        cpus: u32,
    ) -> Self {
        Self {
            poller,
            mailbox,
            inbox,
            life: Life::new(),
            machine,
            workers: BTreeMap::new(),
            halt: HaltWatch::default(),
            saving: None,
            saves: 0,
            cpus,
            created: 0,
            ready_threads: 0,
            ended: 0,
            parked: 0,
            pause: 0,
            parking: false,
            at_rest: false,
            panic_told: false,
            started: false,
            starts: 1,
            faults: Vec::new(),
        }
    }

    pub(super) fn message(
        &mut self,
        message: Message,
        holder: Option<&mut Holder>,
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
                self.machine.shared.gate.worker_home();
            }
            Message::ThreadReady => {
                self.ready_threads += 1;
                self.look_at_gate(holder, reply, failure);
            }
            Message::Unconfined(error) => self.unconfined(&error, holder, failure),
            Message::WorkerHome => self.machine.shared.gate.worker_home(),
            Message::Agent(word) => self.end(Ending::Agent(word), holder),
            Message::Fault(slot, fault) => {
                self.faults.push(named(slot, fault));
            }
            Message::Vcpu(_, VcpuEvent::Created(kicker)) => {
                self.created += 1;
                // One that is heard of late may be in the guest already, and the command to end
                // came without a kick for it.
                if self.life.state() == State::Ending {
                    kicker.kick();
                }
                self.machine.kickers.push(kicker);
                self.ready_threads += 1;
                self.look_at_gate(holder, reply, failure);
            }
            Message::Vcpu(index, VcpuEvent::Failed(error)) => {
                let what = format!("cannot make vCPU {index}: {}", chain(&error));
                failure.get_or_insert_with(|| what.clone());
                self.ended += 1;
                self.end(Ending::Host(what), holder);
                self.look_for_ends(None);
            }
            Message::Vcpu(_, VcpuEvent::Parked(number)) if number == self.pause => {
                self.parked += 1;
                if self.parked == self.cpus {
                    self.step(Input::VcpusParked, holder);
                }
            }
            Message::Vcpu(_, VcpuEvent::Parked(_)) => {}
            Message::Vcpu(index, VcpuEvent::Saved(number, state)) => self.vcpu_saved(index, number, state),
            Message::Vcpu(_, VcpuEvent::Written(number, result)) => self.written(number, result),
            Message::Vcpu(_, VcpuEvent::Looked(number, sleeps)) => self.looked(number, sleeps, holder),
            Message::Vcpu(_, VcpuEvent::Counter(counter)) => {
                if let Some(holder) = holder {
                    holder.counter_read(counter);
                }
            }
            Message::Vcpu(_, VcpuEvent::Stopped(cause)) => self.end(Ending::Guest(cause), holder),
            Message::Vcpu(_, VcpuEvent::Ended) => {
                self.ended += 1;
                self.look_for_ends(holder);
            }
        }
    }

    /// When every thread is ready the machine is whole: it opens the gate, and its guest runs. What
    /// may still be opened or made after that is said in `threads`.
    fn look_at_gate(
        &mut self,
        mut holder: Option<&mut Holder>,
        reply: &mut Option<Reply>,
        failure: &mut Option<String>,
    ) {
        if self.ready_threads < self.machine.expected_threads() {
            return;
        }
        let restored = match self.machine.seal() {
            Ok(restored) => restored,
            Err(error) => {
                let what = format!("cannot make a virtual machine: {}", chain(&error));
                failure.get_or_insert_with(|| what.clone());
                return self.end(Ending::Host(what), holder);
            }
        };
        if let Err(error) = self.machine.confiner.confine_thread(Role::Loop) {
            return self.unconfined(&error, holder, failure);
        }
        self.started = true;
        self.step(if restored { Input::Restored } else { Input::Assembled }, holder.as_deref_mut());
        // The first look at who reads and writes the consoles.
        self.turn_pump(|_| true, holder);
        if let Some(reply) = reply.take() {
            reply.done();
        }
    }

    /// A thread could not give up what it does not need: its machine does not run.
    fn unconfined(
        &mut self,
        error: &std::io::Error,
        holder: Option<&mut Holder>,
        failure: &mut Option<String>,
    ) {
        let what = format!("cannot confine a thread: {}", chain(error));
        failure.get_or_insert_with(|| what.clone());
        self.end(Ending::Host(what), holder);
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

    /// Feeds the life and carries out what it says. A request that does not fit is the caller's to
    /// check before.
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
            Action::RunVcpus => self.machine.shared.gate.set(Command::Run),
            Action::ParkVcpus => {
                self.pause += 1;
                self.parked = 0;
                self.machine.shared.gate.set(Command::Park(self.pause));
                self.kick();
            }
            Action::EndVcpus => {
                // Whoever waits for a save hears that the machine ends.
                self.saving = None;
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
                for pump in &self.machine.pumps {
                    pump.resumed();
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
    pub(super) fn look_for_rest(&mut self, holder: Option<&mut Holder>) {
        let mut transports = self.machine.transports.iter();
        if self.parking && transports.all(|transport| lock(transport).0.paused()) {
            self.parking = false;
            self.step(Input::DevicesParked, holder);
        }
    }

    pub(super) fn turn_pump(&mut self, which: impl Fn(&Pump) -> bool, mut holder: Option<&mut Holder>) {
        let mut ending = None;
        for pump in &mut self.machine.pumps {
            if which(pump) {
                match pump.turn(&self.poller) {
                    PumpEvent::Nothing => {}
                    PumpEvent::Quit => ending = Some(Ending::Stop),
                    PumpEvent::Lost => {
                        ending = pump.lost().map(|lost| match lost {
                            Lost::Gone => Ending::ReaderGone,
                            Lost::Failed(what) => Ending::Host(what.clone()),
                        });
                    }
                }
            }
        }
        if self.machine.pumps.iter().any(|pump| pump.said().halt) {
            drop(self.expect_halt());
        }
        let panicked = self.machine.pumps.iter().any(|pump| pump.said().panic);
        if panicked && !self.panic_told {
            self.panic_told = true;
            if let Some(holder) = holder.as_deref_mut() {
                holder.tell(&Event::PanicSeen);
            }
        }
        if let Some(ending) = ending {
            self.end(ending, holder);
        }
    }

    /// Whether a vCPU is left that can say that it ends.
    pub(super) fn can_go_on(&self) -> bool {
        self.created > self.ended
    }

    /// The machine as it is now.
    pub(super) fn inspect(&self) -> Inspection {
        self.machine.inspect(self.life.state(), self.starts)
    }

    /// Exits so far.
    pub(super) fn exits(&self) -> ExitCounts {
        self.machine.shared.exits()
    }

    /// Takes the machine apart after its last turn.
    pub(super) fn finish(self) -> Ran {
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
        let panicked = remains.pumps.iter().any(|pump| pump.said().panic);
        Ran { ending, wish, panicked, ended_at, remains }
    }
}
