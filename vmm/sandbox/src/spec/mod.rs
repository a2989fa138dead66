//! Specifications of sandboxes: plain data, validated when it is created.

pub mod health;
pub mod installation;
pub mod machine;
pub mod oci;
pub mod options;
pub mod process;
pub mod quantity;
pub mod rights;
pub mod seccomp;
pub mod volumes;

pub use health::{HealthCheck, HealthOverrides};
pub use installation::Installation;
pub use machine::MachineSpec;
pub use options::ContainerOptions;
pub use process::{Overrides, ProcessSpec, SpecError};
pub use rights::{Capabilities, Rights};
pub use seccomp::{Seccomp, SecurityOption};
use serde::{Deserialize, Serialize};
pub use volumes::{MountRequest, Volume, VolumeRequest};

/// The container that the agent creates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Its first process.
    pub process: ProcessSpec,
    /// Host name within the container's UTS namespace.
    pub hostname: String,
    /// No writable layer: the root is the image itself.
    pub read_only: bool,
    /// Extra tmpfs mounts.
    pub tmpfs: Vec<Tmpfs>,
    /// Maximum size of the writable layer in bytes. With 0 the agent chooses, at most half of the
    /// guest's memory.
    pub upper_bytes: u64,
    /// Block device in the guest whose ext4 file system holds the writable layer instead, usually
    /// [`machine::STORAGE_DEVICE`].
    pub upper_device: Option<String>,
    /// The seccomp profile.
    pub seccomp: Seccomp,
    /// What else was asked for.
    #[serde(default)]
    pub options: ContainerOptions,
    /// The number, in the guest, of a process whose network and IPC namespaces the container
    /// shares. `None`: it has its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shares_with: Option<u32>,
}

impl ContainerSpec {
    /// A container with a writable layer in memory and the default seccomp profile.
    #[must_use]
    pub fn new(process: ProcessSpec, hostname: impl Into<String>) -> Self {
        Self {
            process,
            hostname: hostname.into(),
            read_only: false,
            tmpfs: Vec::new(),
            upper_bytes: 0,
            upper_device: None,
            seccomp: Seccomp::Default,
            options: ContainerOptions::default(),
            shares_with: None,
        }
    }
}

/// A tmpfs in the container, parsed from `PATH[:OPTIONS]` as in docker and podman.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Absolute path in the container.
    pub path: String,
    /// Mount options, e.g. `size=64m`, `mode=1777`, `ro`, `noexec`.
    pub options: Vec<String>,
}

impl std::str::FromStr for Tmpfs {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let (path, options) = text.split_once(':').unwrap_or((text, ""));
        if !path.starts_with('/') || path == "/" || path.split('/').any(|part| part == "..") {
            return Err(SpecError::Tmpfs { text: text.to_owned() });
        }
        let options = options.split(',').filter(|option| !option.is_empty()).map(str::to_owned).collect();
        Ok(Self { path: path.to_owned(), options })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tmpfs_takes_dockers_spelling_and_refuses_what_could_escape() {
        let tmpfs: Tmpfs = "/cache:size=64m,mode=0700".parse().unwrap();
        assert_eq!(tmpfs.path, "/cache");
        assert_eq!(tmpfs.options, ["size=64m", "mode=0700"]);
        assert_eq!("/run".parse::<Tmpfs>().unwrap().options, Vec::<String>::new());
        for bad in ["", "cache", "/", "/a/../..", ":size=1m"] {
            assert!(bad.parse::<Tmpfs>().is_err(), "{bad:?}");
        }
    }
}
