//! KVM on 64-bit Arm.
//!
//! # What a start costs beside what every architecture asks
//! A machine: KVM_CHECK_EXTENSION for the width of its addresses, KVM_ENABLE_CAP. Interrupt
//! controllers: KVM_CREATE_DEVICE, three KVM_SET_DEVICE_ATTR, and a fourth before the first run. A
//! vCPU: KVM_ARM_PREFERRED_TARGET, KVM_ARM_VCPU_INIT; the boot processor also three
//! KVM_SET_ONE_REG.

mod exit;
mod gic;
mod machine;
mod vcpu;

pub(super) use exit::{Exit, decode};
pub(super) use machine::{
    Machine, bell, create_controllers, create_vm, load_machine, reachable, save_machine, seal, set_line,
};
pub(super) use vcpu::{Processor, host_counter};

/// What to do where there is no `/dev/kvm`.
pub(super) const NO_KVM: &str = "this host offers no KVM: its kernel was built without it, or was started below EL2; boot the host so that \
     its kernel starts in EL2, or, in a virtual machine, enable nested virtualisation";
