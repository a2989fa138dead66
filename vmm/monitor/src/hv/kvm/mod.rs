//! KVM. On x86-64; on other architectures [`open`] answers "unsupported".
//!
//! # What a start costs
//! Opening: `open`, KVM_GET_API_VERSION. A machine: KVM_CREATE_VM, KVM_GET_VCPU_MMAP_SIZE,
//! KVM_GET_SUPPORTED_CPUID. Memory: one KVM_SET_USER_MEMORY_REGION a slot. Interrupt controllers:
//! KVM_SET_TSS_ADDR, KVM_SET_IDENTITY_MAP_ADDR, then either KVM_ENABLE_CAP for the local APICs
//! alone, or KVM_CREATE_IRQCHIP and KVM_CREATE_PIT2 (which starts a kernel thread, and whose end
//! waits for grace periods of the host's kernel: 10 to 20 ms). A vCPU: KVM_CREATE_VCPU, one mmap,
//! KVM_GET_TSC_KHZ, KVM_SET_CPUID2, KVM_SET_MSRS, KVM_SET_SIGNAL_MASK; the boot processor also
//! KVM_SET_SREGS and KVM_SET_REGS. Nothing is asked that API version 12 promises or that can be
//! tried instead, and no state is read that is known: after reset.

#[cfg(target_arch = "x86_64")]
mod exit;
#[cfg(target_arch = "x86_64")]
mod inner;
#[cfg(target_arch = "x86_64")]
mod ioapic;
#[cfg(target_arch = "x86_64")]
mod kick;
#[cfg(target_arch = "x86_64")]
mod processor;
#[cfg(target_arch = "x86_64")]
mod state;
#[cfg(target_arch = "x86_64")]
mod vcpu;
#[cfg(target_arch = "x86_64")]
mod vm;

#[cfg(target_arch = "x86_64")]
mod host {
    use std::io;
    use std::sync::Arc;

    use super::super::{HvError, Hypervisor};
    use super::vm::KvmVm;
    use crate::arch::Nested;

    /// `/dev/kvm`, open.
    #[derive(Debug)]
    pub struct Kvm(Arc<kvm_ioctls::Kvm>);

    const PATH: &str = "/dev/kvm";

    /// Opens `/dev/kvm`.
    ///
    /// # Errors
    /// [`HvError::Open`] with what to do when it is absent or forbidden, [`HvError::Missing`] for
    /// an API version other than 12.
    pub fn open() -> Result<Kvm, HvError> {
        let kvm = kvm_ioctls::Kvm::new().map_err(|error| {
            let source: io::Error = error.into();
            HvError::Open { path: PATH, hint: hint(&source), source }
        })?;
        // The stable interface since 2007; a kernel that says otherwise is none that this code
        // knows.
        if kvm.get_api_version() != 12 {
            return Err(HvError::Missing { capability: "KVM API version 12" });
        }
        Ok(Kvm(Arc::new(kvm)))
    }

    fn hint(error: &io::Error) -> &'static str {
        match error.kind() {
            io::ErrorKind::NotFound => {
                "this host offers no KVM: load the kvm_intel or kvm_amd module, enable virtualisation in the firmware, or, in a \
                 virtual machine, enable nested virtualisation; in a checkout of Nelly, `make shell` opens an emulated host that has it"
            }
            io::ErrorKind::PermissionDenied => {
                "this user may not use KVM: join the group that owns the device (`sudo usermod -aG kvm $USER`, then log in again)"
            }
            _ => {
                "KVM does not answer: the processor's virtualisation is switched off or used up; in a checkout of Nelly, `make shell` \
                 opens an emulated host that has it"
            }
        }
    }

    impl Hypervisor for Kvm {
        type Vm = KvmVm;

        fn create_vm(&self, nested: Nested) -> Result<KvmVm, HvError> {
            KvmVm::new(&self.0, nested)
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn each_way_not_to_open_has_its_hint() {
            let hint = |code| hint(&io::Error::from_raw_os_error(code));
            assert!(hint(libc::ENOENT).contains("nested"));
            assert!(hint(libc::EACCES).contains("usermod"));
            assert!(hint(libc::ENODEV).contains("switched off"));
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub use host::{Kvm, open};
#[cfg(target_arch = "x86_64")]
pub use vcpu::KvmVcpu;
#[cfg(target_arch = "x86_64")]
pub use vm::KvmVm;

/// KVM, once this architecture is supported.
#[cfg(not(target_arch = "x86_64"))]
pub type Kvm = super::never::Never;

/// Opens KVM.
///
/// # Errors
/// Always [`HvError::Unsupported`](super::HvError::Unsupported) on this architecture.
#[cfg(not(target_arch = "x86_64"))]
pub fn open() -> Result<Kvm, super::HvError> {
    Err(super::HvError::Unsupported { what: "KVM on this architecture" })
}
