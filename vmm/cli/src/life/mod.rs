//! Verbs for sandboxes that stay: each finds them in the state directory, and asks their keepers.

pub(crate) mod args;
mod attach;
mod copy;
mod events;
mod exec;
mod force;
mod generate;
mod inspect;
mod logs;
mod look;
mod metrics;
mod notes;
pub(crate) mod port;
mod proxy;
mod ps;
mod remove;
mod restartable;
mod start;
mod stats;
mod stop;
mod wait;

use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
pub(crate) use attach::attach;
pub(crate) use copy::cp;
pub(crate) use events::events;
pub(crate) use exec::{attended, exec};
pub(crate) use generate::systemd;
pub(crate) use inspect::inspect;
pub(crate) use logs::logs;
pub(crate) use look::{diff, top};
pub(crate) use metrics::metrics;
use nelly_sandbox::connect::Connection;
use nelly_sandbox::state::{SandboxDir, SandboxLock, Sandboxes};
use nelly_sandbox::wire::holder;
use nelly_vmm::sys::ProcessHandle;
pub(crate) use proxy::proxy;
pub(crate) use ps::ps;
pub(crate) use remove::{gc, rename, rm};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
pub(crate) use start::{Start, launch, restart, start};
pub(crate) use stats::stats;
pub(crate) use stop::{kill, pause, stop, unpause, update};
pub(crate) use wait::wait;

use crate::context::Context;
use crate::{fail, out};

/// How long a keeper that has said its last word may take to be gone.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// What is said of a home without sandboxes.
const NONE: &str = "there is no sandbox yet; `nelly run -d` and `nelly create` make them";

/// Below so many free bytes a file system is full: what is left may be in use by the next moment.
const FULL: u64 = 1 << 20;

/// The state directory, if there is one. Says so if its file system is full, which explains why a
/// sandbox waits.
pub(crate) fn opened(context: &Context) -> Result<Option<Sandboxes>> {
    let sandboxes = Sandboxes::open(&context.places.sandboxes())?;
    if let Some(sandboxes) = &sandboxes
        && sandboxes.free_bytes().is_some_and(|free| free < FULL)
    {
        out::message(format_args!(
            "warning: the file system of {} is full: what guests write to the disks of their sandboxes waits until it has room, and the ends of \
             sandboxes may not be written down",
            sandboxes.path().display()
        ));
    }
    Ok(sandboxes)
}

/// The state directory.
pub(crate) fn sandboxes(context: &Context) -> Result<Sandboxes> {
    match opened(context)? {
        Some(sandboxes) => Ok(sandboxes),
        None => bail!(NONE),
    }
}

/// Does something for each of the named, and prints those words for which it succeeded, or what it
/// gives in their place. An error
/// keeps none of the others; the exit code tells of it.
pub(crate) fn each(
    words: &[String],
    mut work: impl FnMut(&str) -> Result<Option<String>>,
) -> Result<ExitCode> {
    let mut failed = false;
    for word in words {
        match work(word) {
            Ok(Some(line)) if line.is_empty() => {}
            Ok(Some(line)) => out::line(&line)?,
            Ok(None) => out::line(word)?,
            Err(error) => {
                fail::report(&error, false, 1);
                failed = true;
            }
        }
    }
    Ok(ExitCode::from(u8::from(failed)))
}

/// Splits a word that names a sandbox, and perhaps a further container in it, which is empty if it
/// is the first one: SANDBOX[/CONTAINER].
pub(crate) fn target(word: &str) -> (&str, &str) {
    word.split_once('/').unwrap_or((word, ""))
}

/// A runtime for a client.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the async runtime")
}

/// Connects to a sandbox's keeper.
pub(crate) async fn connect(sandbox: &SandboxDir) -> Result<Connection> {
    Ok(Connection::to(sandbox).await?)
}

/// A handle on the keeper's process, if it lives.
pub(crate) fn keeper(sandbox: &SandboxDir) -> Result<Option<ProcessHandle>> {
    let handle = sandbox.state()?.holder.as_ref().map(holder::handle).transpose();
    Ok(handle.context("cannot watch the process that holds the sandbox")?.flatten())
}

/// Waits until a process has ended; `false` when the time was over first.
pub(crate) fn ended(process: &ProcessHandle, within: Option<Duration>) -> Result<bool> {
    let within = within.map(Timespec::try_from).transpose().context("the time is too long")?;
    loop {
        match poll(&mut [PollFd::new(&process.as_fd(), PollFlags::IN)], within.as_ref()) {
            Ok(count) => return Ok(count > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for the process that holds the sandbox"),
        }
    }
}

/// Takes the lock of a sandbox that does not run. Of one whose keeper has just ended it waits for
/// that.
pub(crate) fn lock(sandboxes: &Sandboxes, sandbox: &SandboxDir) -> Result<SandboxLock> {
    Ok(sandboxes.lock_ended(sandbox, LAST_WORDS)?)
}
