//! `nelly run`: a container in a machine of its own, in the foreground.

use std::fs::File;
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nelly_image::{Config, ImageConfiguration, Reference, Store, StoreOptions};
use nelly_sandbox::agent::ProcessId;
use nelly_sandbox::instance::{Finished, Sandbox};
use nelly_sandbox::life::{Ended, Outside, Request};
use nelly_sandbox::spec::machine::IMAGE_DEVICE;
use nelly_sandbox::spec::{
    ContainerSpec, MachineSpec, Overrides, ProcessSpec, Seccomp, SecurityOption, SpecError, Tmpfs, oci,
};
use nelly_sandbox::state::{Exit, Hostname, Id, Name, outcome};
use nelly_sandbox::timeline::name;
use nelly_vmm::config::{FileSource, MachineConfig, Platform};
use nelly_vmm::machine::{Place, Resources};
use nelly_vmm::sys::files::Accept;
use nelly_vmm::sys::terminal;
use nelly_vmm::text;
use nelly_vmm::timeline::Recorder;
use serde_json::json;
use tokio::sync::mpsc::{self, UnboundedSender};

use crate::args::{self, RunArgs};
use crate::assets::{self, Asset, Assets};
use crate::context::Context;
use crate::target::Target;
use crate::{console, environment, machine, out, progress, result, signals, stdio};

/// What the flags say, checked before an image is looked at.
struct Wanted {
    id: Id,
    name: Name,
    hostname: Hostname,
    overrides: Overrides,
    tmpfs: Vec<Tmpfs>,
    seccomp: Seccomp,
    common: machine::Common,
    assets: Assets,
    monitor: Asset,
}

/// Everything that was decided before anything is started.
struct Plan {
    wanted: Wanted,
    container: ContainerSpec,
}

/// Runs the verb.
pub(crate) fn run(
    args: &RunArgs,
    raw: &[String],
    context: &Context,
    recorder: &Recorder,
) -> Result<ExitCode> {
    let started = Instant::now();
    let (image, command) = args::image_and_command(raw, &args.words);
    let reference: Reference = image.as_deref().unwrap_or("builtin:busybox").parse().context("IMAGE")?;
    if image.is_some_and(|image| image.is_empty())
        || (args.words.is_empty() && !raw.iter().any(|word| word == "--"))
    {
        bail!("no IMAGE: write one, or `--` and a command for the built-in image; see nelly run --help");
    }
    if args.tty && args.interactive && !std::io::stdin().is_terminal() {
        bail!("-it needs a terminal on standard input; use -i alone for a pipe");
    }
    let result = args.result.as_deref().map(result::Place::parse).transpose().context("--result")?;
    let assets =
        Assets::find(&context.search, &context.settings, args.kernel.as_deref(), args.initrd.as_deref())?;
    let mut options = StoreOptions::new(&context.places.cache);
    options.builtin.clone_from(&assets.builtin);
    let store = Store::open(options)?;
    let wanted = wanted(args, command, assets, context)?;
    if args.machine.dry_run {
        let planned = store.plan(&reference)?;
        let plan = plan(args, wanted, &planned.config)?;
        let disk = planned.disk_path.map_or(FileSource::Fd(0), FileSource::Path);
        let config = machine_by_path(&plan, disk).config()?;
        let shown: serde_json::Value = serde_json::from_str(&config.to_json())?;
        let spec = oci::container(&plan.container);
        let object = json!({ "schema": 1, "id": plan.wanted.id.to_string(), "name": plan.wanted.name.as_str(), "image": reference.to_string(),
            "image_digest": planned.digest.to_string(), "image_cached": planned.cached, "machine": shown, "container": spec });
        out::json(format_args!("{object:#}"))?;
        return Ok(ExitCode::SUCCESS);
    }
    // Refused before an image is unpacked for nothing.
    crate::host::require_mainstream()?;
    let result = result.map(|place| place.open()).transpose()?;
    let trace = args.trace.as_deref().map(|path| Target::file("--trace", path)).transpose()?;
    recorder.stamp(name::CONFIG_PARSED);
    let mut bar = progress::Bar::new(args.quiet);
    let image = store.resolve(&reference, &mut bar)?;
    bar.finish();
    recorder.stamp(name::IMAGE_RESOLVED);
    let plan = plan(args, wanted, &image.config)?;
    let mut resources = Resources::new();
    let config = machine_opened(&plan, image.disk, &mut resources)?.config()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let place = Place::Process { monitor: plan.wanted.monitor.path.clone() };
    let ended = runtime.block_on(foreground(args, &plan, config, resources, place, recorder));
    // A pump may still sit in a read of standard input; it ends with the process.
    runtime.shutdown_background();
    // What is left to do may wait for a reader, and a signal ends it.
    signals::release();
    let (exit, finished) = match ended {
        Ok((exit, finished)) => (Ok(exit), finished),
        Err(error) => (Err(error), None),
    };
    if let Some(result) = result {
        let (code, reason) =
            exit.as_ref().map_or((outcome::FAILED, "failed"), |exit| (exit.code, exit.reason));
        let object = result::object(&plan.wanted.id, code, reason, started.elapsed(), finished.as_ref());
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

fn wanted(args: &RunArgs, command: Vec<String>, assets: Assets, context: &Context) -> Result<Wanted> {
    let id = Id::random().context("cannot make an id")?;
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
                .with_context(|| format!("{path} is no seccomp profile"))
        }
    }
}

fn plan(args: &RunArgs, wanted: Wanted, image: &ImageConfiguration) -> Result<Plan> {
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
fn machine_by_path(plan: &Plan, image: FileSource) -> MachineSpec {
    let path = |asset: &Asset| FileSource::Path(asset.path.clone());
    machine_spec(plan, path(&plan.wanted.assets.kernel), path(&plan.wanted.assets.initrd), image)
}

/// The machine with its files opened.
fn machine_opened(plan: &Plan, image: File, resources: &mut Resources) -> Result<MachineSpec> {
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

/// How long the rest of the output of a machine that was ended may take.
const LAST_OUTPUT: Duration = Duration::from_millis(100);

/// How long a machine that was killed may take to be gone, for what is then known of it.
const KILLED_WAIT: Duration = Duration::from_secs(2);

/// A whole life: the machine, the container in it, their end; and what is known of them then, if somebody wants to know.
///
/// Whatever is waited for, a signal and the limit of time are heard beside it.
async fn foreground(
    args: &RunArgs,
    plan: &Plan,
    config: MachineConfig,
    resources: Resources,
    place: Place,
    recorder: &Recorder,
) -> Result<(Exit, Option<Finished>)> {
    let (send, requests) = mpsc::unbounded_channel();
    let mut outside = Outside::new(requests, plan.wanted.common.timeout);
    signals::forward(&send, args.tty)?;
    let start = Sandbox::start(config, resources, place, plan.container.hostname.as_str());
    // Until there is a container, a signal ends the whole attempt: a start that is dropped ends its machine.
    let sandbox = match outside.during(start).await {
        Ok(sandbox) => sandbox?,
        Err(exit) => return Ok((exit, None)),
    };
    tracing::info!(kernel = sandbox.greeting().kernel_release, "the agent is ready");
    let ended = contained(args, plan, &sandbox, &mut outside, &send).await?;
    if let Ended::Left(_) = &ended {
        sandbox.machine().kill();
    }
    let (Ended::Exited(exit) | Ended::Left(exit)) = ended;
    if !args.wants_timeline() {
        return Ok((exit, None));
    }
    let finish = sandbox.finish(recorder);
    let finished = match ended {
        // The container's exit stands. Nobody has to wait for the rest.
        Ended::Exited(_) => outside.during(finish).await.ok(),
        // The limit of time is over already. A machine that was killed is gone at once, unless the host's kernel is stuck.
        Ended::Left(_) => tokio::time::timeout(KILLED_WAIT, finish).await.ok(),
    };
    Ok((exit, finished))
}

/// The container's life in a machine that is ready. After [`Ended::Left`] the machine is the caller's to end.
async fn contained(
    args: &RunArgs,
    plan: &Plan,
    sandbox: &Sandbox,
    outside: &mut Outside,
    send: &UnboundedSender<Request>,
) -> Result<Ended> {
    if tracing::enabled!(tracing::Level::DEBUG) {
        match outside.during(sandbox.serial()).await {
            Ok(serial) => console::show(serial?)?,
            Err(exit) => return Ok(Ended::Left(exit)),
        }
    }
    let size = args.tty.then(|| terminal::size(std::io::stdout()).ok()).flatten();
    let size = size.map(|size| (size.rows, size.columns));
    let id = plan.wanted.id.to_string();
    let streams = match outside.during(sandbox.run(&id, &plan.container, IMAGE_DEVICE, size)).await {
        Ok(streams) => streams?,
        Err(exit) => return Ok(Ended::Left(exit)),
    };
    let streams = match streams {
        Ok(streams) => streams,
        Err(failure) => {
            out::say(&failure.message);
            let reason = match failure.code {
                outcome::NOT_FOUND => "not_found",
                outcome::NOT_EXECUTABLE => "not_executable",
                _ => "failed",
            };
            return Ok(Ended::Exited(Exit { code: failure.code, reason }));
        }
    };
    // Raw only now: messages until here are read on a sane terminal.
    let raw = (args.tty && args.interactive).then(|| terminal::RawMode::enter(std::io::stdin())).transpose();
    let raw = raw.context("cannot set the terminal to raw mode")?;
    let pumps = stdio::Pumps::start(streams, args.tty, args.interactive, sandbox.recorder(), send)?;
    let ended = outside.attend(sandbox.agent(), ProcessId { container: &id, exec: "" }).await;
    let exit = match ended {
        Ok(Ended::Exited(exit)) => exit,
        Ok(Ended::Left(exit)) => {
            sandbox.machine().kill();
            // What was said is passed on; a reader that does not read keeps nobody.
            let _late = tokio::time::timeout(LAST_OUTPUT, pumps.drain()).await;
            return Ok(Ended::Left(exit));
        }
        Err(error) => {
            drop(raw);
            return match outside.during(sandbox.explain(error.into())).await {
                Ok(error) => Err(error.into()),
                Err(exit) => Ok(Ended::Left(exit)),
            };
        }
    };
    sandbox.recorder().stamp(name::EXIT);
    let drained = match outside.during(pumps.drain()).await {
        Ok(drained) => drained,
        Err(exit) => return Ok(Ended::Left(exit)),
    };
    drop(raw);
    if exit.reason == "oom_killed" && !args.quiet {
        out::say(format_args!(
            "the container was killed: out of memory (the machine has {} MiB; see -m)",
            plan.wanted.common.memory.get() >> 20
        ));
    }
    Ok(Ended::Exited(match drained {
        Ok(()) => exit,
        Err(error) => {
            out::say(text::chain(error.as_ref()));
            // What the program itself failed at says more.
            if exit.code == 0 { Exit { code: outcome::FAILED, reason: "output_lost" } } else { exit }
        }
    }))
}
