//! A framework that plays a script instead of running guests. What it does with kicks, masks and
//! handles is what Apple's documentation says of the real one.

#![allow(unsafe_code, reason = "a call of the trait is unsafe; its script touches no memory")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::framework::{Controller, Exit, Framework, Processor, Refusal, Register};
use crate::arch::aarch64::layout;
use crate::memory::Slot;

/// SCTLR_EL1 of a processor after its reset.
pub(super) const SYSTEM_CONTROL: u64 = 0x30d0_0980;

/// What a guest does.
pub(super) enum Play {
    /// Leaves.
    Exit(Exit),
    /// Something happens while it runs, elsewhere or to its registers.
    While(Box<dyn FnOnce() + Send>),
}

/// What the script knows and what was asked of it.
#[derive(Default)]
pub(super) struct Played {
    /// By processor.
    pub(super) plays: BTreeMap<u64, VecDeque<Play>>,
    pub(super) registers: BTreeMap<(u64, Register), u64>,
    /// Entries of each processor into the guest.
    pub(super) entries: BTreeMap<u64, u32>,
    /// What was set otherwise, in order: interrupts, masks, offsets, creations and ends.
    pub(super) asked: Vec<String>,
    /// How calls of this name are answered.
    pub(super) refusals: BTreeMap<&'static str, Refusal>,
    pub(super) counter: u64,
    /// Where redistributors begin.
    pub(super) redistributors: u64,
    canceled: BTreeSet<u64>,
    has_vm: bool,
    created: u64,
}

/// See the module.
#[derive(Clone)]
pub(super) struct Scripted(Arc<Mutex<Played>>);

impl std::fmt::Debug for Scripted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Scripted")
    }
}

impl Scripted {
    pub(super) fn new() -> Self {
        let played = Played { counter: 1000, redistributors: layout::GIC_REDISTRIBUTOR, ..Played::default() };
        Self(Arc::new(Mutex::new(played)))
    }

    pub(super) fn played(&self) -> MutexGuard<'_, Played> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn register(&self, processor: u64, register: Register) -> u64 {
        self.played().registers.get(&(processor, register)).copied().unwrap_or(0)
    }

    pub(super) fn set_register(&self, processor: u64, register: Register, value: u64) {
        self.played().registers.insert((processor, register), value);
    }

    pub(super) fn play(&self, processor: u64, plays: impl IntoIterator<Item = Play>) {
        self.played().plays.entry(processor).or_default().extend(plays);
    }

    pub(super) fn asked(&self) -> Vec<String> {
        self.played().asked.clone()
    }

    pub(super) fn entries(&self, processor: u64) -> u32 {
        self.played().entries.get(&processor).copied().unwrap_or(0)
    }

    fn ask(&self, call: &'static str, what: &str) -> Result<MutexGuard<'_, Played>, Refusal> {
        let mut played = self.played();
        if let Some(refusal) = played.refusals.get(call) {
            return Err(*refusal);
        }
        played.asked.push(format!("{call} {what}").trim_end().to_owned());
        Ok(played)
    }
}

impl Framework for Scripted {
    type Processor = Actor;

    fn create_vm(&self) -> Result<u32, Refusal> {
        let mut played = self.ask("create_vm", "")?;
        if std::mem::replace(&mut played.has_vm, true) {
            return Err(Refusal::BUSY);
        }
        Ok(36)
    }

    fn destroy_vm(&self) {
        let mut played = self.ask("destroy_vm", "").unwrap();
        assert!(std::mem::take(&mut played.has_vm), "there is no machine");
    }

    unsafe fn map(&self, slot: &Slot) -> Result<(), Refusal> {
        self.ask("map", &format!("{:#x} {:#x}", slot.guest(), slot.len())).map(drop)
    }

    fn create_controller(&self, distributor: u64, redistributors: u64) -> Result<Controller, Refusal> {
        let asked = self.ask("create_controller", &format!("{distributor:#x} {redistributors:#x}"));
        asked.map(|_| Controller { first: 32, count: 988 })
    }

    fn set_interrupt(&self, number: u32, high: bool) -> Result<(), Refusal> {
        self.ask("set_interrupt", &format!("{number} {high}")).map(drop)
    }

    fn most_processors(&self) -> Result<u32, Refusal> {
        Ok(64)
    }

    fn create_processor(&self) -> Result<Actor, Refusal> {
        let mut played = self.ask("create_processor", "")?;
        let id = played.created;
        played.created += 1;
        played.registers.insert((id, Register::SystemControl), SYSTEM_CONTROL);
        Ok(Actor { script: self.clone(), id, thread: PhantomData })
    }

    fn force_exit(&self, processor: u64) -> Result<(), Refusal> {
        self.ask("force_exit", &processor.to_string())?.canceled.insert(processor);
        Ok(())
    }

    fn counter(&self) -> u64 {
        self.played().counter
    }

    fn counter_hz(&self) -> u64 {
        1_000_000_000
    }
}

/// A processor of the script.
pub(super) struct Actor {
    script: Scripted,
    id: u64,
    thread: PhantomData<*const ()>,
}

impl Drop for Actor {
    fn drop(&mut self) {
        let mut played = self.script.played();
        assert!(played.has_vm, "processors end before their machine");
        played.asked.push(format!("destroy_processor {}", self.id));
    }
}

impl Processor for Actor {
    fn id(&self) -> u64 {
        self.id
    }

    fn run(&mut self) -> Result<Exit, Refusal> {
        let mut played = self.script.played();
        if let Some(refusal) = played.refusals.get("run") {
            return Err(*refusal);
        }
        if played.canceled.remove(&self.id) {
            return Ok(Exit::Canceled);
        }
        *played.entries.entry(self.id).or_default() += 1;
        drop(played);
        loop {
            let mut played = self.script.played();
            match played.plays.get_mut(&self.id).and_then(VecDeque::pop_front) {
                Some(Play::Exit(exit)) => return Ok(exit),
                Some(Play::While(happens)) => {
                    drop(played);
                    happens();
                }
                None => return Ok(Exit::Unknown(99)),
            }
        }
    }

    fn get(&self, register: Register) -> Result<u64, Refusal> {
        Ok(self.script.register(self.id, register))
    }

    fn set(&mut self, register: Register, value: u64) -> Result<(), Refusal> {
        assert_ne!(register, Register::X(31), "it is no register");
        self.script.set_register(self.id, register, value);
        Ok(())
    }

    fn mask_timer(&mut self, masked: bool) -> Result<(), Refusal> {
        self.script.ask("mask_timer", &masked.to_string()).map(drop)
    }

    fn set_timer_offset(&mut self, ticks: u64) -> Result<(), Refusal> {
        self.script.ask("set_timer_offset", &format!("{} {ticks}", self.id)).map(drop)
    }

    fn redistributor(&self) -> Result<u64, Refusal> {
        Ok(self.script.played().redistributors + self.id * layout::GIC_REDISTRIBUTOR_LEN)
    }
}
