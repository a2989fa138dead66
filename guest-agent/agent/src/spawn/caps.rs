//! Conversion of capability names to bit sets. Unknown names are errors and are never ignored.

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

/// The five capability sets of a process, with one bit for each capability.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CapabilitySets {
    /// Upper bound of what exec can grant.
    pub bounding: u64,
    /// The capabilities that are checked.
    pub effective: u64,
    /// The capabilities that may be made effective.
    pub permitted: u64,
    /// The capabilities that file capabilities may grant after exec.
    pub inheritable: u64,
    /// The capabilities that an exec of an ordinary program keeps.
    pub ambient: u64,
}

/// Converts names such as `CAP_NET_ADMIN` to a bit set.
///
/// # Errors
/// [`UnknownCapability`] with the first unknown name.
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
