//! The end of a sandbox at once, whatever state its keeper and its machine are in.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nelly_sandbox::state::SandboxDir;
use nelly_sandbox::wire::holder;
use nelly_vmm::sys::ProcessHandle;
use nelly_vmm::text;
use rustix::process::Signal;

use super::{connect, ended, keeper, runtime};
use crate::out;

/// How long a keeper may take to answer at all.
const ANSWER: Duration = Duration::from_secs(8);

/// How long the end may take of one that answers: SIGKILL, the rest of the output, and a guest that
/// flushes its disk, each of which the keeper limits.
const ORDERLY: Duration = Duration::from_secs(60);

/// How long a process may take to end by SIGKILL.
const KILLED: Duration = Duration::from_secs(10);

/// Ends a sandbox: by its keeper, or with it if that does not answer. Only processes that the state
/// names are killed, and only if they are still the same.
///
/// # Errors
/// A process does not end.
pub(crate) fn end_by_force(sandbox: &SandboxDir) -> Result<()> {
    // The monitor's handle first: while its keeper lives it is in the state.
    let monitor = sandbox.state().ok().and_then(|state| state.monitor);
    let monitor = monitor.as_ref().map(holder::handle).transpose();
    let monitor = monitor.context("cannot watch the sandbox's monitor")?.flatten();
    let Some(keeper) = keeper(sandbox)? else {
        return end(monitor.as_slice());
    };
    let asked = runtime()?.block_on(async {
        let connection = tokio::time::timeout(ANSWER, connect(sandbox)).await??;
        tokio::time::timeout(ORDERLY, connection.stop(None, Some(Duration::ZERO))).await??;
        anyhow::Ok(())
    });
    match asked {
        Ok(()) if ended(&keeper, Some(KILLED))? => return Ok(()),
        Ok(()) => {}
        Err(error) => out::message(format_args!(
            "sandbox {} is ended by force, without a flush of its disk: {}",
            sandbox.id().short(),
            text::chain(error.as_ref())
        )),
    }
    let processes: Vec<_> = [Some(keeper), monitor].into_iter().flatten().collect();
    end(&processes)
}

/// Ends a sandbox whose keeper lives and cannot be asked: by SIGTERM, which it takes as a stop in
/// order, and by force if that does not end it within `grace`, or its own.
///
/// # Errors
/// A process cannot be signalled, or does not end.
pub(crate) fn end_unreachable(
    sandbox: &SandboxDir,
    keeper: &ProcessHandle,
    grace: Option<Duration>,
    why: &anyhow::Error,
) -> Result<()> {
    let id = sandbox.id().short();
    let why = text::chain(why.as_ref());
    out::message(format_args!(
        "sandbox {id} is stopped by SIGTERM to the process that holds it, which cannot be asked: {why}"
    ));
    signal(keeper, Signal::TERM)
        .with_context(|| format!("cannot stop the process that holds sandbox {id}"))?;
    let grace = grace.unwrap_or_else(|| {
        let own = sandbox.record().map(|record| Duration::from_millis(record.stop_grace_ms));
        own.unwrap_or(ORDERLY)
    });
    if ended(keeper, Some(grace.saturating_add(ORDERLY)))? {
        return Ok(());
    }
    end_by_force(sandbox)
}

/// Signals a process; one that has ended meanwhile is as good.
fn signal(process: &ProcessHandle, signal: Signal) -> std::io::Result<()> {
    match process.signal(signal) {
        Err(error) if rustix::io::Errno::from_io_error(&error) != Some(rustix::io::Errno::SRCH) => Err(error),
        _ => Ok(()),
    }
}

fn end(processes: &[ProcessHandle]) -> Result<()> {
    for process in processes {
        signal(process, Signal::KILL).context("cannot kill a process of the sandbox")?;
    }
    for process in processes {
        if !ended(process, Some(KILLED))? {
            bail!("a process of the sandbox does not end by SIGKILL: the host's kernel holds it");
        }
    }
    Ok(())
}
