//! PID 1 of the guest.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use nelly_agent::service::{Config, GuestState, ShutdownRequest, serve};
use nelly_agent::spawn::launch::Launcher;
use nelly_agent::stdio::{Patience, Promises, Stream, connected};
use nelly_agent::sys::{self, VsockAddress};
use nelly_agent::timeline::Marks;
use nelly_agent::{arch, mounts};
use nelly_protocol::ports::{
    AGENT_PORT, HOST_CID, POWER_OFF, POWER_PANIC, POWER_PORT, POWER_REBOOT, READY_BYTE, READY_PORT,
    STREAM_PORT,
};
use nix::poll::{PollFd, PollFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Open files of the agent: three streams and a handful of descriptors for each of many processes.
const OPEN_FILES: u64 = 1 << 20;

/// How long the monitor may take to end the machine after the agent's word, in milliseconds.
const LAST_WORD_MS: u16 = 3000;

/// The connection to the power port. It is made before there is any container, for any process of
/// the guest could make one, and the monitor takes no second.
static POWER: OnceLock<OwnedFd> = OnceLock::new();

fn main() {
    let began = arch::counter();
    if std::process::id() != 1 {
        eprintln!("nelly-agent must run as PID 1 of a Nelly guest; it does nothing elsewhere");
        std::process::exit(2);
    }
    let marks = Arc::new(Marks::new(began));
    let boot_ns = sys::boot_time_ns();
    std::panic::set_hook(Box::new(|panic| {
        log(&format!("nelly-agent: bug: {panic}"));
        end_machine(POWER_PANIC);
    }));
    match run(boot_ns, marks) {
        Ok(ShutdownRequest { reboot: true, .. }) => end_machine(POWER_REBOOT),
        Ok(ShutdownRequest { reboot: false, .. }) => end_machine(POWER_OFF),
        Err(error) => {
            log(&format!("nelly-agent: {error:#}"));
            end_machine(POWER_PANIC);
        }
    }
}

/// To the console, and to the kernel's log in case that nobody watches the console.
fn log(text: &str) {
    // There is nowhere to complain to about a console that does not take it.
    let _ = writeln!(std::io::stderr(), "{text}");
    if let Ok(mut log) = std::fs::OpenOptions::new().write(true).open("/dev/kmsg") {
        let _ = writeln!(log, "<2>{text}");
    }
}

/// Says the last word to the monitor and waits for it to end the machine; ends it ourselves if it
/// does not.
fn end_machine(word: u8) -> ! {
    if word != POWER_PANIC {
        nix::unistd::sync();
    }
    if let Some(power) = POWER.get() {
        let wait = |what| {
            // Whatever comes, also nothing: what follows is the same.
            let _ = nix::poll::poll(&mut [PollFd::new(power.as_fd(), what)], LAST_WORD_MS);
        };
        // A guest that fails at once has not heard from the monitor yet.
        wait(PollFlags::POLLOUT);
        if sys::write(power.as_fd(), &[word]).is_ok() {
            wait(PollFlags::POLLIN);
        }
    }
    sys::reset_machine();
    std::process::exit(1)
}

fn run(boot_ns: u64, marks: Arc<Marks>) -> anyhow::Result<ShutdownRequest> {
    // The fast path: the host can connect before anything else is done; its calls wait in the
    // backlog.
    let listen = |port| {
        sys::listen_vsock(port).with_context(|| {
            format!("cannot listen on vsock port {port} (does the machine have a vsock device?)")
        })
    };
    let dial = |port| {
        sys::connect_vsock(VsockAddress { cid: HOST_CID, port }, true).with_context(|| {
            format!("cannot connect to the host's vsock port {port} (does the machine have a vsock device?)")
        })
    };
    let (calls, streams) = (listen(AGENT_PORT)?, listen(STREAM_PORT)?);
    marks.listening();
    let ready_ns = sys::boot_time_ns();
    let power = dial(POWER_PORT)?;
    let begun = power.try_clone().context("cannot duplicate the connection to the power port")?;
    POWER.get_or_init(|| power);
    let ready = dial(READY_PORT)?;

    // Stages begin as copies of this process, in containers: from their first moment on nobody
    // there may look into them.
    sys::set_not_dumpable().context("cannot make the agent undumpable")?;
    mounts::take_over().context("cannot set up the guest")?;
    // A container that begins as /proc/self/exe, or names it as an interpreter, would run this
    // program.
    fs::set_permissions("/proc/self/exe", Permissions::from_mode(0o400))
        .context("cannot take the execute permission from the agent's program")?;
    sys::loopback_up().context("cannot bring the loopback interface up")?;
    sys::set_resource_limit(libc::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES)
        .context("cannot raise the limit of open files")?;
    let signals = sys::signal_fd().context("cannot open a signalfd for SIGCHLD")?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let launcher = Launcher { workdir: mounts::WORKDIR.to_owned() };
        let cgroup_root = mounts::CGROUP_ROOT.into();
        let config = Config { launcher, cgroup_root, boot_ns, ready_ns, marks: marks.clone() };
        let promises = Promises::new(Patience::default());
        let (guest, mut ends) = GuestState::new(config, promises.clone());
        let signals = sys::watch(signals, Interest::READABLE)?;
        tokio::spawn(reap(guest.clone(), signals));
        let (calls, streams) =
            (sys::watch(calls, Interest::READABLE)?, sys::watch(streams, Interest::READABLE)?);
        let served = guest.clone();
        tokio::spawn(accept(calls, move |connection| serve_connection(served.clone(), connection)));
        tokio::spawn(accept(streams, move |connection| promises.admit(connection)));
        // A monitor without a power port refuses: the machine then ends by a reset.
        let _ = connected(begun).await;
        tell_ready(ready, &marks).await.context("cannot report to the host that the agent is ready")?;

        let end = ends.recv().await.context("the service has ended")?;
        // Lets the answer to the call out first: it takes a few turns of the loop to reach the
        // socket.
        for _ in 0..32 {
            tokio::task::yield_now().await;
        }
        guest.stop_containers(Duration::from_millis(end.grace_ms.into())).await;
        Ok(end)
    })
}

async fn tell_ready(socket: OwnedFd, marks: &Marks) -> anyhow::Result<()> {
    let socket = connected(socket).await?;
    marks.ready();
    sys::write(socket.as_fd(), &[READY_BYTE])?;
    Ok(())
}

/// The one reaper: every child of PID 1 ends here, ours and those that lost their parents.
async fn reap(guest: Arc<GuestState>, signals: AsyncFd<OwnedFd>) {
    let mut info = [0; 128];
    loop {
        // Signals merge: however many came, all children that ended are reaped.
        if let Err(error) = signals.async_io(Interest::READABLE, |fd| sys::read(fd.as_fd(), &mut info)).await
        {
            log(&format!("nelly-agent: cannot wait for SIGCHLD: {error}"));
            return;
        }
        let mut heard = 0_usize;
        while let Some(news) = sys::reap() {
            guest.on_news(news);
            heard += 1;
            // A container can make news without end, others want to be served as well.
            if heard.is_multiple_of(64) {
                tokio::task::yield_now().await;
            }
        }
    }
}

/// Hands what the host dials to `take`.
async fn accept(listener: AsyncFd<OwnedFd>, take: impl Fn(OwnedFd)) {
    loop {
        let accepted =
            listener.async_io(Interest::READABLE, |listener| sys::accept_vsock(listener.as_fd())).await;
        match accepted {
            Ok((connection, VsockAddress { cid: HOST_CID, .. })) => take(connection),
            // A container could dial the guest's own address where the kernel has vsock loopback:
            // it is closed at once.
            Ok(_) => {}
            Err(error) => {
                log(&format!("nelly-agent: cannot accept a connection: {error}"));
                // Out of descriptors or memory: it may pass, and must not make the loop spin.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Answers the calls of one connection.
fn serve_connection(guest: Arc<GuestState>, connection: OwnedFd) {
    tokio::spawn(async move {
        let failed = match Stream::new(connection) {
            Ok(stream) => serve(guest, stream).await.err().map(|error| error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(error) = failed {
            log(&format!("nelly-agent: cannot serve a connection: {error}"));
        }
    });
}
