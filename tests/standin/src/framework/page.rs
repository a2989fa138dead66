//! What KVM_RUN said, from the page that the kernel shares.
#![allow(unsafe_code, reason = "the page is a union that the kernel fills")]

use kvm_bindings::{
    KVM_EXIT_ARM_NISV, KVM_EXIT_HYPERCALL, KVM_EXIT_INTR, KVM_EXIT_MMIO, KVM_HYPERCALL_EXIT_SMC, kvm_run,
};

/// An exit of KVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// A load or store where no memory is, or a store to memory that is read-only.
    Mmio { address: u64, data: u64, width: u8, write: bool },
    /// One that the processor does not describe, with what its syndrome says.
    Undescribed { address: u64, fields: u64 },
    /// A call of the firmware: by SMC, or by HVC.
    Firmware { monitor: bool },
    /// Nothing: enter again.
    Again,
    /// Of a reason that nobody asked for.
    Other(u32),
}

/// Reads it. KVM_RUN has returned 0.
pub(super) fn exit(run: &kvm_run) -> Exit {
    match run.exit_reason {
        KVM_EXIT_MMIO => {
            // SAFETY: the reason says which field of the union the kernel filled.
            let mmio = unsafe { run.__bindgen_anon_1.mmio };
            let width = u8::try_from(mmio.len).expect("KVM makes accesses of eight bytes at most");
            let data = u64::from_le_bytes(mmio.data);
            Exit::Mmio { address: mmio.phys_addr, data, width, write: mmio.is_write != 0 }
        }
        KVM_EXIT_ARM_NISV => {
            // SAFETY: as above.
            let undescribed = unsafe { run.__bindgen_anon_1.arm_nisv };
            Exit::Undescribed { address: undescribed.fault_ipa, fields: undescribed.esr_iss }
        }
        KVM_EXIT_HYPERCALL => {
            // SAFETY: as above; the flags are what 64-bit Arm has in the inner union.
            let flags = unsafe { run.__bindgen_anon_1.hypercall.__bindgen_anon_1.flags };
            Exit::Firmware { monitor: flags & u64::from(KVM_HYPERCALL_EXIT_SMC) != 0 }
        }
        KVM_EXIT_INTR => Exit::Again,
        other => Exit::Other(other),
    }
}

/// What a load is answered with.
pub(super) fn answer(run: &mut kvm_run, word: u64) {
    run.__bindgen_anon_1.mmio.data = word.to_le_bytes();
}
