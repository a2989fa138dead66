//! `nelly attach`.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context as _, Result, bail};
use nelly_sandbox::connect::{Attached, Connection};
use nelly_sandbox::wire::frames::{Decoder, Frame, Source};
use nelly_vmm::sys::terminal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::args::AttachArgs;
use super::{connect, runtime, sandboxes};
use crate::context::Context;
use crate::detach_keys::DetachKeys;
use crate::fail::OfFlag as _;
use crate::{bug, out};

/// Shows the output of a container or a session, and passes input on, until it ends or its user
/// leaves.
pub(crate) fn attach(args: &AttachArgs, context: &Context) -> Result<ExitCode> {
    let keys: DetachKeys = args.detach_keys.parse().of_flag("--detach-keys")?;
    let sandbox = sandboxes(context)?.find(&args.name)?;
    let exec = args.exec.as_deref();
    if exec == Some("") {
        bail!("--exec: the id of an exec is not empty; `nelly exec --list {}` shows them", args.name);
    }
    let process = sandbox.record()?.container.process;
    let stdin = !args.no_stdin && (exec.is_some() || process.stdin || process.terminal);
    let runtime = runtime()?;
    let code = runtime.block_on(async {
        let connection = connect(&sandbox).await?;
        let attached = connection.attach(exec.unwrap_or_default(), stdin).await?;
        Ok(match shown(&connection, attached, keys, false).await? {
            Shown::Ended(code) => code,
            Shown::Left => {
                out::message(goes_on(&args.name, exec));
                0
            }
        })
    });
    // The input thread may still block in a read of standard input; it ends with the process.
    runtime.shutdown_background();
    code.map(ExitCode::from)
}

/// What is told whoever leaves a container or a session by the detach keys.
pub(super) fn goes_on(sandbox: &str, exec: Option<&str>) -> String {
    match exec {
        Some(id) => format!("session {id} goes on; `nelly attach --exec {id} {sandbox}` returns to it"),
        None => format!(
            "sandbox {sandbox} goes on; `nelly attach {sandbox}` returns to it, `nelly stop {sandbox}` ends it"
        ),
    }
}

/// How an attachment ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// With the process, whose exit code this is.
    Ended(u8),
    /// Its user left by the detach keys.
    Left,
}

/// Copies output and input of an attachment. `ends_input`: the end of our input is told.
pub(super) async fn shown(
    connection: &Connection,
    attached: Attached,
    keys: DetachKeys,
    ends_input: bool,
) -> Result<Shown> {
    let Attached { claimed, terminal: has_terminal, stdin, exec } = attached;
    let stream =
        Arc::new(claimed.streams.stdin.context("the process that holds the sandbox gave no stream")?);
    let on_terminal = has_terminal && stdin && terminal::is_terminal(std::io::stdin());
    let raw = on_terminal.then(bug::Raw::enter).transpose().context("cannot set the terminal to raw mode")?;
    let left = Arc::new(AtomicBool::new(false));
    if stdin {
        let (stream, left) = (Arc::clone(&stream), Arc::clone(&left));
        let keys = on_terminal.then_some(keys);
        spawn("input", move || copy_in(&stream, keys, ends_input, &left))?;
    }
    let (tell, mut ended) = oneshot::channel();
    let shown = Arc::clone(&stream);
    // Whoever waits for it may have left.
    spawn("output", move || drop(tell.send(copy_out(&shown))))?;
    let mut resizes = signal(SignalKind::window_change()).context("cannot listen for signals")?;
    if has_terminal {
        resize(connection, &exec).await;
    }
    let copied = loop {
        tokio::select! {
            biased;
            copied = &mut ended => break copied.context("the copying thread panicked")?,
            Some(()) = resizes.recv() => if has_terminal { resize(connection, &exec).await },
        }
    };
    drop(raw);
    copied.context("cannot write the output")?;
    if left.load(Ordering::Relaxed) {
        return Ok(Shown::Left);
    }
    // The output ends with the process.
    Ok(Shown::Ended(connection.wait(&exec).await?.exit.code))
}

async fn resize(connection: &Connection, exec: &str) {
    if let Ok(size) = terminal::size(std::io::stdout()) {
        // What has just ended has no size.
        let _told = connection.resize(exec, size.rows, size.columns).await;
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

/// Passes input on, until its end, which is told if `ends_input`, or until the detach keys.
fn copy_in(mut to: &UnixStream, mut keys: Option<DetachKeys>, ends_input: bool, left: &AtomicBool) {
    let (mut input, mut buffer) = (std::io::stdin(), vec![0; 64 << 10]);
    loop {
        let count = match input.read(&mut buffer) {
            Ok(0) | Err(_) => {
                if ends_input {
                    // What has ended reads no end.
                    let _ended = to.shutdown(Shutdown::Write);
                }
                return;
            }
            Ok(count) => count,
        };
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
