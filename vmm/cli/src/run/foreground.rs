//! Runs a machine with a container in the foreground, and forwards signals and the time limit.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nelly_sandbox::agent::ProcessId;
use nelly_sandbox::instance::{Finished, Guest, Sandbox};
use nelly_sandbox::keep;
use nelly_sandbox::keep::foreground::Foreground;
use nelly_sandbox::life::{Ended, Outside, ProcessRequest};
use nelly_sandbox::spec::machine::IMAGE_DEVICE;
use nelly_sandbox::state::{Exit, SandboxRecord, outcome};
use nelly_sandbox::timeline::name;
use nelly_vmm::config::MachineConfig;
use nelly_vmm::machine::{Isolation, Resources};
use nelly_vmm::sys::terminal;
use nelly_vmm::text;
use nelly_vmm::timeline::Recorder;
use tokio::sync::mpsc::{self, UnboundedSender};

use super::plan::PreparedRun;
use crate::args::RunArgs;
use crate::{bug, console, out, signals, stdio};

/// Time limit for the remaining output of a machine that was killed.
const LAST_OUTPUT: Duration = Duration::from_millis(100);

/// Time limit for the end of a machine that was killed, to collect its timeline.
const KILLED_WAIT: Duration = Duration::from_secs(2);

/// Makes what is written of the sandbox while its container runs, and says in which directory.
pub(super) type Listing<'a> = dyn Fn() -> Result<(SandboxRecord, PathBuf)> + 'a;

/// Tells how a sandbox that was listed ended.
async fn unlist(listed: Foreground, ended: &Result<Ended>) {
    let ended = match ended {
        Ok(Ended::Exited(exit) | Ended::Left(exit)) => keep::Ended::new(exit.code, exit.reason, ""),
        Err(error) => keep::Ended::new(outcome::FAILED, "failed", text::chain(error.as_ref())),
    };
    if let Err(error) = listed.end(ended).await {
        not_listed(&error);
    }
}

/// The run itself needs no listing: whoever has a home that cannot be written need not see this.
fn not_listed(error: &(dyn std::error::Error + 'static)) {
    tracing::info!(error = text::chain(error), "the sandbox was not listed");
}

/// Starts the machine and the container, and waits for their end. The second value is the machine's
/// timeline and faults, if the flags request them.
///
/// Signals and the time limit are handled during every wait.
pub(super) async fn foreground(
    args: &RunArgs,
    plan: &PreparedRun,
    (config, resources, guest): (MachineConfig, Resources, Guest),
    isolation: Isolation,
    recorder: &Recorder,
    listing: &Listing<'_>,
) -> Result<(Exit, Option<Finished>)> {
    nelly_vmm::sys::host::raise_descriptor_limit();
    let (send, requests) = mpsc::unbounded_channel();
    let mut outside = Outside::new(requests, plan.options.common.timeout);
    signals::forward(&send, args.tty)?;
    let start = Sandbox::start(config, resources, isolation, guest);
    // Before there is a container, a signal ends the attempt: dropping the start ends the machine.
    let sandbox = match outside.during(start).await {
        Ok(sandbox) => sandbox?,
        Err(exit) => return Ok((exit, None)),
    };
    tracing::info!(kernel = ?sandbox.greeting().map(|agent| &agent.kernel_release), "the agent is ready");
    let sandbox = Arc::new(sandbox);
    let mut listed = None;
    // Runs that are measured are not listed: nothing shall happen beside them.
    let listing = Some(listing).filter(|_| !args.wants_timeline());
    let ended = contained(args, plan, &sandbox, &mut outside, &send, (listing, &mut listed)).await;
    if let Ok(Ended::Left(_)) | Err(_) = &ended {
        sandbox.machine().kill();
    }
    if let Some(listed) = listed {
        unlist(listed, &ended).await;
    }
    let ended = ended?;
    let (Ended::Exited(exit) | Ended::Left(exit)) = ended;
    if !args.wants_timeline() {
        return Ok((exit, None));
    }
    let sandbox = Arc::into_inner(sandbox).context("a measured run is shared with nobody")?;
    let finish = sandbox.finish(recorder);
    let finished = match ended {
        // The container's result is known, so a signal may end the wait for the rest.
        Ended::Exited(_) => outside.during(finish).await.ok(),
        // The time limit has expired. A machine that was killed ends at once, unless the host's
        // kernel hangs.
        Ended::Left(_) => tokio::time::timeout(KILLED_WAIT, finish).await.ok(),
    };
    Ok((exit, finished))
}

/// Runs the container in a machine that is ready. After [`Ended::Left`] the caller must end the
/// machine.
async fn contained(
    args: &RunArgs,
    plan: &PreparedRun,
    sandbox: &Arc<Sandbox>,
    outside: &mut Outside,
    send: &UnboundedSender<ProcessRequest>,
    (listing, listed): (Option<&Listing<'_>>, &mut Option<Foreground>),
) -> Result<Ended> {
    if tracing::enabled!(tracing::Level::DEBUG) {
        match outside.during(sandbox.serial()).await {
            Ok(serial) => console::show(serial?)?,
            Err(exit) => return Ok(Ended::Left(exit)),
        }
    }
    let size = args.tty.then(|| terminal::size(std::io::stdout()).ok()).flatten();
    let size = size.map(|size| (size.rows, size.columns));
    let id = plan.options.id.to_string();
    let streams = match outside.during(sandbox.run(&id, &plan.container, IMAGE_DEVICE, size)).await {
        Ok(streams) => streams?,
        Err(exit) => return Ok(Ended::Left(exit)),
    };
    let streams = match streams {
        Ok(streams) => streams,
        Err(failure) => {
            out::message(&failure.message);
            let reason = match failure.code {
                outcome::NOT_FOUND => "not_found",
                outcome::NOT_EXECUTABLE => "not_executable",
                _ => "failed",
            };
            return Ok(Ended::Exited(Exit { code: failure.code, reason }));
        }
    };
    // Not earlier, so that messages before this are printed on a terminal in normal mode.
    let raw = (args.tty && args.interactive).then(bug::Raw::enter).transpose();
    let raw = raw.context("cannot set the terminal to raw mode")?;
    let output =
        stdio::OutputThreads::start(streams, args.tty, args.interactive, sandbox.recorder(), send, None)?;
    if let Some(listing) = listing {
        let environment = |name: &str| std::env::var_os(name).map(PathBuf::from);
        match listing() {
            Ok((record, sandboxes)) => {
                *listed = Some(Foreground::begin(sandbox, record, sandboxes, environment, send.clone()));
            }
            Err(error) => not_listed(error.as_ref()),
        }
    }
    let id = ProcessId { container: &id, exec: "" };
    let ended = sandbox.during(outside.attend(sandbox.agent(), id)).await;
    let exit = match ended {
        Ok(Ended::Exited(exit)) => exit,
        Ok(Ended::Left(exit)) => {
            sandbox.machine().kill();
            // Remaining output is copied, but a reader that does not read does not block the end.
            let _late = tokio::time::timeout(LAST_OUTPUT, output.drain(std::future::pending())).await;
            return Ok(Ended::Left(exit));
        }
        Err(error) => {
            drop(raw);
            return match outside.during(sandbox.explain(error)).await {
                Ok(error) => Err(error.into()),
                Err(exit) => Ok(Ended::Left(exit)),
            };
        }
    };
    sandbox.recorder().stamp(name::EXIT);
    let drained = match outside.during(output.drain(sandbox.gone())).await {
        Ok(drained) => drained,
        Err(exit) => return Ok(Ended::Left(exit)),
    };
    drop(raw);
    if exit.reason == "oom_killed" && !args.quiet {
        out::message(format_args!(
            "the container was killed because it ran out of memory (the machine has {} MiB; see -m)",
            plan.options.common.memory.get() >> 20
        ));
    }
    Ok(Ended::Exited(match drained {
        Ok(()) => exit,
        Err(error) => {
            out::message(text::chain(error.as_ref()));
            // If the program itself failed, its exit code is more useful.
            if exit.code == 0 { Exit { code: outcome::FAILED, reason: "output_lost" } } else { exit }
        }
    }))
}
