//! What a machine is made of, as plain data: [`MachineConfig`] and its parts.
//!
//! The JSON form is the door for embedders in other languages: `schema` 1, snake_case names with
//! their unit, unknown keys refused, and every refusal names the field. Values that cannot be right
//! cannot be held: sizes, counts and names are types of their own.

mod files;
mod parse;
mod values;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub(crate) use files::FileUse;
pub use values::{CommandLine, ContextId, CpuCount, DiskId, HotplugSize, LogSize, MemorySize, SERIAL_BYTES};

/// The version of the JSON form that this monitor reads and writes.
pub const SCHEMA: u32 = 1;

/// Most virtio devices of a machine, spare slots included. Each has a place and an interrupt line
/// of its own on every board.
///
/// A kernel that is told of its devices on its command line (`platform` `mptable`) has room for
/// some 50 of them in its 2047 bytes; more are refused when the machine starts.
pub const MAX_VIRTIO_DEVICES: usize = 64;

/// A machine. Every field can be set freely: what a field can hold is valid on its own, and
/// [`MachineConfig::validate`] checks what only several fields together can get wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MachineConfig {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Guest memory in bytes: what the kernel finds when it starts.
    pub memory_bytes: MemorySize,
    /// Memory beyond that, which the guest gets while the machine runs, when its holder asks for
    /// it: a memory device (virtio-mem). 0: none.
    pub hotplug_bytes: HotplugSize,
    /// Virtual CPUs.
    pub cpus: CpuCount,
    /// The guest is shown the processor's virtualisation, and can run machines of its own.
    pub nested: bool,
    /// The kernel image.
    pub kernel: FileSource,
    /// The initial RAM disk.
    pub initrd: Option<FileSource>,
    /// Nobody changes or truncates the files of kernel and initrd while the machine runs: their
    /// pages may be mapped instead of copied. Sealed memory files are mapped in any case.
    pub immutable_images: bool,
    /// The kernel command line, without what the monitor adds for its devices.
    pub command_line: CommandLine,
    /// How the kernel is entered.
    pub boot_protocol: BootProtocol,
    /// How the machine describes itself to the kernel.
    pub platform: Platform,
    /// Block devices, in the order the guest finds them.
    pub disks: Vec<DiskConfig>,
    /// An entropy device.
    pub rng: bool,
    /// The virtio console; `none` leaves the device out.
    pub console: Endpoint,
    /// The first serial port; `none` keeps the port and discards what the guest writes.
    pub serial: Endpoint,
    /// Most bytes of a console's log: a full one is renamed to `NAME.1`, in place of the one
    /// before, and begins anew.
    pub log_bytes: LogSize,
    /// The socket device.
    pub vsock: Option<VsockConfig>,
    /// virtio-mmio slots announced to the guest and left empty, to be filled while the machine
    /// runs. 0 to 64 with all other devices.
    pub spare_slots: u8,
    /// What a guest's reset does.
    pub on_reset: OnReset,
    /// Ends the machine after so many milliseconds. `None`: never.
    pub time_limit_ms: Option<u64>,
}

impl MachineConfig {
    /// A machine with this kernel, one CPU, 128 MiB and no devices but a serial port that discards.
    #[must_use]
    pub fn new(kernel: FileSource) -> Self {
        Self {
            schema: SCHEMA,
            memory_bytes: MemorySize::default(),
            hotplug_bytes: HotplugSize::default(),
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
            spare_slots: 0,
            on_reset: OnReset::Exit,
            time_limit_ms: None,
        }
    }

    /// Virtio devices of the machine, spare slots included.
    #[must_use]
    pub fn virtio_devices(&self) -> usize {
        self.disks.len()
            + usize::from(self.rng)
            + usize::from(self.console != Endpoint::None)
            + usize::from(self.vsock.is_some())
            + usize::from(self.hotplug_bytes.get() > 0)
            + usize::from(self.spare_slots)
    }

    /// Checks what one field alone cannot show: that disk ids differ, devices fit, and standard
    /// input and output have one user.
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
        let devices = self.virtio_devices();
        if devices > MAX_VIRTIO_DEVICES {
            let reason = format!(
                "the machine has {devices} virtio devices in total; the limit is {MAX_VIRTIO_DEVICES}"
            );
            let field = if self.spare_slots > 0 { "spare_slots" } else { "disks" };
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
        Ok(())
    }

    /// Reads the JSON form.
    pub fn from_json(text: &[u8]) -> Result<Self, ConfigError> {
        parse::machine(text)
    }

    /// Writes the JSON form, which [`MachineConfig::from_json`] reads back to an equal value.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|error| unreachable!("a config is always JSON: {error}"))
    }
}

/// Where a file comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileSource {
    /// A path, opened once by whoever starts the machine, before anything of it runs.
    Path(PathBuf),
    /// A descriptor handed in: its number when `nelly-monitor` was started with it, or what
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

/// How the kernel is entered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BootProtocol {
    /// By what the file is: an ELF by its 64-bit entry, a bzImage by its own, to unpack itself.
    #[default]
    Auto,
    /// An ELF file, or the one inside a bzImage, by Linux's 64-bit entry.
    Elf64,
    /// An ELF file, or the one inside a bzImage, by its PVH note.
    Pvh,
    /// A bzImage by its 64-bit entry.
    Bzimage,
}

/// How the machine describes itself to the kernel. A device is never described both ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Platform {
    /// ACPI, unless the kernel image says that it has none.
    #[default]
    Auto,
    /// An MP table for CPUs and lines, virtio-mmio on the command line.
    Mptable,
    /// ACPI with reduced hardware.
    Acpi,
}

/// A device of a machine, for whoever asks something of it while the machine runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceName {
    /// The first serial port.
    Serial,
    /// The virtio console.
    Console,
    /// The entropy device.
    Rng,
    /// The socket device.
    Vsock,
    /// The memory device.
    Memory,
    /// The disk with this id.
    Disk(DiskId),
}

impl std::fmt::Display for DeviceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Serial => "serial port",
            Self::Console => "console",
            Self::Rng => "entropy device",
            Self::Vsock => "socket device",
            Self::Memory => "memory device",
            Self::Disk(id) => return write!(f, "disk {:?}", id.as_str()),
        })
    }
}

/// A block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// The name it has in messages and, cut to 20 bytes, as its serial number.
    pub id: DiskId,
    /// The raw disk image or block device.
    pub source: FileSource,
    /// The guest may only read.
    #[serde(default)]
    pub read_only: bool,
}

/// The socket device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's context id.
    #[serde(default)]
    pub cid: ContextId,
    /// A Unix socket made at this path, where the host writes `CONNECT port`; ports that the guest
    /// dials are looked for at the same path with `_port` appended. `None`: streams through the
    /// handle only, and nothing is made in the file system.
    #[serde(default)]
    pub unix_socket: Option<PathBuf>,
    /// The port on which the guest's agent says how it ends, one byte: `o` off, `r` reboot, `p`
    /// panic. It takes one connection each time the guest's driver starts, the agent's, which dials
    /// before anybody else runs; others are refused.
    #[serde(default)]
    pub power_port: Option<u32>,
}

/// Where the bytes of a serial port or console go and come from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Endpoint {
    /// Nowhere.
    #[default]
    None,
    /// Standard input and output of `nelly-monitor` run directly; refused behind a handle.
    Stdio,
    /// A stream that the handle hands out. Until it is asked for, the latest 64 KiB are kept for
    /// it.
    Stream,
    /// Output is appended to a file, see [`MachineConfig::log_bytes`]; there is no input.
    Log(FileSource),
    /// Two descriptors.
    Pair {
        /// Read by the machine.
        input: FileSource,
        /// Written by the machine.
        output: FileSource,
    },
}

/// What a guest's reset does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnReset {
    /// The machine ends.
    #[default]
    Exit,
    /// The machine starts again from its kernel.
    Reboot,
}

/// A configuration that was refused.
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
    fn new(field: impl Into<String>, reason: String) -> Self {
        Self { field: field.into(), reason }
    }
}

#[cfg(test)]
mod tests;
