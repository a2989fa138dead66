//! What a vCPU has of an Arm processor. Its features are those that every kernel expects: SVE, the
//! performance monitors, memory tags and pointer authentication are left off.

#![allow(unsafe_code, reason = "the host's counter is a register of its own")]

use std::arch::asm;

use kvm_bindings::{
    KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, KVM_MP_STATE_STOPPED, KVM_REG_ARM64, KVM_REG_SIZE_U64,
    kvm_vcpu_init,
};
use kvm_ioctls::VcpuFd;

use super::super::super::HvError;
use super::super::inner::{Inner, failed};
use crate::arch::BootState;
use crate::state::Sections;

/// PSTATE at entry: EL1 with a stack pointer of its own, debug exceptions, SError, IRQ and FIQ
/// masked.
const ENTRY_STATE: u64 = 0x3c5;
/// The counter of the virtual timer, by which guests tell the time.
const COUNTER: u64 = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | 0x13_df1a;
/// ID_AA64MMFR0_EL1: what the processor says of its pages and addresses.
const MEMORY_MODEL: u64 = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | 0x13_c038;
/// What is told of state that this back end cannot read yet.
const NO_STATE: HvError = HvError::Unsupported { what: "the state of a vCPU on 64-bit Arm" };

/// The kernel's numbers of core registers: where they lie in its structure, in words of 32 bits.
const CORE: u64 = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | 0x10_0000;
const X0: u64 = CORE;
const PC: u64 = CORE | 64;
const PSTATE: u64 = CORE | 66;

/// The host's counter now.
pub(in super::super) fn host_counter() -> u64 {
    let counter: u64;
    // SAFETY: reads a register that Linux lets its processes read; the barrier keeps the read from
    // being early.
    unsafe { asm!("isb", "mrs {}, cntvct_el0", out(reg) counter, options(nostack, preserves_flags)) };
    counter
}

/// Ticks a second of the host's counter and its guests'.
fn counter_hz() -> u64 {
    let frequency: u64;
    // SAFETY: reads a register that Linux lets its processes read.
    unsafe { asm!("mrs {}, cntfrq_el0", out(reg) frequency, options(nomem, nostack, preserves_flags)) };
    frequency
}

/// What a vCPU has beside what every architecture's has: nothing to remember.
#[derive(Debug)]
pub(in super::super) struct Processor;

impl Processor {
    /// All but the first wait, powered off, for the guest to start them (PSCI's CPU_ON).
    pub(in super::super) fn new(fd: &VcpuFd, machine: &Inner, index: u32, _: u32) -> Result<Self, HvError> {
        let mut processor = kvm_vcpu_init::default();
        machine.fd.get_preferred_target(&mut processor).map_err(failed("KVM_ARM_PREFERRED_TARGET"))?;
        processor.features[0] = 1 << KVM_ARM_VCPU_PSCI_0_2 | u32::from(index > 0) << KVM_ARM_VCPU_POWER_OFF;
        fd.vcpu_init(&processor).map_err(failed("KVM_ARM_VCPU_INIT"))?;
        Ok(Self)
    }

    pub(in super::super) fn load(&self, fd: &VcpuFd, state: &BootState) -> Result<(), HvError> {
        let BootState::Arm64(state) = state else {
            return Err(HvError::Unsupported { what: "a kernel of another architecture" });
        };
        // A kernel that finds no such pages stands still at once, without a word.
        let model = register(fd, MEMORY_MODEL);
        if let (Some(granule), Some(model)) = (state.granule, model)
            && !granule.is_served(model)
        {
            return Err(HvError::Missing { capability: granule.name() });
        }
        for (register, value) in [(PSTATE, ENTRY_STATE), (PC, state.pc), (X0, state.device_tree)] {
            fd.set_one_reg(register, &value.to_ne_bytes()).map_err(failed("KVM_SET_ONE_REG"))?;
        }
        Ok(())
    }

    /// The address of its next instruction.
    pub(in super::super) fn place(fd: &VcpuFd) -> Option<u64> {
        register(fd, PC)
    }

    /// What its guest's counter shows.
    pub(in super::super) fn counter(fd: &VcpuFd) -> Option<u64> {
        register(fd, COUNTER)
    }

    /// What guests take for the frequency of their counter.
    pub(in super::super) fn counter_khz(&self) -> u64 {
        counter_hz() / 1000
    }

    pub(in super::super) fn save(&self, _: &VcpuFd, _: &Inner) -> Result<Sections, HvError> {
        Err(NO_STATE)
    }

    pub(in super::super) fn restore(&mut self, _: &VcpuFd, _: &Inner, _: Sections) -> Result<(), HvError> {
        Err(NO_STATE)
    }

    /// One that is powered off. One that waits for interrupts wakes whether it takes them or not.
    pub(in super::super) fn sleeps_for_good(fd: &VcpuFd) -> bool {
        fd.get_mp_state().is_ok_and(|state| state.mp_state == KVM_MP_STATE_STOPPED)
    }
}

fn register(fd: &VcpuFd, register: u64) -> Option<u64> {
    let mut value = [0; 8];
    fd.get_one_reg(register, &mut value).ok()?;
    Some(u64::from_ne_bytes(value))
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use kvm_bindings::{KVM_REG_ARM_CORE, kvm_regs};

    use super::*;

    #[test]
    fn registers_have_the_kernels_numbers() {
        let of = |offset: usize| CORE | u64::try_from(offset / 4).unwrap();
        let x0 = of(offset_of!(kvm_regs, regs.regs));
        let (pc, state) = (of(offset_of!(kvm_regs, regs.pc)), of(offset_of!(kvm_regs, regs.pstate)));
        assert_eq!([X0, PC, PSTATE], [x0, pc, state]);
        assert_eq!((CORE & u64::from(KVM_REG_ARM_CORE), COUNTER), (0x10_0000, 0x6030_0000_0013_df1a));
        // op0 3, op1 0, CRn 0, CRm 7, op2 0.
        assert_eq!(MEMORY_MODEL, 0x6030_0000_0013_0000 | 3 << 14 | 7 << 3);
    }
}
