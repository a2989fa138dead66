//! `nelly boot -d`: a machine that has a keeper and a name, and lives as a sandbox does. What it
//! boots from stands in its record; what its guest writes lies in its directory.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Error, Result, anyhow, bail};
use nelly_sandbox::instance::relays;
use nelly_sandbox::spec::network::SecretValues;
use nelly_sandbox::spec::{Capabilities, ContainerSpec, Network, ProcessSpec};
use nelly_sandbox::state::record::{ImageRecord, MachineRecord, RestartPolicy};
use nelly_sandbox::state::{
    BootRecord, Id, Name, SandboxDir, SandboxLock, SandboxRecord, Sandboxes, SshRecord, StateError, Timestamp,
};
use nelly_sandbox::wire::order::{BootFiles, ClientEnds, Files, MachineFiles};
use nelly_seed::{MacAddress, Seed, Settings, UserName};
use nelly_vmm::config::{
    BootProtocol, CommandLine, DiskConfig, DiskId, Endpoint, FileSource, MachineConfig, OnReset, Platform,
    VsockConfig,
};
use nelly_vmm::sys::files::Accept;
use nelly_vmm::text;

use crate::boot_args::{BootArgs, OnResetArg, PlatformArg, ProtocolArg};
use crate::boot_disk::{DiskFlag, absolute};
use crate::boot_paths::lasting;
use crate::context::{BootedMachines, Context};
use crate::fail::{Hint, OfFlag as _, Usage};
use crate::machine::MachineOptions;
use crate::machine_args::MachineArgs;
use crate::network_args::NetworkArgs;
use crate::relay_args::BootRelayArgs;
use crate::seed_args::{Asked, SeedArgs};
use crate::ssh_dir::{Login, SshDir};
use crate::{agent_file, assets, boot, boot_base, boot_image, boot_seed, host, life, machine, out, ssh};

/// For [`Context`].
pub(crate) const MACHINES: BootedMachines = BootedMachines { open, check_running };

/// Makes the machine, or finds the one of this name, and starts it.
pub(crate) fn run(args: &BootArgs, context: &Context) -> Result<ExitCode> {
    if args.result.is_some() {
        let what = "is for a machine in the foreground; nelly wait and nelly inspect tell how this one ends";
        return Err(Usage::error(format!("--result {what}")));
    }
    let logs_in = ssh_logs_in(args);
    // Whoever may log in needs a way.
    let default = if logs_in { Network::User(Box::default()) } else { Network::None };
    let network = boot::network(args, default)?;
    let network = if logs_in { ssh::with_port(network) } else { network };
    let id = Id::random().context("cannot create a random id")?;
    let asked: Option<Name> = args.name.as_deref().map(str::parse).transpose().of_flag("--name")?;
    let sandboxes = Sandboxes::make(&context.places.sandboxes())?;
    // Only who names a machine means one that is there.
    let old = asked.as_ref().map(|name| found(&sandboxes, name)).transpose()?.flatten();
    let id = old.as_ref().map_or(id, SandboxDir::id);
    let own = logs_in && args.seed.ssh_dir.is_none();
    let own = own.then(|| own_keys(&sandboxes, id, old.is_some())).transpose()?.flatten();
    let seed = MadeSeed::of(args, &network, id, own.as_ref(), context)?;
    let bytes = seed.as_ref().map(|seed| seed.disk.as_slice());
    let name = asked.unwrap_or_else(|| id.name());
    let mut record = record(args, network, (id, name), bytes.is_some(), context)?;
    let login = seed.as_ref().and_then(|seed| seed.login(args, id, own.as_ref()));
    if let Some(boot) = &mut record.boot {
        boot.ssh = login.as_ref().map(|(_, ssh)| ssh.clone());
    }
    host::require_for(record.boot.as_ref())?;
    let name = match old {
        Some(sandbox) => start_again(context, &sandboxes, &sandbox, record, bytes)?,
        None => start_first(context, &sandboxes, record, bytes, own.as_ref())?,
    };
    out::line(id)?;
    out::message(format_args!(
        "machine {name} runs; `nelly attach {name}` is its console, `nelly stop {name}` presses its power button, \
         `nelly start {name}` then boots the same disk again"
    ));
    if args.agent {
        out::message(format_args!(
            "`nelly exec -it {name} bash` is a shell in it, once cloud-init has started the agent"
        ));
    }
    if let (Some((keys, ssh)), Some(sandbox)) = (login, sandboxes.by_id(id)?)
        && let Err(error) = tell_ssh(keys, &ssh, &sandbox, &name)
    {
        // The machine runs all the same.
        out::message(format_args!("ssh is not told of it: {}", text::chain(error.as_ref())));
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether the machine has keys for ssh: its seed brings them, unless user data is given that says
/// itself who logs in, or meta data, whose instance may be one that the guest has seen already.
fn ssh_logs_in(args: &BootArgs) -> bool {
    boot::wants_seed(args) && args.seed.user_data.is_none() && args.seed.meta_data.is_none()
}

/// The keys of a machine for which nobody named a directory. They are made, in memory alone if the
/// machine is not `there` yet. `None` where ssh could not be told of them.
fn own_keys(sandboxes: &Sandboxes, id: Id, there: bool) -> Result<Option<SshDir>> {
    let path = sandboxes.path().join(id.to_string()).join(nelly_sandbox::state::boot::SSH);
    if !SshDir::can_be_at(&path) {
        out::message(format_args!(
            "no keys for nelly ssh are made, since ssh cannot be told of {}; --ssh-dir names another directory",
            path.display()
        ));
        return Ok(None);
    }
    SshDir::open(&path, !there).map(Some)
}

/// Writes what ssh reads beside the keys of a machine that runs, and says how to log in.
fn tell_ssh(keys: &SshDir, ssh: &SshRecord, sandbox: &SandboxDir, name: &Name) -> Result<()> {
    let user = ssh.user.as_deref().map(UserName::new).transpose()?;
    let address = ssh::address(&sandbox.state()?);
    let login = Login { host: ssh::host(ssh, name), alias: ssh.alias.clone(), user, address };
    let config = keys.configure(&login)?;
    match (&sandbox.record()?.machine.network, &login.user) {
        (Network::User(_), Some(user)) => {
            let user = user.as_str();
            out::message(format_args!("`nelly ssh {name}` logs in as {user}, once the guest is up"));
        }
        (Network::User(_), None) => {
            out::message(format_args!("`nelly ssh USER@{name}` logs in, once the guest is up"));
        }
        (Network::None, _) => {}
        _ => out::message(format_args!(
            "`{}` logs in, if the guest's ssh can be reached",
            ssh::by_address(&config, &login)
        )),
    }
    Ok(())
}

/// Makes a machine and starts it; its name, which is longer if a generated one is taken. It becomes
/// visible with its seed and its disk, when all that it needs is open.
fn start_first(
    context: &Context,
    sandboxes: &Sandboxes,
    mut record: SandboxRecord,
    seed: Option<&[u8]>,
    keys: Option<&SshDir>,
) -> Result<Name> {
    if let Some(boot) = &mut record.boot {
        boot.base = boot_base::of(boot, &disk_of(sandboxes, record.id))?;
    }
    let draft = sandboxes.draft(record.clone())?;
    if let Some(seed) = seed {
        draft.write_seed(seed)?;
    }
    if let Some(keys) = keys {
        keys.save(&draft.sandbox().ssh_keys())?;
    }
    let opened = Opened::of(&record, &draft.sandbox().boot_disk(), context)?.with_disks()?;
    let boot = opened.with_seed(seed.map(|_| draft.sandbox().seed()).transpose()?)?;
    let (sandbox, lock) = draft.publish()?;
    let name = sandbox.record()?.name;
    if let Err(error) = launch(context, sandboxes, &sandbox, files(lock, boot)) {
        if has_run(&sandbox) {
            out::message(format_args!(
                "machine {name} stays with its disk: `nelly inspect {name}` and `nelly logs {name}` tell of its end, \
                 `nelly rm {name}` removes it"
            ));
        } else if let Err(left) = remove(sandboxes, &sandbox) {
            out::message(format_args!("machine {name} stays: {}", text::chain(left.as_ref())));
        }
        return Err(error);
    }
    Ok(name)
}

/// Starts a machine that is there as `new` says, with its disk; its name. If it does not start,
/// its record and its seed are what they were.
fn start_again(
    context: &Context,
    sandboxes: &Sandboxes,
    sandbox: &SandboxDir,
    mut new: SandboxRecord,
    seed: Option<&[u8]>,
) -> Result<Name> {
    let lock = life::lock(sandboxes, sandbox)?;
    let old = sandbox.record()?;
    let disk = sandbox.boot_disk();
    if let (Some(before), Some(boot)) = (&old.boot, &mut new.boot) {
        boot.base = boot_base::carried(old.name.as_str(), before, boot, &disk)?;
    }
    let opened = Opened::of(&new, &disk, context)?.with_disks()?;
    let before = Before::of(sandbox, old)?;
    let start = || {
        if let Some(seed) = seed {
            sandbox.write_seed(&lock, seed)?;
        }
        let record = sandboxes.update(sandbox, |record| changed(record, new))?;
        if seed.is_none() {
            sandbox.remove_seed(&lock)?;
        }
        let boot = opened.with_seed(seed.map(|_| sandbox.seed()).transpose()?)?;
        launch(context, sandboxes, sandbox, files(lock, boot))?;
        Ok(record.name)
    };
    start().inspect_err(|_: &Error| {
        if let Err(left) = before.put_back(sandboxes, sandbox) {
            let name = &before.record.name;
            let why = text::chain(left.as_ref());
            out::message(format_args!("machine {name} keeps the new flags for its next start: {why}"));
        }
    })
}

/// Makes the record of a machine that of the same machine with other flags. What other commands
/// said of it stays.
fn changed(record: &mut SandboxRecord, new: SandboxRecord) {
    let old = record.clone();
    *record = SandboxRecord {
        created: old.created,
        restart: old.restart,
        labels: old.labels,
        annotations: old.annotations,
        ..new
    };
}

/// What a machine was before it was to be started with other flags.
struct Before {
    record: SandboxRecord,
    seed: Option<Vec<u8>>,
}

impl Before {
    fn of(sandbox: &SandboxDir, record: SandboxRecord) -> Result<Self> {
        let seed = match sandbox.seed() {
            Ok(mut file) => {
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes).context("cannot read the machine's seed")?;
                Some(bytes)
            }
            Err(StateError::Incomplete { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        Ok(Self { record, seed })
    }

    /// Whoever held the lock has let go of it.
    fn put_back(&self, sandboxes: &Sandboxes, sandbox: &SandboxDir) -> Result<()> {
        let lock = life::lock(sandboxes, sandbox)?;
        if let Some(seed) = &self.seed {
            sandbox.write_seed(&lock, seed)?;
        }
        sandboxes.update(sandbox, |record| *record = self.record.clone())?;
        if self.seed.is_none() {
            sandbox.remove_seed(&lock)?;
        }
        Ok(())
    }
}

/// Whether the guest of a new machine that did not start has run, and ended before anybody could
/// see it: then its end is worth a look.
fn has_run(sandbox: &SandboxDir) -> bool {
    let exit = sandbox.state().ok().and_then(|state| state.exit);
    exit.is_some_and(|exit| is_of_guest(&exit.reason))
}

/// Whether this reason of an end is one of a guest, and not of a machine that could not be made or
/// was given up.
fn is_of_guest(reason: &str) -> bool {
    matches!(
        reason,
        "panic" | "triple_fault" | "power_off" | "halted" | "reset" | "time_limit" | "monitor_died"
    )
}

/// The machine of this name that does not run, if there is one.
fn found(sandboxes: &Sandboxes, name: &Name) -> Result<Option<SandboxDir>> {
    let id = match sandboxes.name_is_free(name) {
        Ok(()) => return Ok(None),
        Err(StateError::NameTaken { id, .. }) => id,
        Err(error) => return Err(error.into()),
    };
    let taken = || StateError::NameTaken { name: name.clone(), id };
    let sandbox = sandboxes.by_id(id)?.ok_or_else(taken)?;
    if sandbox.record()?.boot.is_none() {
        return Err(taken().into());
    }
    if sandbox.condition()?.is_live() {
        return Err(Hint::error(
            format!("machine {name} runs already"),
            format!("`nelly attach {name}` is its console, and `nelly stop {name}` ends it"),
        ));
    }
    Ok(Some(sandbox))
}

fn disk_of(sandboxes: &Sandboxes, id: Id) -> PathBuf {
    sandboxes.path().join(id.to_string()).join(nelly_sandbox::state::boot::DISK)
}

/// The seed that the flags ask for.
struct MadeSeed {
    disk: Vec<u8>,
    settings: Settings,
    /// The keys of `--ssh-dir`.
    ssh: Option<SshDir>,
}

impl MadeSeed {
    /// It tells of the machine's network by its hardware address, which comes of the id, as its
    /// instance does.
    fn of(
        args: &BootArgs,
        network: &Network,
        id: Id,
        own: Option<&SshDir>,
        context: &Context,
    ) -> Result<Option<Self>> {
        if !boot::wants_seed(args) {
            return Ok(None);
        }
        let Asked { mut settings, texts, ssh } = boot_seed::read(&args.seed, network, own, false)?;
        settings.machine = format!("machine {id}");
        if texts.network_config.is_none() {
            let device = network.device(&id.to_string(), Some(FileSource::Fd(0)));
            settings.interfaces = device.iter().map(|device| MacAddress::new(device.mac.bytes())).collect();
        }
        let seed = Seed::new(&settings, texts)?;
        let seed = if args.agent { seed.with_agent(agent_file::read(&context.search)?)? } else { seed };
        let disk = seed.disk()?;
        Ok(Some(Self { disk, settings, ssh }))
    }

    /// The keys for ssh, of the machine's `own` or of `--ssh-dir`, and what is written of them.
    fn login<'a>(
        &'a self,
        args: &BootArgs,
        id: Id,
        own: Option<&'a SshDir>,
    ) -> Option<(&'a SshDir, SshRecord)> {
        let keys = own.or(self.ssh.as_ref())?;
        let host_name = self.settings.host_name.as_ref().map_or("machine", |name| name.as_str());
        // What was printed of a machine holds when its names are others.
        let alias = if own.is_some() { format!("nelly-{}", id.short()) } else { host_name.to_owned() };
        let of_image = || {
            let image = DiskFlag::image(args.image.as_deref()?).ok()?;
            UserName::new(&boot_image::default_user(&image)?).ok()
        };
        let user = self.settings.user.clone().or_else(of_image);
        let record = SshRecord {
            directory: own.is_none().then(|| keys.path().to_owned()),
            alias,
            user: user.map(|user| user.as_str().to_owned()),
        };
        Some((keys, record))
    }
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
    common.shares(!args.share.is_empty())?;
    let path =
        |path: &Path| std::path::absolute(path).with_context(|| format!("cannot use {}", path.display()));
    let lasting = |flag, path: &Option<PathBuf>| path.as_deref().map(|path| lasting(flag, path)).transpose();
    let (kernel, initrd) = (lasting("--kernel", &args.kernel)?, lasting("--initrd", &args.initrd)?);
    let image = args.image.as_deref().map(|text| absolute("--image", text)).transpose()?;
    let reference = match &image {
        Some(text) => DiskFlag::image(text)?.path().display().to_string(),
        None => kernel.clone().unwrap_or_default().display().to_string(),
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
        kernel,
        initrd,
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
        agent: args.agent,
        // They are known when the seed is made.
        ssh: None,
        // It is looked at when it is known which disk there is.
        base: Vec::new(),
    };
    let usernet = assets::usernet(&context.search, &network)?;
    let machine = MachineRecord {
        cpus: common.cpus,
        memory_bytes: common.memory,
        append: common.append.as_str().to_owned(),
        nested: common.nested,
        confine: common.confine,
        monitor_user: common.monitor_user,
        spare_slots: 0,
        give_back: false,
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
    let mut process =
        ProcessSpec { cwd: "/".to_owned(), terminal: true, stdin: true, ..ProcessSpec::default() };
    // What its agent starts.
    process.env.push(PATH.to_owned());
    process.rights.capabilities = Capabilities::EVERY;
    let mut container = ContainerSpec::new(process, name.as_str());
    container.options.relays = args.relay.relays()?;
    relays::check(&container.options.relays)?;
    Ok(SandboxRecord {
        id,
        container,
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

/// The search path of what is started in a guest, whatever its distribution.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

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
        let boot = record.boot.as_ref().context(NO_BOOT)?;
        let machine = &record.machine;
        let args = args_of(boot, machine.platform);
        let image = boot_base::image(boot, disk)?;
        let disks = image.iter().cloned().map(Ok).chain(boot.disks.iter().map(|text| text.parse()));
        let disks = disks.collect::<Result<Vec<DiskFlag>>>()?;
        let common = MachineOptions {
            cpus: machine.cpus,
            memory: machine.memory_bytes,
            nested: machine.nested,
            confine: machine.confine,
            monitor_user: machine.monitor_user,
            append: CommandLine::new(machine.append.clone()).map_err(|why| anyhow!("--append: {why}"))?,
            timeout: boot.time_limit_ms.map(Duration::from_millis),
        };
        let mut files = Vec::new();
        let what = boot_image::what_boots(&args, image.as_ref(), common.memory, &mut files)?;
        let mut config = machine::boot(&args, common, what, &context.places.own())?;
        config.serial = Endpoint::Stream;
        // Without a power port: in such a guest any process could say that it ends.
        config.vsock = boot.agent.then(VsockConfig::default);
        Ok(Self { config, disks, files })
    }

    /// Opens the disks, and makes those that are not there.
    fn with_disks(mut self) -> Result<Self> {
        for (index, disk) in self.disks.iter().enumerate() {
            let disk = disk.config(index, false, &mut self.files)?;
            self.config.disks.push(disk);
        }
        self.config.validate()?;
        Ok(self)
    }

    /// Adds the seed, if there is one, to the disks: then this is all that a start needs.
    fn with_seed(mut self, seed: Option<File>) -> Result<BootFiles> {
        if let Some(seed) = seed {
            let file = OwnedFd::from(seed);
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

/// Starts the keeper of a machine, and waits until its guest runs.
fn launch(context: &Context, sandboxes: &Sandboxes, sandbox: &SandboxDir, files: Files) -> Result<()> {
    life::Start::with_files(context, sandboxes, sandbox.id(), files)?.launch().map(drop)
}

fn files(lock: SandboxLock, boot: BootFiles) -> Files {
    let machine = MachineFiles::Boot(Box::new(boot));
    Files {
        lock: Some(lock.into_fd()),
        machine,
        client: ClientEnds::default(),
        secrets: SecretValues::default(),
    }
}

/// What a start of this machine needs, for `nelly start`.
fn open(context: &Context, sandbox: &SandboxDir, record: &SandboxRecord, lock: SandboxLock) -> Result<Files> {
    let seed = usable(sandbox, record)?;
    let opened = Opened::of(record, &sandbox.boot_disk(), context)?;
    Ok(files(lock, opened.with_disks()?.with_seed(seed)?))
}

/// Whether a machine that runs could be started again, as far as that can be seen while it has its
/// disks open: for `nelly restart`, before it is stopped.
fn check_running(context: &Context, sandbox: &SandboxDir, record: &SandboxRecord) -> Result<()> {
    usable(sandbox, record)?;
    let boot = record.boot.as_ref().context(NO_BOOT)?;
    boot.kernel.as_deref().map(machine::kernel).transpose()?;
    boot.initrd.as_deref().map(|path| machine::open("--initrd", path, Accept::Regular)).transpose()?;
    let image = boot_base::image(boot, &sandbox.boot_disk())?;
    for disk in image.into_iter().map(Ok).chain(boot.disks.iter().map(|text| text.parse())) {
        let disk: DiskFlag = disk?;
        disk.check_in_use()?;
    }
    for text in &boot.shares {
        machine::share(text, &context.places.own())?;
    }
    Ok(())
}

/// The seed of a machine that was made, if it has one, when its monitor and what its disk lies over
/// are what they were.
fn usable(sandbox: &SandboxDir, record: &SandboxRecord) -> Result<Option<File>> {
    let boot = record.boot.as_ref().context(NO_BOOT)?;
    if !record.machine.monitor.is_file() {
        bail!("the machine's monitor {} is missing", record.machine.monitor.display());
    }
    boot_base::check(record.name.as_str(), boot, &sandbox.boot_disk())?;
    if !boot.seed {
        return Ok(None);
    }
    match sandbox.seed() {
        Err(error @ StateError::Incomplete { .. }) => Err(Hint::error(
            text::chain(&error),
            format!("`nelly boot -d --name {}` with the flags of before writes the seed anew", record.name),
        )),
        seed => Ok(Some(seed?)),
    }
}

const NO_BOOT: &str = "the sandbox is no machine of nelly boot";

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
        agent: boot.agent,
        relay: BootRelayArgs::default(),
        seed: SeedArgs::default(),
        detach: true,
        name: None,
    }
}

#[cfg(test)]
mod tests;
