//! `nelly run` without `--rm` and without `-d`: a keeper holds the sandbox, and this process has
//! the container's streams from the first byte on. If it is killed, the sandbox stays.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nelly_sandbox::connect::launch::{LaunchError, Launched};
use nelly_sandbox::instance::Streams;
use nelly_sandbox::life::{Outside, ProcessRequest, Signal};
use nelly_sandbox::state::{SandboxDir, outcome};
use nelly_sandbox::wire::order::{ClientEnds, Last};
use nelly_vmm::sys::terminal;
use nelly_vmm::text;
use nelly_vmm::timeline::{Recorder, now_ns};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::detached::Made;
use crate::args::RunArgs;
use crate::context::Context;
use crate::detach_keys::DetachKeys;
use crate::fail::{Hint, OfFlag as _};
use crate::{bug, life, out, signals, stdio};

/// The keys that leave a sandbox running, as those of `nelly attach`.
const DETACH_KEYS: &str = "ctrl-]";

/// The reason of a client's end that was asked for by those keys.
const DETACHED: &str = "detached";

/// How long a sandbox that is killed may take to end.
const KILLED: Duration = Duration::from_secs(10);

/// Time limit for the remaining output of a sandbox that is left.
const LAST_OUTPUT: Duration = Duration::from_millis(100);

/// Starts the sandbox, and copies its streams until it has ended for good, or is left.
pub(super) fn attached(
    args: &RunArgs,
    made: Made,
    limit: Option<Duration>,
    context: &Context,
) -> Result<Last> {
    let keys = args.kept.detach_keys.as_deref().unwrap_or(DETACH_KEYS);
    // On a terminal only: elsewhere these are bytes like others.
    let keys: DetachKeys = keys.parse().of_flag("--detach-keys")?;
    let keys = (args.tty && args.interactive).then_some(keys);
    let runtime = life::runtime()?;
    let ended = runtime.block_on(async {
        let (send, requests) = unbounded_channel();
        signals::forward(&send, args.tty)?;
        let deadline = limit.map(|limit| tokio::time::Instant::now() + limit);
        let (ours, theirs) = streams(args).context("cannot make the container's streams")?;
        let size = args.tty.then(|| terminal::size(std::io::stdout()).ok()).flatten();
        let size = size.map(|size| (size.rows, size.columns));
        let Made { sandboxes, sandbox, lock, values } = made;
        let start = life::Start::prepare(context, &sandboxes, &sandbox, lock, Some(values))?;
        let start = start.with_client(theirs, size);
        let sandbox = Arc::new(sandbox);
        let launching = tokio::task::spawn_blocking(move || start.launch());
        // Until the container runs, a signal ends the attempt, which ends with this process.
        let mut outside = Outside::new(requests, limit);
        let launched = match outside.during(launching).await {
            Ok(launched) => launched.context("the thread that starts the sandbox panicked")??,
            Err(exit) => {
                return Ok(Last { code: exit.code, reason: exit.reason.to_owned(), detail: String::new() });
            }
        };
        shown(args, ours, &sandbox, launched, (&send, outside.into_requests(), keys), deadline).await
    });
    // The input thread may still block in a read of standard input; it ends with the process.
    runtime.shutdown_background();
    signals::release();
    ended
}

/// Both ends of the container's streams.
fn streams(args: &RunArgs) -> std::io::Result<(Streams, ClientEnds)> {
    let pair = |wanted: bool| wanted.then(UnixStream::pair).transpose().map(Option::unzip);
    let (stdin, typed) = pair(args.tty || args.interactive)?;
    let (stdout, said) = pair(!args.tty)?;
    let (stderr, complained) = pair(!args.tty)?;
    Ok((Streams { stdin, stdout, stderr }, ClientEnds { stdin: typed, stdout: said, stderr: complained }))
}

/// Copies the streams of the container that runs.
async fn shown(
    args: &RunArgs,
    streams: Streams,
    sandbox: &Arc<SandboxDir>,
    launched: Launched,
    (send, requests, keys): (
        &UnboundedSender<ProcessRequest>,
        UnboundedReceiver<ProcessRequest>,
        Option<DetachKeys>,
    ),
    deadline: Option<tokio::time::Instant>,
) -> Result<Last> {
    // Not earlier, so that messages before this are printed on a terminal in normal mode.
    let raw = (args.tty && args.interactive).then(bug::Raw::enter).transpose();
    let raw = raw.context("cannot set the terminal to raw mode");
    let raw = raw.map_err(|error| goes_on_without(sandbox, &error))?;
    let recorder = Arc::new(Recorder::new(now_ns()));
    let (leave, left) = unbounded_channel();
    let leave = keys.map(|keys| (keys, leave));
    let output = stdio::OutputThreads::start(streams, args.tty, args.interactive, &recorder, send, leave);
    let output = output.map_err(|error| goes_on_without(sandbox, &error))?;
    let mut ending = tokio::task::spawn_blocking(move || launched.ended());
    let last = match told(sandbox, &mut ending, (requests, left), deadline).await? {
        Told::Ended(last) => last,
        Told::Left(last) => {
            // What was said before is shown, but a reader that does not read does not block
            // the end.
            let _late = tokio::time::timeout(LAST_OUTPUT, output.drain(std::future::pending())).await;
            drop(raw);
            if last.reason == DETACHED {
                let name = name(sandbox);
                out::message(format_args!(
                    "sandbox {name} goes on; `nelly attach {name}` returns to it, `nelly rm -f {name}` removes it"
                ));
            }
            return Ok(last);
        }
    };
    let drained = output.drain(std::future::pending()).await;
    drop(raw);
    if last.reason == "oom_killed" && !args.quiet {
        out::message("the container was killed because it ran out of memory (see -m)");
    } else if !last.detail.is_empty() {
        out::message(&last.detail);
    }
    match drained {
        Ok(()) => Ok(last),
        Err(error) => {
            out::message(text::chain(error.as_ref()));
            let lost = Last { code: outcome::FAILED, reason: "output_lost".to_owned(), ..last.clone() };
            // If the program itself failed, its exit code is more useful.
            Ok(if last.code == 0 { lost } else { last })
        }
    }
}

/// The name of a sandbox, or if its record cannot be read the beginning of its id.
fn name(sandbox: &SandboxDir) -> String {
    sandbox.record().map_or_else(|_| sandbox.id().short(), |record| record.name.to_string())
}

/// Why there is no client of a sandbox that runs, and what can be done with it.
fn goes_on_without(sandbox: &SandboxDir, error: &anyhow::Error) -> anyhow::Error {
    let name = name(sandbox);
    Hint::error(
        format!("{}; sandbox {name} runs without this terminal", text::chain(error.as_ref())),
        format!("`nelly attach {name}` returns to it, `nelly rm -f {name}` removes it"),
    )
}

enum Told {
    Ended(Last),
    Left(Last),
}

/// Waits for the sandbox's end, and passes on what comes for the container meanwhile.
async fn told(
    sandbox: &Arc<SandboxDir>,
    ending: &mut tokio::task::JoinHandle<Result<Last, LaunchError>>,
    (mut requests, mut leaves): (UnboundedReceiver<ProcessRequest>, UnboundedReceiver<()>),
    deadline: Option<tokio::time::Instant>,
) -> Result<Told> {
    let left = |code, reason: &str| Last { code, reason: reason.to_owned(), detail: String::new() };
    let (words, queue) = unbounded_channel();
    tokio::spawn(pass_on(Arc::clone(sandbox), queue));
    loop {
        let over = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let request = tokio::select! {
            biased;
            last = &mut *ending => {
                return match last.context("the thread that waits for the sandbox panicked")? {
                    Ok(last) => Ok(Told::Ended(last)),
                    Err(error) => Err(error).with_context(|| {
                        format!("the process that holds sandbox {} ended before its container", sandbox.id().short())
                    }),
                };
            }
            () = over => {
                kill(sandbox, ending).await;
                return Ok(Told::Left(left(outcome::TIMED_OUT, "timeout")));
            }
            Some(()) = leaves.recv() => return Ok(Told::Left(left(0, DETACHED))),
            Some(request) = requests.recv() => request,
        };
        match request {
            // The terminal is gone, and this process with it; the sandbox stays.
            ProcessRequest::HangUp => return Ok(Told::Left(left(Signal::HUP.exit_code(), "hung_up"))),
            ProcessRequest::Kill(signal) => {
                kill(sandbox, ending).await;
                return Ok(Told::Left(left(signal.exit_code(), "killed")));
            }
            word => {
                // The task that passes words on ends with this process.
                let _gone = words.send(word);
            }
        }
    }
}

/// Passes signals and sizes on, in their order. What has just ended cannot be told, and what does
/// not answer is not waited for by anybody else.
async fn pass_on(sandbox: Arc<SandboxDir>, mut words: UnboundedReceiver<ProcessRequest>) {
    while let Some(word) = words.recv().await {
        let Ok(connection) = life::connect(&sandbox).await else { continue };
        let _told = match word {
            ProcessRequest::Signal(signal) => connection.kill("", signal).await,
            ProcessRequest::Resize { rows, columns } => connection.resize("", rows, columns).await,
            ProcessRequest::HangUp | ProcessRequest::Kill(_) => Ok(()),
        };
    }
}

/// Ends the sandbox at once, and waits a while until it has ended.
async fn kill(sandbox: &SandboxDir, ending: &mut tokio::task::JoinHandle<Result<Last, LaunchError>>) {
    let stopped = async {
        let connection = life::connect(sandbox).await?;
        connection.stop(None, Some(Duration::ZERO)).await.map_err(anyhow::Error::from)
    };
    let both = async { (stopped.await, ending.await) };
    if tokio::time::timeout(KILLED, both).await.is_err() {
        out::message(format_args!(
            "sandbox {} does not end; `nelly rm -f {0}` ends it by force",
            sandbox.id().short()
        ));
    }
}
