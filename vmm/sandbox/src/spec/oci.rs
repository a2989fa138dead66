//! The OCI runtime specification of a container: docker's defaults, written as data.

use serde_json::{Value, json};

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

/// The `process` object of `process`; also what an exec sends.
#[must_use]
pub fn process(process: &ProcessSpec) -> Value {
    json!({
        "terminal": process.terminal,
        "user": { "uid": 0, "gid": 0 },
        "args": process.args,
        "env": process.env,
        "cwd": process.cwd,
        "capabilities": {
            "bounding": CAPABILITIES,
            "effective": CAPABILITIES,
            "permitted": CAPABILITIES,
        },
        "noNewPrivileges": false,
    })
}

/// The whole `config.json` of `container`.
#[must_use]
pub fn container(container: &ContainerSpec) -> Value {
    json!({
        "ociVersion": "1.2.0",
        "process": process(&container.process),
        "root": { "path": "rootfs", "readonly": container.read_only },
        "hostname": container.hostname,
        "mounts": mounts(container),
        "linux": {
            "namespaces": [
                { "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" },
                { "type": "network" }, { "type": "cgroup" },
            ],
            "resources": { "devices": devices() },
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/firmware",
                "/sys/devices/virtual/powercap",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

fn mounts(container: &ContainerSpec) -> Value {
    let mut mounts = vec![
        json!({ "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] }),
        json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] }),
        json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] }),
        json!({ "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] }),
        json!({ "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
                "options": ["nosuid", "noexec", "nodev"] }),
        json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs",
                "options": ["nosuid", "noexec", "nodev", "ro"] }),
        json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                "options": ["nosuid", "noexec", "nodev", "relatime", "ro"] }),
    ];
    mounts.extend(container.tmpfs.iter().map(|tmpfs| {
        let defaults = ["nosuid", "nodev"].map(str::to_owned);
        let options: Vec<String> = defaults.into_iter().chain(tmpfs.options.iter().cloned()).collect();
        json!({ "destination": tmpfs.path, "type": "tmpfs", "source": "tmpfs", "options": options })
    }));
    Value::Array(mounts)
}

/// Everything denied, then docker's list: making nodes, the standard devices, terminals, and no disk.
fn devices() -> Value {
    let allow = |kind: &str, major: Option<u32>, minor: Option<u32>, access: &str| {
        let mut rule = json!({ "allow": true, "type": kind, "access": access });
        for (key, number) in [("major", major), ("minor", minor)] {
            if let Some(number) = number {
                rule[key] = number.into();
            }
        }
        rule
    };
    json!([
        { "allow": false, "access": "rwm" },
        allow("c", None, None, "m"),
        allow("b", None, None, "m"),
        allow("c", Some(1), Some(3), "rwm"),
        allow("c", Some(1), Some(5), "rwm"),
        allow("c", Some(1), Some(7), "rwm"),
        allow("c", Some(1), Some(8), "rwm"),
        allow("c", Some(1), Some(9), "rwm"),
        allow("c", Some(5), Some(0), "rwm"),
        allow("c", Some(5), Some(1), "rwm"),
        allow("c", Some(5), Some(2), "rwm"),
        allow("c", Some(136), None, "rwm"),
        allow("c", Some(10), Some(200), "rwm"),
    ])
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::Spec;

    use super::*;
    use crate::spec::Tmpfs;

    #[test]
    fn the_specification_parses_and_says_what_was_asked() {
        let spec = ContainerSpec {
            process: ProcessSpec {
                args: vec!["sh".into()],
                env: vec!["A=1".into()],
                cwd: "/srv".into(),
                terminal: true,
                ..ProcessSpec::default()
            },
            hostname: "box".into(),
            read_only: true,
            tmpfs: vec![Tmpfs { path: "/cache".into(), options: vec!["size=1m".into()] }],
            upper_bytes: 0,
        };
        let parsed: Spec = serde_json::from_value(container(&spec)).unwrap();
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
    }
}
