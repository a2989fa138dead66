//! A hypervisor that no value of exists: what a back end that is not written returns instead of
//! one.

#![cfg(not(any(target_os = "linux", all(target_os = "macos", target_arch = "aarch64"))))]

use std::convert::Infallible;
use std::sync::Arc;

use super::{HvError, Hypervisor, IrqchipPlan, Kicker, SharedLine, Vcpu, VcpuExit, Vm};
use crate::arch::{Address, BootState, InterruptLine, Nested};
use crate::memory::Slot;
use crate::state::Sections;
use crate::sys::Notifier;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Never(Infallible);

impl Hypervisor for Never {
    type Vm = Self;

    fn create_vm(&self, _nested: Nested) -> Result<Self, HvError> {
        match self.0 {}
    }
}

impl Vm for Never {
    type Vcpu = Self;

    const HYPERVISOR: &'static str = "no hypervisor";

    fn map(&self, _: &Slot) -> Result<(), HvError> {
        match self.0 {}
    }

    fn create_irqchip(&self, _: IrqchipPlan) -> Result<(), HvError> {
        match self.0 {}
    }

    fn irq_line(&self, _: InterruptLine) -> Result<SharedLine, HvError> {
        match self.0 {}
    }

    fn offer_doorbell(&self, _: Address, _: u32, _: u8, _: &Notifier) -> bool {
        match self.0 {}
    }

    fn create_vcpu(&self, _: u32, _: u32) -> Result<Self, HvError> {
        match self.0 {}
    }

    fn seal(&self) -> Result<(), HvError> {
        match self.0 {}
    }

    fn save(&self) -> Result<Sections, HvError> {
        match self.0 {}
    }

    fn restore(&self, _: Sections) -> Result<(), HvError> {
        match self.0 {}
    }
}

impl Vcpu for Never {
    fn load(&mut self, _: &BootState) -> Result<(), HvError> {
        match self.0 {}
    }

    fn run(&mut self) -> Result<VcpuExit<'_>, HvError> {
        match self.0 {}
    }

    fn complete_pending(&mut self) -> Result<VcpuExit<'_>, HvError> {
        match self.0 {}
    }

    fn save(&mut self) -> Result<Sections, HvError> {
        match self.0 {}
    }

    fn restore(&mut self, _: Sections) -> Result<(), HvError> {
        match self.0 {}
    }

    fn kicker(&self) -> Arc<dyn Kicker> {
        match self.0 {}
    }
}
