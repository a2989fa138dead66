//! What the init of a guest and a service of one have in common: calls and streams of the host are
//! served, and children reaped.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use nelly_agent::service::{GuestState, serve};
use nelly_agent::stdio::{Promises, Stream};
use nelly_agent::sys::{self, VsockAddress};
use nelly_protocol::ports::HOST_CID;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Limit of open files of the agent: each process needs three streams and a few other descriptors.
pub(super) const OPEN_FILES: u64 = 1 << 20;

/// Writes to the console, and to the kernel log in case that the console is not connected.
pub(super) fn log(text: &str) {
    // If the console cannot be written, there is no place to report it.
    let _ = writeln!(std::io::stderr(), "{text}");
    // A service's standard error is kept by its guest's own init.
    if std::process::id() == 1
        && let Ok(mut log) = std::fs::OpenOptions::new().write(true).open("/dev/kmsg")
    {
        let _ = writeln!(log, "<2>{text}");
    }
}

/// Listens at a port of the guest.
pub(super) fn listen(port: u32) -> anyhow::Result<OwnedFd> {
    sys::listen_vsock(port).with_context(|| {
        format!("cannot listen on vsock port {port} (does the machine have a vsock device?)")
    })
}

/// Begins to connect to a port of the host.
pub(super) fn dial(port: u32) -> anyhow::Result<OwnedFd> {
    sys::connect_vsock(VsockAddress { cid: HOST_CID, port }, true).with_context(|| {
        format!("cannot connect to the host's vsock port {port} (does the machine have a vsock device?)")
    })
}

/// Reaps children, and serves calls and streams, for as long as the runtime lives.
pub(super) fn attend(
    guest: &Arc<GuestState>,
    signals: OwnedFd,
    calls: OwnedFd,
    (streams, promises): (OwnedFd, Arc<Promises>),
) -> io::Result<()> {
    tokio::spawn(reap(guest.clone(), sys::watch(signals, Interest::READABLE)?));
    let (calls, streams) = (sys::watch(calls, Interest::READABLE)?, sys::watch(streams, Interest::READABLE)?);
    let served = guest.clone();
    tokio::spawn(accept(calls, move |connection| serve_connection(served.clone(), connection)));
    tokio::spawn(accept(streams, move |connection| promises.admit(connection)));
    Ok(())
}

/// The only reaper: reaps all children, of PID 1 orphans as well.
async fn reap(guest: Arc<GuestState>, signals: AsyncFd<OwnedFd>) {
    let mut info = [0; 128];
    loop {
        // Signals are merged, so all children that have ended are reaped.
        if let Err(error) = signals.async_io(Interest::READABLE, |fd| sys::read(fd.as_fd(), &mut info)).await
        {
            log(&format!("nelly-agent: cannot wait for SIGCHLD: {error}"));
            return;
        }
        let mut heard = 0_usize;
        while let Some(news) = sys::reap() {
            guest.on_news(news);
            heard += 1;
            // A container can end processes continuously; others must be served as well.
            if heard.is_multiple_of(64) {
                tokio::task::yield_now().await;
            }
        }
    }
}

/// Accepts connections from the host and passes them to `take`.
async fn accept(listener: AsyncFd<OwnedFd>, take: impl Fn(OwnedFd)) {
    loop {
        let accepted =
            listener.async_io(Interest::READABLE, |listener| sys::accept_vsock(listener.as_fd())).await;
        match accepted {
            Ok((connection, VsockAddress { cid: HOST_CID, .. })) => take(connection),
            // If the kernel has vsock loopback, a container could connect to the guest's own
            // address; such a connection is closed at once.
            Ok(_) => {}
            Err(error) => {
                log(&format!("nelly-agent: cannot accept a connection: {error}"));
                // Out of file descriptors or memory: this may be temporary, and must not make the
                // loop spin.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Serves the calls of one connection.
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
