//! Exits that only 64-bit Arm has.

#![allow(unsafe_code, reason = "the page is a union that the kernel fills")]

use kvm_bindings as kvm;

use super::super::exit::{Decoded, RunPage};

/// What this architecture's module answers itself: nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Exit {}

/// Decodes an exit of this architecture; `None` for any other.
///
/// # Safety
/// As [`RunPage::exit`], and this is the reason that the page holds.
pub(in super::super) unsafe fn decode<'a>(page: RunPage, reason: u32) -> Option<Decoded<'a>> {
    let run = page.page.as_ptr();
    match reason {
        kvm::KVM_EXIT_ARM_NISV => {
            // SAFETY: the reason says which field of the union the kernel filled.
            let address = unsafe { (&raw const (*run).__bindgen_anon_1.arm_nisv.fault_ipa).read() };
            Some(Decoded::Fault(format!(
                "the guest accessed {address:#x}, where no memory is, by an instruction that the processor does not \
                 describe (of two registers, or one that changes its address)"
            )))
        }
        _ => None,
    }
}
