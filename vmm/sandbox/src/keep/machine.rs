//! The machine of a sandbox, made anew at each start from its record and from files that were
//! opened once.

use std::fs::File;
use std::io;

use nelly_vmm::config::MachineConfig;
use nelly_vmm::machine::{Isolation, Resources};

use super::Start;
use crate::instance::{Sandbox, SandboxError};
use crate::spec::MachineSpec;
use crate::state::SandboxRecord;
use crate::wire::order::Files;

/// What starts the machine of this record.
#[must_use]
pub(super) fn start(record: SandboxRecord, files: Files) -> Start {
    Box::new(move || {
        let made = machine(&record, &files);
        let isolation = Isolation::Process { monitor: record.machine.monitor.clone() };
        let hostname = record.container.hostname.clone();
        Box::pin(async move {
            let failed = |source| SandboxError::Host { what: "cannot make the machine", source };
            let (config, resources) = made.map_err(failed)?;
            Sandbox::start(config, resources, isolation, &hostname).await
        })
    })
}

fn machine(record: &SandboxRecord, files: &Files) -> io::Result<(MachineConfig, Resources)> {
    let mut resources = Resources::new();
    let kernel = resources.add(files.kernel.try_clone()?);
    let initrd = resources.add(files.initrd.try_clone()?);
    let image = files.disks.iter().map(File::try_clone).collect::<io::Result<Vec<_>>>()?;
    let storage = files.storage.as_ref().map(File::try_clone).transpose()?;
    let spec = MachineSpec {
        kernel,
        initrd,
        image: resources.add_all(image),
        storage: storage.map(|storage| resources.add(storage)),
        platform: record.machine.platform,
        cpus: record.machine.cpus,
        memory: record.machine.memory_bytes,
        nested: record.machine.nested,
        append: record.machine.append.clone(),
        spare_slots: record.machine.spare_slots,
    };
    Ok((spec.config().map_err(io::Error::other)?, resources))
}
