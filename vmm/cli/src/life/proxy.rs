//! `nelly proxy`: standard input and output joined with a connection to a container, or to a
//! machine of `nelly boot`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;

use anyhow::{Context as _, Error, Result, bail};
use nelly_sandbox::spec::RelayAddress;
use nelly_sandbox::state::SandboxDir;
use nelly_vmm::text;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{Shutdown, shutdown};

use super::args::ProxyArgs;
use super::{connect, port, runtime, sandboxes, target};
use crate::context::Context;
use crate::fail::{Hint, OfFlag as _};

/// Connects, and copies until both directions have ended or the container's end is closed.
pub(crate) fn proxy(args: &ProxyArgs, context: &Context) -> Result<ExitCode> {
    let to: RelayAddress = args.target.parse().of_flag("PORT|PATH")?;
    let to = to.of_guest().of_flag("PORT|PATH")?;
    let (name, container) = target(&args.sandbox);
    let sandbox = sandboxes(context)?.find(name)?;
    if !sandbox.condition()?.is_live() {
        bail!("sandbox {name} does not run: `nelly start {name}` starts it");
    }
    let record = sandbox.record()?;
    let stream = match (&to, record.boot) {
        (RelayAddress::Tcp(port), Some(_)) => match by_port(&sandbox, *port)? {
            Some(stream) => stream,
            None => by_agent(&sandbox, container, &to).map_err(|error| no_way(&error, name, *port))?,
        },
        _ => by_agent(&sandbox, container, &to)?,
    };
    join(stream).with_context(|| format!("the connection to {} was cut", args.sandbox))?;
    Ok(ExitCode::SUCCESS)
}

/// A connection by the agent of the guest.
fn by_agent(sandbox: &SandboxDir, container: &str, to: &RelayAddress) -> Result<OwnedFd> {
    let runtime = runtime()?;
    let connected = runtime.block_on(async {
        Ok::<_, Error>(connect(sandbox).await?.of_container(container).connect(to).await?)
    });
    let stream = connected?;
    // What copies is the kernel's, and this process has nothing else to do.
    drop(runtime);
    stream.set_nonblocking(false).context("cannot use the connection")?;
    Ok(stream.into())
}

/// A connection to a port of a machine of `nelly boot`, if a published port leads to it.
fn by_port(sandbox: &SandboxDir, guest: u16) -> Result<Option<OwnedFd>> {
    let Some(address) = port::published(&sandbox.state()?, guest) else { return Ok(None) };
    let stream = TcpStream::connect(address)
        .with_context(|| format!("nobody accepts at {address}, which leads to port {guest} of the guest"))?;
    // What a person types, or ssh says, waits for nothing.
    stream.set_nodelay(true).context("cannot use the connection")?;
    Ok(Some(stream.into()))
}

/// Why nothing leads into a machine of `nelly boot`, and what would.
fn no_way(error: &Error, name: &str, port: u16) -> Error {
    let hint = format!("`nelly port add {name} 0:{port}` publishes that port, and this then goes by it");
    Hint::error(text::chain(error.as_ref()), hint)
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
fn copy_out(mut stream: &File, output: BorrowedFd<'_>) -> io::Result<()> {
    copy(&mut stream, &mut File::from(output.try_clone_to_owned()?))
}

fn join(stream: OwnedFd) -> io::Result<()> {
    let stream = File::from(stream);
    let mut input = stream.try_clone()?;
    // It may wait for a terminal at the end, and ends with the process.
    std::thread::spawn(move || {
        // A container that reads no more has its reasons.
        let _refused = copy(&mut io::stdin().lock(), &mut input);
        let _gone = shutdown(&input, Shutdown::Write);
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
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_prompt_without_a_newline_is_passed_on_at_once() {
        let (stream, mut container) = UnixStream::pair().expect("a pair");
        let (output, mut reader) = UnixStream::pair().expect("a pair");
        let copies = std::thread::spawn(move || copy_out(&File::from(OwnedFd::from(stream)), output.as_fd()));
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
        let copies = std::thread::spawn(move || copy_out(&File::from(OwnedFd::from(stream)), output.as_fd()));
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
