//! The variables of the Hydra scripts, and what was decided for each.
//!
//! `names.txt` holds the names that the scripts have read in any of their versions. A test fails on
//! one of them that has no decision here.

/// A variable of the scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// Its value when neither the environment nor a profile has one; empty: none. `ARCH` in it is
    /// the architecture as Debian calls it, `PREFIX` is `DEFAULT_NETWORK_PREFIX`.
    pub default: &'static str,
    /// What it does.
    pub decision: Decision,
}

/// What a variable does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It says this setting, or a part of it: a key of [`crate::Machine::rows`].
    Sets(&'static str),
    /// It has no meaning for a machine of Nelly, for this reason.
    Nothing(&'static str),
    /// What it asks for is not possible yet: this is how it is instead.
    Later(&'static str),
}

impl Decision {
    /// Why a variable that is set does nothing.
    #[must_use]
    pub fn reason(&self) -> Option<&'static str> {
        match self {
            Self::Sets(_) => None,
            Self::Nothing(reason) | Self::Later(reason) => Some(reason),
        }
    }
}

const fn sets(name: &'static str, default: &'static str, key: &'static str) -> Variable {
    Variable { name, default, decision: Decision::Sets(key) }
}

const fn nothing(name: &'static str, default: &'static str, reason: &'static str) -> Variable {
    Variable { name, default, decision: Decision::Nothing(reason) }
}

const fn later(name: &'static str, default: &'static str, reason: &'static str) -> Variable {
    Variable { name, default, decision: Decision::Later(reason) }
}

const FIRMWARE: &str = "the kernel is booted without firmware";
const SHARED_MEMORY: &str = "a machine has no memory that it shares with others";
const GPU: &str = "a machine has no GPU";
const MONITOR: &str = "Nelly's own monitor runs the machine, on each host";
const GVPROXY: &str = "the network is Nelly's own, and needs no gvproxy";

/// All variables, by name.
pub const VARIABLES: &[Variable] = &[
    sets("ADDITIONAL_9P_MOUNTS", "", "shares"),
    sets("ADDITIONAL_KERNEL_COMMANDLINE", "", "append"),
    nothing(
        "ALWAYS_REUSE_DISK_IMAGE",
        "0",
        "a changed setting never discards the disk: it is a new instance to cloud-init, on the same disk",
    ),
    nothing(
        "COPY_IMAGE_BACKUP",
        "0",
        "the image is never written: what the machine writes is in a disk of its own, which can be removed to begin anew",
    ),
    sets("DEBUG", "0", "debug"),
    nothing("DEFAULT_CSI_GRPC_PROXY_URL", "", "systemd's own proxy leads to containerd in the guest"),
    sets("DEFAULT_DEVICE_IP", "PREFIX.15", "device_ip"),
    sets("DEFAULT_DIR_IMAGE", "image", "directory"),
    sets("DEFAULT_DIR_K3S_VAR_DARWIN", "k3s-var", "shares"),
    sets("DEFAULT_DIR_K3S_VAR_LINUX_NON_ROOT", "k3s-var", "shares"),
    sets("DEFAULT_DIR_K3S_VAR_LINUX_ROOT", "", "shares"),
    sets("DEFAULT_DIR_K3S_VAR_OTHER", "k3s-var", "shares"),
    nothing("DEFAULT_DIR_TMP_SOCKET", "", "a machine makes no sockets in the file system"),
    sets("DEFAULT_DNS_IP", "PREFIX.3", "dns_ip"),
    sets("DEFAULT_GATEWAY_IP", "PREFIX.2", "gateway_ip"),
    nothing("DEFAULT_GVPROXY", "", GVPROXY),
    sets("DEFAULT_IMAGE", "debian-12-genericcloud-ARCH-20250316-2053.qcow2", "image"),
    sets(
        "DEFAULT_IMAGE_SOURCE_URL",
        "https://cloud.debian.org/images/cloud/bookworm/20250316-2053/",
        "image_url",
    ),
    sets("DEFAULT_KERNEL_VERSION", "", "packages"),
    nothing("DEFAULT_KVM_DARWIN_BIOS", "", FIRMWARE),
    nothing("DEFAULT_KVM_DARWIN_BIOS_VAR", "", FIRMWARE),
    sets("DEFAULT_KVM_DARWIN_CPU", "2", "cpus"),
    sets("DEFAULT_KVM_DARWIN_MEMORY", "2", "memory"),
    sets("DEFAULT_KVM_DISK_SIZE", "3", "disk_size"),
    sets("DEFAULT_KVM_HOST_CONTAINERD_PORT", "35000", "ports"),
    sets("DEFAULT_KVM_HOST_DIOD_PORT", "30564", "ports"),
    sets("DEFAULT_KVM_HOST_RIMD_PORT", "35001", "ports"),
    sets("DEFAULT_KVM_HOST_SSHD_PORT", "5555", "ports"),
    nothing("DEFAULT_KVM_LINUX_BIOS", "", FIRMWARE),
    sets("DEFAULT_KVM_LINUX_CPU", "2", "cpus"),
    sets("DEFAULT_KVM_LINUX_MEMORY", "2", "memory"),
    nothing("DEFAULT_KVM_LINUX_v7_BIOS", "", FIRMWARE),
    nothing("DEFAULT_KVM_LINUX_v7_BIOS_VAR", "", FIRMWARE),
    nothing("DEFAULT_KVM_LINUX_v9_BIOS", "", FIRMWARE),
    nothing("DEFAULT_KVM_LINUX_v9_BIOS_VAR", "", FIRMWARE),
    sets("DEFAULT_KVM_PORTS_REDIRECT", "", "ports"),
    nothing("DEFAULT_KVM_SHMEM_PATH", "", SHARED_MEMORY),
    nothing("DEFAULT_KVM_UNKNOWN_BIOS", "", FIRMWARE),
    sets("DEFAULT_KVM_UNKNOWN_CPU", "2", "cpus"),
    sets("DEFAULT_KVM_UNKNOWN_MEMORY", "2", "memory"),
    nothing("DEFAULT_KVM_UNKNWON_BIOS", "", FIRMWARE),
    nothing("DEFAULT_KVM_UNKNWON_BIOS_VAR", "", FIRMWARE),
    sets("DEFAULT_NETWORK_PREFIX", "10.0.2", "network_prefix"),
    nothing(
        "DEFAULT_RIMD_ARTIFACT_DIR",
        "",
        "the files of an archive keep their names in it, below DEFAULT_DIR_IMAGE",
    ),
    sets("DEFAULT_RIMD_ARTIFACT_FILENAME", "artifacts.zip", "artifact"),
    sets(
        "DEFAULT_RIMD_ARTIFACT_URL",
        "https://gitlab.arm.com/api/v4/projects/576/jobs/146089/artifacts",
        "artifact_url",
    ),
    sets("DEFAULT_RIMD_FILESYSTEM_FILENAME", "final_artifact/something.qcow2", "bare_disk"),
    sets("DEFAULT_RIMD_IMAGE_FILENAME", "final_artifact/initramfs.linux_arm64.cpio", "initrd"),
    sets("DEFAULT_RIMD_KERNEL_FILENAME", "final_artifact/Image.gz", "kernel"),
    nothing(
        "DEFAULT_RIMD_KERNEL_VERSION",
        "",
        "the kernel is the file that DEFAULT_RIMD_KERNEL_FILENAME names",
    ),
    nothing("DEFAULT_VIRTIO_GPU_VRAM", "", GPU),
    sets("DIR_K3S_VAR", "", "shares"),
    sets("DISABLE_9P_KUBELET_MOUNTS", "0", "shares"),
    sets("DISABLE_CONTAINERD_CSI_PROXY", "0", "ports"),
    sets("DRY_RUN_ONLY", "0", "dry_run"),
    later(
        "ENABLE_CONTAINERD_RIMD_PROXY",
        "0",
        "nothing in the machine leads from containerd to a bare machine",
    ),
    sets("ENABLE_K3S_DIOD", "0", "ports"),
    nothing("ENABLE_KRUNKIT", "0", MONITOR),
    nothing(
        "ENABLE_REBOOT_AFTER_INSTALLATION",
        "0",
        "a guest that starts again by itself keeps the kernel that this host has loaded, and one that was installed is taken when the machine is started the next time",
    ),
    nothing("ENABLE_VIRTIO_GPU", "0", GPU),
    later(
        "ENABLE_VSOCK_LINUX",
        "0",
        "machines of cloud images have a vsock device with -d --agent alone, those of bare kernels none",
    ),
    sets("EXTERNAL_9P_KUBELET_MOUNTS", "0", "shares"),
    nothing("GVPROXY_HTTP_PORT", "", GVPROXY),
    later(
        "INSTALL_ADDITIONAL_DEBS",
        "",
        "packages are not fetched from addresses: KERNEL_VERSION takes a package of the image's own archive",
    ),
    sets("K3S_VERSION_INSTALL", "", "k3s"),
    sets("KERNEL_VERSION", "", "packages"),
    nothing("KRUNKIT_HTTP_PORT", "", MONITOR),
    nothing("KRUNKIT_REBOOTS", "", MONITOR),
    nothing("KVM_BIOS", "", FIRMWARE),
    nothing("KVM_BIOS_VAR", "", FIRMWARE),
    sets("KVM_CPU", "", "cpus"),
    nothing("KVM_CPU_TYPE", "", "the guest sees this host's own processor"),
    sets("KVM_DAEMONIZE", "0", "background"),
    nothing("KVM_MACHINE_TYPE", "", "there is one type of machine, made of virtio devices"),
    sets("KVM_MEMORY", "", "memory"),
    nothing("KVM_SHMEM_SIZE", "", SHARED_MEMORY),
    nothing(
        "PIDFILE",
        "",
        "the process of the machine is the command itself, whose id the shell knows; of a machine in the background, nelly inspect shows the process",
    ),
    sets("RIMD_ARTIFACT_URL_PASS", "", "artifact_login"),
    sets("RIMD_ARTIFACT_URL_TOKEN", "", "artifact_login"),
    sets("RIMD_ARTIFACT_URL_USER", "", "artifact_login"),
    sets("RUN_BARE_KERNEL", "0", "bare"),
    nothing("SHMEM_TYPE", "", SHARED_MEMORY),
    sets("VM_HOSTNAME", "vm-host", "hostname"),
    sets("VM_PASSWORD", "hailhydra", "password"),
    sets("VM_PASSWORD_ENCRYPTED", "", "password"),
    sets("VM_SALT", "123456", "password"),
    sets("VM_SSH_AUTHORIZED_KEY", "", "ssh_keys"),
    sets("VM_SSH_KEY_FILENAME", "", "ssh_keys"),
    sets("VM_USERNAME", "hailhydra", "user"),
];

/// Beginnings of names that only the scripts have: another variable that begins so is one that was
/// spelt wrong.
const OWN: &[&str] =
    &["DEFAULT_KVM_", "DEFAULT_RIMD_", "RIMD_ARTIFACT_", "DEFAULT_DIR_K3S_", "VM_SSH_", "VM_PASSWORD"];

/// The variable of this name.
#[must_use]
pub fn variable(name: &str) -> Option<&'static Variable> {
    VARIABLES.iter().find(|variable| variable.name == name)
}

/// Whether a name that is no variable's looks as if it were meant for one.
pub(crate) fn looks_like_one(name: &str) -> bool {
    OWN.iter().any(|beginning| name.starts_with(beginning))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The scripts' names, one a line.
    const NAMES: &str = include_str!("../names.txt");
    const TABLE: &str = include_str!("../../../docs/hydra-variables.md");

    #[test]
    fn each_name_of_the_scripts_has_one_decision() {
        let decided: Vec<_> = VARIABLES.iter().map(|variable| variable.name).collect();
        assert_eq!(NAMES.lines().collect::<Vec<_>>(), decided);
        assert!(decided.is_sorted() && decided.len() > 80);
        for variable in VARIABLES {
            assert!(variable.decision.reason().is_none_or(|reason| !reason.is_empty()), "{variable:?}");
        }
    }

    #[test]
    fn the_table_of_the_documentation_says_what_was_decided() {
        let table = TABLE.split("## All variables").nth(1).unwrap();
        let rows = table.lines().filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |"));
        let mut rows = rows.map(|row| row.split(" | ").collect::<Vec<_>>());
        for variable in VARIABLES {
            let cells = rows.next().unwrap_or_default();
            let [name, default, meaning] = cells[..] else { panic!("{}: {cells:?}", variable.name) };
            assert_eq!(name, format!("{}`", variable.name));
            let quoted = format!("`{}`", variable.default);
            assert_eq!(default, if variable.default.is_empty() { "" } else { &quoted }, "{name}");
            match variable.decision {
                Decision::Sets(key) => {
                    assert!(meaning.starts_with(&format!("`{key}`: ")), "{name}: {meaning}")
                }
                Decision::Nothing(reason) => assert_eq!(meaning, format!("no meaning: {reason}"), "{name}"),
                Decision::Later(reason) => assert_eq!(meaning, format!("not yet: {reason}"), "{name}"),
            }
        }
        assert_eq!(rows.next(), None, "rows without a variable");
    }

    #[test]
    fn a_name_that_was_spelt_wrong_is_noticed() {
        for (name, looks) in [
            ("DEFAULT_KVM_LINUX_MEM", true),
            ("VM_SSH_KEY", true),
            ("DEFAULT_TIMEOUT", false),
            ("VM_NAME", false),
        ] {
            assert_eq!((looks_like_one(name), variable(name)), (looks, None), "{name}");
        }
    }
}
