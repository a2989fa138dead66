//! `nelly exec`.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use nelly_sandbox::connect::{Attached, Claimed, Connection, Exec, ExecSpec, ExecState};
use nelly_sandbox::life::{ProcessRequest, Signal};
use nelly_sandbox::spec::process;
use nelly_sandbox::state::{Timestamp, outcome};
use nelly_vmm::sys::terminal;
use nelly_vmm::text;
use nelly_vmm::timeline::{Recorder, now_ns};
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::args::ExecArgs;
use super::attach::{Shown, goes_on, shown};
use super::logs::id_of;
use super::ps::{command, words};
use super::{connect, runtime, sandboxes, target};
use crate::context::Context;
use crate::detach_keys::DetachKeys;
use crate::fail::{OfFlag as _, Usage};
use crate::{bug, environment, out, signals, stdio, table};

/// Runs a command in a sandbox that runs.
pub(crate) fn exec(args: &ExecArgs, context: &Context) -> Result<ExitCode> {
    if args.list {
        return list(args, context);
    }
    let keys: DetachKeys = args.detach_keys.parse().context("--detach-keys")?;
    let Some((word, command)) = args.words.split_first().filter(|(_, command)| !command.is_empty()) else {
        bail!("no COMMAND given; see nelly exec --help");
    };
    if args.tty && args.interactive && !terminal::is_terminal(std::io::stdin()) {
        bail!("-it needs a terminal on standard input; use -i without -t for a pipe or a file");
    }
    args.user.as_deref().map_or(Ok(()), process::check_user).of_flag("--user")?;
    let env = environment::collect(&args.env_file, &args.env, |name| std::env::var(name).ok())?;
    let size = args.tty.then(|| terminal::size(std::io::stdout()).ok()).flatten();
    let spec = ExecSpec {
        args: command.to_vec(),
        // A name alone that is not set here says nothing.
        env: env.into_iter().filter(|word| word.contains('=')).collect(),
        cwd: args.workdir.clone().unwrap_or_default(),
        user: args.user.clone().unwrap_or_default(),
        terminal: args.tty,
        stdin: args.interactive,
        size: size.map_or((0, 0), |size| (size.rows, size.columns)),
        detach: args.detach,
        session: args.session,
    };
    let (word, container) = target(word);
    let sandbox = sandboxes(context)?.find(word)?;
    let runtime = runtime()?;
    let code = runtime.block_on(async {
        let connection = connect(&sandbox).await?.of_container(container);
        match connection.exec(&spec).await? {
            Ok(exec) if args.session => session(args, &connection, exec, keys).await,
            Ok(exec) => match exec.claimed {
                Some(claimed) => attended((args.tty, args.interactive), &connection, &exec.id, claimed).await,
                None => Ok(0),
            },
            Err(failure) => {
                out::message(&failure.message);
                Ok(failure.code)
            }
        }
    });
    // The input thread may still block in a read of standard input; it ends with the process.
    runtime.shutdown_background();
    Ok(ExitCode::from(code?))
}

/// Shows a session until it ends, or until its user leaves it.
async fn session(args: &ExecArgs, connection: &Connection, exec: Exec, keys: DetachKeys) -> Result<u8> {
    let claimed = exec.claimed.context("the process that holds the sandbox gave no stream")?;
    let (id, ends_input) = (exec.id.clone(), !args.tty);
    let attached = Attached { claimed, terminal: args.tty, stdin: args.interactive, exec: exec.id };
    Ok(match shown(connection, attached, keys, ends_input).await? {
        Shown::Ended(code) => code,
        Shown::Left => {
            out::message(goes_on(&args.words[0], Some(&id)));
            0
        }
    })
}

/// Prints the execs that run in a sandbox.
fn list(args: &ExecArgs, context: &Context) -> Result<ExitCode> {
    let [word] = args.words.as_slice() else {
        return Err(Usage::error("--list takes a SANDBOX and no COMMAND"));
    };
    let (word, container) = target(word);
    let sandbox = sandboxes(context)?.find(word)?;
    let container = (!container.is_empty()).then(|| id_of(&sandbox, container)).transpose()?;
    let mut state = runtime()?.block_on(async { anyhow::Ok(connect(&sandbox).await?.state().await?) })?;
    if let Some(container) = container.map(|id| id.to_string()) {
        state.execs.retain(|exec| exec.container == container);
    }
    if args.json {
        out::json(Value::Array(state.execs.iter().map(object).collect()))?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.quiet {
        state.execs.iter().try_for_each(|exec| out::line(&exec.exec_id))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = vec![["ID", "COMMAND", "STARTED", "CLIENTS", "SESSION"].map(str::to_owned)];
    let now = Timestamp::now();
    for exec in state.execs {
        let started = format!("{} ago", words(now.since(Timestamp::from_unix_ns(exec.started_unix_ns))));
        let session = if exec.session { "yes" } else { "no" }.to_owned();
        rows.push([exec.exec_id, command(&exec.args, false), started, exec.attached.to_string(), session]);
    }
    table::aligned(&rows).into_iter().try_for_each(out::line)?;
    Ok(ExitCode::SUCCESS)
}

/// An exec as JSON.
pub(super) fn object(exec: &ExecState) -> Value {
    json!({ "id": exec.exec_id, "container": exec.container, "args": exec.args, "session": exec.session,
        "clients": exec.attached, "terminal": exec.terminal,
        "started_at": Timestamp::from_unix_ns(exec.started_unix_ns) })
}

/// Copies the streams of an exec, or of a further container if `id` is empty, and forwards signals
/// to it, until it has ended. The first value says whether it has a terminal, and an input.
pub(crate) async fn attended(
    (tty, interactive): (bool, bool),
    connection: &Connection,
    id: &str,
    claimed: Claimed,
) -> Result<u8> {
    let Claimed { streams, connection: alive } = claimed;
    let (send, requests) = unbounded_channel();
    signals::forward(&send, tty)?;
    let raw = (tty && interactive).then(bug::Raw::enter).transpose();
    let raw = raw.context("cannot set the terminal to raw mode")?;
    let recorder = Arc::new(Recorder::new(now_ns()));
    let output = stdio::OutputThreads::start(streams, tty, interactive, &recorder, &send, None)?;
    let code = match told(connection, id, requests).await? {
        Told::Exited(code) => code,
        // Closing the connection ends the command.
        Told::Left(code) => return Ok(code),
    };
    let drained = output.drain(std::future::pending()).await;
    drop((raw, alive));
    Ok(match drained {
        Ok(()) => code,
        Err(error) => {
            out::message(text::chain(error.as_ref()));
            if code == 0 { outcome::FAILED } else { code }
        }
    })
}

enum Told {
    Exited(u8),
    Left(u8),
}

/// Waits for the command's end.
async fn told(
    connection: &Connection,
    id: &str,
    mut requests: UnboundedReceiver<ProcessRequest>,
) -> Result<Told> {
    let mut wait = std::pin::pin!(connection.wait(id));
    loop {
        let request = tokio::select! {
            biased;
            report = &mut wait => return Ok(Told::Exited(report?.exit.code)),
            Some(request) = requests.recv() => request,
        };
        match request {
            ProcessRequest::HangUp => return Ok(Told::Left(Signal::HUP.exit_code())),
            ProcessRequest::Kill(signal) => return Ok(Told::Left(signal.exit_code())),
            ProcessRequest::Signal(signal) => {
                let (connection, id) = (connection.clone(), id.to_owned());
                // What has just ended cannot be told, and what does not answer is not waited for.
                tokio::spawn(async move { connection.kill(&id, signal).await });
            }
            ProcessRequest::Resize { rows, columns } => {
                let (connection, id) = (connection.clone(), id.to_owned());
                tokio::spawn(async move { connection.resize(&id, rows, columns).await });
            }
        }
    }
}
