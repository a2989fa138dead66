//! Verbs for sandboxes that stay: each finds them in the state directory, and asks their keepers.

pub(crate) mod args;
mod attach;
mod detach_keys;
mod events;
mod exec;
mod force;
mod generate;
mod inspect;
mod logs;
mod look;
mod ps;
mod remove;
mod restartable;
mod start;
mod stats;
mod stop;
mod wait;

use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
pub(crate) use attach::attach;
pub(crate) use events::events;
pub(crate) use exec::{attended, exec};
pub(crate) use generate::systemd;
pub(crate) use inspect::inspect;
pub(crate) use logs::logs;
pub(crate) use look::{diff, top};
use nelly_sandbox::connect::{ConnectError, Connection};
use nelly_sandbox::state::record::Condition;
use nelly_sandbox::state::{Id, SandboxDir, SandboxLock, Sandboxes, StateError, Status};
use nelly_sandbox::wire::holder;
pub(crate) use ps::ps;
pub(crate) use remove::{gc, rename, rm};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
pub(crate) use start::{Start, launch, restart, start};
pub(crate) use stats::stats;
pub(crate) use stop::{kill, pause, stop, unpause, update};
pub(crate) use wait::wait;

use crate::context::Context;
use crate::{fail, out};

/// File name of the disk of the writable layer, in the sandbox's directory.
pub(crate) const DISK: &str = "disk.raw";

/// How long a keeper that has said its last word may take to be gone.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How long a keeper may take to make its sockets, or to make them anew.
const SOCKETS: Duration = Duration::from_secs(5);

/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(20);

/// The state directory.
pub(crate) fn sandboxes(context: &Context) -> Result<Sandboxes> {
    match Sandboxes::open(&context.places.sandboxes())? {
        Some(sandboxes) => Ok(sandboxes),
        None => bail!("there is no sandbox yet; `nelly run -d` and `nelly create` make them"),
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

/// The keeper of a sandbox that lives has not written down where its sockets are.
#[derive(Debug)]
pub(crate) struct NoSockets(Id);

impl std::fmt::Display for NoSockets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the keeper of sandbox {} has no sockets yet", self.0.short())
    }
}

impl std::error::Error for NoSockets {}

/// Connects to a sandbox's keeper.
pub(crate) async fn connect(sandbox: &SandboxDir) -> Result<Connection> {
    let until = Instant::now() + SOCKETS;
    loop {
        let condition = sandbox.condition()?;
        if !condition.is_live() {
            bail!("sandbox {} does not run: it is {}", sandbox.id().short(), shown(condition));
        }
        let state = sandbox.state()?;
        let failure = match &state.runtime_dir {
            Some(runtime) => match Connection::open(runtime).await {
                Ok(connection) => return Ok(connection),
                // It has waited for as long as a keeper may take.
                Err(error @ ConnectError::Silent) => return Err(error.into()),
                Err(error) => anyhow::Error::from(error),
            },
            None => NoSockets(sandbox.id()).into(),
        };
        // It makes them at its start, and anew when they vanish.
        if Instant::now() >= until {
            return Err(failure);
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn shown(condition: Condition) -> &'static str {
    match condition {
        Condition::Unclean => "exited, unclean",
        condition => condition.word(),
    }
}

/// A handle on the keeper's process, if it lives.
pub(crate) fn keeper(sandbox: &SandboxDir) -> Result<Option<OwnedFd>> {
    Ok(sandbox.state()?.holder.as_ref().and_then(holder::handle))
}

/// Waits until a process has ended; `false` when the time was over first.
pub(crate) fn ended(process: &OwnedFd, within: Option<Duration>) -> Result<bool> {
    let within = within.map(Timespec::try_from).transpose().context("the time is too long")?;
    loop {
        match poll(&mut [PollFd::new(&process.as_fd(), PollFlags::IN)], within.as_ref()) {
            Ok(count) => return Ok(count > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for the keeper"),
        }
    }
}

/// Takes the lock of a sandbox that does not run. Of one whose keeper has just ended it waits for
/// that.
pub(crate) fn lock(sandboxes: &Sandboxes, sandbox: &SandboxDir) -> Result<SandboxLock> {
    let mut left = LAST_WORDS;
    loop {
        match sandboxes.lock(sandbox) {
            Ok(lock) => return Ok(lock),
            Err(StateError::Busy { .. })
                if sandbox
                    .state()
                    .is_ok_and(|state| matches!(state.status, Status::Exited | Status::Created))
                    && !left.is_zero() =>
            {
                std::thread::sleep(LOOK);
                left = left.saturating_sub(LOOK);
            }
            Err(error) => return Err(error.into()),
        }
    }
}
