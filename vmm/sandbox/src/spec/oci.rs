//! The OCI runtime specification of a container: docker's defaults, written as data.
//!
//! Written straight from these structures: as a tree of JSON values it took four times as long,
//! between the guest's word that it is ready and the first request.

use serde::Serialize;

use super::seccomp::Filter;
use super::{ContainerSpec, ProcessSpec};

/// Docker's default capabilities: what images are written for.
pub const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// `process`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Process<'a> {
    terminal: bool,
    user: User,
    args: &'a [String],
    env: &'a [String],
    cwd: &'a str,
    capabilities: Capabilities,
    no_new_privileges: bool,
}

#[derive(Debug, Serialize)]
struct User {
    uid: u32,
    gid: u32,
}

#[derive(Debug, Serialize)]
struct Capabilities {
    bounding: [&'static str; 14],
    effective: [&'static str; 14],
    permitted: [&'static str; 14],
}

/// `config.json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Container<'a> {
    oci_version: &'static str,
    process: Process<'a>,
    root: Root,
    hostname: &'a str,
    mounts: Vec<Mount<'a>>,
    linux: Linux<'a>,
}

#[derive(Debug, Serialize)]
struct Root {
    path: &'static str,
    readonly: bool,
}

#[derive(Debug, Serialize)]
struct Mount<'a> {
    destination: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    source: &'static str,
    options: Vec<&'a str>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Linux<'a> {
    namespaces: [Namespace; 6],
    resources: Resources,
    sysctl: Sysctl,
    masked_paths: [&'static str; 12],
    readonly_paths: [&'static str; 5],
    #[serde(skip_serializing_if = "Option::is_none")]
    seccomp: Option<Filter<'a>>,
}

#[derive(Debug, Serialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: &'static str,
}

/// What any user of a container may do in its network, as under docker: nobody else's ports are
/// there.
#[derive(Debug, Serialize)]
struct Sysctl {
    #[serde(rename = "net.ipv4.ip_unprivileged_port_start")]
    unprivileged_port_start: &'static str,
    #[serde(rename = "net.ipv4.ping_group_range")]
    ping_group_range: &'static str,
}

#[derive(Debug, Serialize)]
struct Resources {
    devices: [DeviceRule; 12],
}

/// A number that is absent means all.
#[derive(Debug, Serialize)]
struct DeviceRule {
    allow: bool,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    major: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    minor: Option<u32>,
    access: &'static str,
}

/// The `process` object of `process`; also what an exec sends.
#[must_use]
pub fn process(process: &ProcessSpec) -> Process<'_> {
    Process {
        terminal: process.terminal,
        user: User { uid: 0, gid: 0 },
        args: &process.args,
        env: &process.env,
        cwd: &process.cwd,
        capabilities: Capabilities {
            bounding: CAPABILITIES,
            effective: CAPABILITIES,
            permitted: CAPABILITIES,
        },
        no_new_privileges: false,
    }
}

/// The whole `config.json` of `container`.
#[must_use]
pub fn container(container: &ContainerSpec) -> Container<'_> {
    Container {
        oci_version: "1.2.0",
        process: process(&container.process),
        root: Root { path: "rootfs", readonly: container.read_only },
        hostname: &container.hostname,
        mounts: mounts(container),
        linux: Linux {
            namespaces: ["pid", "mount", "ipc", "uts", "network", "cgroup"].map(|kind| Namespace { kind }),
            resources: Resources { devices: devices() },
            sysctl: Sysctl { unprivileged_port_start: "0", ping_group_range: "0 2147483647" },
            masked_paths: MASKED,
            readonly_paths: READ_ONLY,
            seccomp: container.seccomp.filter(&CAPABILITIES),
        },
    }
}

/// The agent gives a size to each file system in memory that says none: it knows how much there is
/// for all of them.
fn mounts(container: &ContainerSpec) -> Vec<Mount<'_>> {
    let fixed = |destination, kind, source, options: &[&'static str]| Mount {
        destination,
        kind,
        source,
        options: options.to_vec(),
    };
    let mut mounts = vec![
        fixed("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        fixed("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755"]),
        fixed(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        fixed("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777"]),
        fixed("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        fixed("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        fixed("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ];
    mounts.extend(container.tmpfs.iter().map(|tmpfs| Mount {
        destination: &tmpfs.path,
        kind: "tmpfs",
        source: "tmpfs",
        options: ["nosuid", "nodev"].into_iter().chain(tmpfs.options.iter().map(String::as_str)).collect(),
    }));
    mounts
}

/// Everything denied, then docker's list: making nodes, the standard devices, terminals, and no
/// disk. Not the console (5:1): here that is the machine's, on which the kernel's last words are
/// believed; a container with a terminal has that one at /dev/console.
fn devices() -> [DeviceRule; 12] {
    let allow =
        |kind, major, minor, access| DeviceRule { allow: true, kind: Some(kind), major, minor, access };
    [
        DeviceRule { allow: false, kind: None, major: None, minor: None, access: "rwm" },
        allow("c", None, None, "m"),
        allow("b", None, None, "m"),
        allow("c", Some(1), Some(3), "rwm"),
        allow("c", Some(1), Some(5), "rwm"),
        allow("c", Some(1), Some(7), "rwm"),
        allow("c", Some(1), Some(8), "rwm"),
        allow("c", Some(1), Some(9), "rwm"),
        allow("c", Some(5), Some(0), "rwm"),
        allow("c", Some(5), Some(2), "rwm"),
        allow("c", Some(136), None, "rwm"),
        allow("c", Some(10), Some(200), "rwm"),
    ]
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::Spec;

    use super::*;
    use crate::spec::{Seccomp, Tmpfs};

    #[test]
    fn the_specification_parses_and_says_what_was_asked() {
        let process = ProcessSpec {
            args: vec!["sh".into()],
            env: vec!["A=1".into()],
            cwd: "/srv".into(),
            terminal: true,
            ..ProcessSpec::default()
        };
        let spec = ContainerSpec {
            read_only: true,
            tmpfs: vec![Tmpfs { path: "/cache".into(), options: vec!["size=1m".into()] }],
            ..ContainerSpec::new(process, "box")
        };
        let parsed: Spec = serde_json::from_slice(&serde_json::to_vec(&container(&spec)).unwrap()).unwrap();
        let process = parsed.process().as_ref().unwrap();
        assert_eq!(process.args().as_deref(), Some(&["sh".to_owned()][..]));
        assert_eq!(process.terminal(), Some(true));
        assert_eq!(parsed.root().as_ref().unwrap().readonly(), Some(true));
        let mounts = parsed.mounts().as_ref().unwrap();
        let last = mounts.last().unwrap();
        assert_eq!(last.destination().to_str(), Some("/cache"));
        assert_eq!(last.options().as_deref().unwrap().last().unwrap(), "size=1m");
        let linux = parsed.linux().as_ref().unwrap();
        assert_eq!(linux.namespaces().as_ref().unwrap().len(), 6);
        let rules = linux.resources().as_ref().unwrap().devices().as_ref().unwrap();
        assert!(!rules[0].allow() && rules[1..].iter().all(oci_spec::runtime::LinuxDeviceCgroup::allow));
        assert!(
            rules.iter().all(|rule| (rule.major(), rule.minor()) != (Some(5), Some(1))),
            "the machine's console"
        );
        let sysctl = linux.sysctl().as_ref().unwrap();
        assert_eq!(sysctl["net.ipv4.ip_unprivileged_port_start"], "0");
        assert_eq!(sysctl["net.ipv4.ping_group_range"], "0 2147483647");
        let confined = linux.seccomp().is_some();
        let spec = ContainerSpec { seccomp: Seccomp::Unconfined, ..spec };
        let parsed: Spec = serde_json::from_slice(&serde_json::to_vec(&container(&spec)).unwrap()).unwrap();
        assert!(confined && parsed.linux().as_ref().unwrap().seccomp().is_none());
    }
}
