//! KVM, on Linux.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind};

use super::{HostSupport, Lack};
use crate::advice;

/// The name of the check.
pub(crate) const CHECK: &str = "kvm";
/// What is said where it can be used.
pub(crate) const GOOD: &str = "/dev/kvm can be opened, and the processor has hardware virtualisation";
/// What a guest that does not run means.
pub(crate) const PROBE_HINT: &str = "this KVM cannot run a stock kernel";
/// Everything is there.
pub(crate) const LACKS: &[Lack] = &[];

/// Checks /dev/kvm and /proc/cpuinfo.
pub(crate) fn support() -> HostSupport {
    match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return HostSupport::Unusable(
                "there is no /dev/kvm".into(),
                format!("load the module kvm_intel or kvm_amd; {}", advice::another_host()),
            );
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return HostSupport::Unusable(
                "/dev/kvm: permission denied".into(),
                "join the group that owns it: sudo usermod -aG kvm $USER, then log in again".into(),
            );
        }
        Err(error) => {
            return HostSupport::Unusable(format!("/dev/kvm: {error}"), "see `dmesg | grep -i kvm`".into());
        }
    }
    let info = File::open("/proc/cpuinfo");
    if info.map_or(true, |info| virtualises(BufReader::new(info))) {
        HostSupport::Mainstream
    } else {
        HostSupport::Paravirtual
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
