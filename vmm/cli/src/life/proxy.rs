//! `nelly proxy`: standard input and output joined with a connection to a container.

use std::fs::File;
use std::io;
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

/// Copies what the container says. Standard output of the library would hold back what follows the
/// last newline.
fn copy_out(mut stream: &UnixStream, output: BorrowedFd<'_>) -> io::Result<()> {
    io::copy(&mut stream, &mut File::from(output.try_clone_to_owned()?)).map(drop)
}

fn join(stream: UnixStream) -> io::Result<()> {
    let mut input = stream.try_clone()?;
    // It may wait for a terminal at the end, and ends with the process.
    std::thread::spawn(move || {
        // A container that reads no more has its reasons.
        let _refused = io::copy(&mut io::stdin().lock(), &mut input);
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
    use std::io::{Read as _, Write as _};

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
}
