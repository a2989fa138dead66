//! The plan of a process: everything that its set-up does before the exec, as plain data.

use thiserror::Error;

use super::caps::{CapabilitySets, UnknownCapability};
use super::devices::DeviceRuleError;
use super::limits::{CgroupSetting, LimitError};
use super::mount_options::{MountOptions, UnsupportedOption};
use super::seccomp::{SeccompError, SeccompFilter};
use crate::network::Names;

mod guest_devices;
mod parse;

pub use parse::{check_id, container, exec};

/// Why a request is refused.
#[derive(Debug, Error)]
pub enum PlanError {
    /// The bytes are not valid JSON of the OCI runtime specification.
    #[error("{0} is not valid JSON of the runtime spec: {1}")]
    Json(&'static str, serde_json::Error),
    /// A required field is missing.
    #[error("the spec has no {0}")]
    Missing(&'static str),
    /// A field that this agent does not support is set.
    #[error("{0} is not supported by this agent")]
    Unsupported(String),
    /// A field has an invalid value.
    #[error("{field} is {value:?}: {rule}")]
    Value {
        /// The name of the field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is allowed.
        rule: &'static str,
    },
    /// An error in `process.capabilities`.
    #[error("process.capabilities: {0}")]
    Capability(UnknownCapability),
    /// An error in `mounts`.
    #[error("mount on {0}: {1}")]
    Mount(String, UnsupportedOption),
    /// An error in `linux.seccomp`.
    #[error("linux.seccomp: {0}")]
    Seccomp(SeccompError),
    /// An error in `linux.resources`.
    #[error("{0}")]
    Limit(LimitError),
    /// An error in `linux.resources.devices`.
    #[error("linux.resources.devices: {0}")]
    DeviceRule(DeviceRuleError),
}

/// The plan of a new process.
#[derive(Debug)]
pub struct StagePlan {
    /// The container to set up; `None` if the process joins an existing one.
    pub container: Option<ContainerPlan>,
    /// Whether it joins none either: it runs where the agent does.
    pub stays: bool,
    /// The process itself.
    pub process: ProcessPlan,
}

/// The set-up of a new container.
#[derive(Debug)]
pub struct ContainerPlan {
    /// An existing empty directory in the guest's root, used as a mount point during set-up.
    pub workdir: String,
    /// The root file system.
    pub rootfs: RootfsPlan,
    /// Namespaces to join: flag of setns(2) and path in the guest's root.
    pub joins: Vec<(i32, String)>,
    /// `CLONE_NEW*` flags of the namespaces that are new.
    pub namespaces: i32,
    /// Mounts, in order.
    pub mounts: Vec<MountPlan>,
    /// Device nodes in addition to those that every container has.
    pub devices: Vec<DevicePlan>,
    /// Paths to mask.
    pub masked: Vec<String>,
    /// Paths to make read-only.
    pub readonly: Vec<String>,
    /// Kernel parameters (sysctls): dotted name and value.
    pub sysctls: Vec<(String, String)>,
    /// Host name, if any.
    pub hostname: Option<String>,
    /// Lines of /etc/hosts beside the usual ones.
    pub hosts: Vec<String>,
    /// Those of the guest's network, if the container is in it.
    pub names: Names,
    /// NIS domain name, if any.
    pub domainname: Option<String>,
    /// Propagation of the root mount.
    pub propagation: u64,
}

/// The root file system of a container.
#[derive(Debug)]
pub struct RootfsPlan {
    /// Block device of the read-only image.
    pub device: String,
    /// Its file system.
    pub filesystem: String,
    /// Whether to omit the writable layer.
    pub read_only: bool,
    /// Whether the root mount is read-only for the container.
    pub mount_read_only: bool,
    /// Size of the writable layer in bytes; 0 for its default share, see [`super::shares`].
    pub upper_bytes: u64,
    /// Block device with the writable layer, instead of one in memory.
    pub upper_device: Option<String>,
    /// What is mounted into it that is no overlay.
    pub volumes: Vec<VolumePlan>,
}

/// A directory that is no overlay, or a file, mounted into the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumePlan {
    /// Where it comes from.
    pub source: VolumeSource,
    /// Absolute, in the container.
    pub path: String,
    /// Whether the container cannot write to it.
    pub read_only: bool,
}

/// Where a volume comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeSource {
    /// A directory beside the writable layer.
    Kept {
        /// Its name among these; a valid id.
        name: String,
        /// Whether a new one gets what the image has at the path.
        copy_up: bool,
    },
    /// A directory of the host, or a file.
    Shared {
        /// The tag of its file system device; a valid id.
        tag: String,
        /// It is a single file.
        file: bool,
    },
}

impl VolumePlan {
    /// Whether it lies beside the writable layer.
    pub fn is_kept(&self) -> bool {
        matches!(self.source, VolumeSource::Kept { .. })
    }
}

/// What messages call it.
impl std::fmt::Display for VolumePlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.source {
            VolumeSource::Kept { name, .. } => write!(f, "the volume {name}"),
            VolumeSource::Shared { tag, .. } => write!(f, "the shared directory {tag}"),
        }
    }
}

/// A mount.
#[derive(Debug)]
pub struct MountPlan {
    /// Absolute, in the container.
    pub destination: String,
    /// File system, or `bind`.
    pub kind: String,
    /// A device, a directory or a name.
    pub source: String,
    /// Mount flags and data.
    pub options: MountOptions,
}

/// A device node.
#[derive(Debug)]
pub struct DevicePlan {
    /// Absolute, in the container.
    pub path: String,
    /// `S_IFCHR`, `S_IFBLK` or `S_IFIFO`, with the permission bits.
    pub mode: u32,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// The attributes of a new process.
#[derive(Debug)]
pub struct ProcessPlan {
    /// Program and arguments, at least one.
    pub args: Vec<String>,
    /// Environment.
    pub env: Vec<String>,
    /// Working directory, created if it does not exist.
    pub cwd: String,
    /// Its user and groups.
    pub user: UserPlan,
    /// Capability sets; empty by default.
    pub capabilities: CapabilitySets,
    /// Whether to set `PR_SET_NO_NEW_PRIVS`, see prctl(2).
    pub no_new_privileges: bool,
    /// Resource limits: resource number, soft limit, hard limit.
    pub rlimits: Vec<(u32, u64, u64)>,
    /// The umask.
    pub umask: Option<u32>,
    /// The seccomp filter.
    pub seccomp: Option<SeccompFilter>,
    /// Whether the program is the child of an init, which this process becomes.
    pub init: bool,
    /// The size of the terminal to create: rows and columns.
    pub terminal: Option<(u16, u16)>,
}

/// The user of a process, before names are looked up in the container's files.
#[derive(Debug)]
pub struct UserPlan {
    /// The image's `User`; if empty, the ids below are used.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// More supplementary groups, by name or number.
    pub more_groups: Vec<String>,
}

/// The part of a container's set-up that the agent itself does.
#[derive(Debug)]
pub struct Surroundings {
    /// Path below the cgroup root, without a leading slash.
    pub cgroup: String,
    /// Values for the control files of the cgroup.
    pub settings: Vec<CgroupSetting>,
    /// The device program of the cgroup.
    pub device_program: Vec<u64>,
    /// Path of the PID namespace to join instead of creating one.
    pub pid_namespace: Option<String>,
}

/// A validated request for a container.
#[derive(Debug)]
pub struct ContainerRequest {
    /// The plan of the first process.
    pub stage: StagePlan,
    /// The part that the agent does.
    pub surroundings: Surroundings,
    /// The value for `/proc/PID/oom_score_adj`, if any.
    pub oom_score_adj: Option<i32>,
    /// The seccomp filter, which later execs also use.
    pub seccomp: Option<SeccompFilter>,
}
