//! The system calls of a container.
//!
//! The default is an allow list: what is not named is refused with EPERM, whatever later kernels
//! learn. It follows moby's rules, so that images made for docker run, and goes further in what
//! matters to a machine of one's own: no sockets to the host (AF_VSOCK), in pairs neither, no
//! io_uring (its requests pass every filter), no keys, no page faults handled by programs, and no
//! new namespaces without CAP_SYS_ADMIN. It is the second wall: the agent and the monitor believe
//! nobody for being in the guest.

use oci_spec::runtime::LinuxSeccomp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::SpecError;

/// Which filter a container has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seccomp {
    /// The allow list of this room.
    #[default]
    Default,
    /// None at all.
    Unconfined,
    /// One that the caller gave.
    Profile(Box<LinuxSeccomp>),
}

/// Where a filter comes from, as docker's `--security-opt` spells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecurityOption {
    /// `seccomp=unconfined`.
    Unconfined,
    /// `seccomp=FILE`.
    Profile(String),
}

impl std::str::FromStr for SecurityOption {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        match text.split_once('=') {
            Some(("seccomp", "unconfined")) => Ok(Self::Unconfined),
            Some(("seccomp", file)) if !file.is_empty() => Ok(Self::Profile(file.to_owned())),
            _ => Err(SpecError::SecurityOption { text: text.to_owned() }),
        }
    }
}

impl Seccomp {
    /// A profile in the runtime specification's form, or in docker's: rules there may depend on the
    /// container's capabilities and on the architecture, which are known here. (They may depend on
    /// the kernel's version, too: a guest's is new enough for each.)
    ///
    /// # Errors
    /// The text is no such profile.
    pub fn from_json(text: &str, capabilities: &[&str]) -> Result<Self, serde_json::Error> {
        let mut given: GivenProfile = serde_json::from_str(text)?;
        given.rest.remove("archMap");
        let rules: Vec<Value> = given
            .syscalls
            .into_iter()
            .filter(|rule| rule.applies(capabilities))
            .map(|mut rule| {
                rule.names.extend(rule.name);
                rule.rest.insert("names".to_owned(), rule.names.into());
                Value::Object(rule.rest)
            })
            .collect();
        given.rest.insert("syscalls".to_owned(), rules.into());
        Ok(Self::Profile(serde_json::from_value(Value::Object(given.rest))?))
    }

    /// `linux.seccomp` of a container with these capabilities.
    pub(super) fn filter(&self, capabilities: &[&str]) -> Option<Filter<'_>> {
        match self {
            Self::Default => Some(Filter::Default(default(capabilities))),
            Self::Unconfined => None,
            Self::Profile(profile) => Some(Filter::Given(profile)),
        }
    }
}

/// A profile as its author wrote it.
#[derive(Deserialize)]
struct GivenProfile {
    #[serde(default)]
    syscalls: Vec<GivenRule>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize)]
struct GivenRule {
    #[serde(default)]
    names: Vec<String>,
    name: Option<String>,
    includes: Option<Circumstances>,
    excludes: Option<Circumstances>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Circumstances {
    caps: Vec<String>,
    arches: Vec<String>,
}

impl GivenRule {
    fn applies(&self, capabilities: &[&str]) -> bool {
        let here = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let has = |name: &String| capabilities.contains(&name.as_str());
        let included = self.includes.as_ref().is_none_or(|when| {
            when.caps.iter().all(has)
                && (when.arches.is_empty() || when.arches.iter().any(|arch| arch == here))
        });
        let excluded = self
            .excludes
            .as_ref()
            .is_some_and(|when| when.caps.iter().any(has) || when.arches.iter().any(|arch| arch == here));
        included && !excluded
    }
}

/// `linux.seccomp`.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Filter<'a> {
    Default(Profile),
    Given(&'a LinuxSeccomp),
}

/// The default, as rules in the order in which they are tried.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Profile {
    default_action: &'static str,
    syscalls: Vec<Rule>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    names: &'static [&'static str],
    action: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    errno_ret: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    args: Option<[Argument; 1]>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u32,
    op: &'static str,
    value: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_two: Option<u64>,
}

const ALLOW: &str = "SCMP_ACT_ALLOW";
const ERRNO: &str = "SCMP_ACT_ERRNO";
const ENOSYS: u32 = 38;

/// Allowed to everybody, on every architecture: one that lacks a call ignores its name.
#[rustfmt::skip]
const ALWAYS: &[&str] = &[
    "accept", "accept4", "access", "adjtimex", "alarm", "arch_prctl", "bind", "brk", "cachestat",
    "capget", "capset", "chdir", "chmod", "chown", "clock_adjtime", "clock_getres", "clock_gettime",
    "clock_nanosleep", "close", "close_range", "connect", "copy_file_range", "creat", "dup", "dup2",
    "dup3", "epoll_create", "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_pwait2",
    "epoll_wait", "eventfd", "eventfd2", "execve", "execveat", "exit", "exit_group", "faccessat",
    "faccessat2", "fadvise64", "fallocate", "fanotify_mark", "fchdir", "fchmod", "fchmodat",
    "fchmodat2", "fchown", "fchownat", "fcntl", "fdatasync", "fgetxattr", "flistxattr", "flock",
    "fork", "fremovexattr", "fsetxattr", "fstat", "fstatfs", "fsync", "ftruncate", "futex",
    "futex_requeue", "futex_wait", "futex_waitv", "futex_wake", "futimesat", "get_robust_list",
    "getcpu", "getcwd", "getdents", "getdents64", "getegid", "geteuid", "getgid", "getgroups",
    "getitimer", "getpeername", "getpgid", "getpgrp", "getpid", "getppid", "getpriority",
    "getrandom", "getresgid", "getresuid", "getrlimit", "getrusage", "getsid", "getsockname",
    "getsockopt", "gettid", "gettimeofday", "getuid", "getxattr", "getxattrat", "inotify_add_watch",
    "inotify_init", "inotify_init1", "inotify_rm_watch", "io_cancel", "io_destroy", "io_getevents",
    "io_pgetevents", "io_setup", "io_submit", "ioctl", "ioprio_get", "ioprio_set", "kill",
    "landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self", "lchown", "lgetxattr",
    "link", "linkat", "listen", "listmount", "listxattr", "listxattrat", "llistxattr",
    "lremovexattr", "lseek", "lsetxattr", "lstat", "madvise", "map_shadow_stack", "membarrier",
    "memfd_create", "memfd_secret", "mincore", "mkdir", "mkdirat", "mknod", "mknodat", "mlock",
    "mlock2", "mlockall", "mmap", "modify_ldt", "mprotect", "mq_getsetattr", "mq_notify", "mq_open",
    "mq_timedreceive", "mq_timedsend", "mq_unlink", "mremap", "mseal", "msgctl", "msgget", "msgrcv",
    "msgsnd", "msync", "munlock", "munlockall", "munmap", "name_to_handle_at", "nanosleep",
    "newfstatat", "open", "openat", "openat2", "pause", "pidfd_open", "pidfd_send_signal", "pipe",
    "pipe2", "pkey_alloc", "pkey_free", "pkey_mprotect", "poll", "ppoll", "prctl", "pread64",
    "preadv", "preadv2", "prlimit64", "process_mrelease", "process_vm_readv", "process_vm_writev",
    "pselect6", "ptrace", "pwrite64", "pwritev", "pwritev2", "read", "readahead", "readlink",
    "readlinkat", "readv", "recvfrom", "recvmmsg", "recvmsg", "remap_file_pages", "removexattr",
    "removexattrat", "rename", "renameat", "renameat2", "restart_syscall", "rmdir", "rseq",
    "rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigqueueinfo", "rt_sigreturn",
    "rt_sigsuspend", "rt_sigtimedwait", "rt_tgsigqueueinfo", "sched_get_priority_max",
    "sched_get_priority_min", "sched_getaffinity", "sched_getattr", "sched_getparam",
    "sched_getscheduler", "sched_rr_get_interval", "sched_setaffinity", "sched_setattr",
    "sched_setparam", "sched_setscheduler", "sched_yield", "seccomp", "select", "semctl", "semget",
    "semop", "semtimedop", "sendfile", "sendmmsg", "sendmsg", "sendto", "set_robust_list",
    "set_tid_address", "setfsgid", "setfsuid", "setgid", "setgroups", "setitimer", "setpgid",
    "setpriority", "setregid", "setresgid", "setresuid", "setreuid", "setrlimit", "setsid",
    "setsockopt", "setuid", "setxattr", "setxattrat", "shmat", "shmctl", "shmdt", "shmget",
    "shutdown", "sigaltstack", "signalfd", "signalfd4", "splice", "stat", "statfs", "statmount",
    "statx", "symlink", "symlinkat", "sync", "sync_file_range", "syncfs", "sysinfo", "tee",
    "tgkill", "time", "timer_create", "timer_delete", "timer_getoverrun", "timer_gettime",
    "timer_settime", "timerfd_create", "timerfd_gettime", "timerfd_settime", "times", "tkill",
    "truncate", "umask", "uname", "unlink", "unlinkat", "utime", "utimensat", "utimes", "vfork",
    "vmsplice", "wait4", "waitid", "write", "writev",
];

/// Allowed to those who have the capability.
#[rustfmt::skip]
const BY_CAPABILITY: [(&str, &[&str]); 14] = [
    ("CAP_BPF", &["bpf"]),
    ("CAP_DAC_READ_SEARCH", &["open_by_handle_at"]),
    ("CAP_PERFMON", &["perf_event_open"]),
    ("CAP_SYS_ADMIN", &[
        "bpf", "clone", "clone3", "fanotify_init", "fsconfig", "fsmount", "fsopen", "fspick", "lookup_dcookie",
        "lsm_get_self_attr", "lsm_list_modules", "lsm_set_self_attr", "mount", "mount_setattr", "move_mount",
        "open_tree", "open_tree_attr", "perf_event_open", "pivot_root", "quotactl", "quotactl_fd", "setdomainname",
        "sethostname", "setns", "syslog", "umount2", "unshare",
    ]),
    ("CAP_SYS_BOOT", &["reboot"]),
    ("CAP_SYS_CHROOT", &["chroot"]),
    ("CAP_SYS_MODULE", &["delete_module", "finit_module", "init_module"]),
    ("CAP_SYS_NICE", &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    ("CAP_SYS_PACCT", &["acct"]),
    ("CAP_SYS_PTRACE", &["kcmp", "pidfd_getfd", "process_madvise"]),
    ("CAP_SYS_RAWIO", &["ioperm", "iopl"]),
    ("CAP_SYS_TIME", &["clock_settime", "settimeofday"]),
    ("CAP_SYS_TTY_CONFIG", &["vhangup"]),
    ("CAP_SYSLOG", &["syslog"]),
];

/// Flags of clone(2) that make namespaces: mount, cgroup, UTS, IPC, user, PID, network.
const NEW_NAMESPACES: u64 =
    0x0002_0000 | 0x0200_0000 | 0x0400_0000 | 0x0800_0000 | 0x1000_0000 | 0x2000_0000 | 0x4000_0000;

/// The first address family that no container may use, the kernel's cryptography (AF_ALG); families
/// before it may be used.
const FIRST_REFUSED_FAMILY: u64 = 38;

/// Families after it that may be used: NFC, KCM, QIPCRTR, SMC, XDP, MCTP. Not 40, AF_VSOCK: at its
/// other end is the host.
const LATER_FAMILIES: [u64; 6] = [39, 41, 42, 43, 44, 45];

/// Execution domains of personality(2): Linux, with uname26, with a legacy address layout, both,
/// and the question which one it is.
const PERSONALITIES: [u64; 5] = [0, 0x0008, 0x0002_0000, 0x0002_0008, 0xffff_ffff];

fn default(capabilities: &[&str]) -> Profile {
    let allow = |names, args| Rule { names, action: ALLOW, errno_ret: None, args };
    // A kernel takes the lower half of such an argument, a filter sees both: exact values only, so
    // that nothing hides in the upper one.
    let exactly = |value| Some([Argument { index: 0, op: "SCMP_CMP_EQ", value, value_two: None }]);
    let mut rules = vec![allow(ALWAYS, None)];
    let family = Argument { index: 0, op: "SCMP_CMP_LT", value: FIRST_REFUSED_FAMILY, value_two: None };
    rules.push(allow(&["socket", "socketpair"], Some([family])));
    rules.extend(LATER_FAMILIES.map(|family| allow(&["socket"], exactly(family))));
    rules.extend(PERSONALITIES.map(|personality| allow(&["personality"], exactly(personality))));
    let having = BY_CAPABILITY.iter().filter(|(capability, _)| capabilities.contains(capability));
    rules.extend(having.map(|(_, names)| allow(names, None)));
    if !capabilities.contains(&"CAP_SYS_ADMIN") {
        let none = Argument { index: 0, op: "SCMP_CMP_MASKED_EQ", value: NEW_NAMESPACES, value_two: Some(0) };
        rules.push(allow(&["clone"], Some([none])));
        // Its flags are in memory, where no filter looks: C libraries take the answer for an old
        // kernel's and call clone.
        rules.push(Rule { names: &["clone3"], action: ERRNO, errno_ret: Some(ENOSYS), args: None });
    }
    Profile { default_action: ERRNO, syscalls: rules }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxSeccompAction as Action, LinuxSeccompOperator as Operator};

    use super::*;
    use crate::spec::Capabilities;

    fn parsed(capabilities: &[&str]) -> LinuxSeccomp {
        let filter = Seccomp::Default.filter(capabilities).unwrap();
        serde_json::from_slice(&serde_json::to_vec(&filter).unwrap()).unwrap()
    }

    /// What the first rule that matches says, as the agent decides.
    fn decides(profile: &LinuxSeccomp, name: &str, first: u64) -> (Action, Option<u32>) {
        let rule = profile.syscalls().iter().flatten().find(|rule| {
            rule.names().iter().any(|one| one == name)
                && rule.args().iter().flatten().all(|arg| match arg.op() {
                    Operator::ScmpCmpEq => first == arg.value(),
                    Operator::ScmpCmpLt => first < arg.value(),
                    Operator::ScmpCmpMaskedEq => Some(first & arg.value()) == arg.value_two(),
                    other => panic!("{other:?}"),
                })
        });
        rule.map_or((profile.default_action(), profile.default_errno_ret()), |rule| {
            (rule.action(), rule.errno_ret())
        })
    }

    #[test]
    fn the_default_refuses_what_leads_out_and_allows_the_rest() {
        let refused = (Action::ScmpActErrno, None);
        let allowed = (Action::ScmpActAllow, None);
        let usual = parsed(&Capabilities::default().names());
        let mighty = parsed(
            &[&Capabilities::default().names()[..], &["CAP_SYS_ADMIN", "CAP_BPF", "CAP_PERFMON"]].concat(),
        );
        for (name, first, by_usual, by_mighty) in [
            ("openat", 0, allowed, allowed),
            ("ptrace", 0, allowed, allowed),
            ("chroot", 0, allowed, allowed),
            ("socket", 2, allowed, allowed),
            ("socket", 16, allowed, allowed),
            ("socket", 38, refused, refused),
            ("socket", 40, refused, refused),
            ("socket", 40 | 1 << 32, refused, refused),
            ("socketpair", 1, allowed, allowed),
            ("socketpair", 40, refused, refused),
            ("io_uring_setup", 0, refused, refused),
            ("io_uring_enter", 0, refused, refused),
            ("io_uring_register", 0, refused, refused),
            ("userfaultfd", 0, refused, refused),
            ("keyctl", 0, refused, refused),
            ("add_key", 0, refused, refused),
            ("request_key", 0, refused, refused),
            ("kexec_load", 0, refused, refused),
            ("no_such_call", 0, refused, refused),
            ("unshare", 0x1000_0000, refused, allowed),
            ("setns", 0, refused, allowed),
            ("mount", 0, refused, allowed),
            ("bpf", 0, refused, allowed),
            ("perf_event_open", 0, refused, allowed),
            ("clone", 17, allowed, allowed),
            ("clone", 17 | 0x1000_0000, refused, allowed),
            ("clone", 17 | 0x0002_0000, refused, allowed),
            ("clone3", 0, (Action::ScmpActErrno, Some(38)), allowed),
            ("personality", 0, allowed, allowed),
            ("personality", 0xffff_ffff, allowed, allowed),
            ("personality", 0x0004_0000, refused, refused),
        ] {
            assert_eq!(decides(&usual, name, first), by_usual, "{name} {first:#x}");
            assert_eq!(decides(&mighty, name, first), by_mighty, "{name} {first:#x} with CAP_SYS_ADMIN");
        }
    }

    /// The agent's own tests run programs under it.
    #[test]
    fn the_agents_tests_have_the_default_of_today() {
        let theirs = include_str!("../../../../guest-agent/agent/tests/containers/default-seccomp.json");
        let theirs: Value = serde_json::from_str(theirs).unwrap();
        let ours = serde_json::to_value(Seccomp::Default.filter(&Capabilities::default().names())).unwrap();
        assert_eq!(theirs, ours, "the file should be:\n{ours}\n");
    }

    #[test]
    fn profiles_of_others_are_understood() {
        let text = r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": null}],
            "syscalls": [
                {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW", "args": [], "comment": "", "includes": {}, "excludes": {}},
                {"name": "mount", "action": "SCMP_ACT_ALLOW", "args": null, "includes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["swapcontext"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["ppc64le"]}},
                {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}}]}"#;
        let of = |capabilities: &[&str]| match Seccomp::from_json(text, capabilities).unwrap() {
            Seccomp::Profile(profile) => profile,
            other => panic!("{other:?}"),
        };
        let (usual, mighty) = (of(&Capabilities::default().names()), of(&["CAP_SYS_ADMIN"]));
        for (name, by_usual, by_mighty) in [
            ("read", (Action::ScmpActAllow, None), (Action::ScmpActAllow, None)),
            ("mount", (Action::ScmpActErrno, Some(1)), (Action::ScmpActAllow, None)),
            ("clone3", (Action::ScmpActErrno, Some(38)), (Action::ScmpActErrno, Some(1))),
            ("swapcontext", (Action::ScmpActErrno, Some(1)), (Action::ScmpActErrno, Some(1))),
            ("ptrace", (Action::ScmpActAllow, None), (Action::ScmpActAllow, None)),
        ] {
            assert_eq!(
                (decides(&usual, name, 0), decides(&mighty, name, 0)),
                (by_usual, by_mighty),
                "{name}"
            );
        }
        for bad in [
            "",
            "{}",
            "[]",
            r#"{"defaultAction": "MAYBE"}"#,
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{}]}"#,
        ] {
            assert!(Seccomp::from_json(bad, &[]).is_err(), "{bad}");
        }
    }

    #[test]
    fn options_as_docker_spells_them() {
        assert_eq!("seccomp=unconfined".parse(), Ok(SecurityOption::Unconfined));
        assert_eq!("seccomp=./p.json".parse(), Ok(SecurityOption::Profile("./p.json".to_owned())));
        for bad in
            ["", "seccomp", "seccomp=", "apparmor=unconfined", "no-new-privileges", "seccomp:unconfined"]
        {
            let error = bad.parse::<SecurityOption>().unwrap_err().to_string();
            assert!(error.contains("seccomp=unconfined") && error.contains(bad), "{error}");
        }
        assert!(Seccomp::Unconfined.filter(&[]).is_none());
    }
}
