//! A hypervisor that no value of exists: what a back end that is not written returns instead of one.

use std::convert::Infallible;
use std::sync::Arc;

use super::{DoorbellAddress, Exit, HvError, Hypervisor, IrqchipPlan, Kicker, SharedLine, Vcpu, Vm};
use crate::arch::{BootState, Nested};
use crate::memory::Slot;
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

    fn map(&self, _: &Slot) -> Result<(), HvError> {
        match self.0 {}
    }

    fn create_irqchip(&self, _: IrqchipPlan) -> Result<(), HvError> {
        match self.0 {}
    }

    fn irq_line(&self, _: u32) -> Result<SharedLine, HvError> {
        match self.0 {}
    }

    fn offer_doorbell(&self, _: DoorbellAddress, _: u32, _: u8, _: &Notifier) -> bool {
        match self.0 {}
    }

    fn create_vcpu(&self, _: u32, _: u32) -> Result<Self, HvError> {
        match self.0 {}
    }
}

impl Vcpu for Never {
    fn load(&mut self, _: &BootState) -> Result<(), HvError> {
        match self.0 {}
    }

    fn run(&mut self) -> Result<Exit<'_>, HvError> {
        match self.0 {}
    }

    fn complete_pending(&mut self) -> Result<Exit<'_>, HvError> {
        match self.0 {}
    }

    fn kicker(&self) -> Arc<dyn Kicker> {
        match self.0 {}
    }
}
