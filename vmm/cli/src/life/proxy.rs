//! `nelly proxy`: standard input and output joined with a connection to a container.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
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

fn join(stream: UnixStream) -> io::Result<()> {
    let mut input = stream.try_clone()?;
    // It may wait for a terminal at the end, and ends with the process.
    std::thread::spawn(move || {
        // A container that reads no more has its reasons.
        let _refused = io::copy(&mut io::stdin().lock(), &mut input);
        let _gone = input.shutdown(Shutdown::Write);
    });
    let mut output = io::stdout().lock();
    io::copy(&mut &stream, &mut output)?;
    output.flush()?;
    // The container may still read: until the input ends, or it closes its end.
    loop {
        match poll(&mut [PollFd::new(&stream.as_fd(), PollFlags::empty())], None) {
            Err(rustix::io::Errno::INTR) => {}
            done => return Ok(done.map(drop)?),
        }
    }
}
