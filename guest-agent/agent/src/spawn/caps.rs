//! Capabilities by number. Pure: names in, bit sets out; an unknown name is refused, never dropped.

use thiserror::Error;

/// A capability name that the kernel headers of 6.12 do not know.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("unknown capability {0:?}")]
pub struct UnknownCapability(pub String);

/// Names in the order of their numbers (linux/capability.h).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The five sets of a process, one bit a capability.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CapabilitySets {
    /// What exec can ever give back.
    pub bounding: u64,
    /// What counts now.
    pub effective: u64,
    /// What may be raised.
    pub permitted: u64,
    /// What files may pass on.
    pub inheritable: u64,
    /// What survives an exec of an ordinary program.
    pub ambient: u64,
}

/// Turns names such as `CAP_NET_ADMIN` into a bit set.
///
/// # Errors
/// [`UnknownCapability`] names the first that is not known.
pub fn bits<S: AsRef<str>>(names: &[S]) -> Result<u64, UnknownCapability> {
    names.iter().try_fold(0, |set, name| {
        let name = name.as_ref();
        let position = name
            .strip_prefix("CAP_")
            .and_then(|short| NAMES.iter().position(|known| *known == short))
            .ok_or_else(|| UnknownCapability(name.to_owned()))?;
        Ok(set | 1 << position)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_kernels() {
        for (name, number) in [
            ("CAP_CHOWN", 0),
            ("CAP_KILL", 5),
            ("CAP_NET_BIND_SERVICE", 10),
            ("CAP_SYS_ADMIN", 21),
            ("CAP_MKNOD", 27),
            ("CAP_SETFCAP", 31),
            ("CAP_AUDIT_READ", 37),
            ("CAP_CHECKPOINT_RESTORE", 40),
        ] {
            assert_eq!(bits(&[name]), Ok(1 << number), "{name}");
        }
        assert_eq!(bits(&["CAP_CHOWN", "CAP_KILL", "CAP_CHOWN"]), Ok(0b10_0001));
        assert_eq!(bits::<&str>(&[]), Ok(0));
    }

    #[test]
    fn unknown_names_are_refused() {
        for name in ["CAP_NOPE", "CHOWN", "cap_chown", "", "CAP_"] {
            assert_eq!(bits(&[name]), Err(UnknownCapability(name.into())));
        }
    }
}
