//! The life of a machine of `nelly boot`: its serial port is the terminal of what is kept, it is
//! asked to end by its power button, and its end is that of the machine.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use nelly_vmm::machine::{EndReason, Outcome};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, sleep_until};

use super::life::failed;
use super::{Begun, Ended, Keeper, Request};
use crate::instance::{Sandbox, Streams};
use crate::life::Signal;
use crate::state::outcome;
use crate::state::record::Status;

/// How long a machine that has no serial port any more may take to tell its end.
const ENDED_AT_ONCE: Duration = Duration::from_secs(1);

impl Keeper {
    /// Runs the machine to its end; and how long it ran. Its boot is not waited for: only its guest
    /// knows when that is over. `None`: somebody asked for the end before.
    pub(super) async fn live_booted(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        requests: &mut UnboundedReceiver<Request>,
        begun: &mut Option<impl FnOnce(Begun)>,
    ) -> Option<(Ended, Duration)> {
        let serial = match sandbox.serial().await {
            Ok(serial) => serial,
            Err(error) => {
                // One that has ended already says how.
                let ended = match tokio::time::timeout(ENDED_AT_ONCE, sandbox.outcome()).await {
                    Ok(outcome) => ended(&outcome),
                    Err(_) => failed(&error),
                };
                return Some((ended, Duration::ZERO));
            }
        };
        let streams = Streams { stdin: Some(serial), ..Streams::default() };
        let pumps = match self.connect(streams).await {
            Ok(pumps) => pumps,
            Err(error) => {
                let detail = format!("cannot read the machine's serial port: {error}");
                return Some((Ended::new(outcome::FAILED, "failed", detail), Duration::ZERO));
            }
        };
        self.runs(sandbox, None, begun);
        let began = Instant::now();
        let watched = self.watch_network(sandbox);
        let ended = self.attend_machine(sandbox, requests).await;
        drop(watched);
        let ran = began.elapsed();
        self.drain(pumps, sandbox, requests).await;
        Some((ended, ran))
    }

    /// Waits for the machine's end, and sees to it when it is asked for.
    async fn attend_machine(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        requests: &mut UnboundedReceiver<Request>,
    ) -> Ended {
        let mut outcome = pin!(sandbox.outcome());
        // When the machine is killed, and what is said of it.
        let mut patience: Option<(Instant, String)> = None;
        loop {
            let until = patience.as_ref().map(|(until, _)| *until);
            let impatient = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                outcome = &mut outcome => return ended(&outcome),
                () = impatient => {
                    sandbox.machine().kill();
                    let (_, detail) = patience.expect("it is over");
                    return Ended::new(Signal::KILL.exit_code(), "killed", detail);
                }
                Some(Request::Stop { grace, .. }) = requests.recv() => {
                    self.change(|state| {
                        self.note_stop(state);
                        state.status = Status::Stopping;
                    });
                    let grace = grace.unwrap_or(self.kept.stop_grace);
                    let wish = if grace.is_zero() {
                        (Instant::now(), String::new())
                    } else {
                        match self.ask_to_end(sandbox).await {
                            Ok(()) => {
                                let seconds = grace.as_secs_f32();
                                let detail = format!("the guest did not switch itself off within {seconds} s of the power button");
                                (Instant::now() + grace, detail)
                            }
                            // There is nothing to wait for.
                            Err(detail) => (Instant::now(), detail),
                        }
                    };
                    // A second wish may shorten the first one's patience, and never lengthens it.
                    patience = Some(patience.filter(|first| first.0 < wish.0).unwrap_or(wish));
                }
            }
        }
    }

    /// Presses the power button, also of a machine in a pause.
    async fn ask_to_end(&self, sandbox: &Sandbox) -> Result<(), String> {
        let _one = self.pausing.lock().await;
        // A machine that runs refuses to; of one that is ending the end is told.
        let _resumed = sandbox.resume().await;
        sandbox.press_power_button().await.map_err(|error| nelly_vmm::text::chain(&error))
    }
}

/// How a machine ended, with the code and the word that `nelly boot --result` has for it.
fn ended(outcome: &Outcome) -> Ended {
    let detail = match (&outcome.reason, &outcome.hint) {
        (reason, Some(hint)) => format!("{reason}: {hint}"),
        (reason @ (EndReason::Error(_) | EndReason::MonitorDied(_)), None) => reason.to_string(),
        _ => String::new(),
    };
    Ended::new(outcome.reason.exit_code(), outcome.reason.word(), detail)
}
