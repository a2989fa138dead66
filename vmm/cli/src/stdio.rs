//! Pumps between this process's standard streams and the container's: plain threads, blocking
//! reads, back-pressure all the way.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::sync::Arc;
use std::thread;

use anyhow::{Context as _, Result};
use nelly_sandbox::instance::Streams;
use nelly_sandbox::life::{ProcessRequest, Signal};
use nelly_sandbox::timeline::name;
use nelly_vmm::timeline::Recorder;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use crate::ctrl_c::CtrlCCounter;
use crate::detach_keys::DetachKeys;

/// Buffer size in bytes.
const CHUNK: usize = 64 << 10;

/// The keys that leave a container running, and who is told when they came.
pub(crate) type Leave = (DetachKeys, UnboundedSender<()>);

/// The threads that copy output. The thread that copies input ends with the process.
pub(crate) struct OutputThreads {
    streams: Vec<Arc<UnixStream>>,
    output: Vec<(&'static str, oneshot::Receiver<io::Result<()>>)>,
}

impl OutputThreads {
    /// Starts to copy; `recorder` gets a stamp at the first byte of output. If Ctrl-C is pressed
    /// repeatedly in raw mode without output in return, a kill is sent to `requests`. If the keys
    /// of `leave` are typed, that is told, and input is not copied any more.
    pub(crate) fn start(
        streams: Streams,
        terminal: bool,
        interactive: bool,
        recorder: &Arc<Recorder>,
        requests: &UnboundedSender<ProcessRequest>,
        mut leave: Option<Leave>,
    ) -> Result<Self> {
        let ctrl_c = Arc::new(CtrlCCounter::default());
        let (mut streams_read, mut output) = (Vec::new(), Vec::new());
        let mut carry = |name: &'static str, from: Arc<UnixStream>, to: BorrowedFd<'static>| {
            let (recorder, ctrl_c) = (Arc::clone(recorder), Arc::clone(&ctrl_c));
            let (tell, end) = oneshot::channel();
            output.push((name, end));
            streams_read.push(Arc::clone(&from));
            // Sending fails if the run was abandoned and nobody waits for this.
            let first = move || {
                recorder.stamp(name::FIRST_BYTE);
            };
            spawn(name, move || drop(tell.send(copy_out(&from, to, &ctrl_c, first))))
        };
        let Streams { stdin, stdout, stderr } = streams;
        if let Some(stream) = stdin.map(Arc::new) {
            if terminal {
                carry("output", Arc::clone(&stream), rustix::stdio::stdout())?;
            }
            if interactive {
                let presses = terminal.then(|| (Arc::clone(&ctrl_c), requests.clone()));
                let leave = leave.take();
                spawn("input", move || copy_in(rustix::stdio::stdin(), &stream, presses, leave))?;
            }
        }
        if let Some(stream) = stdout {
            carry("output", Arc::new(stream), rustix::stdio::stdout())?;
        }
        if let Some(stream) = stderr {
            carry("error output", Arc::new(stream), rustix::stdio::stderr())?;
        }
        Ok(Self { streams: streams_read, output })
    }

    /// Waits until all output is written. If one stream fails, the other is still copied to its
    /// end. Once `gone` is ready, the monitor's process has ended: what was sent until then is
    /// copied, and no stream is waited for any longer.
    ///
    /// # Errors
    /// Output could not be written; the error of the first stream that failed.
    pub(crate) async fn drain(self, gone: impl Future<Output = ()>) -> Result<()> {
        let Self { streams, output } = self;
        let mut drained = pin!(async {
            let mut drained = Ok(());
            for (name, end) in output {
                // A thread that panicked has printed a message on stderr.
                let end = end.await.unwrap_or_else(|_| Err(io::Error::other("the copying thread panicked")));
                drained = drained.and(end.with_context(|| format!("cannot write the container's {name}")));
            }
            drained
        });
        tokio::select! {
            biased;
            drained = &mut drained => return drained,
            () = gone => {}
        }
        for stream in streams {
            // It fails when the stream is closed already. What it holds can still be read.
            let _ = stream.shutdown(Shutdown::Read);
        }
        drained.await
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = thread::Builder::new().name(name.to_owned()).stack_size(256 << 10);
    thread.spawn(work).map(drop).with_context(|| format!("cannot start the thread for {name}"))
}

/// Copies until the stream ends, or until writing fails. Then the stream is closed, so that its
/// writers in the container get an error, as they would without Nelly. If the reader has gone, this
/// is not an error.
fn copy_out(
    mut from: &UnixStream,
    to: BorrowedFd<'_>,
    ctrl_c: &CtrlCCounter,
    first: impl FnOnce(),
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut first = Some(first);
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // The machine has ended, which is reported elsewhere.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            // What it holds is lost.
            Err(error) => return Err(io::Error::new(error.kind(), format!("it cannot be read: {error}"))),
        };
        ctrl_c.output_seen();
        if let Err(error) = write_all(to, &buffer[..count]) {
            // Fails if the container has already closed its end.
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
            // A terminal or pipe that is non-blocking: wait until it is writable.
            Err(rustix::io::Errno::AGAIN) => {
                let mut poll = [rustix::event::PollFd::from_borrowed_fd(to, rustix::event::PollFlags::OUT)];
                rustix::event::poll(&mut poll, None)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Copies input until it ends, and then shuts down only the sending direction, so that the
/// container reads end of file. With `presses`, repeated Ctrl-C may kill the machine. The keys of
/// `leave` end the copying and nothing else.
fn copy_in(
    from: BorrowedFd<'_>,
    mut to: &UnixStream,
    presses: Option<(Arc<CtrlCCounter>, UnboundedSender<ProcessRequest>)>,
    mut leave: Option<Leave>,
) {
    let mut buffer = vec![0; CHUNK];
    loop {
        match rustix::io::read(from, &mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                let typed = &buffer[..count];
                let sorted = leave.as_mut().map(|(keys, _)| keys.typed(typed));
                let detached = sorted.as_ref().is_some_and(|sorted| sorted.detached);
                let typed = sorted.as_ref().map_or(typed, |sorted| &sorted.passed);
                // Counted before the container can respond.
                let presses = presses.as_ref().filter(|(ctrl_c, _)| ctrl_c.typed(typed));
                if to.write_all(typed).is_err() {
                    return;
                }
                if detached {
                    // Whoever is told closes the stream; its end is not that of the input.
                    let _nobody_left = leave.take().map(|(_, tell)| tell.send(()));
                    return;
                }
                if let Some((ctrl_c, requests)) = presses
                    && ctrl_c.wait_unanswered()
                {
                    let _nobody_left = requests.send(ProcessRequest::Kill(Signal::INT));
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

    #[test]
    fn output_that_cannot_be_read_is_an_error() {
        let (near, _far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let nowhere = File::options().write(true).open("/dev/null").unwrap();
        let copied = copy_out(&near, nowhere.as_fd(), &CtrlCCounter::default(), || {});
        assert!(copied.unwrap_err().to_string().starts_with("it cannot be read: "));
    }

    /// The result of `copy_out` of `said` to `to`, and of writing more to the stream after that.
    fn copied(said: &[u8], to: impl AsFd) -> (io::Result<()>, io::Result<()>) {
        let (mut near, far) = UnixStream::pair().unwrap();
        near.write_all(said).unwrap();
        let done = copy_out(&far, to.as_fd(), &CtrlCCounter::default(), || {});
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
        let output = vec![("output", output), ("error output", error_output)];
        let output = OutputThreads { streams: Vec::new(), output };
        let mut drained = pin!(output.drain(std::future::pending()));
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
    fn a_stream_that_a_machine_left_open_ends_with_the_machine_and_loses_nothing() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let far = Arc::new(far);
        let (tell, end) = oneshot::channel();
        let from = Arc::clone(&far);
        // Nothing is read before the machine is gone.
        let (go, waits) = std::sync::mpsc::channel::<()>();
        let copies = thread::spawn(move || {
            waits.recv().unwrap();
            drop(tell.send(copy_out(&from, writer.as_fd(), &CtrlCCounter::default(), || {})));
        });
        near.write_all(b"said").unwrap();
        let output = OutputThreads { streams: vec![far], output: vec![("output", end)] };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(output.drain(async { go.send(()).unwrap() })).unwrap();
        copies.join().unwrap();
        let mut said = String::new();
        reader.read_to_string(&mut said).unwrap();
        assert_eq!(said, "said");
        drop(near);
    }

    #[test]
    fn a_terminal_that_nothing_comes_back_to_is_left_by_the_third_ctrl_c() {
        let (send, mut requests) = unbounded_channel();
        let ctrl_c = Arc::new(CtrlCCounter::default());
        let (mut keyboard, typed) = UnixStream::pair().unwrap();
        let (mut container, stream) = UnixStream::pair().unwrap();
        let (mut screen, shown) = UnixStream::pair().unwrap();
        let output = stream.try_clone().unwrap();
        let shows = Arc::clone(&ctrl_c);
        let shows = thread::spawn(move || copy_out(&output, shown.as_fd(), &shows, || {}));
        let presses = Some((ctrl_c, send));
        let input = thread::spawn(move || copy_in(typed.as_fd(), &stream, presses, None));
        let expect = |bytes: &[u8], container: &mut UnixStream| {
            let mut read = vec![0; bytes.len()];
            container.read_exact(&mut read).unwrap();
            assert_eq!(read, bytes);
        };
        // Output of the container and another key reset the counter.
        keyboard.write_all(b"\x03\x03").unwrap();
        expect(b"\x03\x03", &mut container);
        container.write_all(b"^C").unwrap();
        expect(b"^C", &mut screen);
        keyboard.write_all(b"\x03\x03x\x03\x03").unwrap();
        expect(b"\x03\x03x\x03\x03", &mut container);
        assert!(requests.try_recv().is_err());
        // One more without output: every byte is passed on, and a kill is requested.
        keyboard.write_all(b"\x03").unwrap();
        expect(b"\x03", &mut container);
        assert_eq!(requests.blocking_recv(), Some(ProcessRequest::Kill(Signal::INT)));
        drop(keyboard);
        input.join().unwrap();
        assert_eq!(container.read(&mut [0]).unwrap(), 0);
        drop(container);
        shows.join().unwrap().unwrap();
    }

    #[test]
    fn the_keys_that_leave_are_no_end_of_the_input() {
        let (mut keyboard, typed) = UnixStream::pair().unwrap();
        let (container, stream) = UnixStream::pair().unwrap();
        let (tell, mut left) = unbounded_channel();
        keyboard.write_all(b"ls\x10\x10\x11rest").unwrap();
        copy_in(typed.as_fd(), &stream, None, Some(("ctrl-p,ctrl-q".parse().unwrap(), tell)));
        left.try_recv().unwrap();
        let mut read = [0; 8];
        assert_eq!((&container).read(&mut read).unwrap(), 3);
        assert_eq!(&read[..3], b"ls\x10");
        container.set_nonblocking(true).unwrap();
        assert_eq!((&container).read(&mut read).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn without_a_terminal_nobody_insists() {
        let (mut keyboard, typed) = UnixStream::pair().unwrap();
        let (mut container, stream) = UnixStream::pair().unwrap();
        keyboard.write_all(b"\x03\x03\x03").unwrap();
        drop(keyboard);
        copy_in(typed.as_fd(), &stream, None, None);
        let mut read = Vec::new();
        container.read_to_end(&mut read).unwrap();
        assert_eq!(read, b"\x03\x03\x03");
    }
}
