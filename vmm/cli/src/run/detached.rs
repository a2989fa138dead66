//! Sandboxes that stay: what `nelly create` and `nelly run` make, and the start of `nelly run -d`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nelly_image::{Image, RawConfig, Reference};
use nelly_sandbox::life::Signal;
use nelly_sandbox::spec::HealthOverrides;
use nelly_sandbox::spec::network::SecretValues;
use nelly_sandbox::spec::quantity::{self, Time};
use nelly_sandbox::state::record::{self, ImageRecord, MachineRecord, RestartPolicy};
use nelly_sandbox::state::{Name, SandboxDir, SandboxLock, SandboxRecord, Sandboxes, StorageSize, Timestamp};
use nelly_vmm::config::Platform;

use super::plan::PreparedRun;
use crate::args::{KeptArgs, RunArgs};
use crate::context::Context;
use crate::fail::{Hint, OfFlag as _, Usage};
use crate::{advice, assets, health_args, life};

/// The flags of a sandbox that stays, validated.
pub(super) struct KeptOptions {
    restart: RestartPolicy,
    stop_signal: Option<Signal>,
    stop_grace_ms: u64,
    labels: BTreeMap<String, String>,
    storage: Option<StorageSize>,
    health: HealthOverrides,
}

/// Validates them.
pub(super) fn options(args: &KeptArgs, rm: bool) -> Result<KeptOptions> {
    let grace = args
        .stop_timeout
        .as_deref()
        .map(|text| Time::GRACE.parse(text))
        .transpose()
        .of_flag("--stop-timeout")?;
    let grace = grace.map_or(Ok(10_000), |grace| u64::try_from(grace.as_millis()));
    let label = |text: &String| {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        if key.is_empty() {
            return Err(Usage::error(format!("--label {text:?} has no name; write NAME=VALUE")));
        }
        Ok((key.to_owned(), value.to_owned()))
    };
    let storage = args.storage.as_deref().map(|text| anyhow::Ok(StorageSize::new(quantity::bytes(text)?)?));
    let restart: RestartPolicy =
        args.restart.as_deref().map_or(Ok(RestartPolicy::No), str::parse).of_flag("--restart")?;
    if rm && restart != RestartPolicy::No {
        return Err(Usage::error(format!(
            "--rm removes the sandbox at its end, and --restart {restart} starts it again: use one of them"
        )));
    }
    Ok(KeptOptions {
        restart,
        stop_signal: args.stop_signal.as_deref().map(str::parse).transpose().of_flag("--stop-signal")?,
        stop_grace_ms: grace.of_flag("--stop-timeout")?,
        labels: args.label.iter().map(label).collect::<Result<_>>()?,
        storage: storage.transpose().of_flag("--storage")?,
        health: args.health.overrides()?,
    })
}

/// A sandbox that was made, and whose lock this process holds.
pub(super) struct Made {
    pub(super) sandboxes: Sandboxes,
    pub(super) sandbox: SandboxDir,
    pub(super) lock: SandboxLock,
    /// Those of its secrets, for its first start.
    pub(super) values: SecretValues,
}

impl Made {
    /// Starts it, and waits until its container runs.
    pub(super) fn start(self, context: &Context) -> Result<()> {
        let launched = life::launch(context, &self.sandboxes, &self.sandbox, self.lock, Some(self.values));
        launched.with_context(|| format!("sandbox {} was made, and did not start", self.sandbox.id().short()))
    }
}

/// Makes the sandbox.
pub(super) fn create(
    args: &RunArgs,
    kept: KeptOptions,
    plan: &PreparedRun,
    reference: &Reference,
    image: &Image,
    context: &Context,
) -> Result<Made> {
    let sandboxes = Sandboxes::make(&context.places.sandboxes())?;
    let mut record = record(args, &kept, plan, reference, image)?;
    let template = storage_template(context);
    // What is removed at its end needs no disk, unless somebody wants its room.
    let used = uses_disk(args, &kept, plan)?;
    let wanted = used && (kept.storage.is_some() || !args.rm);
    let size = kept.storage.unwrap_or_default();
    let template = match template {
        Some(template) if wanted => Some(template),
        None if kept.storage.is_some() => {
            return Err(Hint::error("--storage: the installation has no storage.ext4", advice::install()));
        }
        _ => None,
    };
    if template.is_some() {
        record.set_storage(size);
    }
    let draft = sandboxes.draft(record)?;
    if let Some(template) = template {
        draft.make_disk(&template)?;
    }
    let (sandbox, lock) = draft.publish()?;
    Ok(Made { sandboxes, sandbox, lock, values: plan.options.secrets.clone() })
}

/// Refuses what does not go with the image, as making the sandbox does.
pub(super) fn check(args: &RunArgs, kept: &KeptOptions, plan: &PreparedRun, image: &RawConfig) -> Result<()> {
    health_args::check(image, &kept.health)?;
    uses_disk(args, kept, plan).map(drop)
}

/// Whether there is a writable layer or a volume.
fn uses_disk(args: &RunArgs, kept: &KeptOptions, plan: &PreparedRun) -> Result<bool> {
    let used = !args.read_only || !plan.container.options.volumes.is_empty();
    if kept.storage.is_some() && !used {
        return Err(Usage::error(
            "--storage is the size of the disk of the writable layer and of volumes, and with --read-only and no volume there is neither",
        ));
    }
    Ok(used)
}

/// The file that disks of writable layers begin as.
fn storage_template(context: &Context) -> Option<PathBuf> {
    let (directory, manifest) = assets::manifest(&context.search).ok()?;
    Some(directory.join(manifest.storage?))
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot use {}", path.display()))
}

/// What is written of an image, with the files of its disk.
pub(super) fn image_record(reference: &Reference, image: &Image) -> Result<ImageRecord> {
    Ok(ImageRecord {
        reference: reference.to_string(),
        digest: image.digest.to_string(),
        disk_paths: image.disk_paths.iter().map(|path| absolute(path)).collect::<Result<_>>()?,
    })
}

/// Whether no sandbox has the name of one that is held in the foreground.
///
/// # Errors
/// One has it, or the state directory cannot be read.
pub(super) fn name_is_free(name: &Name, context: &Context) -> Result<()> {
    match Sandboxes::open(&context.places.sandboxes())? {
        Some(sandboxes) => Ok(sandboxes.name_is_free(name)?),
        None => Ok(()),
    }
}

/// What is written of a sandbox that is held in the foreground, and in which directory.
pub(super) fn listing(
    args: &RunArgs,
    plan: &PreparedRun,
    reference: &Reference,
    image: &Image,
    context: &Context,
) -> Result<(SandboxRecord, PathBuf)> {
    let mut kept = options(&args.kept, args.rm)?;
    // Nobody probes it.
    kept.health.none = true;
    let mut record = record(args, &kept, plan, reference, image)?;
    // Its machine was made without them.
    record.machine.spare_slots = 0;
    record.machine.give_back = false;
    Ok((record, context.places.sandboxes()))
}

fn record(
    args: &RunArgs,
    kept: &KeptOptions,
    plan: &PreparedRun,
    reference: &Reference,
    image: &Image,
) -> Result<SandboxRecord> {
    let options = &plan.options;
    let config = image.config.config().clone().unwrap_or_default();
    let mut container = plan.container.clone();
    container.options.health = health_args::check(&image.raw_config, &kept.health)?;
    Ok(SandboxRecord {
        id: options.id,
        name: options.name.clone(),
        created: Timestamp::now(),
        image: image_record(reference, image)?,
        container,
        machine: MachineRecord {
            cpus: options.common.cpus,
            memory_bytes: options.common.memory,
            append: options.common.append.as_str().to_owned(),
            nested: options.common.nested,
            confine: options.common.confine,
            monitor_user: options.common.monitor_user,
            spare_slots: MachineRecord::SPARE_SLOTS,
            give_back: true,
            platform: options.assets.platform.unwrap_or(Platform::Auto),
            kernel: absolute(&options.assets.kernel.path)?,
            initrd: absolute(&options.assets.initrd.path)?,
            monitor: absolute(&options.monitor.path)?,
            usernet: options.usernet.as_deref().map(absolute).transpose()?,
            network: options.network.clone(),
        },
        restart: kept.restart,
        labels: record::labels(&config, kept.labels.clone()),
        annotations: plan.container.options.annotations.clone(),
        auto_remove: args.rm,
        stop_signal: kept.stop_signal.unwrap_or_else(|| Signal::stops(&config)).number(),
        stop_grace_ms: kept.stop_grace_ms,
        storage_bytes: 0,
        boot: None,
    })
}
