//! A hypervisor that plays a script: exits in, answers out. It drives the vCPU loop and the
//! machine's life in tests, on any host.
//!
//! ```text
//! let fake = Fake::new();
//! fake.script(0, [Step::out(0x3f8, b"x"), Step::WaitForKick, Step::TripleFault]);
//! // … run a machine on `fake` …
//! assert_eq!(fake.record().answers, [..]);
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{HvError, Hypervisor, IrqLine, IrqchipPlan, Kicker, SharedLine, SlotRefused, Vcpu, VcpuExit, Vm};
use crate::arch::{Address, BootState, InterruptLine, Nested};
use crate::memory::Slot;
use crate::state::{Sections, StateError};
use crate::sys::Notifier;
use crate::timeline::GuestCounter;

/// The section of a vCPU's state.
const VCPU: &str = "fake.vcpu";

/// One thing that a scripted vCPU does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Reads `width` bytes of what the hypervisor does not serve itself, `count` times at once.
    Read {
        /// Where.
        address: Address,
        /// 1 to 8 in memory; 1, 2 or 4 of a port.
        width: u8,
        /// More than 1 for an instruction that reads a port again and again.
        count: usize,
    },
    /// Writes there, as many times at once as `data` holds of `width`.
    Write {
        /// Where.
        address: Address,
        /// As of a read.
        width: u8,
        /// What is written.
        data: Vec<u8>,
    },
    /// Computes until it is kicked.
    WaitForKick,
    /// Computes until the line of this number was pulsed or raised more often than when such a wait
    /// last ended (at first: at all). A kick interrupts it.
    WaitForLine(InterruptLine),
    /// Halts.
    Halt,
    /// Halts, inside the hypervisor, with interrupts disabled: a kick gets it out, and nothing
    /// makes it go on.
    Sleep,
    /// Faults three times.
    TripleFault,
    /// Powers off by the firmware.
    PowerOff,
    /// Resets by the firmware.
    Reset,
    /// Does what the hypervisor cannot run.
    Fault(String),
    /// The hypervisor itself fails.
    Fail,
    /// The vCPU's thread panics: a bug of the monitor.
    Panic,
}

impl Step {
    /// Writes the bytes to a port, one by one.
    #[must_use]
    pub fn out(port: u16, data: &[u8]) -> Self {
        Self::Write { address: Address::Port(port), width: 1, data: data.to_vec() }
    }

    /// Writes a 32-bit register.
    #[must_use]
    pub fn write32(address: u64, value: u32) -> Self {
        Self::Write { address: Address::Memory(address), width: 4, data: value.to_le_bytes().to_vec() }
    }

    /// Reads a 32-bit register.
    #[must_use]
    pub fn read32(address: u64) -> Self {
        Self::Read { address: Address::Memory(address), width: 4, count: 1 }
    }
}

/// What happened.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Answers to reads, in order, with the vCPU that read.
    pub answers: Vec<(u32, Vec<u8>)>,
    /// States loaded, with the vCPU.
    pub loads: Vec<(u32, BootState)>,
    /// Machines that took the state of another back, each after so many of their vCPUs.
    pub restores: Vec<usize>,
    /// vCPUs that took state back and are alive.
    pub restored: usize,
    /// Numbers of the slots registered now.
    pub slots: Vec<u32>,
    /// The interrupt controllers, once there are some.
    pub irqchip: Option<IrqchipPlan>,
    /// Edges and raises of each line.
    pub lines: BTreeMap<InterruptLine, u64>,
    /// Doorbells accepted: address, value, width.
    pub doorbells: Vec<(Address, u32, u8)>,
    /// vCPUs alive.
    pub vcpus: u32,
    /// Machines alive.
    pub machines: u32,
    /// Exits returned as [`VcpuExit::Kicked`].
    pub kicks: u64,
}

#[derive(Debug, Default)]
struct State {
    record: Record,
    scripts: BTreeMap<u32, VecDeque<Step>>,
    bells: Vec<Notifier>,
    kicked: BTreeMap<u32, bool>,
    refuses_doorbells: bool,
    counter: Option<GuestCounter>,
}

#[derive(Debug, Default)]
struct FakeState {
    state: Mutex<State>,
    changed: Condvar,
}

impl FakeState {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

/// The hypervisor. Clones share script and record.
#[derive(Clone, Debug, Default)]
pub struct Fake(Arc<FakeState>);

impl Fake {
    /// One without a script: its vCPUs compute until kicked.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends to the script of vCPU `index`. At its end the vCPU computes until kicked.
    pub fn script(&self, index: u32, steps: impl IntoIterator<Item = Step>) {
        self.0.change(|state| state.scripts.entry(index).or_default().extend(steps));
    }

    /// Refuses all doorbells from now on, so that notifications arrive as exits.
    pub fn refuse_doorbells(&self) {
        self.0.change(|state| state.refuses_doorbells = true);
    }

    /// What vCPUs answer when they are asked for the guest's counter; at first `None`: they cannot
    /// tell.
    pub fn set_counter(&self, counter: Option<GuestCounter>) {
        self.0.change(|state| state.counter = counter);
    }

    /// What happened so far.
    #[must_use]
    pub fn record(&self) -> Record {
        self.0.lock().record.clone()
    }

    /// Waits until `condition` holds of the record, for at most a minute; `false` when it never
    /// did.
    pub fn wait_until(&self, condition: impl Fn(&Record) -> bool) -> bool {
        let state = self.0.lock();
        let wait = Duration::from_secs(60);
        let done = |state: &mut State| !condition(&state.record);
        let (_state, result) =
            self.0.changed.wait_timeout_while(state, wait, done).unwrap_or_else(PoisonError::into_inner);
        !result.timed_out()
    }
}

impl Hypervisor for Fake {
    type Vm = FakeVm;

    fn create_vm(&self, _nested: Nested) -> Result<FakeVm, HvError> {
        self.0.change(|state| {
            state.record.machines += 1;
            // A new machine has none yet.
            state.record.irqchip = None;
        });
        Ok(FakeVm(Arc::new(Machine { shared: Arc::clone(&self.0), sealed: AtomicBool::new(false) })))
    }
}

/// A machine that is gone when its last vCPU and line are.
#[derive(Debug)]
struct Machine {
    shared: Arc<FakeState>,
    sealed: AtomicBool,
}

impl Machine {
    /// What comes after the seal and may not is a bug of whoever drives the machine.
    fn assert_open(&self, what: &str) {
        assert!(!self.sealed.load(Ordering::SeqCst), "{what} was asked of a machine that is sealed");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.shared.change(|state| {
            state.record.machines -= 1;
            state.record.slots.clear();
        });
    }
}

/// See [`Vm`].
#[derive(Debug)]
pub struct FakeVm(Arc<Machine>);

fn failed(call: &'static str) -> HvError {
    HvError::Call { call, source: io::ErrorKind::InvalidInput.into() }
}

impl FakeVm {
    fn shared(&self) -> &FakeState {
        &self.0.shared
    }
}

impl Vm for FakeVm {
    type Vcpu = FakeVcpu;

    const HYPERVISOR: &'static str = "a fake hypervisor";

    fn map(&self, slot: &Slot) -> Result<(), HvError> {
        self.0.assert_open("a slot");
        let mut state = self.shared().lock();
        if state.record.slots.contains(&slot.index()) {
            return Err(SlotRefused::NumberTaken.into());
        }
        if state.record.irqchip.is_some() {
            return Err(SlotRefused::TooLate.into());
        }
        state.record.slots.push(slot.index());
        drop(state);
        self.shared().changed.notify_all();
        Ok(())
    }

    fn create_irqchip(&self, plan: IrqchipPlan) -> Result<(), HvError> {
        self.0.assert_open("an interrupt controller");
        let mut state = self.shared().lock();
        if state.record.irqchip.replace(plan).is_some() {
            return Err(failed("create_irqchip"));
        }
        Ok(())
    }

    fn irq_line(&self, line: InterruptLine) -> Result<SharedLine, HvError> {
        self.0.assert_open("a line");
        Ok(Arc::new(FakeLine { machine: Arc::clone(&self.0), line }))
    }

    fn offer_doorbell(&self, address: Address, value: u32, width: u8, notifier: &Notifier) -> bool {
        let mut state = self.shared().lock();
        let bell = (address, value, width);
        let Ok(notifier) = notifier.try_clone() else { return false };
        if state.refuses_doorbells || state.record.doorbells.contains(&bell) {
            return false;
        }
        state.record.doorbells.push(bell);
        state.bells.push(notifier);
        true
    }

    fn create_vcpu(&self, index: u32, _count: u32) -> Result<FakeVcpu, HvError> {
        self.0.assert_open("a vCPU");
        self.shared().change(|state| state.record.vcpus += 1);
        Ok(FakeVcpu {
            machine: Arc::clone(&self.0),
            index,
            reading: false,
            data: Vec::new(),
            sleeps: false,
            restored: false,
            heard: BTreeMap::new(),
            thread: PhantomData,
        })
    }

    fn seal(&self) -> Result<(), HvError> {
        assert!(!self.0.sealed.swap(true, Ordering::SeqCst), "a machine is sealed once");
        Ok(())
    }

    fn save(&self) -> Result<Sections, HvError> {
        Ok(Sections::new())
    }

    fn restore(&self, state: Sections) -> Result<(), HvError> {
        self.0.assert_open("state");
        state.finish()?;
        self.shared().change(|state| state.record.restores.push(state.record.restored));
        Ok(())
    }
}

struct FakeLine {
    machine: Arc<Machine>,
    line: InterruptLine,
}

impl IrqLine for FakeLine {
    fn pulse(&self) -> io::Result<()> {
        self.set(true)
    }

    fn set(&self, high: bool) -> io::Result<()> {
        if high {
            self.machine.shared.change(|state| *state.record.lines.entry(self.line).or_default() += 1);
        }
        Ok(())
    }
}

/// See [`Vcpu`].
#[derive(Debug)]
pub struct FakeVcpu {
    machine: Arc<Machine>,
    index: u32,
    /// `data` holds the answer to a read that was not recorded yet.
    reading: bool,
    data: Vec<u8>,
    sleeps: bool,
    restored: bool,
    /// Edges and raises of each line when a wait for it last ended.
    heard: BTreeMap<InterruptLine, u64>,
    /// A vCPU stays on its thread.
    thread: PhantomData<*const ()>,
}

impl FakeVcpu {
    /// Takes the answer to the last read; that is what the hardware would complete.
    fn complete(&mut self) {
        if std::mem::take(&mut self.reading) {
            let answer = (self.index, self.data.clone());
            self.machine.shared.change(|state| state.record.answers.push(answer));
        }
    }

    /// Waits until kicked or `over`; `true` when kicked.
    fn compute(&self, over: impl Fn(&State) -> bool) -> bool {
        let shared = &self.machine.shared;
        let mut state = shared.lock();
        loop {
            if let Some(kicked) = state.kicked.get_mut(&self.index)
                && std::mem::take(kicked)
            {
                state.record.kicks += 1;
                drop(state);
                shared.changed.notify_all();
                return true;
            }
            if over(&state) {
                return false;
            }
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The next step; `None` when kicked first.
    fn next(&self) -> Option<Step> {
        let index = self.index;
        let waiting = |state: &State| state.scripts.get(&index).is_some_and(|script| !script.is_empty());
        if self.compute(waiting) {
            return None;
        }
        self.machine.shared.lock().scripts.get_mut(&index)?.pop_front()
    }

    /// Whether a write went to a doorbell.
    fn rings(&self, address: Address, data: &[u8]) -> bool {
        let state = self.machine.shared.lock();
        let value = data.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        let bell = state.record.doorbells.iter().position(|(at, wanted, width)| {
            *at == address
                && (*width == 0 || usize::from(*width) == data.len() && u64::from(*wanted) == value)
        });
        bell.and_then(|bell| state.bells.get(bell)).is_some_and(|bell| bell.notify().is_ok())
    }
}

impl Vcpu for FakeVcpu {
    fn load(&mut self, state: &BootState) -> Result<(), HvError> {
        let load = (self.index, state.clone());
        self.machine.shared.change(|state| state.record.loads.push(load));
        Ok(())
    }

    fn run(&mut self) -> Result<VcpuExit<'_>, HvError> {
        assert!(self.machine.sealed.load(Ordering::SeqCst), "a vCPU runs in a machine that is not sealed");
        self.complete();
        loop {
            let Some(step) = self.next() else { return Ok(VcpuExit::Kicked) };
            match step {
                Step::Read { address, width, count } => {
                    (self.reading, self.data) = (true, vec![0; usize::from(width) * count]);
                    return Ok(VcpuExit::Read { address, width, data: &mut self.data });
                }
                Step::Write { address, data, .. } if self.rings(address, &data) => {}
                Step::Write { address, width, data } => {
                    self.data = data;
                    return Ok(VcpuExit::Write { address, width, data: &self.data });
                }
                Step::WaitForKick => {
                    self.compute(|_| false);
                    return Ok(VcpuExit::Kicked);
                }
                Step::WaitForLine(line) => {
                    let count = |state: &State| state.record.lines.get(&line).copied().unwrap_or(0);
                    // Not counted from here: the edge may have come before the wait begins.
                    let heard = self.heard.get(&line).copied().unwrap_or(0);
                    if self.compute(|state| count(state) > heard) {
                        self.machine.shared.lock().scripts.entry(self.index).or_default().push_front(step);
                        return Ok(VcpuExit::Kicked);
                    }
                    self.heard.insert(line, count(&self.machine.shared.lock()));
                }
                Step::Halt => return Ok(VcpuExit::Halted),
                Step::Sleep => {
                    self.sleeps = true;
                    self.compute(|_| false);
                    self.machine.shared.lock().scripts.entry(self.index).or_default().push_front(step);
                    return Ok(VcpuExit::Kicked);
                }
                Step::TripleFault => return Ok(VcpuExit::TripleFault),
                Step::PowerOff => return Ok(VcpuExit::PowerOff),
                Step::Reset => return Ok(VcpuExit::Reset),
                Step::Fault(text) => return Ok(VcpuExit::Fault(text)),
                Step::Fail => return Err(failed("run")),
                Step::Panic => panic!("the script says so"),
            }
        }
    }

    fn complete_pending(&mut self) -> Result<VcpuExit<'_>, HvError> {
        self.complete();
        Ok(VcpuExit::Kicked)
    }

    fn save(&mut self) -> Result<Sections, HvError> {
        let mut state = Sections::new();
        state.put(VCPU, 1, self.index.to_le_bytes().to_vec());
        Ok(state)
    }

    fn restore(&mut self, mut state: Sections) -> Result<(), HvError> {
        if state.take(VCPU, 1)? != self.index.to_le_bytes() {
            let why = "it is another vCPU's".to_owned();
            return Err(StateError::Unfit { name: VCPU.to_owned(), why }.into());
        }
        state.finish()?;
        self.restored = true;
        self.machine.shared.change(|state| state.record.restored += 1);
        Ok(())
    }

    fn counter(&mut self) -> Option<GuestCounter> {
        self.machine.shared.lock().counter
    }

    fn sleeps_for_good(&mut self) -> bool {
        self.sleeps
    }

    fn kicker(&self) -> Arc<dyn Kicker> {
        Arc::new(FakeKicker { shared: Arc::clone(&self.machine.shared), index: self.index })
    }
}

impl Drop for FakeVcpu {
    fn drop(&mut self) {
        self.machine.shared.change(|state| {
            state.record.vcpus -= 1;
            state.record.restored -= usize::from(self.restored);
            state.kicked.remove(&self.index);
        });
    }
}

struct FakeKicker {
    shared: Arc<FakeState>,
    index: u32,
}

impl Kicker for FakeKicker {
    fn kick(&self) {
        self.shared.change(|state| {
            state.kicked.insert(self.index, true);
        });
    }
}

#[cfg(test)]
mod tests;
