//! One sandbox that outlives its command: its machine, its log, its clients.
//!
//! `nelly` starts it with a socket as standard input, over which come its order and its files
//! (`nelly_sandbox::wire::order`), and reads there how the first start went.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use nelly_sandbox::keep;
use nelly_sandbox::wire::order::Order;
use nelly_vmm::sys;
use nelly_vmm::text;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

const HELP: &str = "\
Keeps one sandbox of `nelly run` and `nelly start`: its machine, its log, its restarts, its clients.

nelly starts it; there is nothing to be done with it by hand. SIGTERM and SIGINT stop its sandbox in order, as
`nelly stop` does.

  --help      print this help
  --version   print the version
";

/// How long a thread that waited for something stays for the next.
const THREAD_KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Stack of such a thread, in bytes.
const THREAD_STACK: usize = 256 << 10;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next().as_ref().map(|word| word.to_str()) {
        None => {}
        Some(Some("--help" | "-h")) => return print(HELP),
        Some(Some("--version" | "-V")) => {
            return print(concat!("nelly-keeper ", env!("CARGO_PKG_VERSION"), "\n"));
        }
        Some(_) => return complain("unknown argument; see nelly-keeper --help"),
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&text::chain(error.as_ref())),
    }
}

fn run() -> Result<()> {
    sys::host::share_one_heap();
    sys::host::raise_descriptor_limit();
    // What whoever started the command had open is none of a sandbox's business.
    sys::close_all_but(&[]).context("cannot close inherited file descriptors")?;
    let client = UnixStream::from(sys::inherited(0).context("cannot use standard input")?);
    let (order, files) = Order::receive(client.as_fd()).context(
        "standard input gives no order: nelly-keeper is started by nelly; see nelly-keeper --help",
    )?;
    // Of its own session: neither the terminal's hang-up nor a logout's signals are meant for it.
    rustix::process::setsid().context("cannot begin a session")?;
    rustix::process::chdir("/").context("cannot change to the root directory")?;
    let null = File::options().read(true).write(true).open("/dev/null").context("cannot open /dev/null")?;
    rustix::stdio::dup2_stdin(&null).context("cannot leave standard input")?;
    rustix::stdio::dup2_stdout(&null).context("cannot leave standard output")?;
    rustix::stdio::dup2_stderr(&null).context("cannot leave standard error")?;
    drop(null);
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().thread_keep_alive(THREAD_KEEP_ALIVE).thread_stack_size(THREAD_STACK);
    let runtime = runtime.build().context("cannot start the async runtime")?;
    let environment = |name: &str| std::env::var_os(name).map(Into::into);
    let kept = runtime.block_on(async {
        let (stop, stops) = unbounded_channel();
        stop_on(SignalKind::terminate(), &stop)?;
        stop_on(SignalKind::interrupt(), &stop)?;
        // Caught and not heeded.
        let _hang_ups = signal(SignalKind::hangup()).context("cannot listen for signals")?;
        Ok(keep::serve(order, files, client, environment, stops).await?)
    });
    // What still waits for a machine that does not end must not keep this process.
    runtime.shutdown_background();
    kept
}

fn stop_on(kind: SignalKind, stop: &UnboundedSender<()>) -> Result<()> {
    let mut signals = signal(kind).context("cannot listen for signals")?;
    let stop = stop.clone();
    tokio::spawn(async move { while signals.recv().await.is_some() && stop.send(()).is_ok() {} });
    Ok(())
}

fn print(text: &str) -> ExitCode {
    use std::io::Write;
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn complain(message: &str) -> ExitCode {
    use std::io::Write;
    // A standard error that is gone is no reason to fail: there is nobody to tell.
    let _gone = writeln!(std::io::stderr(), "nelly-keeper: {}", text::line(message));
    ExitCode::from(125)
}
