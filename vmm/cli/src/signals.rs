//! Forwards signals, and a hang-up of the terminal, to the container.

use std::thread;

use anyhow::{Context as _, Result};
use nelly_sandbox::life::{ProcessRequest, Signal};
use nelly_vmm::sys::{signals, terminal};
use tokio::signal::unix::{self, SignalKind, signal};
use tokio::sync::mpsc::UnboundedSender;

use crate::ctrl_c::KILL_COUNT;

/// Installs signal handlers and forwards the signals as long as the runtime runs. SIGHUP, SIGINT
/// and SIGQUIT stay ignored if they were ignored when this process started. With `resizes`, changes
/// of the terminal's size are forwarded, too.
pub(crate) fn forward(to: &UnboundedSender<ProcessRequest>, resizes: bool) -> Result<()> {
    let plain = [
        (SignalKind::user_defined1(), Signal::USR1),
        (SignalKind::user_defined2(), Signal::USR2),
        (SignalKind::terminate(), Signal::TERM),
    ];
    for (kind, number) in plain {
        each(kind, to, move |_| Some(ProcessRequest::Signal(number)))?;
    }
    if is_handled(SignalKind::quit())? {
        each(SignalKind::quit(), to, |_| Some(ProcessRequest::Signal(Signal::QUIT)))?;
    }
    if is_handled(SignalKind::interrupt())? {
        each(SignalKind::interrupt(), to, |times| {
            let kill = times >= KILL_COUNT;
            Some(if kill { ProcessRequest::Kill(Signal::INT) } else { ProcessRequest::Signal(Signal::INT) })
        })?;
    }
    if is_handled(SignalKind::hangup())? {
        each(SignalKind::hangup(), to, |_| Some(ProcessRequest::HangUp))?;
        watch_the_terminal(to.clone());
    }
    if resizes {
        each(SignalKind::window_change(), to, |_| {
            let size = terminal::size(std::io::stdout()).ok()?;
            Some(ProcessRequest::Resize { rows: size.rows, columns: size.columns })
        })?;
    }
    Ok(())
}

/// Restores the default actions of the signals after the runtime has ended, because its handlers
/// stay installed and would discard the signals. Ignored signals stay ignored.
pub(crate) fn release() {
    for signal in [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM, Signal::USR1, Signal::USR2] {
        let released = signals::act_by_default(signal.number().into());
        released.expect("each of these signals may be left to its default action");
    }
}

/// Whether a signal was not ignored when this process started. Must be called before a handler is
/// installed.
pub(crate) fn is_handled(kind: SignalKind) -> Result<bool> {
    Ok(!signals::ignored(kind.as_raw_value()).context("cannot read the dispositions of signals")?)
}

/// Forwards what `request` makes of each signal of a kind, and of how many came so far.
fn each(
    kind: SignalKind,
    to: &UnboundedSender<ProcessRequest>,
    request: impl Fn(usize) -> Option<ProcessRequest> + Send + 'static,
) -> Result<()> {
    let mut signal: unix::Signal = signal(kind).context("cannot listen for signals")?;
    let to = to.clone();
    tokio::spawn(async move {
        let mut times = 0usize;
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

/// Tells when the terminal among the standard streams hangs up. SIGHUP alone is not enough: it is
/// sent to the session's leader and to the foreground, and a process that is neither learns of it
/// by its descriptors only.
fn watch_the_terminal(to: UnboundedSender<ProcessRequest>) {
    let streams = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    let Some(watched) = streams.into_iter().find(|stream| terminal::is_terminal(stream)) else { return };
    let watch = move || {
        if terminal::hung_up(watched, None) {
            let _nobody_left = to.send(ProcessRequest::HangUp);
        }
    };
    // It ends with the process. Without it SIGHUP is still heard.
    drop(thread::Builder::new().name("terminal".into()).stack_size(64 << 10).spawn(watch));
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    /// Which signals this process catches, a bit each from the first on.
    fn caught() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        u64::from_str_radix(mask.trim(), 16).unwrap()
    }

    #[test]
    fn signals_act_again_after_the_runtime() {
        let ours = [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM, Signal::USR1, Signal::USR2];
        // Whoever runs this test may ignore some.
        let is_handled = ours.into_iter().filter(|signal| !signals::ignored(signal.number().into()).unwrap());
        let mask = is_handled.fold(0, |mask, signal| mask | 1 << (signal.number() - 1));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (send, _requests) = mpsc::unbounded_channel();
        runtime.block_on(async { forward(&send, false) }).unwrap();
        runtime.shutdown_background();
        assert_eq!(caught() & mask, mask);
        release();
        assert_eq!(caught() & mask, 0);
    }
}
