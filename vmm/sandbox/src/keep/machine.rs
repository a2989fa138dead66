//! The machine of a sandbox, made anew at each start from its record and from files that were
//! opened once.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    environment: impl Fn(&str) -> Option<PathBuf> + Copy + Send + 'static,
) -> Start {
    // The keeper speaks with the versions that it was started with, also after an upgrade.
    let monitor = Program::open(record.machine.monitor.clone());
    let usernet = record.machine.usernet.clone().map(Program::open);
    let held = Arc::new((record, files, secrets));
    Box::new(move || {
        let (networks, held) = (networks.clone(), Arc::clone(&held));
        let isolation = Isolation::Process { monitor: monitor.executable() };
        let usernet = usernet.as_ref().map(|program| usernet_program(&held.0, program));
        // Programs are started, and one of them is waited for, which holds up no request.
        let made = tokio::task::spawn_blocking(move || {
            let (record, files, secrets) = &*held;
            let site = Site { networks, environment: &environment };
            Ok::<_, SandboxError>(match files {
                MachineFiles::Container(files) => {
                    Made::Container(container(record, files, usernet.as_deref(), secrets, &site)?)
                }
                MachineFiles::Boot(files) => {
                    let visited = record.boot.as_ref().is_some_and(|boot| boot.agent);
                    Made::Boot(boot(record, files, usernet.as_deref(), &site)?, visited)
                }
            })
        });
        Box::pin(async move {
            match made.await.map_err(|error| failed(io::Error::other(error)))?? {
                Made::Container((config, resources, guest)) => {
                    Sandbox::start(config, resources, isolation, guest).await
                }
                Made::Boot((config, resources, usernet), visited) => {
                    Sandbox::boot(config, resources, isolation, usernet, visited).await
                }
            }
        })
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

/// A machine that is ready to be started, and who is beside it.
enum Made {
    Container(Contained),
    Boot(Booted, bool),
}

type Contained = (MachineConfig, Resources, Guest);
type Booted = (MachineConfig, Resources, Option<Usernet>);

fn failed(source: io::Error) -> SandboxError {
    SandboxError::Host { what: "cannot make the machine", source }
}

/// A machine of `nelly boot`. Its disks keep the locks of their files for all of its starts.
fn boot(
    record: &SandboxRecord,
    boot: &BootFiles,
    usernet: Option<&Path>,
    site: &Site<'_>,
) -> Result<Booted, SandboxError> {
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

fn container(
    record: &SandboxRecord,
    files: &ContainerFiles,
    usernet: Option<&Path>,
    secrets: &SecretValues,
    site: &Site<'_>,
) -> Result<Contained, SandboxError> {
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

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;

    use serde_json::json;
    use tokio::net::unix::pipe;

    use super::*;

    #[tokio::test]
    async fn a_program_that_is_not_ready_holds_up_nobody_else() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        assert!(Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
        let script = "#!/bin/sh\ncat >/dev/null\nread word <\"${0%/*}\"/pipe\necho \"$word\" >&2\nexit 2\n";
        for (name, text) in [("nelly-usernet", ""), ("nelly-secrets", script), ("file", "")] {
            File::create(at(name)).unwrap().write_all(text.as_bytes()).unwrap();
            std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(0o700)).unwrap();
        }
        let process = json!({ "args": ["true"], "env": [], "cwd": "/", "user": "0", "terminal": false, "stdin": false });
        let container = json!({ "process": process, "hostname": "box", "read_only": false, "tmpfs": [],
            "upper_bytes": 0, "seccomp": "default" });
        let secret = json!({ "name": "KEY", "source": { "env": "KEY" }, "hosts": ["api.example:443"],
            "placeholder": "nelly-secret-KEY-0" });
        let record = json!({ "id": "a".repeat(64), "name": "box", "created": crate::state::Timestamp::now(),
            "image": { "reference": "builtin:busybox", "digest": "sha256:00", "disk_paths": [] },
            "container": container, "labels": {},
            "machine": { "cpus": 1, "memory_bytes": 536_870_912_u64, "kernel": at("file"), "initrd": at("file"),
                "monitor": at("file"), "usernet": at("nelly-usernet"), "network": { "mode": "user", "secrets": [secret] } } });
        let record: SandboxRecord = serde_json::from_value(record).unwrap();
        let open = || File::open(at("file")).unwrap();
        let files = ContainerFiles {
            kernel: open(),
            initrd: open(),
            disks: vec![open()],
            storage: None,
            shares: Vec::new(),
        };
        let values = SecretValues::read(&record.machine.network, |_| Some("a value".into())).unwrap();
        let start = start(record, (MachineFiles::Container(files), values), at("networks"), |_| None);
        // The program is waited for, and is told to go on by another task of this thread.
        let told = async {
            let told = loop {
                match pipe::OpenOptions::new().open_sender(at("pipe")) {
                    Ok(told) => break told,
                    Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
                }
            };
            told.writable().await.unwrap();
            told.try_write(b"let go\n").unwrap()
        };
        let (made, _) = tokio::join!(async { start().await }, told);
        let error = nelly_vmm::text::chain(&made.err().expect("it does not serve")).to_string();
        assert!(error.ends_with("let go"), "{error}");
    }
}
