//! The OCI runtime specification of a container: docker's defaults, written as data.
//!
//! Written straight from these structures: as a tree of JSON values it took four times as long,
//! between the guest's word that it is ready and the first request.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use super::rights::Limit;
use super::seccomp::Filter;
use super::{ContainerOptions, ContainerSpec, ProcessSpec};

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
    capabilities: CapabilitySets,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    rlimits: &'a [Limit],
    no_new_privileges: bool,
}

#[derive(Debug, Serialize)]
struct User {
    uid: u32,
    gid: u32,
}

#[derive(Debug, Serialize)]
struct CapabilitySets {
    bounding: Vec<&'static str>,
    effective: Vec<&'static str>,
    permitted: Vec<&'static str>,
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
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
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
    options: Vec<Cow<'a, str>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Linux<'a> {
    namespaces: Vec<Namespace>,
    resources: Resources,
    sysctl: Sysctls<'a>,
    masked_paths: &'static [&'static str],
    readonly_paths: &'static [&'static str],
    #[serde(skip_serializing_if = "Option::is_none")]
    seccomp: Option<Filter<'a>>,
}

#[derive(Debug, Serialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
}

/// A namespace of the container's own, or that of the process whose network and IPC it shares;
/// `None`: that of the machine.
fn namespace(kind: &'static str, container: &ContainerSpec) -> Option<Namespace> {
    let file = match kind {
        "network" => Some("net"),
        "ipc" => Some("ipc"),
        _ => None,
    };
    let shared = container.shares_with.zip(file);
    if kind == "network" && shared.is_none() && container.in_machine_network {
        return None;
    }
    Some(Namespace { kind, path: shared.map(|(process, file)| format!("/proc/{process}/ns/{file}")) })
}

/// Kernel parameters, each once.
#[derive(Debug)]
struct Sysctls<'a>(Vec<(&'a str, &'a str)>);

impl Serialize for Sysctls<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().copied())
    }
}

/// What any user of a container may do in its network, as under docker: nobody else's ports are
/// there.
const SYSCTLS: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];

#[derive(Debug, Serialize)]
struct Resources {
    devices: Vec<DeviceRule>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<Memory>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pids: Option<Pids>,
}

#[derive(Debug, Serialize)]
struct Memory {
    limit: u64,
}

#[derive(Debug, Serialize)]
struct Pids {
    limit: u32,
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
    let names = process.rights.capabilities.names();
    Process {
        terminal: process.terminal,
        user: User { uid: 0, gid: 0 },
        args: &process.args,
        env: &process.env,
        cwd: &process.cwd,
        capabilities: CapabilitySets { bounding: names.clone(), effective: names.clone(), permitted: names },
        rlimits: &process.rights.limits,
        no_new_privileges: false,
    }
}

/// The whole `config.json` of `container`.
#[must_use]
pub fn container(container: &ContainerSpec) -> Container<'_> {
    let options = &container.options;
    Container {
        oci_version: "1.2.0",
        process: process(&container.process),
        root: Root { path: "rootfs", readonly: container.read_only },
        hostname: &container.hostname,
        mounts: mounts(container),
        linux: Linux {
            namespaces: ["pid", "mount", "ipc", "uts", "network", "cgroup"]
                .into_iter()
                .filter_map(|kind| namespace(kind, container))
                .collect(),
            resources: Resources {
                devices: devices(options.privileged),
                memory: options.memory_limit.map(|limit| Memory { limit }),
                pids: options.pids_limit.map(|limit| Pids { limit }),
            },
            sysctl: Sysctls(sysctls(options)),
            masked_paths: if options.privileged { &[] } else { &MASKED },
            readonly_paths: if options.privileged { &[] } else { &READ_ONLY },
            seccomp: container.seccomp.filter(&container.process.rights.capabilities.names()),
        },
        annotations: &options.annotations,
    }
}

fn sysctls(options: &ContainerOptions) -> Vec<(&str, &str)> {
    let usual = SYSCTLS.into_iter().filter(|(name, _)| !options.sysctls.contains_key(*name));
    usual.chain(options.sysctls.iter().map(|(name, value)| (name.as_str(), value.as_str()))).collect()
}

/// The agent gives a size to each file system in memory that says none: it knows how much there is
/// for all of them.
fn mounts(container: &ContainerSpec) -> Vec<Mount<'_>> {
    let options = &container.options;
    let fixed = |destination, kind, source, options: &[&'static str]| Mount {
        destination,
        kind,
        source,
        options: options.iter().copied().map(Cow::Borrowed).collect(),
    };
    // Those of the kernel, which a container with all rights may write.
    let of_kernel = |destination, kind, words: &[&'static str]| {
        let read_only = Some("ro").filter(|_| !options.privileged);
        fixed(destination, kind, kind, &words.iter().copied().chain(read_only).collect::<Vec<_>>())
    };
    let mut mounts = vec![
        fixed("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        if options.privileged {
            // The guest's own, in which every device of the machine is.
            fixed("/dev", "bind", "/dev", &["bind", "nosuid"])
        } else {
            fixed("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755"])
        },
        fixed(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        fixed("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777"]),
        fixed("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        of_kernel("/sys", "sysfs", &["nosuid", "noexec", "nodev"]),
        of_kernel("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime"]),
    ];
    if let (Some(bytes), Some(shm)) =
        (options.shm_bytes, mounts.iter_mut().find(|mount| mount.destination == "/dev/shm"))
    {
        shm.options.push(format!("size={bytes}").into());
    }
    let own = |option| Cow::Borrowed(option);
    mounts.extend(
        container.tmpfs.iter().map(|tmpfs| Mount {
            destination: &tmpfs.path,
            kind: "tmpfs",
            source: "tmpfs",
            options: ["nosuid", "nodev"]
                .into_iter()
                .chain(tmpfs.options.iter().map(String::as_str))
                .map(own)
                .collect(),
        }),
    );
    mounts
}

/// Everything denied, then docker's list: making nodes, the standard devices, terminals, and no
/// disk. Not the console (5:1): here that is the machine's, on which the kernel's last words are
/// believed; a container with a terminal has that one at /dev/console. A privileged one has all.
fn devices(privileged: bool) -> Vec<DeviceRule> {
    if privileged {
        return vec![DeviceRule { allow: true, kind: None, major: None, minor: None, access: "rwm" }];
    }
    let allow =
        |kind, major, minor, access| DeviceRule { allow: true, kind: Some(kind), major, minor, access };
    vec![
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

    use serde_json::json;

    use super::*;
    use crate::spec::{Capabilities, Seccomp, Tmpfs};

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

    #[test]
    fn what_flags_ask_for_is_there() {
        let mut spec =
            ContainerSpec::new(ProcessSpec { args: vec!["sh".into()], ..ProcessSpec::default() }, "box");
        let usual = serde_json::to_value(container(&spec)).unwrap();
        assert_eq!((usual["process"].get("rlimits"), usual.get("annotations")), (None, None));
        assert_eq!(usual["linux"]["resources"].get("pids"), None);
        spec.process.rights.limits = vec!["nofile=5:6".parse().unwrap()];
        spec.process.rights.capabilities =
            Capabilities::changed(&["SYS_ADMIN".into()], &["ALL".into()]).unwrap();
        spec.options = ContainerOptions {
            shm_bytes: Some(1 << 20),
            pids_limit: Some(9),
            annotations: [("org.example.a".to_owned(), "b".to_owned())].into(),
            sysctls: [
                ("net.ipv4.ping_group_range".into(), "1 0".into()),
                ("kernel.msgmax".into(), "7".into()),
            ]
            .into(),
            ..ContainerOptions::default()
        };
        let asked = serde_json::to_value(container(&spec)).unwrap();
        let (process, linux) = (&asked["process"], &asked["linux"]);
        assert_eq!(process["rlimits"], json!([{"type": "RLIMIT_NOFILE", "soft": 5, "hard": 6}]));
        for set in ["bounding", "effective", "permitted"] {
            assert_eq!(process["capabilities"][set], json!(["CAP_SYS_ADMIN"]));
        }
        assert_eq!(linux["resources"]["pids"], json!({"limit": 9}));
        assert_eq!(asked["annotations"], json!({"org.example.a": "b"}));
        let sysctls = json!({"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "1 0", "kernel.msgmax": "7"});
        assert_eq!(linux["sysctl"], sysctls);
        let mounts = asked["mounts"].as_array().unwrap();
        let shm = mounts.iter().find(|mount| mount["destination"] == "/dev/shm").unwrap();
        assert_eq!(shm["options"].as_array().unwrap().last().unwrap(), "size=1048576");
        // The filter follows the capabilities.
        let allowed = |value: &serde_json::Value| value["linux"]["seccomp"].to_string().contains("\"mount\"");
        assert!(allowed(&asked) && !allowed(&usual));
    }

    #[test]
    fn a_container_shares_the_network_and_ipc_of_a_process() {
        let mut spec =
            ContainerSpec::new(ProcessSpec { args: vec!["sh".into()], ..ProcessSpec::default() }, "box");
        spec.shares_with = Some(7);
        for in_machine_network in [false, true] {
            spec.in_machine_network = in_machine_network;
            let shared = serde_json::to_value(container(&spec)).unwrap();
            assert_eq!(
                shared["linux"]["namespaces"],
                json!([{"type": "pid"}, {"type": "mount"}, {"type": "ipc", "path": "/proc/7/ns/ipc"},
                    {"type": "uts"}, {"type": "network", "path": "/proc/7/ns/net"}, {"type": "cgroup"}])
            );
        }
        spec.shares_with = None;
        let in_machine = serde_json::to_value(container(&spec)).unwrap();
        assert_eq!(
            in_machine["linux"]["namespaces"],
            json!([{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "cgroup"}])
        );
    }

    #[test]
    fn a_privileged_container_has_all_of_the_machine() {
        let mut spec =
            ContainerSpec::new(ProcessSpec { args: vec!["sh".into()], ..ProcessSpec::default() }, "box");
        spec.options.privileged = true;
        let spec = serde_json::to_value(container(&spec)).unwrap();
        assert_eq!(spec["linux"]["resources"]["devices"], json!([{"allow": true, "access": "rwm"}]));
        assert_eq!(
            (&spec["linux"]["maskedPaths"], &spec["linux"]["readonlyPaths"]),
            (&json!([]), &json!([]))
        );
        let text = spec["mounts"].to_string();
        assert!(!text.contains("\"ro\"") && text.contains("\"source\":\"/dev\""), "{text}");
    }
}
