//! KVM on x86-64.
//!
//! # What a start costs beside what every architecture asks
//! A machine: KVM_GET_SUPPORTED_CPUID. Interrupt controllers: KVM_SET_TSS_ADDR,
//! KVM_SET_IDENTITY_MAP_ADDR, then either KVM_ENABLE_CAP for the local APICs alone, or
//! KVM_CREATE_IRQCHIP and KVM_CREATE_PIT2 (which starts a kernel thread, and whose end waits for
//! grace periods of the host's kernel: 10 to 20 ms). A vCPU: KVM_GET_TSC_KHZ, KVM_SET_CPUID2,
//! KVM_SET_MSRS; the boot processor also KVM_SET_SREGS and KVM_SET_REGS.

mod exit;
mod ioapic;
mod machine;
mod processor;
mod state;
mod vcpu;

pub(super) use exit::{Exit, decode};
pub(super) use machine::{
    Machine, bell, create_controllers, create_vm, load_machine, reachable, save_machine, seal, set_line,
};
pub(super) use vcpu::{Processor, host_counter};

/// What to do where there is no `/dev/kvm`.
pub(super) const NO_KVM: &str = "this host offers no KVM: load the kvm_intel or kvm_amd module, enable virtualisation in the firmware, or, in a \
     virtual machine, enable nested virtualisation; in a checkout of Nelly, `make shell` opens an emulated host that has it";
