//! Streams of processes: the host connects each of them with a token (`promises`), and tasks copy
//! the bytes (`pumps`), with one buffer for each direction.
//!
//! A process gets pipes or a terminal instead of the sockets, because a socket cannot be opened
//! again as /dev/stdout. It does not wait for the host: output stays in the pipe until the host has
//! connected. A stream that the host does not connect in time counts as closed by the host.
//!
//! The host ends stdin by shutting down its sending direction; then the pipe is closed (a terminal
//! gets VEOF). An output stream ends when all writers have closed it. A writer that outlives its
//! process (in the background of an exec) keeps it open until it has written nothing for [`IDLE`];
//! then the stream ends for the host, and later output is read and discarded, so that the writer
//! neither blocks nor gets SIGPIPE. When the host closes an output stream, the pipe is closed, too.
//! To the first process of a PID namespace the kernel does not deliver SIGPIPE with its default
//! action, so the agent traces this process and kills it instead.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nelly_protocol::messages::{Stdio, StreamTokens};
use thiserror::Error;

use crate::sys;

mod joined;
mod promises;
mod pumps;
mod stream;

pub use joined::join;
pub(crate) use promises::Promised;
pub use promises::{Patience, Promises};
pub use pumps::{IDLE, Pumps};
pub use stream::{Stream, connected};

/// Why the streams of a process cannot be created.
#[derive(Debug, Error)]
pub enum StdioError {
    /// A terminal has only one stream.
    #[error(
        "a terminal uses the stdin stream for both directions; stdout and stderr must not be requested as well"
    )]
    Terminal,
    /// Random bytes for a token are not available.
    #[error("cannot create the token of a stream")]
    Token(#[source] io::Error),
    /// A pipe cannot be created, or /dev/null cannot be opened.
    #[error("cannot create the streams of the process")]
    Make(#[source] io::Error),
}

/// Locks a mutex. Poisoning is ignored, because a panic ends the agent.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The two ends of every stream of a process that is about to be made.
pub struct ProcessStreams {
    /// File descriptors 0, 1 and 2 of the process.
    pub child: [OwnedFd; 3],
    /// The agent's ends.
    pub host: HostStreams,
    /// The tokens for the host.
    pub tokens: StreamTokens,
}

/// The agent's ends of the streams.
pub struct HostStreams {
    /// Input of the process: the stream from the host, and the pipe.
    stdin: Option<(Promised, Stream)>,
    /// Output of the process: the pipes, and the streams to the host.
    outputs: Vec<(Stream, Promised)>,
    /// The stream of the terminal.
    terminal: Option<Promised>,
}

/// Creates the requested streams: their tokens and the pipes.
///
/// # Errors
/// [`StdioError`].
pub fn open(promises: &Arc<Promises>, stdio: &Stdio) -> Result<ProcessStreams, StdioError> {
    if stdio.terminal && (stdio.stdout || stdio.stderr) {
        return Err(StdioError::Terminal);
    }
    let promise = |wanted: bool| wanted.then(|| promises.promise()).transpose().map_err(StdioError::Token);
    let [stdin, stdout, stderr] = [promise(stdio.stdin)?, promise(stdio.stdout)?, promise(stdio.stderr)?];
    let token = |promised: &Option<Promised>| promised.as_ref().map(Promised::token).unwrap_or_default();
    let tokens = StreamTokens {
        stdin: token(&stdin),
        stdout: token(&stdout),
        stderr: token(&stderr),
        ..StreamTokens::default()
    };
    let mut host = HostStreams { stdin: None, outputs: Vec::new(), terminal: None };
    if stdio.terminal {
        host.terminal = stdin;
        return Ok(ProcessStreams { child: [null()?, null()?, null()?], host, tokens });
    }
    let child_stdin = match stdin {
        None => null()?,
        Some(promised) => {
            let (read, write) = sys::pipe().map_err(StdioError::Make)?;
            host.stdin = Some((promised, Stream::new(write).map_err(StdioError::Make)?));
            read
        }
    };
    let child = [child_stdin, host.output(stdout)?, host.output(stderr)?];
    Ok(ProcessStreams { child, host, tokens })
}

fn null() -> Result<OwnedFd, StdioError> {
    let open = OpenOptions::new().read(true).write(true).open("/dev/null");
    open.map(OwnedFd::from).map_err(StdioError::Make)
}

impl HostStreams {
    fn output(&mut self, promised: Option<Promised>) -> Result<OwnedFd, StdioError> {
        let Some(promised) = promised else { return null() };
        let (read, write) = sys::pipe().map_err(StdioError::Make)?;
        self.outputs.push((Stream::new(read).map_err(StdioError::Make)?, promised));
        Ok(write)
    }
}
