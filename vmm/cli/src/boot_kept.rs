//! `nelly boot -d`: a machine that has a keeper and a name, and lives as a sandbox does. What it
//! boots from stands in its record; what its guest writes lies in its directory.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use nelly_sandbox::spec::{ContainerSpec, Network, ProcessSpec};
use nelly_sandbox::state::record::{ImageRecord, MachineRecord, RestartPolicy};
use nelly_sandbox::state::{
    BootRecord, Id, Name, SandboxDir, SandboxLock, SandboxRecord, Sandboxes, StateError, Timestamp,
};
use nelly_sandbox::wire::order::{BootFiles, ClientEnds, Files, MachineFiles};
use nelly_seed::{MacAddress, Seed};
use nelly_vmm::config::{
    BootProtocol, CommandLine, DiskConfig, DiskId, Endpoint, FileSource, MachineConfig, OnReset, Platform,
};
use nelly_vmm::text;

use crate::args::{BootArgs, MachineArgs, OnResetArg, PlatformArg, ProtocolArg};
use crate::boot_disk::{DiskFlag, absolute};
use crate::context::Context;
use crate::fail::{Hint, OfFlag as _, Usage};
use crate::machine::MachineOptions;
use crate::network_args::NetworkArgs;
use crate::seed_args::SeedArgs;
use crate::{assets, boot, boot_image, boot_seed, life, machine, out};

/// Makes the machine, or finds the one of this name, and starts it.
pub(crate) fn run(args: &BootArgs, context: &Context) -> Result<ExitCode> {
    if args.result.is_some() {
        let what = "is for a machine in the foreground; nelly wait and nelly inspect tell how this one ends";
        return Err(Usage::error(format!("--result {what}")));
    }
    let network = boot::network(args)?;
    let id = Id::random().context("cannot create a random id")?;
    let name: Name = match &args.name {
        Some(name) => name.parse().of_flag("--name")?,
        None => id.name(),
    };
    let sandboxes = Sandboxes::make(&context.places.sandboxes())?;
    let old = found(&sandboxes, &name)?;
    let id = old.as_ref().map_or(id, |(sandbox, _)| sandbox.id());
    let seed = seed(args, &network, id)?;
    let record = record(args, network, (id, name.clone()), seed.is_some(), context)?;
    if let Some((_, old)) = &old {
        same_image(&name, old, &record)?;
    }
    // Nothing is made before it is known what boots.
    let opened = Opened::of(&record, &disk_of(&sandboxes, id), context)?;
    let (made, (sandbox, lock)) = match old {
        Some((sandbox, _)) => {
            let lock = life::lock(&sandboxes, &sandbox)?;
            let created = |old: &mut SandboxRecord| *old = SandboxRecord { created: old.created, ..record };
            sandboxes.update(&sandbox, created)?;
            (false, (sandbox, lock))
        }
        None => (true, sandboxes.draft(record)?.publish()?),
    };
    let started = begin(context, (&sandboxes, &sandbox), lock, opened, seed.as_deref());
    if let Err(error) = started {
        if made && let Err(left) = remove(&sandboxes, &sandbox) {
            out::message(format_args!("machine {name} stays: {}", text::chain(left.as_ref())));
        }
        return Err(error);
    }
    out::line(id)?;
    out::message(format_args!(
        "machine {name} runs; `nelly attach {name}` is its console, `nelly stop {name}` presses its power button, \
         `nelly start {name}` then boots the same disk again"
    ));
    Ok(ExitCode::SUCCESS)
}

/// The machine of this name, if there is one.
fn found(sandboxes: &Sandboxes, name: &Name) -> Result<Option<(SandboxDir, BootRecord)>> {
    let id = match sandboxes.name_is_free(name) {
        Ok(()) => return Ok(None),
        Err(StateError::NameTaken { id, .. }) => id,
        Err(error) => return Err(error.into()),
    };
    let taken = || StateError::NameTaken { name: name.clone(), id };
    let sandbox = sandboxes.by_id(id)?.ok_or_else(taken)?;
    let boot = sandbox.record()?.boot.ok_or_else(taken)?;
    if sandbox.condition()?.is_live() {
        return Err(Hint::error(
            format!("machine {name} runs already"),
            format!("`nelly attach {name}` is its console, and `nelly stop {name}` ends it"),
        ));
    }
    Ok(Some((sandbox, boot)))
}

/// The disk of a machine belongs to one image.
fn same_image(name: &Name, old: &BootRecord, new: &SandboxRecord) -> Result<()> {
    let path = |boot: Option<&BootRecord>| -> Result<Option<PathBuf>> {
        let image = boot.and_then(|boot| boot.image.as_deref());
        image.map(|image| Ok(DiskFlag::image(image)?.path().to_owned())).transpose()
    };
    let (old, new) = (path(Some(old))?, path(new.boot.as_ref())?);
    let Some(image) = old.filter(|old| Some(old) != new.as_ref()) else { return Ok(()) };
    Err(Hint::error(
        format!("machine {name} boots from {}, which its disk belongs to", image.display()),
        format!("use another name, or remove the machine and its disk with `nelly rm {name}`"),
    ))
}

fn disk_of(sandboxes: &Sandboxes, id: Id) -> PathBuf {
    sandboxes.path().join(id.to_string()).join(nelly_sandbox::state::boot::DISK)
}

/// The seed that the flags ask for. It tells of the machine's network by its hardware address,
/// which comes of the id, as its instance does.
fn seed(args: &BootArgs, network: &Network, id: Id) -> Result<Option<Vec<u8>>> {
    let wanted = args.seed.given().is_some() || (args.image.is_some() && !args.no_seed);
    if !wanted {
        return Ok(None);
    }
    let mut asked = boot_seed::read(&args.seed, network, false)?;
    asked.settings.machine = format!("machine {id}");
    if asked.texts.network_config.is_none() {
        let device = network.device(&id.to_string(), Some(FileSource::Fd(0)));
        asked.settings.interfaces = device.iter().map(|device| MacAddress::new(device.mac.bytes())).collect();
    }
    let disk = Seed::new(&asked.settings, asked.texts)?.disk()?;
    if let (Some(ssh), Some(user)) = (asked.ssh, &asked.settings.user) {
        boot_seed::tell_ssh(&ssh, &asked.settings, user.as_str(), network)?;
    }
    Ok(Some(disk))
}

/// What is written of the machine.
fn record(
    args: &BootArgs,
    network: Network,
    (id, name): (Id, Name),
    seed: bool,
    context: &Context,
) -> Result<SandboxRecord> {
    let common = machine::common(&args.machine, &context.settings)?;
    let path =
        |path: &Path| std::path::absolute(path).with_context(|| format!("cannot use {}", path.display()));
    let image = args.image.as_deref().map(|text| absolute("--image", text)).transpose()?;
    let reference = match &image {
        Some(text) => DiskFlag::image(text)?.path().display().to_string(),
        None => args.kernel.as_deref().map(path).transpose()?.unwrap_or_default().display().to_string(),
    };
    let disks = args.disk.iter().map(|text| absolute("--disk", text)).collect::<Result<_>>()?;
    let shares = args.share.iter().map(|text| machine::absolute_share(text)).collect::<Result<_>>()?;
    let on_reset = match args.on_reset {
        Some(OnResetArg::Exit) => OnReset::Exit,
        Some(OnResetArg::Reboot) => OnReset::Reboot,
        None if image.is_some() => OnReset::Reboot,
        None => OnReset::Exit,
    };
    let boot = BootRecord {
        image,
        entry: args.entry.clone(),
        kernel: args.kernel.as_deref().map(path).transpose()?,
        initrd: args.initrd.as_deref().map(path).transpose()?,
        disks,
        shares,
        protocol: match args.protocol {
            ProtocolArg::Auto => BootProtocol::Auto,
            ProtocolArg::Elf64 => BootProtocol::Elf64,
            ProtocolArg::Pvh => BootProtocol::Pvh,
            ProtocolArg::Bzimage => BootProtocol::Bzimage,
        },
        on_reset,
        time_limit_ms: common.timeout.map(|limit| u64::try_from(limit.as_millis())).transpose()?,
        seed,
    };
    let usernet = assets::usernet(&context.search, &network)?;
    let machine = MachineRecord {
        cpus: common.cpus,
        memory_bytes: common.memory,
        append: common.append.as_str().to_owned(),
        nested: common.nested,
        spare_slots: 0,
        platform: match args.platform {
            PlatformArg::Auto => Platform::Auto,
            PlatformArg::Mptable => Platform::Mptable,
            PlatformArg::Acpi => Platform::Acpi,
        },
        kernel: PathBuf::new(),
        initrd: PathBuf::new(),
        monitor: path(&assets::monitor(&context.search, &context.settings)?.path)?,
        usernet: usernet.as_deref().map(path).transpose()?,
        network,
    };
    // Its serial port is a terminal.
    let process = ProcessSpec { cwd: "/".to_owned(), terminal: true, stdin: true, ..ProcessSpec::default() };
    Ok(SandboxRecord {
        id,
        container: ContainerSpec::new(process, name.as_str()),
        name,
        created: Timestamp::now(),
        image: ImageRecord { reference, digest: String::new(), disk_paths: Vec::new() },
        machine,
        restart: RestartPolicy::No,
        labels: std::collections::BTreeMap::new(),
        annotations: std::collections::BTreeMap::new(),
        auto_remove: false,
        stop_signal: 15,
        stop_grace_ms: STOP_GRACE_MS,
        storage_bytes: 0,
        boot: Some(boot),
    })
}

/// How long a guest may take to switch itself off after the power button. Distributions give their
/// services 90 seconds; one that does nothing of the kind is not waited for so long.
const STOP_GRACE_MS: u64 = 30_000;

/// What a machine boots, and its disks as they are asked for; nothing of it is written yet.
struct Opened {
    config: MachineConfig,
    disks: Vec<DiskFlag>,
    files: Vec<OwnedFd>,
}

impl Opened {
    /// Finds out what the machine of a record boots; `disk` is where its own disk is, or will be.
    fn of(record: &SandboxRecord, disk: &Path, context: &Context) -> Result<Self> {
        let boot = record.boot.as_ref().context("the sandbox is no machine of nelly boot")?;
        let machine = &record.machine;
        let args = args_of(boot, machine.platform);
        let image = boot.image.as_deref().map(DiskFlag::image).transpose()?;
        let image = image.map(|image| image.kept_in(disk));
        let disks = image.iter().cloned().map(Ok).chain(boot.disks.iter().map(|text| text.parse()));
        let disks = disks.collect::<Result<Vec<DiskFlag>>>()?;
        let common = MachineOptions {
            cpus: machine.cpus,
            memory: machine.memory_bytes,
            nested: machine.nested,
            append: CommandLine::new(machine.append.clone()).map_err(|why| anyhow!("--append: {why}"))?,
            timeout: boot.time_limit_ms.map(Duration::from_millis),
        };
        let mut files = Vec::new();
        let what = boot_image::what_boots(&args, image.as_ref(), common.memory, &mut files)?;
        let mut config = machine::boot(&args, common, what, &context.places.own())?;
        config.serial = Endpoint::Stream;
        Ok(Self { config, disks, files })
    }

    /// Opens the disks, and makes those that are not there.
    fn with_disks(mut self, sandbox: &SandboxDir, seed: bool) -> Result<BootFiles> {
        for (index, disk) in self.disks.iter().enumerate() {
            let disk = disk.config(index, false, &mut self.files)?;
            self.config.disks.push(disk);
        }
        if seed {
            let file = OwnedFd::from(sandbox.seed()?);
            let source = FileSource::Fd(file.as_raw_fd().cast_unsigned());
            self.files.push(file);
            let id = DiskId::new("seed").map_err(|reason| anyhow!("the seed's disk: {reason}"))?;
            // The last one, so that no other disk changes its name.
            self.config.disks.push(DiskConfig::new(id, source, true));
        }
        self.config = self.config.with_absolute_paths()?;
        self.config.validate()?;
        let numbers: Vec<u32> = self.files.iter().map(|file| file.as_raw_fd().cast_unsigned()).collect();
        let place = |number: u32| numbers.iter().position(|other| *other == number);
        self.config.renumber(|number| {
            let place = place(number).expect("the configuration names files that were opened for it");
            u32::try_from(place).expect("a process has fewer descriptors")
        });
        for file in &self.files {
            // The keeper gets copies, and nobody else.
            rustix::io::fcntl_setfd(file, rustix::io::FdFlags::CLOEXEC)
                .context("cannot keep a descriptor from other programs")?;
        }
        Ok(BootFiles { config: self.config, files: self.files })
    }
}

/// Starts a machine whose lock this process holds.
fn begin(
    context: &Context,
    (sandboxes, sandbox): (&Sandboxes, &SandboxDir),
    lock: SandboxLock,
    opened: Opened,
    seed: Option<&[u8]>,
) -> Result<()> {
    if let Some(seed) = seed {
        sandbox.write_seed(&lock, seed)?;
    }
    let boot = opened.with_disks(sandbox, seed.is_some())?;
    let files = files(lock, boot);
    life::Start::with_files(context, sandboxes, sandbox.id(), files)?.launch().map(drop)
}

fn files(lock: SandboxLock, boot: BootFiles) -> Files {
    let machine = MachineFiles::Boot(Box::new(boot));
    Files { lock: Some(lock.into_fd()), machine, client: ClientEnds::default() }
}

/// What a start of this machine needs, for `nelly start`.
pub(crate) fn open(
    context: &Context,
    sandbox: &SandboxDir,
    record: &SandboxRecord,
    lock: SandboxLock,
) -> Result<Files> {
    let opened = Opened::of(record, &sandbox.boot_disk(), context)?;
    if !record.machine.monitor.is_file() {
        bail!("the machine's monitor {} is missing", record.machine.monitor.display());
    }
    let seed = record.boot.as_ref().is_some_and(|boot| boot.seed);
    Ok(files(lock, opened.with_disks(sandbox, seed)?))
}

/// Removes a machine that did not start for the first time.
fn remove(sandboxes: &Sandboxes, sandbox: &SandboxDir) -> Result<()> {
    let lock = life::lock(sandboxes, sandbox)?;
    Ok(sandboxes.remove(sandbox, lock)?)
}

/// The flags that say what a record says.
fn args_of(boot: &BootRecord, platform: Platform) -> BootArgs {
    BootArgs {
        kernel: boot.kernel.clone(),
        initrd: boot.initrd.clone(),
        image: boot.image.clone(),
        entry: boot.entry.clone(),
        disk: boot.disks.clone(),
        share: boot.shares.clone(),
        network: NetworkArgs::default(),
        machine: MachineArgs::default(),
        result: None,
        on_reset: Some(match boot.on_reset {
            OnReset::Exit => OnResetArg::Exit,
            OnReset::Reboot => OnResetArg::Reboot,
        }),
        protocol: match boot.protocol {
            BootProtocol::Auto => ProtocolArg::Auto,
            BootProtocol::Elf64 => ProtocolArg::Elf64,
            BootProtocol::Pvh => ProtocolArg::Pvh,
            BootProtocol::Bzimage => ProtocolArg::Bzimage,
        },
        platform: match platform {
            Platform::Auto => PlatformArg::Auto,
            Platform::Mptable => PlatformArg::Mptable,
            Platform::Acpi => PlatformArg::Acpi,
        },
        no_seed: false,
        seed: SeedArgs::default(),
        detach: true,
        name: None,
    }
}
