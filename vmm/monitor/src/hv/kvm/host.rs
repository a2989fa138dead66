//! The device that machines are made with.

use std::io;
use std::sync::Arc;

use super::super::{HvError, Hypervisor};
use super::inner::uninterrupted;
use super::own;
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
    let kvm = uninterrupted(kvm_ioctls::Kvm::new).map_err(|error| {
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
        io::ErrorKind::NotFound => own::NO_KVM,
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
