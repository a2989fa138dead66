//! Streams of processes: the guest dials the host, and pumps move the bytes, one buffer a direction, as fast as the slower
//! side takes them.
//!
//! A process gets pipes (or a terminal), never the sockets themselves: a socket cannot be opened again by /dev/stdout.
//!
//! How they end: the host ends stdin by shutting down its sending side; the pipe closes (a terminal gets VEOF). An output
//! stream ends when every writer is gone. A writer that outlives its process (in the background of an exec) keeps it open
//! for [`IDLE`] of silence at most; then the stream ends for the host, and what still comes is read and dropped, so that
//! the writer neither blocks nor dies of it. When the host closes an output stream, the pipe closes too.

use std::fs::OpenOptions;
use std::future::{Future, pending};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nelly_protocol::messages::Stdio;
use nelly_protocol::ports::{HOST_CID, STDIO_FIRST, STDIO_LAST};
use thiserror::Error;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::sys::{self, VsockAddress};

/// How long an output stream of a process that ended may stay silent before it counts as drained.
pub const IDLE: Duration = Duration::from_millis(100);

/// Bytes of a pump's buffer. It begins small, because every page that a guest touches for the first time costs an exit of
/// the machine, and most processes say little.
const FIRST_BUFFER: usize = 4 * 1024;

/// Bytes of the buffer of a pump that has much to move.
const BUFFER: usize = 64 * 1024;

/// VEOF of a new terminal.
const END_OF_FILE: u8 = 4;

/// Why a process has no streams.
#[derive(Debug, Error)]
pub enum StdioError {
    /// Not a port that the host may name.
    #[error("stdio port {0} is outside of {STDIO_FIRST} to {STDIO_LAST}")]
    Port(u32),
    /// A terminal has one stream.
    #[error("a terminal's bytes travel on stdin_port; stdout_port and stderr_port must be 0")]
    Terminal,
    /// The host did not answer.
    #[error("cannot dial the host's stdio port {0}")]
    Dial(u32, #[source] io::Error),
    /// A pipe or /dev/null.
    #[error("cannot make the streams of the process")]
    Make(#[source] io::Error),
}

/// Opens streams to the host. Tests put Unix sockets in its place.
pub trait Dialer: Send + Sync {
    /// A connected stream that does not block.
    fn dial(&self, port: u32) -> Pin<Box<dyn Future<Output = io::Result<OwnedFd>> + Send + '_>>;
}

/// The real one.
#[derive(Debug, Clone, Copy)]
pub struct VsockDialer;

impl Dialer for VsockDialer {
    fn dial(&self, port: u32) -> Pin<Box<dyn Future<Output = io::Result<OwnedFd>> + Send + '_>> {
        Box::pin(
            async move { connected(sys::connect_vsock(VsockAddress { cid: HOST_CID, port }, true)?).await },
        )
    }
}

/// Waits for a connect that was begun without blocking.
///
/// # Errors
/// The connect's.
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

    /// Waits until the other side is gone altogether; what it says meanwhile is dropped. Not for ever after the other side
    /// ended its sending: from then on only the next write tells.
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
pub struct Streams {
    /// What the process gets as 0, 1 and 2.
    pub child: [OwnedFd; 3],
    /// What the pumps get.
    pub host: HostStreams,
}

/// Our ends.
pub struct HostStreams {
    /// Bytes for the process, and where they go.
    stdin: Option<(Stream, Stream)>,
    /// Bytes of the process, and where they go.
    outputs: Vec<(Stream, Stream)>,
    /// The one stream of a terminal.
    terminal: Option<Stream>,
}

/// Dials what the request names and makes the pipes.
///
/// # Errors
/// [`StdioError`].
pub async fn open(dialer: &dyn Dialer, stdio: &Stdio) -> Result<Streams, StdioError> {
    if stdio.terminal && (stdio.stdout_port != 0 || stdio.stderr_port != 0) {
        return Err(StdioError::Terminal);
    }
    let (stdin, stdout, stderr) = tokio::try_join!(
        dial(dialer, stdio.stdin_port),
        dial(dialer, stdio.stdout_port),
        dial(dialer, stdio.stderr_port)
    )?;
    let mut host = HostStreams { stdin: None, outputs: Vec::new(), terminal: None };
    if stdio.terminal {
        host.terminal = stdin;
        return Ok(Streams { child: [null()?, null()?, null()?], host });
    }
    let child_stdin = match stdin {
        None => null()?,
        Some(socket) => {
            let (read, write) = sys::pipe().map_err(StdioError::Make)?;
            host.stdin = Some((socket, Stream::new(write).map_err(StdioError::Make)?));
            read
        }
    };
    let child = [child_stdin, host.output(stdout)?, host.output(stderr)?];
    Ok(Streams { child, host })
}

fn null() -> Result<OwnedFd, StdioError> {
    let open = OpenOptions::new().read(true).write(true).open("/dev/null");
    open.map(OwnedFd::from).map_err(StdioError::Make)
}

async fn dial(dialer: &dyn Dialer, port: u32) -> Result<Option<Stream>, StdioError> {
    match port {
        0 => Ok(None),
        STDIO_FIRST..=STDIO_LAST => {
            let socket = dialer.dial(port).await.map_err(|error| StdioError::Dial(port, error))?;
            Stream::new(socket).map(Some).map_err(StdioError::Make)
        }
        _ => Err(StdioError::Port(port)),
    }
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
    fn output(&mut self, socket: Option<Stream>) -> Result<OwnedFd, StdioError> {
        let Some(socket) = socket else { return null() };
        let (read, write) = sys::pipe().map_err(StdioError::Make)?;
        self.outputs.push((Stream::new(read).map_err(StdioError::Make)?, socket));
        Ok(write)
    }

    /// Sets the pumps going; `console` is the terminal if there is one, `exited` tells that the process ended.
    ///
    /// # Errors
    /// Those of registering the terminal with the event loop.
    pub fn start(self, console: Option<OwnedFd>, exited: &watch::Receiver<bool>) -> io::Result<Pumps> {
        let (close_input, closing) = watch::channel(false);
        let mut pumps = Pumps { input: None, drained: Vec::new(), close_input, terminal: None };
        if let Some((socket, pipe)) = self.stdin {
            pumps.input = Some(tokio::spawn(pump_in(socket, pipe, closing.clone())));
        }
        for (pipe, socket) in self.outputs {
            pumps.output(Arc::new(pipe), Arc::new(socket), false, exited);
        }
        if let Some(console) = console {
            let terminal = Arc::new(Stream::new(console)?);
            if let Some(socket) = self.terminal {
                let socket = Arc::new(socket);
                let input = pump_terminal_in(socket.clone(), terminal.clone(), closing);
                pumps.input = Some(tokio::spawn(input));
                pumps.output(terminal.clone(), socket, true, exited);
            } else {
                pumps.discard(terminal.clone());
            }
            pumps.terminal = Some(terminal);
        }
        Ok(pumps)
    }
}

impl Pumps {
    fn output(
        &mut self,
        source: Arc<Stream>,
        socket: Arc<Stream>,
        terminal: bool,
        exited: &watch::Receiver<bool>,
    ) {
        let (tell, drained) = oneshot::channel();
        self.drained.push(drained);
        tokio::spawn(pump_out(source, socket, terminal, exited.clone(), tell));
    }

    /// A terminal that nobody watches must not fill up.
    fn discard(&mut self, source: Arc<Stream>) {
        tokio::spawn(async move { drop_all(&source).await });
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

/// Host to pipe. Dropping the pipe is the process's end-of-file; dropping the socket tells the host that nobody reads.
async fn pump_in(socket: Stream, pipe: Stream, mut closing: watch::Receiver<bool>) {
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
        let Ok(n @ 1..) = socket.read(&mut buffer).await else { return };
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

/// Host to terminal. A terminal has no end: VEOF stands for it, twice when a line was begun.
async fn pump_terminal_in(socket: Arc<Stream>, terminal: Arc<Stream>, mut closing: watch::Receiver<bool>) {
    let mut buffer = vec![0; 4096];
    let mut line_begun = false;
    loop {
        let n = tokio::select! {
            n = socket.read(&mut buffer) => n.unwrap_or(0),
            () = closed(&mut closing) => 0,
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

/// Pipe or terminal to host, until its end, or the host's, or silence after the process's.
async fn pump_out(
    source: Arc<Stream>,
    socket: Arc<Stream>,
    terminal: bool,
    mut exited: watch::Receiver<bool>,
    drained: oneshot::Sender<()>,
) {
    let mut buffer = Vec::new();
    let lingering = loop {
        tokio::select! {
            biased;
            ready = source.0.readable() => match ready {
                Ok(mut ready) => ready.retain_ready(),
                Err(_) => break false,
            },
            // A terminal's socket also carries its input, whose pump notices.
            () = socket.gone(), if !terminal => break false,
            () = silent_after_exit(&mut exited) => break true,
        }
        buffer.resize(buffer.len().max(FIRST_BUFFER), 0);
        let read = source.0.try_io(Interest::READABLE, |fd| sys::read(fd.as_fd(), &mut buffer));
        match read {
            Ok(n @ 1..) => {
                if socket.write_all(buffer.get(..n).unwrap_or_default()).await.is_err() {
                    // For a pipe, closing it is what tells the process; a terminal lives on without a viewer.
                    break terminal;
                }
                if n == buffer.len() {
                    buffer.resize(BUFFER, 0);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // The end; a terminal says EIO.
            Ok(_) | Err(_) => break false,
        }
    };
    drop(buffer);
    sys::shutdown_write(socket.as_fd());
    drop(socket);
    // Nobody waits any more when the process was forgotten.
    let _ = drained.send(());
    if lingering {
        drop_all(&source).await;
    }
}

async fn drop_all(source: &Stream) {
    let mut buffer = [0; 4096];
    while let Ok(1..) = source.read(&mut buffer).await {}
}
