//! The machine of a sandbox: the parameters that differ between sandboxes, and the resulting
//! configuration.

use nelly_protocol::ports;
use nelly_vmm::config::{
    CommandLine, ConfigError, Confine, CpuCount, DiskConfig, DiskId, Endpoint, FileSource, MachineConfig,
    MemorySize, MonitorUser, NetworkConfig, Platform, ShareConfig, VsockConfig,
};

use super::{Installation, Share, shares};

/// Arguments of the guest kernel. It logs only emergencies to the console, and reboots after a
/// panic. (Trusting the processor's random numbers is the default since 6.2; the agent adds the
/// host's.) `noreplace-smp`: on one vCPU the kernel would rewrite its lock prefixes, which takes
/// 3.6 ms in instruction-counted time. `percpu_alloc=page` avoids zeroing 2 MiB for 0.2 MiB of
/// per-CPU memory (0.7 ms). The root is a ramfs, which our kernel creates from the initramfs's own
/// pages (kernel/README.md); containers never see it. Blacklisting `slab_late_init` omits the files
/// in /sys/kernel/slab, which nobody reads in a guest (2.0 ms).
pub const COMMAND_LINE: &str = "console=ttyS0 loglevel=1 panic=-1 reboot=t noreplace-smp percpu_alloc=page \
                                rootfstype=ramfs initcall_blacklist=slab_late_init";

/// The block device in the guest that holds the container's image.
pub const IMAGE_DEVICE: &str = "/dev/vda";

/// The block device in the guest that holds the writable layer of a sandbox that is kept.
pub const STORAGE_DEVICE: &str = "/dev/vdb";

/// A machine for containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineSpec {
    /// The kernel, as a path or in the machine's resources.
    pub kernel: FileSource,
    /// The initramfs with the agent.
    pub initrd: FileSource,
    /// The container image's EROFS file system: one disk of these files, one after the other. The
    /// guest sees it as [`IMAGE_DEVICE`], read-only.
    pub image: Vec<FileSource>,
    /// A disk with an ext4 file system for the container's writable layer, made by
    /// [`crate::state::storage::create`]. The guest sees it as [`STORAGE_DEVICE`], and writes to
    /// it.
    pub storage: Option<FileSource>,
    /// How the hardware is described to the kernel.
    pub platform: Platform,
    /// Number of vCPUs.
    pub cpus: CpuCount,
    /// Guest memory size.
    pub memory: MemorySize,
    /// Whether to expose the processor's virtualisation to the guest.
    pub nested: bool,
    /// Whether the monitor gives up what the machine does not need.
    pub confine: Confine,
    /// The user that the monitor becomes, if root starts it.
    pub monitor_user: Option<MonitorUser>,
    /// Text to append to the kernel command line.
    pub append: String,
    /// How many disks can be attached while the machine runs, see
    /// [`crate::instance::Sandbox::attach_image`].
    pub spare_slots: u8,
    /// Whether the host gets back what the guest has freed while it runs.
    pub give_back: bool,
    /// Its network devices.
    pub networks: Vec<NetworkConfig>,
    /// Its shared directories, see [`MachineSpec::share`].
    pub shares: Vec<ShareConfig>,
}

impl MachineSpec {
    /// A machine of one vCPU and 512 MiB.
    #[must_use]
    pub fn new(kernel: FileSource, initrd: FileSource, image: Vec<FileSource>) -> Self {
        let memory = MemorySize::new(512 << 20).unwrap_or_default();
        Self {
            kernel,
            initrd,
            image,
            storage: None,
            platform: Platform::Auto,
            cpus: CpuCount::default(),
            memory,
            nested: false,
            confine: Confine::On,
            monitor_user: None,
            append: String::new(),
            spare_slots: 0,
            give_back: false,
            networks: Vec::new(),
            shares: Vec::new(),
        }
    }

    /// Adds the devices of a container's shared directories, which are opened or named by
    /// `sources`, in their order.
    pub fn share(&mut self, shares: &[Share], sources: impl IntoIterator<Item = FileSource>) {
        let devices = shares.iter().zip(sources).enumerate();
        let device = |(n, (share, source)): (usize, (&Share, _))| {
            ShareConfig::new(shares::tag(n), source, share.read_only)
        };
        self.shares.extend(devices.map(device));
    }

    /// The same, with the kernel and initramfs of an installation.
    #[must_use]
    pub fn installed(installation: &Installation, image: Vec<FileSource>) -> Self {
        let path = |path: &std::path::Path| FileSource::Path(path.to_owned());
        let spec = Self::new(path(&installation.kernel), path(&installation.initramfs), image);
        Self { platform: installation.platform, ..spec }
    }

    /// The configuration that [`crate::instance::Sandbox::start`] takes.
    ///
    /// # Errors
    /// The command line is too long or contains invalid characters, or the image has no file.
    pub fn config(&self) -> Result<MachineConfig, ConfigError> {
        let refuse = |field: &str| {
            let field = field.to_owned();
            move |reason| ConfigError { field, reason }
        };
        let mut config = MachineConfig::new(self.kernel.clone());
        config.initrd = Some(self.initrd.clone());
        config.cpus = self.cpus;
        config.memory_bytes = self.memory;
        config.nested = self.nested;
        config.confine = self.confine;
        config.monitor_user = self.monitor_user;
        config.spare_slots = self.spare_slots;
        config.give_back = self.give_back;
        let command_line = format!("{COMMAND_LINE} {}", self.append);
        config.command_line = CommandLine::new(command_line.trim_end()).map_err(refuse("command_line"))?;
        config.platform = self.platform;
        let id = DiskId::new("image").map_err(refuse("disks[0]"))?;
        let Some((first, rest)) = self.image.split_first() else {
            return Err(refuse("disks[0]")("the image has no file".to_owned()));
        };
        let disk = DiskConfig::new(id, first.clone(), true);
        config.disks.push(DiskConfig { followed_by: rest.to_vec(), ..disk });
        if let Some(storage) = &self.storage {
            let id = DiskId::new("storage").map_err(refuse("disks[1]"))?;
            config.disks.push(DiskConfig::new(id, storage.clone(), false));
        }
        config.vsock = Some(VsockConfig { power_port: Some(ports::POWER_PORT), ..VsockConfig::default() });
        config.networks.clone_from(&self.networks);
        config.shares.clone_from(&self.shares);
        config.serial = Endpoint::Stream;
        config.validate()?;
        Ok(config)
    }
}
