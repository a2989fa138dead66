//! Streams of processes: the host dials each with a token (`promises`), and pumps move the bytes,
//! one buffer a direction, as fast as the slower side takes them.
//!
//! A process gets pipes (or a terminal), never the sockets themselves: a socket cannot be opened
//! again by /dev/stdout. It does not wait for the host: what it says before the host has dialled
//! stays in the pipe. A stream that the host does not dial in time counts as closed by it.
//!
//! How they end: the host ends stdin by shutting down its sending side; the pipe closes (a terminal
//! gets VEOF). An output stream ends when every writer is gone. A writer that outlives its process
//! (in the background of an exec) keeps it open for [`IDLE`] of silence at most; then the stream
//! ends for the host, and what still comes is read and dropped, so that the writer neither blocks
//! nor dies of it. When the host closes an output stream, the pipe closes too; the first process of
//! a PID namespace, to which the kernel gives no SIGPIPE at its default action, is traced from then
//! on, and ended for it by the agent.

use std::fs::OpenOptions;
use std::future::pending;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nelly_protocol::messages::{Stdio, StreamTokens};
use thiserror::Error;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::sys;

mod promises;

use promises::Promised;
pub use promises::{Patience, Promises};

/// How long an output stream of a process that ended may stay silent before it counts as drained.
pub const IDLE: Duration = Duration::from_millis(100);

/// Bytes of a pump's buffer. It begins small, because every page that a guest touches for the first
/// time costs an exit of the machine, and most processes say little.
const FIRST_BUFFER: usize = 4 * 1024;

/// Bytes of the buffer of a pump that has much to move.
const BUFFER: usize = 64 * 1024;

/// VEOF of a new terminal.
const END_OF_FILE: u8 = 4;

/// Why a process has no streams.
#[derive(Debug, Error)]
pub enum StdioError {
    /// A terminal has one stream.
    #[error(
        "a terminal uses the stdin stream for both directions; stdout and stderr must not be requested as well"
    )]
    Terminal,
    /// Random bytes for a token.
    #[error("cannot create the token of a stream")]
    Token(#[source] io::Error),
    /// A pipe or /dev/null.
    #[error("cannot create the streams of the process")]
    Make(#[source] io::Error),
}

/// A poisoned lock would mean a panic, which ends the agent: there is nothing else to do about it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for a connect that was begun without blocking.
///
/// # Errors
/// The error of the connect.
pub async fn connected(socket: OwnedFd) -> io::Result<OwnedFd> {
    let waiting = sys::watch(socket, Interest::WRITABLE)?;
    waiting.writable().await?.retain_ready();
    let socket = waiting.into_inner();
    sys::connect_result(socket.as_fd())?;
    Ok(socket)
}

/// A descriptor that does not block, in the event loop.
#[derive(Debug)]
pub struct Stream(AsyncFd<OwnedFd>);

impl Stream {
    /// Takes a descriptor into the event loop.
    ///
    /// # Errors
    /// Those of fcntl(2) and epoll_ctl(2).
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        sys::set_nonblocking(fd.as_fd(), true)?;
        Ok(Self(sys::watch(fd, Interest::READABLE | Interest::WRITABLE)?))
    }

    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.async_io(Interest::READABLE, |fd| sys::read(fd.as_fd(), buffer)).await
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let n = self.0.async_io(Interest::WRITABLE, |fd| sys::write(fd.as_fd(), bytes)).await?;
            bytes = bytes.get(n..).unwrap_or_default();
        }
        Ok(())
    }

    /// Waits until the other side is gone altogether; what it says meanwhile is dropped. Not for
    /// ever after the other side ended its sending: from then on only the next write tells.
    async fn gone(&self) {
        loop {
            let Ok(mut ready) = self.0.readable().await else { return };
            let mut bytes = [0; 256];
            match ready.try_io(|fd| sys::read(fd.as_fd(), &mut bytes)) {
                Ok(Ok(0)) if !sys::hung_up(self.as_fd()) => return pending().await,
                Ok(Ok(0) | Err(_)) => return,
                Ok(Ok(_)) | Err(_) => {}
            }
        }
    }

    /// Waits until nobody can read what is written to this pipe any more.
    async fn unread(&self) {
        loop {
            match self.0.ready(Interest::ERROR).await {
                Ok(ready) if ready.ready().is_error() => return,
                Ok(mut ready) => ready.clear_ready(),
                Err(_) => pending().await,
            }
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(cx))?;
            match ready.try_io(|fd| sys::read(fd.as_fd(), buffer.initialize_unfilled())) {
                Ok(Ok(n)) => {
                    buffer.advance(n);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_) => {}
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(cx))?;
            if let Ok(result) = ready.try_io(|fd| sys::write(fd.as_fd(), bytes)) {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        sys::shutdown_write(self.as_fd());
        Poll::Ready(Ok(()))
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

/// The two ends of every stream of a process that is about to be made.
pub struct ProcessStreams {
    /// What the process gets as 0, 1 and 2.
    pub child: [OwnedFd; 3],
    /// What the pumps get.
    pub host: HostStreams,
    /// What the host gets to dial them.
    pub tokens: StreamTokens,
}

/// Our ends.
pub struct HostStreams {
    /// Bytes for the process, and where they go.
    stdin: Option<(Promised, Stream)>,
    /// Bytes of the process, and where they go.
    outputs: Vec<(Stream, Promised)>,
    /// The one stream of a terminal.
    terminal: Option<Promised>,
}

/// Promises the streams that the request asks for and makes the pipes.
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

/// The pumps of one process.
#[derive(Debug)]
pub struct Pumps {
    input: Option<JoinHandle<()>>,
    drained: Vec<oneshot::Receiver<()>>,
    close_input: watch::Sender<bool>,
    /// The terminal, for its size.
    terminal: Option<Arc<Stream>>,
}

impl HostStreams {
    fn output(&mut self, promised: Option<Promised>) -> Result<OwnedFd, StdioError> {
        let Some(promised) = promised else { return null() };
        let (read, write) = sys::pipe().map_err(StdioError::Make)?;
        self.outputs.push((Stream::new(read).map_err(StdioError::Make)?, promised));
        Ok(write)
    }

    /// Sets the pumps going; `console` is the terminal if there is one, `exited` tells that the
    /// process ended. `immune` is the process's number if the kernel gives it no SIGPIPE: then an
    /// output that the host closes makes the agent hear of it.
    ///
    /// # Errors
    /// Those of registering the terminal with the event loop.
    pub fn start(
        self,
        console: Option<OwnedFd>,
        exited: &watch::Receiver<bool>,
        immune: Option<i32>,
    ) -> io::Result<Pumps> {
        let (close_input, closing) = watch::channel(false);
        let mut pumps = Pumps { input: None, drained: Vec::new(), close_input, terminal: None };
        if let Some((promised, pipe)) = self.stdin {
            pumps.input = Some(tokio::spawn(pump_in(promised, pipe, closing.clone())));
        }
        for (pipe, promised) in self.outputs {
            let (drained, exited) = (pumps.drained(), exited.clone());
            tokio::spawn(async move {
                let pipe = Arc::new(pipe);
                // A stream that does not come is one that was closed.
                let closed = match promised.stream().await {
                    Some(socket) => {
                        pump_out(pipe.clone(), Arc::new(socket), false, exited.clone(), drained).await
                    }
                    None => true,
                };
                // A number is the process's own as long as it was not reaped.
                if let Some(pid) = immune.filter(|_| closed && !*exited.borrow()) {
                    // Without it the process gets EPIPE, and may go on with that.
                    let _ = sys::trace(pid);
                }
                // Only now the pipe closes.
                drop(pipe);
            });
        }
        if let Some(console) = console {
            let terminal = Arc::new(Stream::new(console)?);
            match self.terminal {
                Some(promised) => pumps.terminal(&terminal, promised, closing, exited.clone()),
                None => drop(tokio::spawn(drop_all(terminal.clone()))),
            }
            pumps.terminal = Some(terminal);
        }
        Ok(pumps)
    }
}

impl Pumps {
    /// One more output to be waited for after the process ended, until the sender is used or
    /// dropped.
    fn drained(&mut self) -> oneshot::Sender<()> {
        let (tell, drained) = oneshot::channel();
        self.drained.push(drained);
        tell
    }

    /// Both ways of a terminal, once the host has dialled its one stream.
    fn terminal(
        &mut self,
        terminal: &Arc<Stream>,
        promised: Promised,
        mut closing: watch::Receiver<bool>,
        exited: watch::Receiver<bool>,
    ) {
        let (share, shared) = oneshot::channel::<Arc<Stream>>();
        let (input, output) = (terminal.clone(), terminal.clone());
        self.input = Some(tokio::spawn(async move {
            let socket = tokio::select! {
                socket = shared => socket.ok(),
                () = closed(&mut closing) => None,
            };
            pump_terminal_in(socket, input, closing).await;
        }));
        let drained = self.drained();
        tokio::spawn(async move {
            let Some(socket) = promised.stream().await.map(Arc::new) else {
                // Neither the input nor whoever waits for the output need wait longer.
                drop((share, drained));
                return drop_all(output).await;
            };
            // An input that is closed already needs no stream.
            let _ = share.send(socket.clone());
            pump_out(output, socket, true, exited, drained).await;
        });
    }

    /// Ends the process's input.
    pub fn close_input(&self) {
        self.close_input.send_replace(true);
    }

    /// Sets the size of the terminal; false when there is none.
    ///
    /// # Errors
    /// Those of ioctl(2).
    pub fn resize(&self, rows: u16, columns: u16) -> io::Result<bool> {
        match &self.terminal {
            Some(terminal) => sys::set_window_size(terminal.as_fd(), rows, columns).map(|()| true),
            None => Ok(false),
        }
    }

    /// Takes what tells when the output is drained; to be waited for after the process ended.
    pub fn take_drained(&mut self) -> Vec<oneshot::Receiver<()>> {
        std::mem::take(&mut self.drained)
    }

    /// After the end of the process and its output: nothing is left to feed, nothing to resize.
    pub fn finish(&mut self) {
        self.terminal = None;
        if let Some(input) = self.input.take() {
            input.abort();
        }
    }
}

impl Drop for Pumps {
    fn drop(&mut self) {
        self.finish();
    }
}

async fn closed(closing: &mut watch::Receiver<bool>) {
    if closing.wait_for(|closed| *closed).await.is_err() {
        // The pumps' owner is gone, and with it this pump, by abort.
        pending::<()>().await;
    }
}

/// Host to pipe. Dropping the pipe is the process's end-of-file; dropping the socket tells the host
/// that nobody reads.
async fn pump_in(promised: Promised, pipe: Stream, mut closing: watch::Receiver<bool>) {
    let socket = tokio::select! {
        socket = promised.stream() => socket,
        () = closed(&mut closing) => None,
    };
    let Some(socket) = socket else { return };
    let mut buffer = Vec::new();
    loop {
        tokio::select! {
            ready = socket.0.readable() => match ready {
                Ok(mut ready) => ready.retain_ready(),
                Err(_) => return,
            },
            () = pipe.unread() => return,
            () = closed(&mut closing) => return,
        }
        buffer.resize(buffer.len().max(FIRST_BUFFER), 0);
        // What was ready may have been read before, with the token.
        let n = match socket.0.try_io(Interest::READABLE, |fd| sys::read(fd.as_fd(), &mut buffer)) {
            Ok(n @ 1..) => n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Ok(_) | Err(_) => return,
        };
        let bytes = buffer.get(..n).unwrap_or_default();
        tokio::select! {
            written = pipe.write_all(bytes) => if written.is_err() { return },
            () = closed(&mut closing) => return,
        }
        if n == buffer.len() {
            buffer.resize(BUFFER, 0);
        }
    }
}

/// Host to terminal, which is at its end at once without a host. A terminal has no end: VEOF stands
/// for it, twice when a line was begun.
async fn pump_terminal_in(
    socket: Option<Arc<Stream>>,
    terminal: Arc<Stream>,
    mut closing: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 4096];
    let mut line_begun = false;
    loop {
        let n = match &socket {
            None => 0,
            Some(socket) => tokio::select! {
                n = socket.read(&mut buffer) => n.unwrap_or(0),
                () = closed(&mut closing) => 0,
            },
        };
        let Some(bytes) = buffer.get(..n).filter(|bytes| !bytes.is_empty()) else {
            let ends = if line_begun { &[END_OF_FILE, END_OF_FILE][..] } else { &[END_OF_FILE] };
            // A terminal that is gone needs no end.
            let _ = terminal.write_all(ends).await;
            return;
        };
        line_begun = !bytes.ends_with(b"\n") && !bytes.ends_with(b"\r");
        if terminal.write_all(bytes).await.is_err() {
            return;
        }
    }
}

/// Completes after the process ended and then stayed silent for [`IDLE`].
async fn silent_after_exit(exited: &mut watch::Receiver<bool>) {
    // A sender that is gone belonged to a process that is gone.
    let _ = exited.wait_for(|exited| *exited).await;
    tokio::time::sleep(IDLE).await;
}

/// Why an output ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PumpEnd {
    /// Every writer is gone.
    Source,
    /// The host closed it.
    Host,
    /// Its process is gone, and whoever else may write says nothing.
    Silence,
}

/// Pipe or terminal to host, until its end, or the host's, or silence after the process's. True
/// when it was the host that closed it, and the pipe is to be closed for the process as well.
async fn pump_out(
    source: Arc<Stream>,
    socket: Arc<Stream>,
    terminal: bool,
    mut exited: watch::Receiver<bool>,
    drained: oneshot::Sender<()>,
) -> bool {
    let mut buffer = Vec::new();
    let end = loop {
        tokio::select! {
            biased;
            ready = source.0.readable() => match ready {
                Ok(mut ready) => ready.retain_ready(),
                Err(_) => break PumpEnd::Source,
            },
            // A terminal's socket also carries its input, whose pump notices.
            () = socket.gone(), if !terminal => break PumpEnd::Host,
            () = silent_after_exit(&mut exited) => break PumpEnd::Silence,
        }
        buffer.resize(buffer.len().max(FIRST_BUFFER), 0);
        let read = source.0.try_io(Interest::READABLE, |fd| sys::read(fd.as_fd(), &mut buffer));
        match read {
            Ok(n @ 1..) => {
                if socket.write_all(buffer.get(..n).unwrap_or_default()).await.is_err() {
                    break PumpEnd::Host;
                }
                if n == buffer.len() {
                    buffer.resize(BUFFER, 0);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // The end; a terminal says EIO.
            Ok(_) | Err(_) => break PumpEnd::Source,
        }
    };
    drop(buffer);
    sys::shutdown_write(socket.as_fd());
    drop(socket);
    // Nobody waits any more when the process was forgotten.
    let _ = drained.send(());
    // For a pipe, closing it is what tells the process; a terminal lives on without a viewer.
    if end == PumpEnd::Silence || end == PumpEnd::Host && terminal {
        drop_all(source).await;
    }
    end == PumpEnd::Host
}

/// Reads to the end, so that the writers neither block nor die of it.
async fn drop_all(source: Arc<Stream>) {
    let mut buffer = [0; 4096];
    while let Ok(1..) = source.read(&mut buffer).await {}
}
