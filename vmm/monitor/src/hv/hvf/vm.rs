//! A machine on Hypervisor.framework.

#![allow(unsafe_code, reason = "the framework is given host addresses of the guest's memory")]

use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::super::{HvError, Hypervisor, IrqLine, IrqchipPlan, SharedLine, SlotRefused, Vm};
use super::framework::{Controller, Framework, Refusal};
use super::ignored::Ignored;
use super::pages;
use super::vcpu::HvfVcpu;
use super::wakes::Wakes;
use crate::arch::aarch64::layout;
use crate::arch::{Address, InterruptLine, Nested};
use crate::memory::Slot;
use crate::state::Sections;
use crate::sys::Notifier;

/// What saving and restoring are answered with.
pub(super) const NO_SAVE: HvError =
    HvError::Unsupported { what: "saving a machine, and taking it back, with Hypervisor.framework" };

/// The hypervisor of this host.
#[derive(Debug)]
pub(super) struct Hvf<F>(Arc<F>);

impl<F: Framework> Hvf<F> {
    pub(super) fn new(framework: Arc<F>) -> Self {
        Self(framework)
    }
}

impl<F: Framework> Hypervisor for Hvf<F> {
    type Vm = HvfVm<F>;

    fn create_vm(&self, nested: Nested) -> Result<HvfVm<F>, HvError> {
        if nested == Nested::Shown {
            return Err(HvError::Unsupported { what: "nested virtualisation with Hypervisor.framework" });
        }
        let address_bits = self.0.create_vm().map_err(Refusal::of_creation)?;
        Ok(HvfVm(Arc::new(Machine {
            // Guests' counters begin here, and go on while the machine is paused: it is the same
            // for all vCPUs, and nothing else ever sets it.
            timer_offset: self.0.counter(),
            framework: Arc::clone(&self.0),
            wakes: Arc::new(Wakes::new()),
            address_bits,
            controller: OnceLock::new(),
            ignored: Ignored::default(),
            slots: Mutex::default(),
        })))
    }
}

/// A machine. Cheap to clone inside this module: its vCPUs and lines keep it.
#[derive(Debug)]
pub(super) struct HvfVm<F: Framework>(Arc<Machine<F>>);

/// See [`HvfVm`]. Dropping it ends the framework's machine, and only then the slots.
#[derive(Debug)]
pub(super) struct Machine<F: Framework> {
    pub(super) framework: Arc<F>,
    pub(super) wakes: Arc<Wakes>,
    pub(super) timer_offset: u64,
    pub(super) ignored: Ignored,
    address_bits: u32,
    /// Once there is one. No slot comes after it.
    pub(super) controller: OnceLock<Controller>,
    slots: Mutex<Vec<Slot>>,
}

impl<F: Framework> Drop for Machine<F> {
    fn drop(&mut self) {
        self.framework.destroy_vm();
    }
}

impl<F: Framework> Vm for HvfVm<F> {
    type Vcpu = HvfVcpu<F>;

    const HYPERVISOR: &'static str = "Hypervisor.framework";

    fn map(&self, slot: &Slot) -> Result<(), HvError> {
        let machine = &self.0;
        let mut slots = machine.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.iter().any(|known| known.index() == slot.index()) {
            return Err(SlotRefused::NumberTaken.into());
        }
        if machine.controller.get().is_some() {
            return Err(SlotRefused::TooLate.into());
        }
        pages::check(slot.guest(), slot.len(), machine.address_bits)?;
        // SAFETY: `slots` holds it until the machine's drop has ended the framework's machine.
        unsafe { machine.framework.map(slot) }.map_err(|refusal| refusal.of("hv_vm_map"))?;
        slots.push(slot.clone());
        Ok(())
    }

    fn create_irqchip(&self, plan: IrqchipPlan) -> Result<(), HvError> {
        let machine = &self.0;
        let most =
            machine.framework.most_processors().map_err(|refusal| refusal.of("hv_vm_get_max_vcpu_count"))?;
        if u32::from(plan.vcpus) > most {
            return Err(HvError::Missing { capability: "so many processors in a machine" });
        }
        let controller = machine
            .framework
            .create_controller(layout::GIC_DISTRIBUTOR, layout::GIC_REDISTRIBUTOR)
            .map_err(|refusal| refusal.of("hv_gic_create"))?;
        if plan.lines > controller.count {
            return Err(HvError::Missing { capability: "so many interrupt lines in a machine" });
        }
        machine.controller.get_or_init(|| controller);
        Ok(())
    }

    fn irq_line(&self, line: InterruptLine) -> Result<SharedLine, HvError> {
        let controller = self.0.controller.get();
        let known = controller.filter(|controller| line.number() < controller.count);
        let first = known.ok_or(HvError::Missing { capability: "an interrupt line of that number" })?.first;
        Ok(Arc::new(Line { machine: Arc::clone(&self.0), number: first + line.number() }))
    }

    /// The framework has none: each write is an exit.
    fn offer_doorbell(&self, _: Address, _: u32, _: u8, _: &Notifier) -> bool {
        false
    }

    fn create_vcpu(&self, index: u32, count: u32) -> Result<HvfVcpu<F>, HvError> {
        HvfVcpu::new(&self.0, index, count)
    }

    /// Nothing here is left for last.
    fn seal(&self) -> Result<(), HvError> {
        Ok(())
    }

    fn save(&self) -> Result<Sections, HvError> {
        Err(NO_SAVE)
    }

    fn restore(&self, _: Sections) -> Result<(), HvError> {
        Err(NO_SAVE)
    }
}

/// A shared interrupt.
#[derive(Debug)]
struct Line<F: Framework> {
    machine: Arc<Machine<F>>,
    number: u32,
}

impl<F: Framework> IrqLine for Line<F> {
    fn pulse(&self) -> io::Result<()> {
        self.set(true)?;
        self.set(false)
    }

    fn set(&self, high: bool) -> io::Result<()> {
        self.machine.framework.set_interrupt(self.number, high).map_err(io::Error::other)?;
        if high {
            self.machine.wakes.change(|state| state.raises += 1);
        }
        Ok(())
    }
}
