//! `nelly start` and `nelly restart`, and the start of a keeper.

use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use nelly_image::{Digest, ImageError, LocalError, Reference, Store, StoreOptions};
use nelly_sandbox::connect::launch::{LaunchError, Launched, launch as launch_keeper, open_files};
use nelly_sandbox::spec::network::SecretValues;
use nelly_sandbox::state::record::ImageRecord;
use nelly_sandbox::state::{Id, SandboxDir, SandboxLock, Sandboxes};
use nelly_sandbox::wire::order::{ClientEnds, Files};
use nelly_vmm::text;

use super::args::{RestartArgs, StartArgs};
use super::restartable::wanted;
use super::{each, lock, sandboxes};
use crate::assets::Assets;
use crate::context::Context;
use crate::fail::{Hint, Refused};
use crate::{advice, out, progress};

/// Starts sandboxes that do not run.
pub(crate) fn start(args: &StartArgs, context: &Context) -> Result<ExitCode> {
    let names = if args.restartable { restartable(context)? } else { args.names.clone() };
    if names.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let sandboxes = sandboxes(context)?;
    each(&names, |word| {
        let sandbox = sandboxes.find(word)?;
        let condition = sandbox.condition()?;
        if condition.is_live() {
            bail!("sandbox {word} is {} already", condition.word());
        }
        crate::host::require_for(sandbox.record()?.boot.as_ref())?;
        let lock = lock(&sandboxes, &sandbox)?;
        launch(context, &sandboxes, &sandbox, lock, None)?;
        Ok(None)
    })
}

/// The names of all sandboxes that `--restartable` means, the oldest first. A damaged one is told.
fn restartable(context: &Context) -> Result<Vec<String>> {
    let Some(sandboxes) = Sandboxes::open(&context.places.sandboxes())? else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for one in sandboxes.list()?.into_iter().rev() {
        match one.details {
            Ok(found) if wanted(found.record.restart, found.condition, &found.state) => {
                names.push(found.record.name.to_string());
            }
            Ok(_) => {}
            Err(error) => out::message(format_args!("sandbox {}: {}", one.id.short(), text::chain(&error))),
        }
    }
    Ok(names)
}

/// Stops sandboxes that run, and starts them all.
pub(crate) fn restart(args: &RestartArgs, context: &Context) -> Result<ExitCode> {
    let grace = super::stop::grace(args.time.as_deref())?;
    let sandboxes = sandboxes(context)?;
    each(&args.names.names, |word| {
        let sandbox = sandboxes.find(word)?;
        let record = sandbox.record()?;
        if record.auto_remove {
            bail!("sandbox {word} was made with --rm: it is removed at its end, and cannot be started again");
        }
        // Before it is stopped: what cannot be started again shall go on.
        crate::host::require_for(record.boot.as_ref())?;
        let values = SecretValues::read(&record.machine.network, |name| std::env::var_os(name))?;
        if sandbox.condition()?.is_live() {
            if record.boot.is_some() {
                (context.booted.check_running)(context, &sandbox, &record)?;
            }
            super::stop::stop_one(&sandbox, None, grace)?;
        }
        let lock = lock(&sandboxes, &sandbox)?;
        launch(context, &sandboxes, &sandbox, lock, Some(values))?;
        Ok(None)
    })
}

/// Starts the keeper of a sandbox whose lock this process holds, and waits until its container
/// runs. `values` are those of its secrets, if they were read already.
///
/// # Errors
/// A file of it is missing, or the container does not run.
pub(crate) fn launch(
    context: &Context,
    sandboxes: &Sandboxes,
    sandbox: &SandboxDir,
    lock: SandboxLock,
    values: Option<SecretValues>,
) -> Result<()> {
    Start::prepare(context, sandboxes, sandbox, lock, values)?.launch().map(drop)
}

/// A sandbox whose files are open, ready to be started.
pub(crate) struct Start {
    keeper: PathBuf,
    sandboxes: PathBuf,
    id: Id,
    files: Files,
    size: Option<(u16, u16)>,
}

impl Start {
    /// Opens the files of a sandbox whose lock this process holds. `values` are those of its
    /// secrets, if they were read already.
    ///
    /// # Errors
    /// A file of it is missing.
    pub(crate) fn prepare(
        context: &Context,
        sandboxes: &Sandboxes,
        sandbox: &SandboxDir,
        lock: SandboxLock,
        values: Option<SecretValues>,
    ) -> Result<Self> {
        let record = sandbox.record()?;
        let files = if record.boot.is_some() {
            (context.booted.open)(context, sandbox, &record, lock)?
        } else {
            open_files(sandbox, &record, lock, image_disks(context, &record.image)?, values)?
        };
        Self::with_files(context, sandboxes, record.id, files)
    }

    /// A sandbox with these files.
    ///
    /// # Errors
    /// Its keeper is not installed.
    pub(crate) fn with_files(context: &Context, sandboxes: &Sandboxes, id: Id, files: Files) -> Result<Self> {
        let keeper = context.search.keeper();
        let keeper = keeper.map_err(|error| Hint::error(error.to_string(), advice::install()))?;
        Ok(Self { keeper, sandboxes: sandboxes.path().to_owned(), id, files, size: None })
    }

    /// The same for a client that has the container's streams, of which these are the keeper's
    /// ends, and a terminal of this size, rows and columns.
    pub(crate) fn with_client(self, client: ClientEnds, size: Option<(u16, u16)>) -> Self {
        Self { files: Files { client, ..self.files }, size, ..self }
    }

    /// Starts the keeper, and waits until the container runs.
    ///
    /// # Errors
    /// The container does not run.
    pub(crate) fn launch(self) -> Result<Launched> {
        match launch_keeper(&self.keeper, &self.sandboxes, self.id, self.files, self.size) {
            Ok(launched) => Ok(launched),
            Err(LaunchError::Refused { code, message }) => Err(Refused { code, message }.into()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The files of the image's disk. The cache may have been cleared: then it is made again of what
/// has the image's digest, in the local store or where the image came from. Nothing is pulled.
fn image_disks(context: &Context, image: &ImageRecord) -> Result<Vec<File>> {
    let opened: std::io::Result<Vec<File>> = image.disk_paths.iter().map(File::open).collect();
    if let Ok(files) = opened
        && !files.is_empty()
    {
        return Ok(files);
    }
    let lost = || format!("the disk of the sandbox's image {} has to be made again", image.reference);
    let reference: Reference = image.reference.parse().with_context(lost)?;
    let digest: Digest = image.digest.parse().with_context(lost)?;
    let assets = Assets::find(&context.search, &context.settings, None, None).ok();
    let mut options = StoreOptions::new(&context.places.cache);
    options.local_dir = Some(context.places.images());
    options.builtin = assets.and_then(|assets| assets.builtin);
    options.unpacker = Some(context.search.unpacker());
    let store = Store::open(options)?;
    let resolve = |reference: &Reference| store.resolve(reference, &mut progress::Bar::new(true));
    let named = matches!(reference, Reference::Named(_));
    match resolve(&Reference::Id(digest)) {
        Ok(found) if found.digest == digest => return Ok(found.disk),
        Ok(_) | Err(ImageError::Local { source: LocalError::NoImage(_), .. }) => {}
        Err(error) if named => return Err(error).with_context(lost),
        Err(_) => {}
    }
    let found = match (&reference, resolve(&reference)) {
        (_, Ok(found)) if found.digest == digest => return Ok(found.disk),
        (_, found) => found,
    };
    if let Reference::Named(name) = &reference {
        return Err(Hint::error(
            format!(
                "the image {} ({digest}) is neither in the cache nor in the local store",
                image.reference
            ),
            format!("nelly image pull {}@{digest}", name.familiar_repository()),
        ));
    }
    let found = found.with_context(lost)?;
    bail!("{}, but it is another image now: {}, not {digest}", lost(), found.digest);
}
