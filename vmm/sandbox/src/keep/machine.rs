//! The machine of a sandbox, made anew at each start from its record and from files that were
//! opened once.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nelly_vmm::config::MachineConfig;
use nelly_vmm::machine::{Isolation, Resources};
use nelly_vmm::sys::Program;

use super::Start;
use crate::instance::{Guest, Sandbox, SandboxError};
use crate::network::{Site, Usernet, attach};
use crate::spec::network::SecretValues;
use crate::spec::{MachineSpec, Network};
use crate::state::SandboxRecord;
use crate::wire::order::{BootFiles, ContainerFiles, MachineFiles};

/// What starts the machine of this record.
#[must_use]
pub(super) fn start(
    record: SandboxRecord,
    (files, secrets): (MachineFiles, SecretValues),
    networks: PathBuf,
    environment: impl Fn(&str) -> Option<PathBuf> + 'static,
) -> Start {
    // The keeper speaks with the versions that it was started with, also after an upgrade.
    let monitor = Program::open(record.machine.monitor.clone());
    let usernet = record.machine.usernet.clone().map(Program::open);
    Box::new(move || {
        let site = Site { networks: networks.clone(), environment: &environment };
        let isolation = Isolation::Process { monitor: monitor.executable() };
        let usernet = usernet.as_ref().map(|program| usernet_program(&record, program));
        match &files {
            MachineFiles::Container(files) => {
                let made = container(&record, files, usernet.as_deref(), &secrets, &site);
                Box::pin(async move {
                    let (config, resources, guest) = made?;
                    Sandbox::start(config, resources, isolation, guest).await
                })
            }
            MachineFiles::Boot(files) => {
                let made = boot(&record, files, usernet.as_deref(), &site);
                let visited = record.boot.as_ref().is_some_and(|boot| boot.agent);
                Box::pin(async move {
                    let (config, resources, usernet) = made?;
                    Sandbox::boot(config, resources, isolation, usernet, visited).await
                })
            }
        }
    })
}

/// What to start as the user-mode network. For one that joins a network of machines it is the file
/// that lies beside the switch, and for one with secrets beside the program that has them.
fn usernet_program(record: &SandboxRecord, program: &Program) -> PathBuf {
    match &record.machine.network {
        Network::User(user) if user.member.is_some() || !user.secrets.is_empty() => program.path().to_owned(),
        _ => program.executable(),
    }
}

fn failed(source: io::Error) -> SandboxError {
    SandboxError::Host { what: "cannot make the machine", source }
}

/// A machine of `nelly boot`. Its disks keep the locks of their files for all of its starts.
fn boot(
    record: &SandboxRecord,
    boot: &BootFiles,
    usernet: Option<&Path>,
    site: &Site<'_>,
) -> Result<(MachineConfig, Resources, Option<Usernet>), SandboxError> {
    let (mut config, mut resources) = (boot.config.clone(), Resources::new());
    // First, for the configuration counts through them.
    for file in &boot.files {
        resources.add(file.try_clone().map_err(failed)?);
    }
    let network = &record.machine.network;
    let who = (&*record.id.to_string(), record.name.as_str());
    // Its guest has no agent of ours, and so no secrets.
    let none = SecretValues::default();
    let attached = attach(network, usernet, who, &mut resources, &none, (site, None))?;
    config.networks.extend(attached.device);
    config.validate().map_err(|error| failed(io::Error::other(error)))?;
    Ok((config, resources, attached.usernet))
}

type Made = (MachineConfig, Resources, Guest);

fn container(
    record: &SandboxRecord,
    files: &ContainerFiles,
    usernet: Option<&Path>,
    secrets: &SecretValues,
    site: &Site<'_>,
) -> Result<Made, SandboxError> {
    let mut resources = Resources::new();
    let mut named = |file: &File, path: &Path| {
        Ok::<_, SandboxError>(
            resources.add_named(file.try_clone().map_err(failed)?, path.display().to_string()),
        )
    };
    let kernel = named(&files.kernel, &record.machine.kernel)?;
    let initrd = named(&files.initrd, &record.machine.initrd)?;
    let image = files.disks.iter().map(File::try_clone).collect::<io::Result<Vec<_>>>().map_err(failed)?;
    let storage = files.storage.as_ref().map(File::try_clone).transpose().map_err(failed)?;
    let network = &record.machine.network;
    let who = (&*record.id.to_string(), record.name.as_str());
    let attached = attach(network, usernet, who, &mut resources, secrets, (site, None))?;
    let shares =
        files.shares.iter().map(OwnedFd::try_clone).collect::<io::Result<Vec<_>>>().map_err(failed)?;
    let shares = resources.add_all(shares);
    let mut spec = MachineSpec {
        kernel,
        initrd,
        image: resources.add_all(image),
        storage: storage.map(|storage| resources.add(storage)),
        platform: record.machine.platform,
        cpus: record.machine.cpus,
        memory: record.machine.memory_bytes,
        nested: record.machine.nested,
        confine: record.machine.confine,
        monitor_user: record.machine.monitor_user,
        append: record.machine.append.clone(),
        spare_slots: record.machine.spare_slots,
        give_back: record.machine.give_back,
        networks: attached.device.into_iter().collect(),
        shares: Vec::new(),
    };
    spec.share(&record.container.options.shares, shares);
    let config = spec.config().map_err(|error| failed(io::Error::other(error)))?;
    let hostname = record.container.hostname.clone();
    Ok((config, resources, Guest { hostname, network: attached.guest, usernet: attached.usernet }))
}
