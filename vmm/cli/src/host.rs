//! Capabilities of the host: its KVM and its processor.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind};

use anyhow::{Error, Result};
use nelly_sandbox::state::BootRecord;

use crate::advice;
use crate::fail::Hint;

/// The state of the host's KVM, as far as it can be checked without starting anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KvmSupport {
    /// /dev/kvm can be opened, and the processor has hardware virtualisation.
    Mainstream,
    /// /dev/kvm can be opened, but there is no hardware virtualisation: a paravirtual KVM, which
    /// runs a few instructions but no stock kernel.
    Paravirtual,
    /// It cannot be used: the reason, and what to do.
    Unusable(String, String),
}

/// Checks /dev/kvm and /proc/cpuinfo.
pub(crate) fn kvm() -> KvmSupport {
    match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return KvmSupport::Unusable(
                "there is no /dev/kvm".into(),
                format!("load the module kvm_intel or kvm_amd; {}", advice::another_host()),
            );
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return KvmSupport::Unusable(
                "/dev/kvm: permission denied".into(),
                "join the group that owns it: sudo usermod -aG kvm $USER, then log in again".into(),
            );
        }
        Err(error) => {
            return KvmSupport::Unusable(format!("/dev/kvm: {error}"), "see `dmesg | grep -i kvm`".into());
        }
    }
    let info = File::open("/proc/cpuinfo");
    if info.map_or(true, |info| virtualises(BufReader::new(info))) {
        KvmSupport::Mainstream
    } else {
        KvmSupport::Paravirtual
    }
}

/// Whether a processor in this /proc/cpuinfo has hardware virtualisation. Only x86 lists it; on
/// others an open /dev/kvm is sufficient. Only the first processor is read, because the kernel
/// generates the file while it is read.
fn virtualises(info: impl BufRead) -> bool {
    match info.lines().map_while(Result::ok).find(|line| line.starts_with("flags")) {
        Some(flags) => flags.split_whitespace().any(|flag| flag == "svm" || flag == "vmx"),
        None => true,
    }
}

/// Returns an error that names an alternative, if the host's KVM cannot run a stock kernel.
///
/// # Errors
/// No KVM, no permission, or a paravirtual one.
pub(crate) fn require_mainstream() -> Result<()> {
    match kvm() {
        KvmSupport::Mainstream => Ok(()),
        KvmSupport::Unusable(message, hint) => Err(Hint::error(message, hint)),
        KvmSupport::Paravirtual => Err(paravirtual()),
    }
}

/// The same for what a sandbox boots. Whoever boots a kernel of their own knows what it needs: any
/// KVM that can be used will do, as it does for `nelly boot` in the foreground.
///
/// # Errors
/// As [`require_mainstream`]; for a kernel of one's own, only where KVM cannot be used at all.
pub(crate) fn require_for(boot: Option<&BootRecord>) -> Result<()> {
    if boot.is_none_or(|boot| boot.kernel.is_none()) {
        return require_mainstream();
    }
    match kvm() {
        KvmSupport::Unusable(message, hint) => Err(Hint::error(message, hint)),
        KvmSupport::Mainstream | KvmSupport::Paravirtual => Ok(()),
    }
}

fn paravirtual() -> Error {
    Hint::error(
        "this host's KVM is paravirtual (the processor has neither svm nor vmx) and cannot run a stock kernel",
        format!("{}; `nelly doctor` shows details", advice::another_host()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processors_flags_tell() {
        assert!(virtualises(b"processor\t: 0\nflags\t\t: fpu vmx sse\n".as_slice()));
        assert!(virtualises(b"flags\t\t: fpu svm\n".as_slice()));
        assert!(!virtualises(b"flags\t\t: fpu sse svm_lock\n".as_slice()));
        assert!(virtualises(b"Features\t: fp asimd\n".as_slice()));
    }
}
