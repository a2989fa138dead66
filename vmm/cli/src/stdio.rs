//! Pumps between this process's standard streams and the container's: plain threads, blocking
//! reads, back-pressure all the way.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use anyhow::{Context as _, Result};
use nelly_sandbox::instance::Streams;
use nelly_sandbox::life::{Request, Signal};
use nelly_sandbox::timeline::name;
use nelly_vmm::timeline::Recorder;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use crate::insistence::Insistence;

/// Bytes moved at once.
const CHUNK: usize = 64 << 10;

/// The threads that carry output. The one that carries input ends with the process.
pub(crate) struct Pumps {
    output: Vec<(&'static str, oneshot::Receiver<io::Result<()>>)>,
}

impl Pumps {
    /// Starts to carry bytes; `recorder` hears of the first of them. Somebody who insists on the
    /// end at a terminal in raw mode asks for it through `requests`.
    pub(crate) fn start(
        streams: Streams,
        terminal: bool,
        interactive: bool,
        recorder: &Arc<Recorder>,
        requests: &UnboundedSender<Request>,
    ) -> Result<Self> {
        let insistence = Arc::new(Insistence::default());
        let mut output = Vec::new();
        let mut carry = |name: &'static str, from: UnixStream, to: BorrowedFd<'static>| {
            let (recorder, insistence) = (Arc::clone(recorder), Arc::clone(&insistence));
            let (tell, end) = oneshot::channel();
            output.push((name, end));
            // Nobody waits any more for the end of a run that was left.
            let first = move || {
                recorder.stamp(name::FIRST_BYTE);
            };
            spawn(name, move || drop(tell.send(copy_out(&from, to, &insistence, first))))
        };
        let Streams { stdin, stdout, stderr } = streams;
        if let Some(stream) = stdin {
            if terminal {
                let from = stream.try_clone().context("cannot duplicate the terminal's stream")?;
                carry("output", from, rustix::stdio::stdout())?;
            }
            if interactive {
                let insists = terminal.then(|| (Arc::clone(&insistence), requests.clone()));
                spawn("input", move || copy_in(rustix::stdio::stdin(), &stream, insists))?;
            }
        }
        if let Some(stream) = stdout {
            carry("output", stream, rustix::stdio::stdout())?;
        }
        if let Some(stream) = stderr {
            carry("error output", stream, rustix::stdio::stderr())?;
        }
        Ok(Self { output })
    }

    /// Waits until every byte of output is written that can be: the failure of one stream costs the
    /// other none.
    ///
    /// # Errors
    /// Output was lost; the first that failed.
    pub(crate) async fn drain(self) -> Result<()> {
        let mut drained = Ok(());
        for (name, end) in self.output {
            // A pump that panicked has said so on stderr.
            let end = end.await.unwrap_or_else(|_| Err(io::Error::other("the copying thread panicked")));
            drained = drained.and(end.with_context(|| format!("cannot write the container's {name}")));
        }
        drained
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = thread::Builder::new().name(name.to_owned()).stack_size(256 << 10);
    thread.spawn(work).map(drop).with_context(|| format!("cannot start the thread for {name}"))
}

/// Copies until the stream ends, or until nothing can be written any more: then the stream is
/// closed, so that its writers in the container learn of it as they would here. A reader that left
/// took what it wanted, which is no error.
fn copy_out(
    mut from: &UnixStream,
    to: BorrowedFd<'_>,
    insistence: &Insistence,
    first: impl FnOnce(),
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut first = Some(first);
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // The machine is gone, which others tell.
            Err(_) => return Ok(()),
        };
        insistence.answered();
        if let Err(error) = write_all(to, &buffer[..count]) {
            // It fails when the container has closed its end already.
            let _ = from.shutdown(Shutdown::Both);
            return if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) };
        }
        if let Some(first) = first.take() {
            first();
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

/// Copies input until it ends, then closes the write side alone: the container reads the end of the
/// file. With `insists`, what is typed may ask for the end of the machine.
fn copy_in(
    from: BorrowedFd<'_>,
    mut to: &UnixStream,
    insists: Option<(Arc<Insistence>, UnboundedSender<Request>)>,
) {
    let mut buffer = vec![0; CHUNK];
    loop {
        match rustix::io::read(from, &mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                let typed = &buffer[..count];
                // Counted before it can be answered.
                let insists = insists.as_ref().filter(|(insistence, _)| insistence.typed(typed));
                if to.write_all(typed).is_err() {
                    return;
                }
                if let Some((insistence, requests)) = insists
                    && insistence.in_vain()
                {
                    let _nobody_left = requests.send(Request::Kill(Signal::INT));
                }
            }
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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use tokio::sync::mpsc::unbounded_channel;

    use super::*;

    /// What `copy_out` says of `said` and `to`, and whether the one who said it could go on.
    fn copied(said: &[u8], to: impl AsFd) -> (io::Result<()>, io::Result<()>) {
        let (mut near, far) = UnixStream::pair().unwrap();
        near.write_all(said).unwrap();
        let done = copy_out(&far, to.as_fd(), &Insistence::default(), || {});
        (done, near.write_all(b"more"))
    }

    #[test]
    fn output_that_cannot_be_written_closes_the_stream_and_only_a_reader_that_left_is_no_error() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let (done, more) = copied(b"said", &writer);
        assert!(done.is_ok());
        assert_eq!(more.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        let (done, more) = copied(b"said", File::options().write(true).open("/dev/full").unwrap());
        assert_eq!(done.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(more.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_stream_that_fails_costs_the_other_nothing() {
        let (failed, output) = oneshot::channel();
        let (written, error_output) = oneshot::channel();
        let pumps = Pumps { output: vec![("output", output), ("error output", error_output)] };
        let mut drained = std::pin::pin!(pumps.drain());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        failed.send(Err(io::ErrorKind::StorageFull.into())).unwrap();
        assert!(drained.as_mut().poll(&mut context).is_pending());
        written.send(Ok(())).unwrap();
        match drained.as_mut().poll(&mut context) {
            std::task::Poll::Ready(Err(error)) => assert!(error.to_string().ends_with("container's output")),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_terminal_that_nothing_comes_back_to_is_left_by_the_third_ctrl_c() {
        let (send, mut requests) = unbounded_channel();
        let insistence = Arc::new(Insistence::default());
        let (mut keyboard, typed) = UnixStream::pair().unwrap();
        let (mut container, stream) = UnixStream::pair().unwrap();
        let (mut screen, shown) = UnixStream::pair().unwrap();
        let output = stream.try_clone().unwrap();
        let shows = Arc::clone(&insistence);
        let shows = thread::spawn(move || copy_out(&output, shown.as_fd(), &shows, || {}));
        let insists = Some((insistence, send));
        let input = thread::spawn(move || copy_in(typed.as_fd(), &stream, insists));
        let expect = |bytes: &[u8], container: &mut UnixStream| {
            let mut read = vec![0; bytes.len()];
            container.read_exact(&mut read).unwrap();
            assert_eq!(read, bytes);
        };
        // A container that shows something, a key in between: nobody insists.
        keyboard.write_all(b"\x03\x03").unwrap();
        expect(b"\x03\x03", &mut container);
        container.write_all(b"^C").unwrap();
        expect(b"^C", &mut screen);
        keyboard.write_all(b"\x03\x03x\x03\x03").unwrap();
        expect(b"\x03\x03x\x03\x03", &mut container);
        assert!(requests.try_recv().is_err());
        // One more, and silence: every byte is passed on, and the end is asked for.
        keyboard.write_all(b"\x03").unwrap();
        expect(b"\x03", &mut container);
        assert_eq!(requests.blocking_recv(), Some(Request::Kill(Signal::INT)));
        drop(keyboard);
        input.join().unwrap();
        assert_eq!(container.read(&mut [0]).unwrap(), 0);
        drop(container);
        shows.join().unwrap().unwrap();
    }

    #[test]
    fn without_a_terminal_nobody_insists() {
        let (mut keyboard, typed) = UnixStream::pair().unwrap();
        let (mut container, stream) = UnixStream::pair().unwrap();
        keyboard.write_all(b"\x03\x03\x03").unwrap();
        drop(keyboard);
        copy_in(typed.as_fd(), &stream, None);
        let mut read = Vec::new();
        container.read_to_end(&mut read).unwrap();
        assert_eq!(read, b"\x03\x03\x03");
    }
}
