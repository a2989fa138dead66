//! A process in a container, and its streams.

use std::fmt;
use std::io;
use std::os::unix::net::UnixStream as Blocking;
use std::sync::Arc;

use tokio::io::AsyncRead;
use tokio::net::UnixStream;
use tokio::sync::{oneshot, watch};

use super::{EndReport, Error, Signal};
use crate::agent::ProcessId;
use crate::connect::Connection;
use crate::instance;
use crate::state::Exit;
use crate::state::record::ExitRecord;

/// A process's streams on this side. A dropped one is closed for the process. They flow at the
/// pace of the slower side: a process whose output nobody reads waits.
#[derive(Debug, Default)]
pub struct Pipes {
    /// Where its standard input is written; with a terminal, the terminal both ways. `None` when it
    /// has none.
    pub stdin: Option<UnixStream>,
    /// Where its standard output is read; `None` with a terminal.
    pub stdout: Option<UnixStream>,
    /// Where its standard error is read; `None` with a terminal.
    pub stderr: Option<UnixStream>,
    pub(super) terminal: bool,
}

impl Pipes {
    pub(super) fn new(streams: instance::Streams, terminal: bool) -> Result<Self, Error> {
        let registered = |stream: Option<Blocking>| {
            let stream = stream.map(|stream| {
                stream.set_nonblocking(true)?;
                UnixStream::from_std(stream)
            });
            stream.transpose().map_err(Error::host("use the process's streams"))
        };
        Ok(Self {
            stdin: registered(streams.stdin)?,
            stdout: registered(streams.stdout)?,
            stderr: registered(streams.stderr)?,
            terminal,
        })
    }

    /// Reads and forgets all output, so that the process can go on, and ends its input.
    pub(super) fn discard(self) {
        let both = if self.terminal { self.stdin } else { None };
        for mut stream in [both, self.stdout, self.stderr].into_iter().flatten() {
            tokio::spawn(async move {
                // Its end is the end of the process or the machine.
                let _copied = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            });
        }
    }
}

/// What a process reads as its standard input.
#[derive(Default)]
pub(super) enum Input {
    /// It has none.
    #[default]
    None,
    /// What the caller writes.
    Piped,
    /// These bytes.
    Bytes(Vec<u8>),
    /// What this reader has.
    Reader(Box<dyn AsyncRead + Send + Unpin>),
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Piped => "Piped",
            Self::Bytes(_) => "Bytes",
            Self::Reader(_) => "Reader",
        })
    }
}

/// Whom the process is asked of.
pub(super) enum Way {
    /// A machine of this process. Dropping `alive` ends the exec.
    Held {
        machine: Arc<instance::Sandbox>,
        container: String,
        exit: watch::Receiver<Option<Exit>>,
        alive: Option<oneshot::Sender<()>>,
    },
    /// A keeper. Closing `alive` ends the exec.
    Kept { connection: Connection, alive: Option<Blocking> },
}

/// A process that was started in a running container by [`super::Exec::spawn`]. Dropping it before
/// its end hangs it up: its process group gets SIGHUP, and what does not end by that within five
/// seconds SIGKILL.
pub struct Process {
    /// Its streams.
    pub pipes: Pipes,
    id: String,
    way: Way,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("id", &self.id).field("pipes", &self.pipes).finish_non_exhaustive()
    }
}

impl Process {
    pub(super) fn new(id: String, pipes: Pipes, way: Way) -> Self {
        Self { pipes, id, way }
    }

    /// Its id, which `nelly exec --list` shows when a keeper holds the sandbox.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Waits for its end, which does not wait for its output to be read. Any number of times.
    ///
    /// # Errors
    /// The keeper cannot be asked any more.
    pub async fn wait(&self) -> Result<EndReport, Error> {
        match &self.way {
            Way::Held { exit, .. } => {
                let mut exit = exit.clone();
                let ended = exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit);
                // The task that waits for it ends early only with the runtime.
                let stopped = || Error::host("wait for the process")(io::Error::other("the runtime ends"));
                Ok(report(ended.ok_or_else(stopped)?))
            }
            Way::Kept { connection, .. } => Ok(connection.wait(&self.id).await?),
        }
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It has ended.
    pub async fn kill(&self, signal: Signal) -> Result<(), Error> {
        match &self.way {
            Way::Held { machine, container, .. } => {
                let id = ProcessId { container, exec: &self.id };
                Ok(machine.during(machine.agent().signal(id, signal.number().into())).await?)
            }
            Way::Kept { connection, .. } => Ok(connection.kill(&self.id, signal).await?),
        }
    }

    /// Sets the size of its terminal.
    ///
    /// # Errors
    /// It has ended, or has no terminal.
    pub async fn resize(&self, rows: u16, columns: u16) -> Result<(), Error> {
        match &self.way {
            Way::Held { machine, container, .. } => {
                let id = ProcessId { container, exec: &self.id };
                Ok(machine.during(machine.agent().resize(id, rows, columns)).await?)
            }
            Way::Kept { connection, .. } => Ok(connection.resize(&self.id, rows, columns).await?),
        }
    }

    /// Does what dropping it does: its streams are closed and it is hung up. [`Process::wait`]
    /// tells how it ended.
    pub fn hang_up(&mut self) {
        self.pipes = Pipes::default();
        match &mut self.way {
            Way::Held { alive, .. } => drop(alive.take()),
            Way::Kept { alive, .. } => drop(alive.take()),
        }
    }
}

pub(super) fn report(exit: Exit) -> EndReport {
    EndReport { exit: ExitRecord { code: exit.code, reason: exit.reason.to_owned() }, detail: String::new() }
}
