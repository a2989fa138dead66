//! Signals to this process become requests to the container.

use std::convert::Infallible;

use anyhow::{Context as _, Result};
use nelly_sandbox::life::Request;
use nelly_vmm::sys::terminal;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::UnboundedSender;

/// Linux's numbers, the guest's whatever the host is.
const SIGHUP: u32 = 1;
const SIGINT: u32 = 2;
const SIGQUIT: u32 = 3;
const SIGUSR1: u32 = 10;
const SIGUSR2: u32 = 12;
const SIGTERM: u32 = 15;

/// So many Ctrl-C end the machine: the first processes of containers often ignore the signal.
const INSIST: u32 = 3;

/// Listens and forwards.
pub(crate) struct Forward {
    to: UnboundedSender<Request>,
    hangup: Signal,
    interrupt: Signal,
    quit: Signal,
    user1: Signal,
    user2: Signal,
    terminate: Signal,
    resize: Option<Signal>,
    interrupts: u32,
}

impl Forward {
    /// Takes over the signals from here on.
    pub(crate) fn new(to: UnboundedSender<Request>, terminal: bool) -> Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            to,
            hangup: listen(SignalKind::hangup())?,
            interrupt: listen(SignalKind::interrupt())?,
            quit: listen(SignalKind::quit())?,
            user1: listen(SignalKind::user_defined1())?,
            user2: listen(SignalKind::user_defined2())?,
            terminate: listen(SignalKind::terminate())?,
            resize: terminal.then(|| listen(SignalKind::window_change())).transpose()?,
            interrupts: 0,
        })
    }

    /// Forwards for ever. Safe to drop and call again between signals.
    pub(crate) async fn run(&mut self) -> Infallible {
        loop {
            let resized = async {
                match &mut self.resize {
                    Some(signal) => signal.recv().await,
                    None => std::future::pending().await,
                }
            };
            let request = tokio::select! {
                _ = self.hangup.recv() => Some(Request::Signal(SIGHUP)),
                _ = self.quit.recv() => Some(Request::Signal(SIGQUIT)),
                _ = self.user1.recv() => Some(Request::Signal(SIGUSR1)),
                _ = self.user2.recv() => Some(Request::Signal(SIGUSR2)),
                _ = self.terminate.recv() => Some(Request::Signal(SIGTERM)),
                _ = self.interrupt.recv() => {
                    self.interrupts += 1;
                    Some(if self.interrupts >= INSIST { Request::Kill(SIGINT) } else { Request::Signal(SIGINT) })
                }
                _ = resized => terminal::size(std::io::stdout()).ok().map(|size| Request::Resize { rows: size.rows, columns: size.columns }),
            };
            // The receiver lives as long as this does.
            request.map(|request| self.to.send(request));
        }
    }
}
