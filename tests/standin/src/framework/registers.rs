//! KVM's numbers of registers, of the framework's.

use std::mem::offset_of;

use kvm_bindings::{
    KVM_REG_ARM_CORE, KVM_REG_ARM64, KVM_REG_SIZE_U32, KVM_REG_SIZE_U64, kvm_regs, user_pt_regs,
};

/// PC among `hv_reg_t`, behind X0 to X30.
pub(super) const PC: u32 = 31;
/// FPCR, FPSR, CPSR follow.
const FPCR: u32 = 32;
const FPSR: u32 = 33;
const CPSR: u32 = 34;

/// MPIDR_EL1 among `hv_sys_reg_t`, whose values are those of the registers' encoding.
pub(super) const MPIDR_EL1: u16 = 0xc005;
/// CNTV_CVAL_EL0.
const CNTV_CVAL_EL0: u16 = 0xdf1a;
/// What KVM calls CNTV_CVAL_EL0: it has exchanged it with CNTVCT_EL0, for ever.
const KVM_CNTV_CVAL_EL0: u16 = 0xdf02;

/// A core register: where it lies in the kernel's structure, in words of 32 bits.
fn core(offset: usize, size: u64) -> u64 {
    KVM_REG_ARM64 | size | u64::from(KVM_REG_ARM_CORE) | (offset / 4) as u64
}

/// A register of `hv_reg_t`, and its bytes.
pub(super) fn general(register: u32) -> Option<(u64, usize)> {
    let regs = offset_of!(kvm_regs, regs);
    let wide = |offset| Some((core(offset, KVM_REG_SIZE_U64), 8));
    let narrow = |offset| Some((core(offset, KVM_REG_SIZE_U32), 4));
    match register {
        0..PC => wide(regs + offset_of!(user_pt_regs, regs) + 8 * register as usize),
        PC => wide(regs + offset_of!(user_pt_regs, pc)),
        FPCR => narrow(offset_of!(kvm_regs, fp_regs) + offset_of!(kvm_bindings::user_fpsimd_state, fpcr)),
        FPSR => narrow(offset_of!(kvm_regs, fp_regs) + offset_of!(kvm_bindings::user_fpsimd_state, fpsr)),
        CPSR => wide(regs + offset_of!(user_pt_regs, pstate)),
        _ => None,
    }
}

/// A register of `hv_sys_reg_t`.
pub(super) fn system(register: u16) -> u64 {
    let register = if register == CNTV_CVAL_EL0 { KVM_CNTV_CVAL_EL0 } else { register };
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | u64::from(kvm_bindings::KVM_REG_ARM64_SYSREG) | u64::from(register)
}
