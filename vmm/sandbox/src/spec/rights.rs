//! What the processes of a container may do: capabilities, resource limits, groups. Flags are
//! spelled and combined as docker's.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::SpecError;

/// The rights of a container's first process, which its execs have, too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rights {
    /// Capabilities.
    pub capabilities: Capabilities,
    /// Resource limits; those not named are the agent's choice.
    pub limits: Vec<Limit>,
    /// Supplementary groups, by name or number, beside those that the container's files name.
    pub groups: Vec<String>,
}

/// Every capability of Linux, by its number.
const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The word for all capabilities.
const ALL: &str = "ALL";

/// A set of capabilities, as bits by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<&'static str>")]
pub struct Capabilities(u64);

impl Default for Capabilities {
    /// Docker's: what images are written for. CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID,
    /// SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, MKNOD, AUDIT_WRITE, SETFCAP.
    fn default() -> Self {
        Self(0xa804_25fb)
    }
}

impl Capabilities {
    /// Every one that Linux has.
    pub const EVERY: Self = Self((1 << NAMES.len()) - 1);

    /// The usual ones with these taken and given. `ALL` stands for all; who adds all and drops some
    /// has all but those, and one that is both dropped and added is there.
    ///
    /// # Errors
    /// A name that is no capability, with or without `CAP_`, in whatever case.
    pub fn changed(add: &[String], drop: &[String]) -> Result<Self, SpecError> {
        let (all_added, added) = parse(add)?;
        let (all_dropped, dropped) = parse(drop)?;
        Ok(Self(match (all_added, all_dropped) {
            (true, _) => Self::EVERY.0 & !dropped,
            (false, true) => added,
            (false, false) => Self::default().0 & !dropped | added,
        }))
    }

    /// Their names, by their numbers.
    #[must_use]
    pub fn names(self) -> Vec<&'static str> {
        NAMES.iter().enumerate().filter(|(bit, _)| self.0 & 1 << bit != 0).map(|(_, name)| *name).collect()
    }
}

/// Whether `ALL` is among the words, and the bits of the others.
fn parse(words: &[String]) -> Result<(bool, u64), SpecError> {
    let (mut all, mut bits) = (false, 0);
    for word in words {
        let upper = word.to_ascii_uppercase();
        match NAMES.iter().position(|name| *name == upper || name.strip_prefix("CAP_") == Some(&upper)) {
            Some(bit) => bits |= 1 << bit,
            None if upper == ALL => all = true,
            None => {
                let hint = "write a name such as NET_ADMIN, or ALL";
                return Err(SpecError::Flag { what: "capability", text: word.clone(), hint });
            }
        }
    }
    Ok((all, bits))
}

impl TryFrom<Vec<String>> for Capabilities {
    type Error = SpecError;

    fn try_from(names: Vec<String>) -> Result<Self, SpecError> {
        Ok(Self(parse(&names)?.1))
    }
}

impl From<Capabilities> for Vec<&'static str> {
    fn from(capabilities: Capabilities) -> Self {
        capabilities.names()
    }
}

/// Resource limits as docker names them, and as the runtime specification does.
const LIMITS: [(&str, &str); 15] = [
    ("core", "RLIMIT_CORE"),
    ("cpu", "RLIMIT_CPU"),
    ("data", "RLIMIT_DATA"),
    ("fsize", "RLIMIT_FSIZE"),
    ("locks", "RLIMIT_LOCKS"),
    ("memlock", "RLIMIT_MEMLOCK"),
    ("msgqueue", "RLIMIT_MSGQUEUE"),
    ("nice", "RLIMIT_NICE"),
    ("nofile", "RLIMIT_NOFILE"),
    ("nproc", "RLIMIT_NPROC"),
    ("rss", "RLIMIT_RSS"),
    ("rtprio", "RLIMIT_RTPRIO"),
    ("rttime", "RLIMIT_RTTIME"),
    ("sigpending", "RLIMIT_SIGPENDING"),
    ("stack", "RLIMIT_STACK"),
];

/// A resource limit, parsed from `NAME=SOFT[:HARD]`; -1 is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// `RLIMIT_...`, as the runtime specification has it.
    #[serde(rename = "type")]
    pub(super) name: String,
    pub(super) soft: u64,
    pub(super) hard: u64,
}

impl FromStr for Limit {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let refuse = |hint| SpecError::Flag { what: "limit", text: text.to_owned(), hint };
        let form =
            || refuse("write NAME=SOFT[:HARD] with whole numbers, -1 for no limit, e.g. nofile=1024:4096");
        let (name, values) = text.split_once('=').ok_or_else(form)?;
        let known = LIMITS.iter().find(|(short, _)| *short == name);
        let (_, name) = known.ok_or_else(|| {
            refuse("the names are core, cpu, data, fsize, locks, memlock, msgqueue, nice, nofile, nproc, rss, rtprio, rttime, sigpending, stack")
        })?;
        let number = |text: &str| match text {
            "-1" => Ok(u64::MAX),
            digits => digits.parse::<u64>().map_err(|_| form()),
        };
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let (soft, hard) = (number(soft)?, number(hard)?);
        if soft > hard {
            return Err(refuse("the soft limit exceeds the hard one"));
        }
        Ok(Self { name: (*name).to_owned(), soft, hard })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn capabilities_combine_as_under_docker() {
        let usual = Capabilities::default().names();
        assert_eq!(usual.len(), 14);
        let without =
            |gone: &[&str]| usual.iter().copied().filter(|name| !gone.contains(name)).collect::<Vec<_>>();
        let table: [(&[&str], &[&str], Vec<&str>); 8] = [
            (&[], &[], usual.clone()),
            (&[], &["mknod", "CAP_CHOWN"], without(&["CAP_MKNOD", "CAP_CHOWN"])),
            (&[], &["ALL"], vec![]),
            (&["net_admin", "CAP_CHOWN"], &["all"], vec!["CAP_CHOWN", "CAP_NET_ADMIN"]),
            (&["CHOWN"], &["CHOWN"], usual.clone()),
            (&["ALL"], &[], NAMES.to_vec()),
            (&["ALL", "CHOWN"], &["ALL"], NAMES.to_vec()),
            (
                &["all"],
                &["SYS_ADMIN"],
                NAMES.iter().copied().filter(|name| *name != "CAP_SYS_ADMIN").collect(),
            ),
        ];
        for (add, drop, expected) in table {
            let set = Capabilities::changed(&words(add), &words(drop)).unwrap();
            assert_eq!(set.names(), expected, "{add:?} {drop:?}");
            let json = serde_json::to_string(&set).unwrap();
            assert_eq!(serde_json::from_str::<Capabilities>(&json).unwrap(), set);
        }
        for bad in ["", "CAP_", "root", "CAP_NOTHING", "NET ADMIN"] {
            let error = Capabilities::changed(&words(&[bad]), &[]).unwrap_err().to_string();
            assert!(error.contains("NET_ADMIN"), "{error}");
        }
    }

    #[test]
    fn limits_are_spelled_as_dockers() {
        for (text, name, soft, hard) in [
            ("nofile=1024", "RLIMIT_NOFILE", 1024, 1024),
            ("nofile=1024:4096", "RLIMIT_NOFILE", 1024, 4096),
            ("core=0:-1", "RLIMIT_CORE", 0, u64::MAX),
            ("memlock=-1", "RLIMIT_MEMLOCK", u64::MAX, u64::MAX),
        ] {
            assert_eq!(text.parse(), Ok(Limit { name: name.to_owned(), soft, hard }), "{text}");
        }
        for bad in ["", "nofile", "nofile=", "nofile=2:1", "nofile=-1:5", "as=1", "nofile=1:2:3", "nofile=1k"]
        {
            assert!(bad.parse::<Limit>().is_err(), "{bad}");
        }
    }
}
