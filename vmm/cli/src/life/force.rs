//! The end of a sandbox at once, whatever state its keeper and its machine are in.

use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Result, bail};
use nelly_sandbox::state::SandboxDir;
use nelly_sandbox::wire::holder;
use rustix::process::{Signal, pidfd_send_signal};

use super::{connect, ended, keeper, runtime};

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
    let monitor = sandbox.state().ok().and_then(|state| state.monitor).as_ref().and_then(holder::handle);
    let Some(keeper) = keeper(sandbox)? else {
        return end(monitor.as_slice());
    };
    let asked = runtime()?.block_on(async {
        let connection = tokio::time::timeout(ANSWER, connect(sandbox)).await??;
        tokio::time::timeout(ORDERLY, connection.stop(None, Some(Duration::ZERO))).await??;
        anyhow::Ok(())
    });
    if asked.is_ok() && ended(&keeper, Some(KILLED))? {
        return Ok(());
    }
    let processes: Vec<_> = [Some(keeper), monitor].into_iter().flatten().collect();
    end(&processes)
}

fn end(processes: &[std::os::fd::OwnedFd]) -> Result<()> {
    for process in processes {
        match pidfd_send_signal(process.as_fd(), Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => bail!("cannot kill a process of the sandbox: {error}"),
        }
    }
    for process in processes {
        if !ended(process, Some(KILLED))? {
            bail!("a process of the sandbox does not end by SIGKILL: the host's kernel holds it");
        }
    }
    Ok(())
}
