//! Converts the flags and the image's configuration to specifications, before anything is started.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nelly_image::{Config, ImageConfiguration};
use nelly_sandbox::spec::network::SecretValues;
use nelly_sandbox::spec::{
    ContainerOptions, ContainerSpec, MachineSpec, Mounts, Network, Overrides, ProcessSpec, Rights, Seccomp,
    SecurityOption, ShareRequest, SpecError, Tmpfs, VolumeRequest, shares, volumes,
};
use nelly_sandbox::state::{Hostname, Id, Name};
use nelly_vmm::config::{FileSource, Platform};
use nelly_vmm::machine::Resources;
use nelly_vmm::sys::files::Accept;

use crate::args::RunArgs;
use crate::assets::{self, Asset, Assets};
use crate::context::Context;
use crate::fail::{OfFlag as _, Usage};
use crate::{console, environment, machine};

/// The flags, validated before the image is read.
pub(super) struct RunOptions {
    pub(super) id: Id,
    pub(super) name: Name,
    pub(super) hostname: Hostname,
    pub(super) overrides: Overrides,
    pub(super) tmpfs: Vec<Tmpfs>,
    pub(super) volumes: Vec<VolumeRequest>,
    pub(super) shares: Vec<ShareRequest>,
    pub(super) seccomp: Seccomp,
    pub(super) container: ContainerOptions,
    pub(super) common: machine::MachineOptions,
    pub(super) assets: Assets,
    pub(super) monitor: Asset,
    pub(super) network: Network,
    /// The values of its secrets.
    pub(super) secrets: SecretValues,
    /// The program of user-mode networks.
    pub(super) usernet: Option<PathBuf>,
}

/// The flags together with the container that they and the image specify.
pub(super) struct PreparedRun {
    pub(super) options: RunOptions,
    pub(super) container: ContainerSpec,
}

pub(super) fn run_options(args: &RunArgs, command: Vec<String>, context: &Context) -> Result<RunOptions> {
    let id = Id::random().context("cannot create a random id")?;
    let name: Name = match &args.name {
        Some(name) => name.parse().of_flag("--name")?,
        None => id.name(),
    };
    let hostname: Hostname = match &args.hostname {
        Some(name) => name.parse().of_flag("--hostname")?,
        None => name.clone().into(),
    };
    let network = args.network.network_with(&args.secrets, Network::User(Box::default()))?;
    let secrets = SecretValues::read(&network, |name| std::env::var_os(name))?;
    let env = environment::collect(&args.env_file, &args.env, |name| std::env::var(name).ok())?;
    let own = of_secrets(&network, &env)?;
    let overrides = Overrides {
        entrypoint: args.entrypoint.clone(),
        command,
        env: [args.relays.environment().into_iter().collect(), own, env].concat(),
        cwd: args.workdir.clone(),
        user: args.user.clone(),
        terminal: args.tty,
        stdin: args.interactive,
        rights: args.container.rights()?,
    };
    // Merging with an empty image configuration finds errors in the flags alone.
    let alone = |overrides: &Overrides| ProcessSpec::merge(&Config::default(), overrides, hostname.as_str());
    let checked = match alone(&overrides) {
        // The command may be the image's.
        Err(SpecError::NoCommand) => alone(&Overrides { command: vec!["-".to_owned()], ..overrides.clone() }),
        checked => checked,
    };
    match checked {
        Ok(_) => {}
        Err(error @ SpecError::EmptyProgram) => return Err(error.into()),
        Err(error) => return Err(Usage::error(error.to_string())),
    }
    let Mounts { volumes, tmpfs: more_tmpfs, shares } = args.container.mounts()?;
    let tmpfs = args.tmpfs.iter().map(|text| text.parse()).collect::<Result<Vec<Tmpfs>, _>>();
    let tmpfs = [tmpfs.of_flag("--tmpfs")?, more_tmpfs].concat();
    // As above.
    volumes::combine(&volumes, &[], &tmpfs, &shares).of_flag("--volume, --mount, --tmpfs")?;
    let relays = args.relays.relays(|name| std::env::var_os(name).map(Into::into))?;
    let shared = shares::resolve(&shares, &context.places.own())?;
    let container = ContainerOptions { relays, shares: shared, ..args.container.options()? };
    let common = machine::common(&args.machine, &context.settings)?;
    common.shares(!shares.is_empty())?;
    let seccomp = seccomp(args, &overrides.rights).of_flag("--security-opt")?;
    // What is asked for was looked at before what is installed.
    let assets =
        Assets::find(&context.search, &context.settings, args.kernel.as_deref(), args.initrd.as_deref())?;
    machine::kernel(&assets.kernel.path)?;
    machine::open("--initrd", &assets.initrd.path, Accept::Regular)?;
    Ok(RunOptions {
        id,
        name,
        hostname,
        tmpfs,
        volumes,
        shares,
        seccomp,
        overrides,
        container,
        common,
        assets,
        monitor: assets::monitor(&context.search, &context.settings)?,
        usernet: assets::usernet(&context.search, &network)?,
        secrets,
        network,
    })
}

/// What the container's environment has of its secrets, before what `env` says.
///
/// # Errors
/// A variable has to be both.
fn of_secrets(network: &Network, env: &[String]) -> Result<Vec<String>> {
    let Network::User(user) = network else { return Ok(Vec::new()) };
    let is_set = |name: &str| env.iter().any(|word| word.split('=').next() == Some(name));
    if let Some(secret) = user.secrets.iter().find(|secret| is_set(&secret.name)) {
        return Err(Usage::error(format!(
            "--secret {name}: -e or --env-file sets {name}, too, which is the variable of its placeholder",
            name = secret.name
        )));
    }
    Ok(user.environment())
}

fn seccomp(args: &RunArgs, rights: &Rights) -> Result<Seccomp> {
    match args.security_opt.as_deref().map(str::parse).transpose()? {
        None if args.container.privileged => Ok(Seccomp::Unconfined),
        None => Ok(Seccomp::Default),
        Some(SecurityOption::Unconfined) => Ok(Seccomp::Unconfined),
        Some(SecurityOption::Profile(path)) => {
            let file = machine::open("seccomp", Path::new(&path), Accept::Text)?;
            let text = std::io::read_to_string(file).with_context(|| format!("cannot read {path}"))?;
            Seccomp::from_json(&text, &rights.capabilities.names())
                .with_context(|| format!("{path} is not a valid seccomp profile"))
        }
    }
}

pub(super) fn plan(args: &RunArgs, options: RunOptions, image: &ImageConfiguration) -> Result<PreparedRun> {
    let config = image.config().clone().unwrap_or_default();
    let process = ProcessSpec::merge(&config, &options.overrides, options.hostname.as_str())?;
    let declared = config.volumes().as_deref().unwrap_or_default();
    let volumes = volumes::combine(&options.volumes, declared, &options.tmpfs, &options.shares)?;
    let container = ContainerSpec {
        read_only: args.read_only,
        tmpfs: options.tmpfs.clone(),
        seccomp: options.seccomp.clone(),
        options: ContainerOptions { volumes, ..options.container.clone() },
        in_machine_network: !options.network.is_none(),
        ..ContainerSpec::new(process, options.hostname.as_str())
    };
    Ok(PreparedRun { options, container })
}

/// The specification of the machine with its files as paths, for `--dry-run`.
pub(super) fn machine_by_path(plan: &PreparedRun, image: Vec<FileSource>) -> MachineSpec {
    let path = |asset: &Asset| FileSource::Path(asset.path.clone());
    let mut spec =
        machine_spec(plan, path(&plan.options.assets.kernel), path(&plan.options.assets.initrd), image);
    // A link of a process that is not there has the number 0, as the disk of an image that is not.
    let link = FileSource::Fd(0);
    spec.networks.extend(plan.options.network.device(&plan.options.id.to_string(), Some(link)));
    let shares = &plan.container.options.shares;
    spec.share(shares, shares.iter().map(|share| FileSource::Path(share.source.clone())));
    spec
}

/// The specification of the machine with its files opened.
pub(super) fn machine_opened(
    plan: &PreparedRun,
    image: Vec<File>,
    resources: &mut Resources,
) -> Result<MachineSpec> {
    let mut open = |flag: &str, asset: &Asset| {
        let file = machine::open(flag, &asset.path, Accept::Regular)?;
        Ok::<_, anyhow::Error>(resources.add_named(file, asset.path.display().to_string()))
    };
    let (kernel, initrd) =
        (open("--kernel", &plan.options.assets.kernel)?, open("--initrd", &plan.options.assets.initrd)?);
    let mut spec = machine_spec(plan, kernel, initrd, resources.add_all(image));
    let shares = &plan.container.options.shares;
    spec.share(shares, resources.add_all(shares::open(shares)?));
    Ok(spec)
}

fn machine_spec(
    plan: &PreparedRun,
    kernel: FileSource,
    initrd: FileSource,
    image: Vec<FileSource>,
) -> MachineSpec {
    let platform = plan.options.assets.platform.unwrap_or(Platform::Auto);
    let mut append = plan.options.common.append.as_str().to_owned();
    if tracing::enabled!(tracing::Level::DEBUG) {
        append = format!("{} {append}", console::TALKATIVE);
    }
    MachineSpec {
        kernel,
        initrd,
        image,
        storage: None,
        platform,
        cpus: plan.options.common.cpus,
        memory: plan.options.common.memory,
        nested: plan.options.common.nested,
        confine: plan.options.common.confine,
        monitor_user: plan.options.common.monitor_user,
        append,
        spare_slots: 0,
        give_back: false,
        networks: Vec::new(),
        shares: Vec::new(),
    }
}
