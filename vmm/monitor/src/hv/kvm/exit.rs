//! Reading the `kvm_run` page that the kernel shares.

#![allow(unsafe_code, reason = "the page is a union that the kernel fills")]

use std::ptr::NonNull;

use kvm_bindings as kvm;
use kvm_bindings::kvm_run;

use super::super::VcpuExit;
use super::own;
use crate::arch::Address;
use crate::sys::fits;

/// The page and what follows it, mapped for as long as the vCPU's descriptor is open. Only raw
/// accesses: a kicker writes `immediate_exit` from other threads.
#[derive(Clone, Copy, Debug)]
pub(super) struct RunPage {
    pub(super) page: NonNull<kvm_run>,
    /// Bytes mapped.
    #[cfg_attr(target_arch = "aarch64", expect(dead_code, reason = "only ports have data behind the page"))]
    pub(super) len: usize,
}

/// What the caller of [`RunPage::exit`] must answer itself.
pub(super) enum Decoded<'a> {
    /// For the vCPU loop.
    VcpuExit(VcpuExit<'a>),
    /// Enter again: nothing to be done.
    Again,
    /// What only this architecture has.
    #[cfg_attr(target_arch = "aarch64", expect(dead_code, reason = "it has nothing"))]
    Own(own::Exit),
    /// The guest did what KVM cannot run; the instruction's address is to be added.
    Fault(String),
}

impl RunPage {
    pub(super) fn immediate_exit(self) -> NonNull<u8> {
        // SAFETY: a field of the mapped page; no reference is made.
        unsafe { NonNull::new_unchecked(&raw mut (*self.page.as_ptr()).immediate_exit) }
    }

    /// Decodes the exit that KVM_RUN returned 0 with.
    ///
    /// # Safety
    /// The page is mapped for `'a`, KVM_RUN is not running and does not run while the value lives,
    /// and no other value of this call lives.
    pub(super) unsafe fn exit<'a>(self) -> Decoded<'a> {
        let run = self.page.as_ptr();
        // SAFETY: the caller says that the page is mapped and still.
        let reason = unsafe { (&raw const (*run).exit_reason).read() };
        let text = match reason {
            // SAFETY: as the caller says.
            kvm::KVM_EXIT_MMIO => return unsafe { self.mmio() },
            kvm::KVM_EXIT_INTR => return Decoded::Again,
            kvm::KVM_EXIT_SYSTEM_EVENT => {
                // SAFETY: the reason says which field of the union the kernel filled.
                let kind = unsafe { (&raw const (*run).__bindgen_anon_1.system_event.type_).read() };
                match kind {
                    kvm::KVM_SYSTEM_EVENT_SHUTDOWN => return Decoded::VcpuExit(VcpuExit::PowerOff),
                    kvm::KVM_SYSTEM_EVENT_RESET => return Decoded::VcpuExit(VcpuExit::Reset),
                    kind => format!("the guest raised system event {kind}"),
                }
            }
            kvm::KVM_EXIT_UNKNOWN => {
                // SAFETY: as above.
                let reason = unsafe { (&raw const (*run).__bindgen_anon_1.hw.hardware_exit_reason).read() };
                format!("the processor left the guest for a reason unknown to KVM ({reason:#x})")
            }
            kvm::KVM_EXIT_FAIL_ENTRY => {
                // SAFETY: as above.
                let fail = unsafe { (&raw const (*run).__bindgen_anon_1.fail_entry).read() };
                let reason = fail.hardware_entry_failure_reason;
                format!("the processor refused to enter the guest (reason {reason:#x})")
            }
            // SAFETY: as the caller says.
            kvm::KVM_EXIT_INTERNAL_ERROR => unsafe { self.internal_error() },
            // SAFETY: as the caller says.
            reason => match unsafe { own::decode(self, reason) } {
                Some(decoded) => return decoded,
                None => format!("KVM left the guest for reason {reason}, which was not asked for"),
            },
        };
        Decoded::Fault(text)
    }

    /// # Safety
    /// As [`exit`](Self::exit), and the reason is KVM_EXIT_MMIO.
    unsafe fn mmio<'a>(self) -> Decoded<'a> {
        let run = self.page.as_ptr();
        // SAFETY: the reason says which field of the union the kernel filled.
        let mmio = unsafe { &raw mut (*run).__bindgen_anon_1.mmio };
        // SAFETY: a valid pointer; plain integers.
        let (address, len, write) = unsafe { ((*mmio).phys_addr, (*mmio).len, (*mmio).is_write != 0) };
        let width: u8 = fits(len.min(8), "at most eight bytes");
        // SAFETY: at most the 8 bytes of the field, which the kernel leaves alone until the next
        // KVM_RUN; the caller makes no second reference.
        let data = unsafe {
            std::slice::from_raw_parts_mut((&raw mut (*mmio).data).cast::<u8>(), usize::from(width))
        };
        let address = Address::Memory(address);
        Decoded::VcpuExit(if write {
            VcpuExit::Write { address, width, data }
        } else {
            VcpuExit::Read { address, width, data }
        })
    }

    /// # Safety
    /// As [`exit`](Self::exit), and the reason is KVM_EXIT_INTERNAL_ERROR.
    unsafe fn internal_error(self) -> String {
        let run = self.page.as_ptr();
        // SAFETY: the reason says which field of the union the kernel filled; it is plain integers.
        let error = unsafe { (&raw const (*run).__bindgen_anon_1.internal).read() };
        match error.suberror {
            kvm::KVM_INTERNAL_ERROR_EMULATION => {
                // SAFETY: as above: this suberror has this form.
                let failure = unsafe { (&raw const (*run).__bindgen_anon_1.emulation_failure).read() };
                // SAFETY: plain integers, filled as `ndata` and the flags say.
                let insn = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
                let told = failure.ndata >= 1
                    && failure.flags & u64::from(kvm::KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES)
                        != 0;
                let bytes = insn.insn_bytes.iter().take(usize::from(insn.insn_size));
                let bytes: Vec<_> = bytes.map(|byte| format!("{byte:02x}")).collect();
                if told && !bytes.is_empty() {
                    format!("KVM cannot run the instruction {}", bytes.join(" "))
                } else {
                    "KVM cannot run an instruction".into()
                }
            }
            kvm::KVM_INTERNAL_ERROR_SIMUL_EX => "KVM met an exception while it delivered another".into(),
            kvm::KVM_INTERNAL_ERROR_DELIVERY_EV => "KVM could not deliver an exception or interrupt".into(),
            other => format!("KVM failed inside (suberror {other})"),
        }
    }
}
