//! What a record says of a machine of `nelly boot`, which has no container.

use std::path::PathBuf;

use nelly_vmm::config::{BootProtocol, OnReset};
use serde::{Deserialize, Serialize};

/// File name of the disk that such a machine writes to, in its directory.
pub const DISK: &str = "disk.qcow2";

/// A machine of `nelly boot`, beside what every machine has. All paths are absolute. What kernel,
/// initrds and command line the image has is found out anew at each start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootRecord {
    /// The disk image that it boots from, as a value of `--image`; none of a kernel alone. What is
    /// written goes to the disk `disk.qcow2` of the sandbox's directory, unless the value says
    /// otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The entry of the image's boot loader, if not its default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<String>,
    /// A kernel, instead of the image's if there is an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// An initramfs, the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// Further disks, as values of `--disk`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<String>,
    /// Directories of the host, as values of `--share`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<String>,
    /// How the kernel is entered.
    #[serde(default)]
    pub protocol: BootProtocol,
    /// What a reset by the guest does.
    pub on_reset: OnReset,
    /// How long each start lives at most, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_limit_ms: Option<u64>,
    /// Whether it has a seed for cloud-init, the file `seed.img` of the sandbox's directory.
    #[serde(default)]
    pub seed: bool,
}
