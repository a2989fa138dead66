//! vCPU threads and their loop: one match that does not know its hypervisor.
//! The order of waiting and of locks stands in `threads`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::confine::Confiner;
use super::mailbox::{Cause, Mailbox, Message, VcpuEvent};
use super::outcome::ExitCounts;
use super::saving::{SaveError, Writing};
use super::threads::{self, Role};
use crate::arch::{Address, BootState};
use crate::bus::{Buses, Effect};
use crate::hv::{HvError, Vcpu, VcpuExit, Vm};
use crate::state::Sections;
use crate::text::chain;
use crate::timeline::{Recorder, name};

/// What vCPUs are told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Wait; nothing ran yet.
    Hold,
    /// Run the guest.
    Run,
    /// Come out, say so with this number, and wait.
    Park(u64),
    /// You are parked: say your state with this number, and wait.
    Save(u64),
    /// All of you are parked: the first one writes the files of the save of this number.
    Write(u64),
    /// Come out, say with this number whether you sleep for good, and wait.
    Look(u64),
    /// End the thread.
    End,
}

/// Where vCPUs look for their command: before they run for the first time and whenever they were
/// kicked.
#[derive(Debug)]
pub(super) struct Gate {
    posted: Mutex<Posted>,
    changed: Condvar,
}

/// What vCPUs find at the gate.
#[derive(Debug)]
struct Posted {
    command: Command,
    /// Times that a worker came home.
    homecomings: u64,
}

impl Gate {
    fn new() -> Self {
        Self {
            posted: Mutex::new(Posted { command: Command::Hold, homecomings: 0 }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Posted> {
        self.posted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a command. To be followed by kicks, unless everybody waits here.
    pub(super) fn set(&self, command: Command) {
        self.lock().command = command;
        self.changed.notify_all();
    }

    /// A worker has come home: writes that waited for it can be made again.
    pub(super) fn worker_home(&self) {
        self.lock().homecomings += 1;
        self.changed.notify_all();
    }

    fn get(&self) -> Command {
        self.lock().command
    }

    fn homecomings(&self) -> u64 {
        self.lock().homecomings
    }

    /// Waits until another worker than the first `seen` has come home; `false` when the machine
    /// ends instead.
    fn wait_home(&self, seen: u64) -> bool {
        let waits = |posted: &mut Posted| posted.homecomings == seen && posted.command != Command::End;
        let posted = self.changed.wait_while(self.lock(), waits).unwrap_or_else(PoisonError::into_inner);
        posted.command != Command::End
    }

    /// Waits until the command is another than `old`.
    fn wait_change(&self, old: Command) -> Command {
        self.changed
            .wait_while(self.lock(), |posted| posted.command == old)
            .unwrap_or_else(PoisonError::into_inner)
            .command
    }
}

/// What all vCPUs of a machine share.
pub(super) struct SharedMachine {
    pub(super) gate: Gate,
    pub(super) buses: Buses,
    pub(super) mailbox: Mailbox,
    recorder: Arc<Recorder>,
    /// Somebody asks for the guest's counter: vCPU 0 answers when it is out of the guest.
    pub(super) counter_wanted: AtomicBool,
    /// What vCPU 0's thread is to write.
    writing: Mutex<Option<Writing>>,
    counters: Vec<Counters>,
}

impl SharedMachine {
    pub(super) fn new(cpus: u8, buses: Buses, mailbox: Mailbox, recorder: Arc<Recorder>) -> Self {
        let counters = (0..cpus).map(|_| Counters::default()).collect();
        Self {
            gate: Gate::new(),
            buses,
            mailbox,
            recorder,
            counter_wanted: AtomicBool::new(false),
            writing: Mutex::default(),
            counters,
        }
    }

    /// The exits of each vCPU so far.
    pub(super) fn exits_by_vcpu(&self) -> Vec<ExitCounts> {
        self.counters.iter().map(Counters::get).collect()
    }

    /// The exits of all vCPUs so far.
    pub(super) fn exits(&self) -> ExitCounts {
        let mut sum = ExitCounts::default();
        for counters in &self.counters {
            sum.add(&counters.get());
        }
        sum
    }

    pub(super) fn set_writing(&self, writing: Writing) {
        *self.writing.lock().unwrap_or_else(PoisonError::into_inner) = Some(writing);
    }

    /// Writes the files of a save, unless the machine ends meanwhile.
    fn write_snapshot(&self) -> Result<(), SaveError> {
        let writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(writing) = writing else { return Ok(()) };
        writing.carry_out(|| self.gate.get() != Command::End)
    }

    fn post(&self, index: u32, word: VcpuEvent) {
        self.mailbox.post(Message::Vcpu(index, word));
    }

    /// Writes to a bus. What a device cannot take on its way back from a reset is written again
    /// whenever a worker has come home. A pause waits as long, for it needs that worker too; only
    /// the machine's end does not.
    fn write(&self, address: Address, data: &[u8]) -> Effect {
        loop {
            let seen = self.gate.homecomings();
            match self.buses.write(address, data) {
                Effect::Again if self.gate.wait_home(seen) => {}
                Effect::Again => return Effect::None,
                effect => return effect,
            }
        }
    }
}

/// One vCPU's counts. Written by its thread alone.
#[derive(Debug, Default)]
struct Counters {
    port_read: AtomicU64,
    port_write: AtomicU64,
    memory_read: AtomicU64,
    memory_write: AtomicU64,
    halted: AtomicU64,
    kicked: AtomicU64,
    other: AtomicU64,
}

impl Counters {
    fn count(&self, exit: &VcpuExit<'_>) {
        let counter = match exit {
            VcpuExit::Read { address: Address::Port(_), .. } => &self.port_read,
            VcpuExit::Write { address: Address::Port(_), .. } => &self.port_write,
            VcpuExit::Read { address: Address::Memory(_), .. } => &self.memory_read,
            VcpuExit::Write { address: Address::Memory(_), .. } => &self.memory_write,
            VcpuExit::Halted => &self.halted,
            VcpuExit::Kicked => &self.kicked,
            VcpuExit::TripleFault | VcpuExit::PowerOff | VcpuExit::Reset | VcpuExit::Fault(_) => &self.other,
        };
        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    fn get(&self) -> ExitCounts {
        let Self { port_read, port_write, memory_read, memory_write, halted, kicked, other } = self;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ExitCounts {
            port_read: read(port_read),
            port_write: read(port_write),
            memory_read: read(memory_read),
            memory_write: read(memory_write),
            halted: read(halted),
            kicked: read(kicked),
            other: read(other),
        }
    }
}

/// What a vCPU starts from.
pub(super) enum Registers {
    /// Those of a processor after its reset: it waits for its start-up message.
    Reset,
    /// Those at the kernel's entry.
    Entry(BootState),
    /// Those of a saved vCPU.
    Saved(Sections),
}

/// Starts the thread of vCPU `index`, which makes the vCPU there.
pub(super) fn spawn<V: Vm>(
    vm: &Arc<V>,
    shared: &Arc<SharedMachine>,
    confiner: &Arc<Confiner>,
    index: u32,
    count: u32,
    registers: Registers,
) -> std::io::Result<JoinHandle<()>> {
    let (vm, shared, confiner) = (Arc::clone(vm), Arc::clone(shared), Arc::clone(confiner));
    let role = Role::Vcpu(index);
    let body = move || {
        let confined = |vcpu| match confiner.confine_thread(role) {
            Ok(()) => Ok(vcpu),
            Err(source) => Err(HvError::Call { call: "seccomp", source }),
        };
        let life = || match create(&*vm, index, count, registers).and_then(confined) {
            Ok(mut vcpu) => {
                if index == 0 {
                    shared.recorder.stamp(name::VCPU_CREATED);
                }
                shared.post(index, VcpuEvent::Created(vcpu.kicker()));
                run(&mut vcpu, index, &shared);
                VcpuEvent::Ended
            }
            Err(error) => VcpuEvent::Failed(error),
        };
        let last = catch_unwind(AssertUnwindSafe(life)).unwrap_or_else(|_bug| {
            let bug = "a bug of the monitor: the thread of a vCPU panicked";
            shared.post(index, VcpuEvent::Stopped(Cause::Fault(bug.into())));
            VcpuEvent::Ended
        });
        // The machine ends with its last user: that shall not be this thread after its last word.
        drop(vm);
        shared.post(index, last);
    };
    threads::spawn(role, body)
}

fn create<V: Vm>(vm: &V, index: u32, count: u32, registers: Registers) -> Result<V::Vcpu, HvError> {
    let mut vcpu = vm.create_vcpu(index, count)?;
    match registers {
        Registers::Reset => {}
        Registers::Entry(state) => vcpu.load(&state)?,
        Registers::Saved(state) => vcpu.restore(state)?,
    }
    Ok(vcpu)
}

/// Runs a vCPU until it is told to end.
fn run<C: Vcpu>(vcpu: &mut C, index: u32, shared: &SharedMachine) {
    let mut command = shared.gate.wait_change(Command::Hold);
    let (mut entered, mut stopped) = (false, false);
    loop {
        if index == 0 && shared.counter_wanted.swap(false, Ordering::Acquire) {
            shared.post(index, VcpuEvent::Counter(vcpu.counter()));
        }
        match command {
            Command::Run if !stopped => {
                if index == 0 && !std::mem::replace(&mut entered, true) {
                    shared.recorder.stamp(name::FIRST_ENTRY);
                }
                match enter(vcpu, index, shared) {
                    None => command = shared.gate.get(),
                    Some(cause) => {
                        stopped = true;
                        shared.post(index, VcpuEvent::Stopped(cause));
                    }
                }
            }
            Command::Park(number) => {
                if !stopped && let Some(cause) = complete(vcpu, shared) {
                    stopped = true;
                    shared.post(index, VcpuEvent::Stopped(cause));
                }
                shared.post(index, VcpuEvent::Parked(number));
                command = shared.gate.wait_change(command);
            }
            Command::Save(number) => {
                shared.post(index, VcpuEvent::Saved(number, vcpu.save()));
                command = shared.gate.wait_change(command);
            }
            Command::Write(number) => {
                if index == 0 {
                    shared.post(index, VcpuEvent::Written(number, shared.write_snapshot()));
                }
                command = shared.gate.wait_change(command);
            }
            Command::Look(number) => {
                shared.post(index, VcpuEvent::Looked(number, !stopped && vcpu.sleeps_for_good()));
                command = shared.gate.wait_change(command);
            }
            Command::End => return,
            Command::Hold | Command::Run => command = shared.gate.wait_change(command),
        }
    }
}

/// An access that was answered is finished inside the vCPU, so that its state is whole.
fn complete<C: Vcpu>(vcpu: &mut C, shared: &SharedMachine) -> Option<Cause> {
    loop {
        match vcpu.complete_pending() {
            Ok(VcpuExit::Kicked) => return None,
            Ok(exit) => match serve(exit, shared) {
                Served::Go => {}
                Served::Wait => return None,
                Served::Stop(cause) => return Some(cause),
            },
            Err(error) => return Some(Cause::Fault(chain(&error))),
        }
    }
}

/// Runs the guest until a kick (`None`) or until it is not to be entered again.
fn enter<C: Vcpu>(vcpu: &mut C, index: u32, shared: &SharedMachine) -> Option<Cause> {
    let counters = usize::try_from(index).ok().and_then(|index| shared.counters.get(index))?;
    loop {
        let exit = match vcpu.run() {
            Ok(exit) => exit,
            Err(error) => return Some(Cause::Fault(chain(&error))),
        };
        counters.count(&exit);
        if let VcpuExit::Kicked = exit {
            return None;
        }
        match serve(exit, shared) {
            Served::Go => {}
            Served::Wait => {
                shared.gate.wait_change(Command::Run);
                return None;
            }
            Served::Stop(cause) => return Some(cause),
        }
    }
}

/// What comes after an exit.
enum Served {
    /// The guest goes on.
    Go,
    /// Nothing will wake the guest but a command.
    Wait,
    /// It is not to be entered again.
    Stop(Cause),
}

/// Carries out what an exit asks for: the one match.
fn serve(exit: VcpuExit<'_>, shared: &SharedMachine) -> Served {
    let effect = match exit {
        VcpuExit::Read { address, width, data } => {
            for access in data.chunks_mut(usize::from(width).max(1)) {
                shared.buses.read(address, access);
            }
            Effect::None
        }
        VcpuExit::Write { address, width, data } => write(shared, address, width, data),
        VcpuExit::Kicked => Effect::None,
        // Without a controller that could wake it there is nothing to run for.
        VcpuExit::Halted => return Served::Wait,
        VcpuExit::TripleFault => return Served::Stop(Cause::TripleFault),
        VcpuExit::PowerOff => Effect::PowerOff,
        VcpuExit::Reset => Effect::Reset,
        VcpuExit::Fault(what) => return Served::Stop(Cause::Fault(what)),
    };
    match effect {
        Effect::None | Effect::Again => Served::Go,
        Effect::PowerOff => Served::Stop(Cause::PowerOff),
        Effect::Reset => Served::Stop(Cause::Reset),
    }
}

/// The accesses of one instruction, up to the first with an effect.
fn write(shared: &SharedMachine, address: Address, width: u8, data: &[u8]) -> Effect {
    data.chunks(usize::from(width).max(1))
        .map(|access| shared.write(address, access))
        .find(|effect| *effect != Effect::None)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_wait_for_a_worker_ends_with_its_homecoming_or_the_machine() {
        let gate = Gate::new();
        gate.set(Command::Run);
        let seen = gate.homecomings();
        gate.worker_home();
        assert!(gate.wait_home(seen), "it came before the wait");
        for (end, expected) in [(false, true), (true, false)] {
            let seen = gate.homecomings();
            std::thread::scope(|scope| {
                let waiting = scope.spawn(|| gate.wait_home(seen));
                // A pause is no reason to give up a write.
                gate.set(Command::Park(1));
                std::thread::sleep(Duration::from_millis(20));
                assert!(!waiting.is_finished());
                if end {
                    gate.set(Command::End)
                } else {
                    gate.worker_home()
                }
                assert_eq!(waiting.join().unwrap(), expected);
            });
        }
    }
}
