//! PID 1 of the guest.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use nelly_agent::service::{Config, End, Guest, serve};
use nelly_agent::spawn::launch::Launcher;
use nelly_agent::stdio::{Stream, VsockDialer, connected};
use nelly_agent::sys::{self, VsockAddress};
use nelly_agent::timeline::Marks;
use nelly_agent::{arch, mounts};
use nelly_protocol::ports::{
    AGENT_PORT, HOST_CID, POWER_OFF, POWER_PANIC, POWER_PORT, POWER_REBOOT, READY_BYTE, READY_PORT,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Open files of the agent: three streams and a handful of descriptors for each of many processes.
const OPEN_FILES: u64 = 1 << 20;

/// How long the monitor may take to end the machine after the agent's word, in milliseconds.
const LAST_WORD_MS: u16 = 3000;

fn main() {
    let began = arch::counter();
    if std::process::id() != 1 {
        eprintln!("nelly-agent is PID 1 of a Nelly guest; it does nothing elsewhere");
        std::process::exit(2);
    }
    let marks = Arc::new(Marks::new(began));
    let boot_ns = sys::boot_time_ns();
    std::panic::set_hook(Box::new(|panic| {
        say(&format!("nelly-agent: bug: {panic}"));
        end_machine(POWER_PANIC);
    }));
    match run(boot_ns, marks) {
        Ok(End { reboot: true, .. }) => end_machine(POWER_REBOOT),
        Ok(End { reboot: false, .. }) => end_machine(POWER_OFF),
        Err(error) => {
            say(&format!("nelly-agent: {error:#}"));
            end_machine(POWER_PANIC);
        }
    }
}

/// To the console, and to the kernel's log in case that nobody watches the console.
fn say(text: &str) {
    // There is nowhere to complain to about a console that does not take it.
    let _ = writeln!(std::io::stderr(), "{text}");
    if let Ok(mut log) = std::fs::OpenOptions::new().write(true).open("/dev/kmsg") {
        let _ = writeln!(log, "<2>{text}");
    }
}

/// Says the last word to the monitor and waits for it to end the machine; ends it ourselves if it does not.
fn end_machine(word: u8) -> ! {
    if word != POWER_PANIC {
        nix::unistd::sync();
    }
    let host = VsockAddress { cid: HOST_CID, port: POWER_PORT };
    if let Ok(socket) = sys::connect_vsock(host, false)
        && sys::write(socket.as_fd(), &[word]).is_ok()
    {
        let mut wait = [nix::poll::PollFd::new(socket.as_fd(), nix::poll::PollFlags::POLLIN)];
        // Whatever comes, a close or nothing: what follows is the same.
        let _ = nix::poll::poll(&mut wait, LAST_WORD_MS);
    }
    sys::reset_machine();
    std::process::exit(1)
}

fn run(boot_ns: u64, marks: Arc<Marks>) -> anyhow::Result<End> {
    // The fast path: the host can connect before anything else is done; its calls wait in the backlog.
    let listener = sys::listen_vsock(AGENT_PORT).with_context(|| {
        format!("cannot listen on vsock port {AGENT_PORT} (has the machine a vsock device?)")
    })?;
    marks.listening();
    let ready_ns = sys::boot_time_ns();
    let ready =
        sys::connect_vsock(VsockAddress { cid: HOST_CID, port: READY_PORT }, true).with_context(|| {
            format!("cannot dial the host's ready port {READY_PORT} (has the machine a vsock device?)")
        })?;

    // Stages begin as copies of this process, in containers: from their first moment on nobody there may look into them.
    sys::set_not_dumpable().context("cannot hide the agent's memory")?;
    mounts::take_over().context("cannot set the guest up")?;
    sys::loopback_up().context("cannot bring the loopback interface up")?;
    sys::set_resource_limit(libc::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES)
        .context("cannot raise the number of open files")?;
    let signals = sys::signal_fd().context("cannot watch for children that end")?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let launcher = Launcher { workdir: mounts::WORKDIR.to_owned() };
        let cgroup_root = mounts::CGROUP_ROOT.into();
        let config = Config { launcher, cgroup_root, boot_ns, ready_ns, marks: marks.clone() };
        let (guest, mut ends) = Guest::new(config, Box::new(VsockDialer));
        let signals = sys::watch(signals, Interest::READABLE)?;
        let listener = sys::watch(listener, Interest::READABLE)?;
        tokio::spawn(reap(guest.clone(), signals));
        tokio::spawn(accept(guest.clone(), listener));
        tell_ready(ready, &marks).await.context("cannot tell the host that the agent is ready")?;

        let end = ends.recv().await.context("the service is gone")?;
        // Lets the answer to the call out first: it takes a few turns of the loop to reach the socket.
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
async fn reap(guest: Arc<Guest>, signals: AsyncFd<OwnedFd>) {
    let mut info = [0; 128];
    loop {
        // Signals merge: however many came, all children that ended are reaped.
        if let Err(error) = signals.async_io(Interest::READABLE, |fd| sys::read(fd.as_fd(), &mut info)).await
        {
            say(&format!("nelly-agent: cannot watch for children that end: {error}"));
            return;
        }
        while let Some(reaped) = sys::reap() {
            guest.on_reaped(reaped);
        }
    }
}

async fn accept(guest: Arc<Guest>, listener: AsyncFd<OwnedFd>) {
    loop {
        let accepted =
            listener.async_io(Interest::READABLE, |listener| sys::accept_vsock(listener.as_fd())).await;
        let stream = match accepted {
            // A container could dial the guest's own address where the kernel has vsock loopback.
            Ok((_, peer)) if peer.cid != HOST_CID => continue,
            Ok((socket, _)) => Stream::new(socket),
            Err(error) => Err(error),
        };
        match stream {
            Ok(stream) => {
                let guest = guest.clone();
                tokio::spawn(async move {
                    if let Err(error) = serve(guest, stream).await {
                        say(&format!("nelly-agent: cannot serve a connection: {error}"));
                    }
                });
            }
            Err(error) => {
                say(&format!("nelly-agent: cannot accept a connection: {error}"));
                // Out of descriptors or memory: it may pass, and must not make the loop spin.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}
