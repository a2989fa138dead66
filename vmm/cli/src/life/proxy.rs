//! `nelly proxy`: standard input and output joined with a connection to a container.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use anyhow::{Context as _, Error, Result, bail};
use nelly_sandbox::spec::RelayAddress;
use rustix::event::{PollFd, PollFlags, poll};

use super::args::ProxyArgs;
use super::{connect, runtime, sandboxes, target};
use crate::context::Context;
use crate::fail::OfFlag as _;

/// Connects, and copies until both directions have ended or the container's end is closed.
pub(crate) fn proxy(args: &ProxyArgs, context: &Context) -> Result<ExitCode> {
    let to: RelayAddress = args.target.parse().of_flag("PORT|PATH")?;
    let to = to.of_guest().of_flag("PORT|PATH")?;
    let (name, container) = target(&args.sandbox);
    let sandbox = sandboxes(context)?.find(name)?;
    if !sandbox.condition()?.is_live() {
        bail!("sandbox {name} does not run: `nelly start {name}` starts it");
    }
    let runtime = runtime()?;
    let connected = runtime.block_on(async {
        Ok::<_, Error>(connect(&sandbox).await?.of_container(container).connect(&to).await?)
    });
    let stream = connected?;
    // What copies is the kernel's, and this process has nothing else to do.
    drop(runtime);
    stream.set_nonblocking(false).context("cannot use the connection")?;
    join(stream).with_context(|| format!("the connection to {} was cut", args.sandbox))?;
    Ok(ExitCode::SUCCESS)
}

/// Copies until `from` ends. Not `io::copy`: it splices where it can, and Linux holds a pipe locked
/// for as long as a splice waits for a socket, so that whoever is at the pipe's other end, as `ssh`
/// is, cannot take what already lies in it, nor do anything else meanwhile.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut bytes = vec![0; 64 << 10];
    loop {
        match from.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(&bytes[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Copies what the container says. Standard output of the library would hold back what follows the
/// last newline.
fn copy_out(mut stream: &UnixStream, output: BorrowedFd<'_>) -> io::Result<()> {
    copy(&mut stream, &mut File::from(output.try_clone_to_owned()?))
}

fn join(stream: UnixStream) -> io::Result<()> {
    let mut input = stream.try_clone()?;
    // It may wait for a terminal at the end, and ends with the process.
    std::thread::spawn(move || {
        // A container that reads no more has its reasons.
        let _refused = copy(&mut io::stdin().lock(), &mut input);
        let _gone = input.shutdown(Shutdown::Write);
    });
    copy_out(&stream, io::stdout().as_fd())?;
    // The container may still read: until the input ends, or it closes its end.
    loop {
        match poll(&mut [PollFd::new(&stream.as_fd(), PollFlags::empty())], None) {
            Err(rustix::io::Errno::INTR) => {}
            done => return Ok(done.map(drop)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_prompt_without_a_newline_is_passed_on_at_once() {
        let (stream, mut container) = UnixStream::pair().expect("a pair");
        let (output, mut reader) = UnixStream::pair().expect("a pair");
        let copies = std::thread::spawn(move || copy_out(&stream, output.as_fd()));
        // Each is answered before the next is said, and the connection stays open.
        for words in ["login: ", "first\npassword: ", "$ "] {
            container.write_all(words.as_bytes()).expect("it is taken");
            let mut heard = vec![0; words.len()];
            reader.read_exact(&mut heard).expect("it comes");
            assert_eq!(heard, words.as_bytes());
        }
        drop(container);
        copies.join().expect("no panic").expect("an end in order");
        assert_eq!(reader.read(&mut [0]).expect("an end"), 0);
    }

    #[test]
    fn a_reader_of_a_pipe_takes_a_byte_at_a_time_while_more_is_waited_for() {
        let (stream, mut container) = UnixStream::pair().expect("a pair");
        let (mut reader, output) = io::pipe().expect("a pipe");
        let copies = std::thread::spawn(move || copy_out(&stream, output.as_fd()));
        container.write_all(b"SSH-2.0").expect("it is taken");
        let (sender, bytes) = mpsc::channel();
        std::thread::spawn(move || {
            let mut byte = [0];
            while let Ok(1) = reader.read(&mut byte) {
                // Meanwhile what copies waits again.
                std::thread::sleep(Duration::from_millis(20));
                sender.send(byte[0]).expect("it is heard");
            }
        });
        for &byte in b"SSH-2.0" {
            assert_eq!(bytes.recv_timeout(Duration::from_secs(20)), Ok(byte));
        }
        drop(container);
        copies.join().expect("no panic").expect("an end in order");
    }
}
