//! `nelly attach`.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context as _, Result};
use nelly_sandbox::connect::Connection;
use nelly_sandbox::wire::frames::{Decoder, Frame, Source};
use nelly_vmm::sys::terminal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::args::AttachArgs;
use super::detach_keys::DetachKeys;
use super::{connect, runtime, sandboxes};
use crate::context::Context;
use crate::fail::OfFlag as _;
use crate::{bug, out};

/// Shows a container's output, and passes input on, until it ends or its user leaves.
pub(crate) fn attach(args: &AttachArgs, context: &Context) -> Result<ExitCode> {
    let keys: DetachKeys = args.detach_keys.parse().of_flag("--detach-keys")?;
    let sandbox = sandboxes(context)?.find(&args.name)?;
    let process = sandbox.record()?.container.process;
    let stdin = !args.no_stdin && (process.stdin || process.terminal);
    let runtime = runtime()?;
    let code = runtime.block_on(async {
        let connection = connect(&sandbox).await?;
        attached(&connection, stdin, keys).await
    });
    // The input thread may still block in a read of standard input; it ends with the process.
    runtime.shutdown_background();
    Ok(ExitCode::from(code?))
}

async fn attached(connection: &Connection, stdin: bool, keys: DetachKeys) -> Result<u8> {
    let (claimed, container_terminal) = connection.attach(stdin).await?;
    let stream = Arc::new(claimed.streams.stdin.context("the keeper gave no stream")?);
    let on_terminal = container_terminal && stdin && terminal::is_terminal(std::io::stdin());
    let raw = on_terminal.then(bug::Raw::enter).transpose().context("cannot set the terminal to raw mode")?;
    let left = Arc::new(AtomicBool::new(false));
    if stdin {
        let (stream, left) = (Arc::clone(&stream), Arc::clone(&left));
        let keys = on_terminal.then_some(keys);
        spawn("input", move || copy_in(&stream, keys, &left))?;
    }
    let (tell, mut ended) = oneshot::channel();
    let shown = Arc::clone(&stream);
    // Whoever waits for it may have left.
    spawn("output", move || drop(tell.send(copy_out(&shown))))?;
    let mut resizes = signal(SignalKind::window_change()).context("cannot listen for signals")?;
    if container_terminal {
        resize(connection).await;
    }
    let copied = loop {
        tokio::select! {
            biased;
            copied = &mut ended => break copied.context("the copying thread panicked")?,
            Some(()) = resizes.recv() => if container_terminal { resize(connection).await },
        }
    };
    drop(raw);
    copied.context("cannot write the container's output")?;
    if left.load(Ordering::Relaxed) {
        return Ok(0);
    }
    // The output ends with the sandbox.
    Ok(connection.wait("").await?.exit.code)
}

async fn resize(connection: &Connection) {
    if let Ok(size) = terminal::size(std::io::stdout()) {
        // A container that has just ended has no size.
        let _told = connection.resize("", size.rows, size.columns).await;
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = thread::Builder::new().name(name.to_owned()).stack_size(256 << 10);
    thread.spawn(work).map(drop).with_context(|| format!("cannot start the thread for {name}"))
}

/// Writes output as it comes, to its end.
fn copy_out(mut from: &UnixStream) -> std::io::Result<()> {
    let (mut decoder, mut buffer) = (Decoder::default(), vec![0; 64 << 10]);
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        decoder.push(&buffer[..count]);
        while let Some(frame) = decoder.take().map_err(std::io::Error::other)? {
            match frame {
                Frame::Bytes(Source::Output, bytes) => write(&mut std::io::stdout(), &bytes)?,
                Frame::Bytes(Source::Error, bytes) => write(&mut std::io::stderr(), &bytes)?,
                Frame::Lost(count) => {
                    out::message(format_args!(
                        "{count} bytes of output were lost here: they were read too slowly"
                    ));
                }
            }
        }
    }
}

fn write(to: &mut impl Write, bytes: &[u8]) -> std::io::Result<()> {
    to.write_all(bytes).and_then(|()| to.flush())
}

/// Passes input on, until its end or until the detach keys.
fn copy_in(mut to: &UnixStream, mut keys: Option<DetachKeys>, left: &AtomicBool) {
    let (mut input, mut buffer) = (std::io::stdin(), vec![0; 64 << 10]);
    while let Ok(count @ 1..) = input.read(&mut buffer) {
        let typed = &buffer[..count];
        let (passed, detached) = match &mut keys {
            Some(keys) => {
                let typed = keys.typed(typed);
                (typed.passed, typed.detached)
            }
            None => (typed.to_vec(), false),
        };
        if to.write_all(&passed).is_err() {
            return;
        }
        if detached {
            left.store(true, Ordering::Relaxed);
            // Ends the output, too.
            let _ended = to.shutdown(Shutdown::Both);
            return;
        }
    }
}
