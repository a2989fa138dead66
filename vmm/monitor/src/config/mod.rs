//! The configuration of a machine as plain data: [`MachineConfig`] and its parts.
//!
//! The JSON form is for embedders in other languages: `schema` 1, snake_case names with their unit.
//! Unknown keys are errors, and every error names its field. Sizes, counts and names have types
//! that cannot hold an invalid value.

mod confine;
mod disk;
mod files;
mod network;
mod parse;
mod share;
mod values;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use confine::{Confine, MonitorUser};
pub use disk::{
    BackingFile, DiskConfig, DiskFormat, DiskLimits, DiskThreads, MAX_BACKING, MAX_DISK_PARTS,
    PART_ALIGNMENT, SectorSize,
};
pub(crate) use files::FileUse;
pub use network::{
    DatagramLink, MacAddress, Mtu, NetworkConfig, NetworkId, NetworkLink, QueuePairs, TapLink, TapName,
};
pub use share::{MAX_SHARES, ShareConfig, ShareTag};
pub use values::{CommandLine, ContextId, CpuCount, DiskId, HotplugSize, LogSize, MemorySize, SERIAL_BYTES};

/// The version of the JSON form that this monitor reads and writes.
pub const SCHEMA: u32 = 1;

/// Maximum number of virtio devices of a machine, including spare slots. Each has an address and an
/// interrupt line of its own on every board.
///
/// A kernel that gets its devices on the command line (`platform` `mptable`) has space for about 50
/// of them in its 2047 bytes. A kernel with `CONFIG_BOOT_CONFIG`, such as ours, gets more in a boot
/// configuration behind its initrd; with another kernel, more are an error when the machine starts.
pub const MAX_VIRTIO_DEVICES: usize = 64;

/// A machine. Each field holds only valid values; [`MachineConfig::validate`] checks combinations
/// of fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MachineConfig {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Guest memory in bytes at boot.
    pub memory_bytes: MemorySize,
    /// Additional memory in bytes that can be plugged in while the machine runs (a virtio-mem
    /// device). 0 for none.
    pub hotplug_bytes: HotplugSize,
    /// A balloon device by which the guest reports memory that is free, so that the host has it
    /// back until the guest uses it again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub give_back: bool,
    /// Number of virtual CPUs.
    pub cpus: CpuCount,
    /// Expose the processor's virtualisation (SVM, VMX) to the guest.
    pub nested: bool,
    /// The kernel image.
    pub kernel: FileSource,
    /// The initramfs.
    pub initrd: Option<FileSource>,
    /// A promise that the files of kernel and initrd are not changed or truncated while the machine
    /// runs, so that their pages can be mapped instead of copied. Sealed memory files are mapped in
    /// any case.
    pub immutable_images: bool,
    /// The kernel command line, without the arguments that the monitor adds for its devices.
    pub command_line: CommandLine,
    /// The boot protocol.
    pub boot_protocol: BootProtocol,
    /// How the hardware is described to the kernel.
    pub platform: Platform,
    /// Block devices, in the order in which the guest sees them.
    pub disks: Vec<DiskConfig>,
    /// An entropy device.
    pub rng: bool,
    /// The virtio console; `none` omits the device.
    pub console: Endpoint,
    /// The first serial port; `none` keeps the port and discards its output.
    pub serial: Endpoint,
    /// Size limit of a console's log in bytes. A full log is renamed to `NAME.1`, which replaces an
    /// older one, and a new file is begun.
    pub log_bytes: LogSize,
    /// The vsock device.
    pub vsock: Option<VsockConfig>,
    /// Network devices, in the order in which the guest sees them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<NetworkConfig>,
    /// Shared directories, in the order in which the guest sees their devices. At most
    /// [`MAX_SHARES`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<ShareConfig>,
    /// Number of empty virtio-mmio slots for devices that are attached at run time. At most 64
    /// together with all other devices.
    pub spare_slots: u8,
    /// What to do when the guest resets the machine.
    pub on_reset: OnReset,
    /// Time limit in milliseconds after which the machine is ended. `None` for no limit.
    pub time_limit_ms: Option<u64>,
    /// Whether the monitor gives up what the machine does not need.
    #[serde(skip_serializing_if = "Confine::is_default")]
    pub confine: Confine,
    /// The user that `nelly-monitor` becomes, with namespaces of its own, if root has started it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monitor_user: Option<MonitorUser>,
}

impl MachineConfig {
    /// A machine with this kernel, one CPU, 128 MiB, and no devices except a serial port without
    /// output.
    #[must_use]
    pub fn new(kernel: FileSource) -> Self {
        Self {
            schema: SCHEMA,
            memory_bytes: MemorySize::default(),
            hotplug_bytes: HotplugSize::default(),
            give_back: false,
            cpus: CpuCount::default(),
            nested: false,
            kernel,
            initrd: None,
            immutable_images: false,
            command_line: CommandLine::default(),
            boot_protocol: BootProtocol::Auto,
            platform: Platform::Auto,
            disks: Vec::new(),
            rng: false,
            console: Endpoint::None,
            serial: Endpoint::None,
            log_bytes: LogSize::default(),
            vsock: None,
            networks: Vec::new(),
            shares: Vec::new(),
            spare_slots: 0,
            on_reset: OnReset::Exit,
            time_limit_ms: None,
            confine: Confine::On,
            monitor_user: None,
        }
    }

    /// Number of virtio devices of the machine, including spare slots.
    #[must_use]
    pub fn virtio_devices(&self) -> usize {
        self.disks.len()
            + usize::from(self.rng)
            + usize::from(self.console != Endpoint::None)
            + usize::from(self.vsock.is_some())
            + self.networks.len()
            + self.shares.len()
            + usize::from(self.hotplug_bytes.get() > 0)
            + usize::from(self.give_back)
            + usize::from(self.spare_slots)
    }

    /// Checks combinations of fields: ids and MAC addresses must differ, devices must fit, and only
    /// one device may use standard input and output.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.schema != SCHEMA {
            let reason = format!("version {} is unknown; this monitor supports {SCHEMA}", self.schema);
            return Err(ConfigError::new("schema", reason));
        }
        if self.memory_bytes.get() + self.hotplug_bytes.get() > MemorySize::MAX {
            let reason =
                format!("together with memory_bytes it exceeds the limit of {} bytes", MemorySize::MAX);
            return Err(ConfigError::new("hotplug_bytes", reason));
        }
        for (index, disk) in self.disks.iter().enumerate() {
            if let Some(other) =
                self.disks[..index].iter().find(|other| other.id.serial() == disk.id.serial())
            {
                let (id, other) = (disk.id.as_str(), other.id.as_str());
                let reason = if id == other {
                    format!("two disks have the id {id:?}")
                } else {
                    format!(
                        "the ids {other:?} and {id:?} have the same first {SERIAL_BYTES} bytes, and a guest sees only those"
                    )
                };
                return Err(ConfigError::new("disks", reason));
            }
        }
        for (index, disk) in self.disks.iter().enumerate() {
            disk.validate(&format!("disks[{index}]"))?;
        }
        network::validate(&self.networks)?;
        share::validate(&self.shares)?;
        let devices = self.virtio_devices();
        if devices > MAX_VIRTIO_DEVICES {
            let reason = format!(
                "the machine has {devices} virtio devices in total; the limit is {MAX_VIRTIO_DEVICES}"
            );
            let field = match self.spare_slots {
                0 if self.shares.len() > self.disks.len().max(self.networks.len()) => "shares",
                0 if self.networks.len() > self.disks.len() => "networks",
                0 => "disks",
                _ => "spare_slots",
            };
            return Err(ConfigError::new(field, reason));
        }
        if self.console == Endpoint::Stdio && self.serial == Endpoint::Stdio {
            return Err(ConfigError::new(
                "console",
                "standard input and output are already used by serial".into(),
            ));
        }
        if self.time_limit_ms == Some(0) {
            return Err(ConfigError::new("time_limit_ms", "0 would end the machine before it starts".into()));
        }
        self.monitor_user.map_or(Ok(()), |user| user.validate(self))
    }

    /// Parses the JSON form.
    pub fn from_json(text: &[u8]) -> Result<Self, ConfigError> {
        parse::machine(text)
    }

    /// Writes the JSON form, which [`MachineConfig::from_json`] reads back to an equal value.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|error| unreachable!("a config is always JSON: {error}"))
    }
}

/// The source of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileSource {
    /// A path, which is opened once by the process that starts the machine, before the start.
    Path(PathBuf),
    /// A file descriptor: its number in `nelly-monitor`, if it was inherited, or the value that
    /// `machine::Resources::add` returned.
    Fd(u32),
}

impl std::fmt::Display for FileSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Fd(number) => write!(f, "descriptor {number}"),
        }
    }
}

/// The boot protocol of the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BootProtocol {
    /// Chosen by the type of the file: the 64-bit entry point for an ELF file, its own for a
    /// bzImage.
    #[default]
    Auto,
    /// An ELF file, or the one inside a bzImage, at Linux's 64-bit entry point.
    Elf64,
    /// An ELF file, or the one inside a bzImage, at the entry point in its PVH note.
    Pvh,
    /// A bzImage, at its 64-bit entry point.
    Bzimage,
}

/// How the hardware is described to the kernel. A device is never described twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Platform {
    /// ACPI, unless the configuration in the kernel image says that the kernel does not support it.
    #[default]
    Auto,
    /// An MP table for CPUs and interrupts, and virtio-mmio devices on the command line.
    Mptable,
    /// Hardware-reduced ACPI.
    Acpi,
}

/// The name of a device, for requests while the machine runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceName {
    /// The first serial port.
    Serial,
    /// The virtio console.
    Console,
    /// The entropy device.
    Rng,
    /// The vsock device.
    Vsock,
    /// The memory device.
    Memory,
    /// The balloon device.
    Balloon,
    /// The network device with this id.
    Network(NetworkId),
    /// The disk with this id.
    Disk(DiskId),
    /// The shared directory with this tag.
    Share(ShareTag),
}

impl std::fmt::Display for DeviceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Serial => "serial port",
            Self::Console => "console",
            Self::Rng => "entropy device",
            Self::Vsock => "socket device",
            Self::Memory => "memory device",
            Self::Balloon => "balloon device",
            Self::Network(id) => return write!(f, "network {:?}", id.as_str()),
            Self::Disk(id) => return write!(f, "disk {:?}", id.as_str()),
            Self::Share(tag) => return write!(f, "shared directory {:?}", tag.as_str()),
        })
    }
}

/// The vsock device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's context id (CID).
    #[serde(default)]
    pub cid: ContextId,
    /// The path of a Unix socket to create, to which host programs send `CONNECT port`. Connections
    /// from the guest to a port are forwarded to the socket with the same path and the suffix
    /// `_port`. `None`: streams are available only through the handle, and no path is created.
    #[serde(default)]
    pub unix_socket: Option<PathBuf>,
    /// The port on which the guest's agent reports how the machine ends, with one byte: `o`
    /// power-off, `r` reboot, `p` failure of the agent. Only the first connection after each start
    /// of the guest's driver is accepted, which is the agent's, because it connects before any
    /// container exists.
    #[serde(default)]
    pub power_port: Option<u32>,
}

/// The input and output of a serial port or console.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Endpoint {
    /// No input, and output is discarded.
    #[default]
    None,
    /// Standard input and output of `nelly-monitor`; an error for machines that are used through a
    /// handle.
    Stdio,
    /// A stream that the handle returns. Before it is requested, the last 64 KiB of output are
    /// kept.
    Stream,
    /// Output is appended to a file, see [`MachineConfig::log_bytes`]; there is no input.
    Log(FileSource),
    /// A file for input and a file for output.
    Pair {
        /// Read by the machine.
        input: FileSource,
        /// Written by the machine.
        output: FileSource,
    },
}

/// What to do when the guest resets the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnReset {
    /// The machine ends.
    #[default]
    Exit,
    /// The machine starts again from its kernel.
    Reboot,
}

/// An invalid configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct ConfigError {
    /// The field, as the JSON form names it (`disks[1]`), or `(file)` for text that is not a JSON
    /// object.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

impl ConfigError {
    pub(crate) fn new(field: impl Into<String>, reason: String) -> Self {
        Self { field: field.into(), reason }
    }
}

#[cfg(test)]
mod tests;
