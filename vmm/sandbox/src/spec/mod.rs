//! Specifications of sandboxes: plain data, validated when it is created.

pub mod health;
pub mod installation;
pub mod machine;
pub mod network;
pub mod oci;
pub mod options;
pub mod process;
pub mod quantity;
pub mod relay;
pub mod rights;
pub mod seccomp;
pub mod shares;
pub mod tmpfs;
pub mod volumes;

pub use health::{HealthCheck, HealthOverrides};
pub use installation::Installation;
pub use machine::MachineSpec;
pub use network::Network;
pub use options::ContainerOptions;
pub use process::{Overrides, ProcessSpec, SpecError};
pub use relay::{Relay, RelayAddress};
pub use rights::{Capabilities, Rights};
pub use seccomp::{Seccomp, SecurityOption};
use serde::{Deserialize, Serialize};
pub use shares::{Share, ShareError, ShareRequest};
pub use tmpfs::Tmpfs;
pub use volumes::{MountRequest, Mounts, Volume, VolumeRequest};

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
    /// It is in the network of the machine, which has one. Otherwise it has loopback only, unless
    /// it shares another one's network.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_machine_network: bool,
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
            in_machine_network: false,
        }
    }
}
