//! `nelly stop`, `kill`, `pause`, `unpause` and `update`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use nelly_sandbox::connect::{ConnectError, EndReport};
use nelly_sandbox::life::Signal;
use nelly_sandbox::spec::quantity::{self, Time};
use nelly_sandbox::state::{Change, SandboxDir};

use super::args::{KillArgs, NamesArgs, StopArgs, UpdateArgs};
use super::force::{end_by_force, end_unreachable};
use super::{LAST_WORDS, connect, each, ended, keeper, runtime, sandboxes, target};
use crate::context::Context;
use crate::fail::{OfFlag as _, Usage};
use crate::out;

/// A grace time.
pub(super) fn grace(text: Option<&str>) -> Result<Option<Duration>> {
    text.map(|text| Time::GRACE.parse(text)).transpose().of_flag("--time")
}

/// Ends sandboxes in order.
pub(crate) fn stop(args: &StopArgs, context: &Context) -> Result<ExitCode> {
    let grace = grace(args.time.as_deref())?;
    let signal: Option<Signal> = args.signal.as_deref().map(str::parse).transpose().of_flag("--signal")?;
    let sandboxes = sandboxes(context)?;
    each(&args.names.names, |word| {
        let (word, container) = target(word);
        let sandbox = sandboxes.find(word)?;
        if !container.is_empty() {
            stop_container(&sandbox, container, signal, grace)?;
            return Ok(None);
        }
        // Stopping what has ended is what was wanted.
        if sandbox.condition()?.is_live() {
            stop_one(&sandbox, signal, grace)?;
        }
        Ok(None)
    })
}

/// Ends a further container: the signal, the grace time, SIGKILL.
fn stop_container(
    sandbox: &SandboxDir,
    container: &str,
    signal: Option<Signal>,
    grace: Option<Duration>,
) -> Result<()> {
    let grace = grace
        .map_or_else(|| Ok(Duration::from_millis(sandbox.record()?.stop_grace_ms)), Ok::<_, anyhow::Error>)?;
    runtime()?.block_on(async {
        let connection = connect(sandbox).await?.of_container(container);
        let mut ended = std::pin::pin!(connection.wait(""));
        if !grace.is_zero() {
            connection.kill("", signal.unwrap_or(Signal::TERM)).await?;
            if let Ok(ended) = tokio::time::timeout(grace, &mut ended).await {
                ended?;
                return Ok(());
            }
        }
        connection.kill("", Signal::KILL).await?;
        ended.await?;
        Ok(())
    })
}

/// Ends one that runs, and waits until its keeper is gone too.
pub(super) fn stop_one(sandbox: &SandboxDir, signal: Option<Signal>, grace: Option<Duration>) -> Result<()> {
    if grace == Some(Duration::ZERO) {
        return end_by_force(sandbox);
    }
    let keeper = keeper(sandbox)?;
    let stopped = runtime()?.block_on(async {
        let connection = match connect(sandbox).await {
            Ok(connection) => connection,
            Err(error) => return Ok(Some(error)),
        };
        match connection.stop(signal, grace).await {
            Ok(report) => {
                tell_killed(sandbox, &report);
                Ok(None)
            }
            Err(error @ (ConnectError::Silent | ConnectError::Reach(_))) => Err(error.into()),
            // A keeper that ended without an answer has stopped all the same.
            Err(error) => {
                if sandbox.condition()?.is_live() {
                    Err(anyhow::Error::from(error))
                } else {
                    Ok(None)
                }
            }
        }
    });
    match (stopped?, keeper) {
        (Some(error), Some(keeper)) if is_unreachable(&error) => {
            end_unreachable(sandbox, &keeper, grace, &error)
        }
        // It has ended meanwhile.
        (Some(_), _) if sandbox.condition().is_ok_and(|condition| !condition.is_live()) => Ok(()),
        (Some(error), _) => Err(error),
        (None, Some(keeper)) if !ended(&keeper, Some(LAST_WORDS))? => {
            bail!("the sandbox has ended, but the process that holds it is still there")
        }
        (None, _) => Ok(()),
    }
}

/// Says why a machine of `nelly boot` was killed, as one without a power button is at once.
fn tell_killed(sandbox: &SandboxDir, report: &EndReport) {
    // One that somebody else has removed meanwhile has nothing to tell.
    if report.exit.reason == "killed"
        && !report.detail.is_empty()
        && let Ok(record) = sandbox.record()
        && record.boot.is_some()
    {
        out::message(format_args!("machine {}: {}", record.name, report.detail));
    }
}

/// Whether a keeper's sockets are not there, or not for us. One that is there and says nothing is
/// stopped or overloaded, and would not hear a signal either.
fn is_unreachable(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref(),
        Some(ConnectError::Reach(_) | ConnectError::Gone(_) | ConnectError::NoSockets(_))
    )
}

/// Sends a signal.
pub(crate) fn kill(args: &KillArgs, context: &Context) -> Result<ExitCode> {
    let signal: Signal = args.signal.parse().of_flag("--signal")?;
    if args.exec.as_deref() == Some("") {
        // It would mean the container.
        return Err(Usage::error(
            "--exec: the id of an exec is not empty; `nelly exec --list SANDBOX` shows them",
        ));
    }
    let exec = args.exec.as_deref().unwrap_or_default();
    let sandboxes = sandboxes(context)?;
    let runtime = runtime()?;
    each(&args.names.names, |word| {
        let (word, container) = target(word);
        let sandbox = sandboxes.find(word)?;
        let kill =
            async { anyhow::Ok(connect(&sandbox).await?.of_container(container).kill(exec, signal).await?) };
        runtime.block_on(kill)?;
        Ok(None)
    })
}

/// Pauses machines.
pub(crate) fn pause(args: &NamesArgs, context: &Context) -> Result<ExitCode> {
    let (sandboxes, runtime) = (sandboxes(context)?, runtime()?);
    each(&args.names, |word| {
        let sandbox = sandboxes.find(word)?;
        runtime.block_on(async { anyhow::Ok(connect(&sandbox).await?.pause().await?) })?;
        Ok(None)
    })
}

/// Lets paused machines run on.
pub(crate) fn unpause(args: &NamesArgs, context: &Context) -> Result<ExitCode> {
    let (sandboxes, runtime) = (sandboxes(context)?, runtime()?);
    each(&args.names, |word| {
        let sandbox = sandboxes.find(word)?;
        runtime.block_on(async { anyhow::Ok(connect(&sandbox).await?.resume().await?) })?;
        Ok(None)
    })
}

/// Changes restart policies and limits.
pub(crate) fn update(args: &UpdateArgs, context: &Context) -> Result<ExitCode> {
    let restart = args.restart.as_deref().map(str::parse).transpose().of_flag("--restart")?;
    let limit = |text: &str| if text == "max" { Ok(None) } else { quantity::bytes(text).map(Some) };
    let memory_limit = args.memory.as_deref().map(limit).transpose().of_flag("--memory")?;
    let change = Change { restart, memory_limit };
    let (sandboxes, runtime) = (sandboxes(context)?, runtime()?);
    each(&args.names.names, |word| {
        let sandbox = sandboxes.find(word)?;
        if sandbox.condition()?.is_live() {
            runtime.block_on(async { anyhow::Ok(connect(&sandbox).await?.update(change).await?) })?;
        } else {
            let record = sandbox.record()?;
            if record.boot.is_some() && change.memory_limit.is_some() {
                bail!(
                    "sandbox {word} is a machine of nelly boot, which has no container whose memory could be limited"
                );
            }
            change.check(record.machine.memory_bytes)?;
            sandboxes.update(&sandbox, |record| change.apply(record))?;
        }
        Ok(None)
    })
}
