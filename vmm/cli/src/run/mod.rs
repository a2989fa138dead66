//! `nelly run`: a container in a machine of its own. With `--rm` this process holds the machine,
//! and it ends with it; else a keeper does.

mod attached;
mod detached;
mod dry_run;
mod foreground;
mod inside;
mod plan;

use std::fs::File;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Error, Result, bail};
use dry_run::dry_run;
use foreground::foreground;
use nelly_image::{Hold, Image, ImageError, Reference, Store, StoreOptions};
use nelly_sandbox::instance::{Guest, relays};
use nelly_sandbox::network::attach;
use nelly_sandbox::state::networks::NetworksLock;
use nelly_sandbox::state::{Id, outcome};
use nelly_sandbox::timeline::name;
use nelly_sandbox::wire::order::Last;
use nelly_vmm::config::MachineConfig;
use nelly_vmm::machine::{Isolation, Resources};
use nelly_vmm::timeline::Recorder;
use plan::{PreparedRun, RunOptions, machine_opened, plan, run_options};

use crate::args::{self, RunArgs};
use crate::context::Context;
use crate::detach_keys::DetachKeys;
use crate::fail::{Hint, OfFlag as _, Usage};
use crate::output_file::OutputFile;
use crate::registry::args::PullPolicy;
use crate::{network, out, progress, registry, result, signals};

/// Who holds the sandbox, and whether this process has the container's streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// This process holds it, and has its streams.
    Held,
    /// A keeper holds it; this process has its streams.
    Attached,
    /// A keeper holds it.
    Detached,
    /// It is made, and not started.
    Created,
}

/// The image, pulled before if that is wanted or needed.
fn resolve(store: &Store, reference: &Reference, args: &RunArgs, context: &Context) -> Result<Image> {
    if let (Reference::Named(name), PullPolicy::Always) = (reference, args.pull) {
        registry::pull_for_run(name, args.quiet, context)?;
    }
    let mut bar = progress::Bar::new(args.quiet);
    match store.resolve(reference, &mut bar) {
        Err(ImageError::NotStored(name)) if args.pull == PullPolicy::Missing => {
            bar.finish();
            registry::pull_for_run(&name, args.quiet, context)?;
            Ok(store.resolve(reference, &mut bar)?)
        }
        Err(error @ ImageError::NotStored(_)) => Err(not_stored(&error, reference)),
        resolved => Ok(resolved?),
    }
}

/// Makes a sandbox that stays, for `nelly create`.
pub(crate) fn create(
    args: &RunArgs,
    raw: &[String],
    context: &Context,
    recorder: &Recorder,
) -> Result<ExitCode> {
    let of_run = [
        ("--detach", args.kept.detach),
        ("--in", args.inside.is_some()),
        ("--timeout", args.machine.timeout.is_some()),
        ("--result", args.result.is_some()),
        ("--timings", args.timings),
        ("--trace", args.trace.is_some()),
    ];
    if let Some((flag, _)) = of_run.into_iter().find(|(_, given)| *given) {
        return Err(Usage::error(format!("{flag} is a flag of nelly run, not of nelly create")));
    }
    begin(args, raw, context, recorder, Mode::Created)
}

/// Runs the verb.
pub(crate) fn run(
    args: &RunArgs,
    raw: &[String],
    context: &Context,
    recorder: &Recorder,
) -> Result<ExitCode> {
    let mode = match (args.kept.detach, args.rm) {
        (true, _) => Mode::Detached,
        (false, true) => Mode::Held,
        (false, false) => Mode::Attached,
    };
    if let Some(sandbox) = &args.inside {
        if let Some(flag) = args.of_machine() {
            return Err(Usage::error(format!(
                "{flag} does not fit --in: the machine of sandbox {sandbox} is there already"
            )));
        }
        let mounts = args.container.mounts()?;
        if let Some(share) = mounts.shares.first() {
            let source = share.source.display();
            return Err(Usage::error(format!(
                "-v {source}: the machine of sandbox {sandbox} was made with the directories of this host that it shares; share {source} when you make that, or copy it with nelly cp"
            )));
        }
        if let Some(name) = mounts.volumes.into_iter().find_map(|volume| volume.name) {
            return Err(Usage::error(format!(
                "-v {name}: named volumes are those of a sandbox's first container; with --in write -v PATH for one without a name"
            )));
        }
    } else if let Some(flag) = args.kept.of_keeper().filter(|_| mode == Mode::Held) {
        return Err(Usage::error(format!(
            "{flag} is for a sandbox that stays, or that runs in the background: leave --rm out, or add -d"
        )));
    } else if let Some(flag) = args.of_timeline().filter(|_| mode != Mode::Held && !args.machine.dry_run) {
        return Err(Usage::error(format!(
            "{flag} needs --rm: only a machine that ends with nelly run tells its timeline"
        )));
    }
    begin(args, raw, context, recorder, mode)
}

/// The local store and the cache.
fn open_store(options: &RunOptions, context: &Context) -> Result<Store> {
    let mut of_store = StoreOptions::new(&context.places.cache);
    of_store.local_dir = Some(context.places.images());
    of_store.builtin.clone_from(&options.assets.builtin);
    of_store.unpacker = Some(context.search.unpacker());
    Ok(Store::open(of_store)?)
}

/// Looks at an image that cannot be run here, as far as it is here. What is missing and would be
/// pulled is not.
///
/// # Errors
/// The image cannot be used, or does not go with the flags.
fn look_at_image(args: &RunArgs, options: RunOptions, store: &Store, reference: &Reference) -> Result<()> {
    match store.plan(reference) {
        Err(ImageError::NotStored(_)) if args.pull != PullPolicy::Never => Ok(()),
        Err(error @ ImageError::NotStored(_)) => Err(not_stored(&error, reference)),
        planned => plan(args, options, &planned?.config).map(drop),
    }
}

fn not_stored(error: &ImageError, reference: &Reference) -> Error {
    Hint::error(error.to_string(), format!("nelly image pull {reference}"))
}

/// Keeps the images where they are. A wait for a command that removes some is told; Ctrl-C ends it.
fn hold(store: &Store) -> Result<Option<Hold>> {
    let held = store.hold(&mut |pid| {
        let who = pid.map(|pid| format!(" (process {pid})")).unwrap_or_default();
        out::message(format_args!("waiting for a command that removes images{who}; it may be stopped"));
    });
    Ok(held?)
}

/// Writes the result of a run whose machine a keeper held.
fn tell(result: Option<OutputFile>, id: &Id, started: Instant, exit: Result<Last>) -> Result<ExitCode> {
    if let Some(result) = result {
        let failed = (outcome::FAILED, "failed".to_owned());
        let (code, reason) = exit.as_ref().map_or(failed, |exit| (exit.code, exit.reason.clone()));
        result.write(&result::object(id, code, &reason, started.elapsed(), None))?;
    }
    exit.map(|exit| ExitCode::from(exit.code))
}

/// The machine of a run in the foreground, with its files opened and its network made, under the
/// lock under which its place on that was given.
fn machine(
    plan: &PreparedRun,
    disk: Vec<File>,
    lock: Option<NetworksLock>,
    context: &Context,
) -> Result<(MachineConfig, Resources, Guest)> {
    let mut resources = Resources::new();
    let mut machine = machine_opened(plan, disk, &mut resources)?;
    let RunOptions { network: asked, usernet, id, name, .. } = &plan.options;
    let (id, site) = (id.to_string(), network::site(context));
    let who = (id.as_str(), name.as_str());
    let secrets = &plan.options.secrets;
    let attached = attach(asked, usernet.as_deref(), who, &mut resources, secrets, (&site, lock))?;
    machine.networks.extend(attached.device);
    let hostname = plan.container.hostname.clone();
    Ok((machine.config()?, resources, Guest { hostname, network: attached.guest, usernet: attached.usernet }))
}

/// Refuses relays that cannot listen, before there is a machine.
fn check_relays(mode: Mode, plan: &PreparedRun) -> Result<()> {
    if mode != Mode::Created {
        relays::check(&plan.container.options.relays)?;
    }
    Ok(())
}

/// Runs a container in the foreground, or makes a sandbox that stays.
fn begin(
    args: &RunArgs,
    raw: &[String],
    context: &Context,
    recorder: &Recorder,
    mode: Mode,
) -> Result<ExitCode> {
    let started = Instant::now();
    let (image, command) = args::image_and_command(raw, &args.words);
    let reference: Reference = image.as_deref().unwrap_or("builtin:busybox").parse().of_flag("IMAGE")?;
    if image.is_some_and(|image| image.is_empty())
        || (args.words.is_empty() && !raw.iter().any(|word| word == "--"))
    {
        return Err(Usage::error(
            "no IMAGE given: name one, or write `--` and a command to use the built-in image; see nelly run --help",
        ));
    }
    let streams = matches!(mode, Mode::Held | Mode::Attached);
    if streams && args.tty && args.interactive && !std::io::stdin().is_terminal() {
        bail!("-it needs a terminal on standard input; use -i without -t for a pipe or a file");
    }
    let result = args.result.as_deref().map(result::ResultFile::parse).transpose().of_flag("--result")?;
    if let Some(keys) = &args.kept.detach_keys {
        if !streams {
            return Err(Usage::error(
                "--detach-keys is for nelly run in the foreground; nelly attach has it, too",
            ));
        }
        keys.parse::<DetachKeys>().of_flag("--detach-keys")?;
    }
    let stays = mode != Mode::Held;
    let kept = Some(detached::options(&args.kept, args.rm)?).filter(|_| stays);
    let options = run_options(args, command, context)?;
    let store = open_store(&options, context)?;
    if args.machine.dry_run {
        return dry_run(args, options, kept.as_ref(), (&store, &reference), context);
    }
    if let Some(word) = &args.inside {
        // Nobody removes what is found until the keeper has written down that it is used.
        let hold = hold(&store)?;
        let image = resolve(&store, &reference, args, context)?;
        let plan = plan(args, options, &image.config)?;
        return inside::inside(args, word, &plan, &reference, (&image, hold), context);
    }
    // Before the image is unpacked, which would be in vain on such a host.
    if mode != Mode::Created
        && let Err(error) = crate::host::require_mainstream()
    {
        // What is asked for may be wrong, too, and that can be mended everywhere.
        look_at_image(args, options, &store, &reference)?;
        return Err(error);
    }
    let result = result.map(|file| file.open()).transpose()?;
    let trace = args.trace.as_deref().map(|path| OutputFile::file("--trace", path)).transpose()?;
    if args.name.is_some() && mode == Mode::Held {
        detached::name_is_free(&options.name, context)?;
    }
    recorder.stamp(name::CONFIG_PARSED);
    // Nobody removes what is found until the sandbox's record says that it is used.
    let hold = if stays { hold(&store)? } else { None };
    let mut image = resolve(&store, &reference, args, context)?;
    recorder.stamp(name::IMAGE_RESOLVED);
    let mut plan = plan(args, options, &image.config)?;
    check_relays(mode, &plan)?;
    // Held until others can see what the machine was given.
    let lock = network::assign(&mut plan.options.network, context)?;
    if let Some(kept) = kept {
        let made = detached::create(args, kept, &plan, &reference, &image, context)?;
        drop((hold, lock));
        let id = plan.options.id;
        match mode {
            Mode::Held | Mode::Created => {}
            Mode::Detached => made.start(context)?,
            Mode::Attached => {
                let limit = plan.options.common.timeout;
                let exit = attached::attached(args, made, limit, context);
                return tell(result, &id, started, exit);
            }
        }
        out::line(id.to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    let machine = machine(&plan, std::mem::take(&mut image.disk), lock, context)?;
    // Made when the container runs: a start waits for nothing that it does not need.
    let listing = || detached::listing(args, &plan, &reference, &image, context);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let isolation = Isolation::Process { monitor: plan.options.monitor.path.clone() };
    let run = foreground(args, &plan, machine, isolation, recorder, &listing);
    let ended = runtime.block_on(run);
    // The input thread may still block in a read of standard input; it ends with the process.
    runtime.shutdown_background();
    // Writing the results below may block, and a signal should then end the process.
    signals::release();
    let (exit, finished) = match ended {
        Ok((exit, finished)) => (Ok(exit), finished),
        Err(error) => (Err(error), None),
    };
    if let Some(result) = result {
        let (code, reason) =
            exit.as_ref().map_or((outcome::FAILED, "failed"), |exit| (exit.code, exit.reason));
        let object = result::object(&plan.options.id, code, reason, started.elapsed(), finished.as_ref());
        result.write(&object)?;
    }
    if let Some(finished) = finished {
        if let Some(trace) = trace {
            trace.write(&finished.timeline.trace().to_string())?;
        }
        if args.timings {
            out::note(finished.timeline.table());
        }
    }
    exit.map(|exit| ExitCode::from(exit.code))
}
