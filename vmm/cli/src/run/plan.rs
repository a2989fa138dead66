//! What the flags and the image decide before anything is started.

use std::fs::File;
use std::path::Path;

use anyhow::{Context as _, Result};
use nelly_image::{Config, ImageConfiguration};
use nelly_sandbox::spec::{
    ContainerSpec, MachineSpec, Overrides, ProcessSpec, Seccomp, SecurityOption, SpecError, Tmpfs, oci,
};
use nelly_sandbox::state::{Hostname, Id, Name};
use nelly_vmm::config::{FileSource, Platform};
use nelly_vmm::machine::Resources;
use nelly_vmm::sys::files::Accept;

use crate::args::RunArgs;
use crate::assets::{self, Asset, Assets};
use crate::context::Context;
use crate::{console, environment, machine};

/// What the flags say, checked before an image is looked at.
pub(super) struct Wanted {
    pub(super) id: Id,
    pub(super) name: Name,
    pub(super) hostname: Hostname,
    pub(super) overrides: Overrides,
    pub(super) tmpfs: Vec<Tmpfs>,
    pub(super) seccomp: Seccomp,
    pub(super) common: machine::Common,
    pub(super) assets: Assets,
    pub(super) monitor: Asset,
}

/// Everything that was decided before anything is started.
pub(super) struct Plan {
    pub(super) wanted: Wanted,
    pub(super) container: ContainerSpec,
}

pub(super) fn wanted(
    args: &RunArgs,
    command: Vec<String>,
    assets: Assets,
    context: &Context,
) -> Result<Wanted> {
    let id = Id::random().context("cannot create a random id")?;
    let name: Name = match &args.name {
        Some(name) => name.parse().context("--name")?,
        None => id.name(),
    };
    let hostname: Hostname = match &args.hostname {
        Some(name) => name.parse().context("--hostname")?,
        None => name.clone().into(),
    };
    let overrides = Overrides {
        entrypoint: args.entrypoint.clone(),
        command,
        env: environment::collect(&args.env_file, &args.env, |name| std::env::var(name).ok())?,
        cwd: args.workdir.clone(),
        user: args.user.clone(),
        terminal: args.tty,
        stdin: args.interactive,
    };
    // Against an image that says nothing: what the flags alone get wrong, shows here.
    match ProcessSpec::merge(&Config::default(), &overrides, hostname.as_str()) {
        Ok(_) | Err(SpecError::NoCommand) => {}
        Err(error) => return Err(error.into()),
    }
    machine::open("--kernel", &assets.kernel.path, Accept::Regular)?;
    machine::open("--initrd", &assets.initrd.path, Accept::Regular)?;
    Ok(Wanted {
        id,
        name,
        hostname,
        overrides,
        tmpfs: args.tmpfs.iter().map(|text| text.parse()).collect::<Result<_, _>>().context("--tmpfs")?,
        seccomp: seccomp(args.security_opt.as_deref()).context("--security-opt")?,
        common: machine::common(&args.machine, &context.settings)?,
        assets,
        monitor: assets::monitor(&context.search, &context.settings)?,
    })
}

fn seccomp(option: Option<&str>) -> Result<Seccomp> {
    match option.map(str::parse).transpose()? {
        None => Ok(Seccomp::Default),
        Some(SecurityOption::Unconfined) => Ok(Seccomp::Unconfined),
        Some(SecurityOption::Profile(path)) => {
            let file = machine::open("seccomp", Path::new(&path), Accept::Text)?;
            let text = std::io::read_to_string(file).with_context(|| format!("cannot read {path}"))?;
            Seccomp::from_json(&text, &oci::CAPABILITIES)
                .with_context(|| format!("{path} is not a valid seccomp profile"))
        }
    }
}

pub(super) fn plan(args: &RunArgs, wanted: Wanted, image: &ImageConfiguration) -> Result<Plan> {
    let config = image.config().clone().unwrap_or_default();
    let process = ProcessSpec::merge(&config, &wanted.overrides, wanted.hostname.as_str())?;
    let container = ContainerSpec {
        process,
        hostname: wanted.hostname.to_string(),
        read_only: args.read_only,
        tmpfs: wanted.tmpfs.clone(),
        upper_bytes: 0,
        seccomp: wanted.seccomp.clone(),
    };
    Ok(Plan { wanted, container })
}

/// The machine with its files by path, for showing.
pub(super) fn machine_by_path(plan: &Plan, image: FileSource) -> MachineSpec {
    let path = |asset: &Asset| FileSource::Path(asset.path.clone());
    machine_spec(plan, path(&plan.wanted.assets.kernel), path(&plan.wanted.assets.initrd), image)
}

/// The machine with its files opened.
pub(super) fn machine_opened(plan: &Plan, image: File, resources: &mut Resources) -> Result<MachineSpec> {
    let mut open = |flag: &str, asset: &Asset| {
        Ok::<_, anyhow::Error>(resources.add(machine::open(flag, &asset.path, Accept::Regular)?))
    };
    let (kernel, initrd) =
        (open("--kernel", &plan.wanted.assets.kernel)?, open("--initrd", &plan.wanted.assets.initrd)?);
    Ok(machine_spec(plan, kernel, initrd, resources.add(image)))
}

fn machine_spec(plan: &Plan, kernel: FileSource, initrd: FileSource, image: FileSource) -> MachineSpec {
    let platform = plan.wanted.assets.platform.unwrap_or(Platform::Auto);
    let mut append = plan.wanted.common.append.as_str().to_owned();
    if tracing::enabled!(tracing::Level::DEBUG) {
        append = format!("{} {append}", console::TALKATIVE);
    }
    MachineSpec {
        kernel,
        initrd,
        image,
        platform,
        cpus: plan.wanted.common.cpus,
        memory: plan.wanted.common.memory,
        nested: plan.wanted.common.nested,
        append,
    }
}
