//! Copying between the streams of a process and the host.

use std::future::pending;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::promises::Promised;
use super::{HostStreams, Stream};
use crate::sys;

/// After a process has ended, its output counts as drained when nothing was written for this long.
pub const IDLE: Duration = Duration::from_millis(100);

/// Initial buffer size in bytes. It is small, because every page that a guest touches for the first
/// time costs an exit to the host, and most processes have little output.
const FIRST_BUFFER: usize = 4 * 1024;

/// Buffer size in bytes after a full read.
const BUFFER: usize = 64 * 1024;

/// The default VEOF character of a terminal.
const END_OF_FILE: u8 = 4;
/// The copying tasks of one process.
#[derive(Debug)]
pub struct Pumps {
    input: Option<JoinHandle<()>>,
    drained: Vec<oneshot::Receiver<()>>,
    close_input: watch::Sender<bool>,
    /// The terminal, for changing its size.
    terminal: Option<Arc<Stream>>,
}

impl HostStreams {
    /// Starts copying. `console` is the terminal, if there is one; `exited` becomes true when the
    /// process has ended. `immune` is the process id if the kernel does not deliver SIGPIPE to the
    /// process; then it is traced when the host closes an output.
    ///
    /// # Errors
    /// The terminal cannot be registered with the event loop.
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
                // A stream that the host does not connect counts as closed.
                let closed = match promised.stream().await {
                    Some(socket) => {
                        pump_out(pipe.clone(), Arc::new(socket), false, exited.clone(), drained).await
                    }
                    None => true,
                };
                // The process id is valid until the process is reaped.
                if let Some(pid) = immune.filter(|_| closed && !*exited.borrow()) {
                    // If this fails, the process gets EPIPE and may continue.
                    let _ = sys::trace(pid);
                }
                // The pipe is closed only after that.
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
    /// Adds an output that must be drained after the process has ended. It is drained when the
    /// sender is used or dropped.
    fn drained(&mut self) -> oneshot::Sender<()> {
        let (tell, drained) = oneshot::channel();
        self.drained.push(drained);
        tell
    }

    /// Copies both directions of a terminal after the host has connected its stream.
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
        // The owner has been dropped and aborts this task.
        pending::<()>().await;
    }
}

/// Copies from the host to the pipe. Dropping the pipe is end of file for the process; dropping the
/// socket tells the host that nobody reads.
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
        // The data that made it readable may have been the token, which was already read.
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

/// Copies from the host to the terminal; without a socket the input ends immediately. VEOF is end
/// of file for a terminal; in an incomplete line it is needed twice.
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
            // Fails if the terminal was closed, which is fine.
            let _ = terminal.write_all(ends).await;
            return;
        };
        line_begun = !bytes.ends_with(b"\n") && !bytes.ends_with(b"\r");
        if terminal.write_all(bytes).await.is_err() {
            return;
        }
    }
}

/// Completes when the process has ended and then nothing was written for [`IDLE`].
async fn silent_after_exit(exited: &mut watch::Receiver<bool>) {
    // An error means that the process was forgotten, so it has ended.
    let _ = exited.wait_for(|exited| *exited).await;
    tokio::time::sleep(IDLE).await;
}

/// Why copying of an output ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PumpEnd {
    /// All writers have closed it.
    Source,
    /// The host has closed it.
    Host,
    /// The process has ended, and other writers write nothing.
    Silence,
}

/// Copies from a pipe or terminal to the host, until one of the ends of [`PumpEnd`]. True if the
/// host closed the stream, so that the pipe must be closed for the process as well.
async fn pump_out(
    source: Arc<Stream>,
    socket: Arc<Stream>,
    terminal: bool,
    mut exited: watch::Receiver<bool>,
    drained: oneshot::Sender<()>,
) -> bool {
    let mut buffer = Vec::new();
    let end = loop {
        let silent = tokio::select! {
            biased;
            ready = source.0.readable() => match ready {
                Ok(mut ready) => {
                    ready.retain_ready();
                    false
                }
                Err(_) => break PumpEnd::Source,
            },
            // The socket of a terminal is also read by the input task, which detects this.
            () = socket.gone(), if !terminal => break PumpEnd::Host,
            () = silent_after_exit(&mut exited) => true,
        };
        buffer.resize(buffer.len().max(FIRST_BUFFER), 0);
        let read = if silent {
            // What is written to a terminal is made readable by a worker of the kernel, for which
            // a machine that did not run for a while had no time. A read waits for it (n_tty_read).
            sys::read(source.as_fd(), &mut buffer)
        } else {
            source.0.try_io(Interest::READABLE, |fd| sys::read(fd.as_fd(), &mut buffer))
        };
        // The kernel waits for that worker, and only then looks whether the last writer is gone;
        // what it wrote in between is there for whoever asks again.
        let read = match read {
            Err(error) if terminal && error.kind() != io::ErrorKind::WouldBlock => {
                sys::read(source.as_fd(), &mut buffer)
            }
            read => read,
        };
        match read {
            Ok(n @ 1..) => {
                if socket.write_all(buffer.get(..n).unwrap_or_default()).await.is_err() {
                    break PumpEnd::Host;
                }
                if n == buffer.len() {
                    buffer.resize(BUFFER, 0);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && silent => break PumpEnd::Silence,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // End of file, or EIO from a terminal.
            Ok(_) | Err(_) => break PumpEnd::Source,
        }
    };
    drop(buffer);
    sys::shutdown_write(socket.as_fd());
    drop(socket);
    // Fails if the process was forgotten and nobody waits.
    let _ = drained.send(());
    // A process is notified by closing its pipe; a terminal stays open without a reader.
    if end == PumpEnd::Silence || end == PumpEnd::Host && terminal {
        drop_all(source).await;
    }
    end == PumpEnd::Host
}

/// Reads and discards everything, so that writers neither block nor get SIGPIPE.
async fn drop_all(source: Arc<Stream>) {
    let mut buffer = [0; 4096];
    while let Ok(1..) = source.read(&mut buffer).await {}
}
