//! Signals to this process, and the end of its terminal, become requests to the container.

use std::thread;

use anyhow::{Context as _, Result};
use nelly_sandbox::life::{Request, Signal};
use nelly_vmm::sys::{signals, terminal};
use tokio::signal::unix::{self, SignalKind, signal};
use tokio::sync::mpsc::UnboundedSender;

/// So many Ctrl-C end the machine: the first processes of containers often ignore the signal.
const INSIST: u32 = 3;

/// Takes over the signals from here on, and forwards them for as long as the runtime runs. SIGHUP, SIGINT and SIGQUIT that whoever
/// started us had ignored stay ignored. With `resizes`, the terminal's new sizes are forwarded too.
pub(crate) fn forward(to: &UnboundedSender<Request>, resizes: bool) -> Result<()> {
    let plain = [
        (SignalKind::user_defined1(), Signal::USR1),
        (SignalKind::user_defined2(), Signal::USR2),
        (SignalKind::terminate(), Signal::TERM),
    ];
    for (kind, number) in plain {
        each(kind, to, move |_| Some(Request::Signal(number)))?;
    }
    if heard(SignalKind::quit())? {
        each(SignalKind::quit(), to, |_| Some(Request::Signal(Signal::QUIT)))?;
    }
    if heard(SignalKind::interrupt())? {
        each(SignalKind::interrupt(), to, |times| {
            let insists = times >= INSIST;
            Some(if insists { Request::Kill(Signal::INT) } else { Request::Signal(Signal::INT) })
        })?;
    }
    if heard(SignalKind::hangup())? {
        each(SignalKind::hangup(), to, |_| Some(Request::HangUp))?;
        watch_the_terminal(to.clone());
    }
    if resizes {
        each(SignalKind::window_change(), to, |_| {
            let size = terminal::size(std::io::stdout()).ok()?;
            Some(Request::Resize { rows: size.rows, columns: size.columns })
        })?;
    }
    Ok(())
}

/// Whether a signal was not ignored when this process began. To be asked before anybody listens for it.
fn heard(kind: SignalKind) -> Result<bool> {
    Ok(!signals::ignored(kind.as_raw_value()).context("cannot look at the signals")?)
}

/// Forwards what `request` makes of each signal of a kind, and of how many came so far.
fn each(
    kind: SignalKind,
    to: &UnboundedSender<Request>,
    request: impl Fn(u32) -> Option<Request> + Send + 'static,
) -> Result<()> {
    let mut signal: unix::Signal = signal(kind).context("cannot listen for signals")?;
    let to = to.clone();
    tokio::spawn(async move {
        let mut times = 0u32;
        while signal.recv().await.is_some() {
            times = times.saturating_add(1);
            if let Some(request) = request(times)
                && to.send(request).is_err()
            {
                // The life is over.
                break;
            }
        }
    });
    Ok(())
}

/// Tells when the terminal among the standard streams hangs up. SIGHUP alone is not enough: it is sent to the session's leader and to the
/// foreground, and a process that is neither learns of it by its descriptors only.
fn watch_the_terminal(to: UnboundedSender<Request>) {
    let streams = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    let Some(watched) = streams.into_iter().find(|stream| terminal::is_terminal(stream)) else { return };
    let watch = move || {
        if terminal::hung_up(watched, None) {
            let _nobody_left = to.send(Request::HangUp);
        }
    };
    // It ends with the process. Without it SIGHUP is still heard.
    drop(thread::Builder::new().name("terminal".into()).stack_size(64 << 10).spawn(watch));
}
