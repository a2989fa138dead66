//! Pumps between this process's standard streams and the container's: plain threads, blocking reads, back-pressure all the way.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result};
use nelly_sandbox::instance::Streams;
use nelly_sandbox::timeline::name;
use nelly_vmm::timeline::Recorder;

/// Bytes moved at once.
const CHUNK: usize = 64 << 10;

/// The threads that carry output. The one that carries input ends with the process.
pub(crate) struct Pumps {
    output: Vec<JoinHandle<()>>,
}

impl Pumps {
    /// Starts to carry bytes; `recorder` hears of the first of them.
    pub(crate) fn start(
        streams: Streams,
        terminal: bool,
        interactive: bool,
        recorder: &Arc<Recorder>,
    ) -> Result<Self> {
        let mut output = Vec::new();
        let carry = |name: &str, from: UnixStream, to: BorrowedFd<'static>| {
            let recorder = Arc::clone(recorder);
            spawn(name, move || drop(copy_out(&from, to, &recorder)))
        };
        let Streams { stdin, stdout, stderr } = streams;
        if let Some(stream) = stdin {
            if terminal {
                let from = stream.try_clone().context("cannot share the terminal's stream")?;
                output.push(carry("terminal", from, rustix::stdio::stdout())?);
            }
            if interactive {
                spawn("stdin", move || copy_in(&stream))?;
            }
        }
        if let Some(stream) = stdout {
            output.push(carry("stdout", stream, rustix::stdio::stdout())?);
        }
        if let Some(stream) = stderr {
            output.push(carry("stderr", stream, rustix::stdio::stderr())?);
        }
        Ok(Self { output })
    }

    /// Waits until every byte of output is written.
    pub(crate) fn drain(self) {
        for pump in self.output {
            // A pump that panicked has said so on stderr.
            let _ = pump.join();
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    thread::Builder::new()
        .name(name.to_owned())
        .stack_size(256 << 10)
        .spawn(work)
        .with_context(|| format!("cannot start the {name} thread"))
}

/// Copies until the stream ends. When nobody reads our output any more the stream is closed, so that the container learns of it.
fn copy_out(mut from: &UnixStream, to: BorrowedFd<'_>, recorder: &Recorder) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut first = true;
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if let Err(error) = write_all(to, &buffer[..count]) {
            let _ = from.shutdown(Shutdown::Both);
            return Err(error);
        }
        if std::mem::take(&mut first) {
            recorder.stamp(name::FIRST_BYTE);
        }
    }
}

fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(rustix::io::Errno::INTR) => {}
            // A terminal or pipe that its owner made non-blocking: wait for room.
            Err(rustix::io::Errno::AGAIN) => {
                let mut poll = [rustix::event::PollFd::from_borrowed_fd(to, rustix::event::PollFlags::OUT)];
                rustix::event::poll(&mut poll, None)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Copies standard input until it ends, then closes the write side alone: the container reads the end of the file.
fn copy_in(mut to: &UnixStream) {
    let mut buffer = vec![0; CHUNK];
    let from = rustix::stdio::stdin();
    loop {
        match rustix::io::read(from.as_fd(), &mut buffer) {
            Ok(0) => break,
            Ok(count) if to.write_all(&buffer[..count]).is_ok() => {}
            Ok(_) => return,
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => {
                let mut poll = [rustix::event::PollFd::from_borrowed_fd(from, rustix::event::PollFlags::IN)];
                if rustix::event::poll(&mut poll, None).is_err() {
                    break;
                }
            }
            Err(_) => break,
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
