//! The life of a machine of `nelly boot`: its serial port is the terminal of what is kept, it is
//! asked to end by its power button, and its end is that of the machine.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nelly_vmm::machine::{ControlError, EndReason, Outcome};
use nelly_vmm::text;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::life::failed;
use super::{Begun, Ended, Keeper, Request};
use crate::instance::{Sandbox, SandboxError, Streams};
use crate::life::Signal;
use crate::state::Timestamp;
use crate::state::outcome;
use crate::state::record::Status;

/// How long a machine that has no serial port any more may take to tell its end.
const ENDED_AT_ONCE: Duration = Duration::from_secs(1);

/// How long after one press of the power button the next one is due: a guest that is still
/// booting, or in which nobody listens yet, loses a press.
const PRESS_AGAIN: Duration = Duration::from_secs(2);

/// An end that was asked for: when the machine is killed, and what is said of it then.
#[derive(Clone, Copy)]
struct Patience {
    until: Instant,
    last: LastResort,
}

/// Why a machine is killed.
#[derive(Clone, Copy)]
enum LastResort {
    /// That is what was asked for.
    Asked,
    /// It has no power button.
    NoButton,
    /// It did not end within this time.
    Grace(Duration),
}

/// What became of the presses so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Presses {
    /// The monitor has answered none.
    #[default]
    Unanswered,
    /// None succeeded; why the last one did not.
    Failed(String),
    /// One at least was told to the guest.
    Told,
}

impl Keeper {
    /// Runs the machine to its end; and how long it ran. Its boot is not waited for: only its guest
    /// knows when that is over. `None`: somebody asked for the end before.
    pub(super) async fn live_booted(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        requests: &mut UnboundedReceiver<Request>,
        begun: &mut Option<impl FnOnce(Begun)>,
    ) -> Option<(Ended, Duration)> {
        let serial = tokio::select! {
            biased;
            serial = sandbox.serial() => serial,
            () = self.stopped(requests) => return None,
        };
        let serial = match serial {
            Ok(serial) => serial,
            Err(error) => {
                // One that has ended already says how.
                let outcome = tokio::time::timeout(ENDED_AT_ONCE, sandbox.outcome()).await;
                let Ok(outcome) = outcome else {
                    // It runs, and nobody would see what it says.
                    sandbox.machine().kill();
                    return Some((failed(&error), Duration::ZERO));
                };
                let ended = ended(&outcome);
                if !matches!(outcome.reason, EndReason::Error(_) | EndReason::MonitorDied(_)) {
                    // Its guest ran, however briefly, and ended it.
                    self.ran_briefly(&ended, begun);
                }
                return Some((ended, Duration::ZERO));
            }
        };
        let streams = Streams { stdin: Some(serial), ..Streams::default() };
        let pumps = match self.connect(streams).await {
            Ok(pumps) => pumps,
            Err(error) => {
                sandbox.machine().kill();
                let detail = format!("cannot read the machine's serial port: {error}");
                return Some((Ended::new(outcome::FAILED, "failed", detail), Duration::ZERO));
            }
        };
        self.runs(sandbox, None, begun);
        let began = Instant::now();
        let watched = (self.watch_network(sandbox), self.meet_agent(sandbox));
        let ended = self.attend_machine(sandbox, requests).await;
        drop(watched);
        let ran = began.elapsed();
        self.drain(pumps, sandbox, requests).await;
        Some((ended, ran))
    }

    /// Greets the guest's agent each time that it comes, until the value is dropped.
    fn meet_agent(&self, sandbox: &Arc<Sandbox>) -> JoinSet<()> {
        let (sandbox, relays) = (Arc::clone(sandbox), self.kept.container.options.relays.clone());
        let mut meeting = JoinSet::new();
        meeting.spawn(async move {
            // Without it the machine lives on, and whoever needs the agent hears that it is not
            // there.
            let _ended = sandbox.meet(&relays).await;
        });
        meeting
    }

    /// Writes down that the machine ran and how it ended, then tells that it was started: whoever
    /// started it finds the end in the state.
    fn ran_briefly(&self, ended: &Ended, begun: &mut Option<impl FnOnce(Begun)>) {
        self.change(|state| {
            state.status = Status::Stopping;
            state.started_at = Some(Timestamp::now());
            state.exit = Some(ended.exit.clone());
            state.detail.clone_from(&ended.detail);
        });
        if let Some(begun) = begun.take() {
            begun(Ok(()));
        }
    }

    /// Waits for the machine's end, and sees to it when it is asked for. What is asked of the
    /// monitor is not waited for.
    async fn attend_machine(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        requests: &mut UnboundedReceiver<Request>,
    ) -> Ended {
        let mut outcome = pin!(sandbox.outcome());
        let mut patience: Option<Patience> = None;
        // Whoever presses the button. It comes back only if there is none, and ends with this.
        let mut pressing = JoinSet::new();
        let (tell, presses) = watch::channel(Presses::default());
        let tell = Arc::new(tell);
        loop {
            let impatient = async {
                match patience {
                    Some(Patience { until, last }) => {
                        sleep_until(until).await;
                        last
                    }
                    None => std::future::pending().await,
                }
            };
            let wish = tokio::select! {
                biased;
                outcome = &mut outcome => return ended(&outcome),
                last = impatient => {
                    sandbox.machine().kill();
                    return killed(last, &presses.borrow());
                }
                Some(_) = pressing.join_next() => {
                    Patience { until: Instant::now(), last: LastResort::NoButton }
                }
                Some(Request::Stop { grace, .. }) = requests.recv() => {
                    self.change(|state| {
                        self.note_stop(state);
                        state.status = Status::Stopping;
                    });
                    let grace = grace.unwrap_or(self.kept.stop_grace);
                    let last =
                        if grace.is_zero() { LastResort::Asked } else { LastResort::Grace(grace) };
                    if pressing.is_empty() && !grace.is_zero() {
                        pressing.spawn(self.press_again_and_again(sandbox, Arc::clone(&tell)));
                    }
                    Patience { until: Instant::now() + grace, last }
                }
            };
            // A second wish may shorten the first one's patience, and never lengthens it.
            patience = Some(patience.filter(|first| first.until < wish.until).unwrap_or(wish));
        }
    }

    /// Asks the guest's agent, if there is one, to have the guest switch itself off, and presses
    /// the power button from the second time on, or at once if nobody takes the wish, until nobody
    /// wants it any more, also of a machine in a pause. Comes back if there is neither.
    fn press_again_and_again(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        tell: Arc<watch::Sender<Presses>>,
    ) -> impl Future<Output = ()> + use<> {
        let (keeper, sandbox) = (Arc::clone(self), Arc::clone(sandbox));
        let taken = Arc::new(AtomicBool::new(false));
        again_and_again(tell, move || {
            let (keeper, sandbox, taken) = (Arc::clone(&keeper), Arc::clone(&sandbox), Arc::clone(&taken));
            async move {
                let one = keeper.pausing.lock().await;
                // A machine that runs refuses to; of one that is ending the end is told.
                let _resumed = sandbox.resume().await;
                drop(one);
                if !taken.load(Ordering::Relaxed) && sandbox.agent().is_there() {
                    let asked = tokio::time::timeout(PRESS_AGAIN, sandbox.agent().shutdown(0)).await;
                    if let Ok(Ok(())) = asked {
                        // Once: one that says so and does nothing has had its turn.
                        taken.store(true, Ordering::Relaxed);
                        return Ok(());
                    }
                }
                match sandbox.press_power_button().await {
                    // It has been asked another way.
                    Err(SandboxError::Machine { source: ControlError::NoPowerButton, .. })
                        if taken.load(Ordering::Relaxed) =>
                    {
                        Ok(())
                    }
                    pressed => pressed,
                }
            }
        })
    }
}

/// Presses every [`PRESS_AGAIN`], one press at a time, and tells what became of it. Comes back if
/// there is no button.
async fn again_and_again<P: Future<Output = Result<(), SandboxError>>>(
    tell: Arc<watch::Sender<Presses>>,
    press: impl Fn() -> P,
) {
    loop {
        match press().await {
            Ok(()) => {
                tell.send_replace(Presses::Told);
            }
            Err(SandboxError::Machine { source: ControlError::NoPowerButton, .. }) => return,
            Err(error) => {
                tell.send_if_modified(|presses| {
                    let told = *presses == Presses::Told;
                    if !told {
                        *presses = Presses::Failed(text::chain(&error));
                    }
                    !told
                });
            }
        }
        sleep(PRESS_AGAIN).await;
    }
}

/// The end of a machine that was killed.
fn killed(last: LastResort, presses: &Presses) -> Ended {
    let detail = match (last, presses) {
        (LastResort::Asked, _) => String::new(),
        (LastResort::NoButton, _) => {
            "the machine has no power button, which only machines with ACPI have, and was killed".to_owned()
        }
        (LastResort::Grace(grace), Presses::Told) => {
            format!("the guest did not switch itself off within {} s of being asked to", grace.as_secs_f32())
        }
        (LastResort::Grace(grace), Presses::Failed(why)) => format!(
            "the machine was killed after {} s, for its power button could not be pressed: {why}",
            grace.as_secs_f32()
        ),
        (LastResort::Grace(grace), Presses::Unanswered) => {
            format!("the machine was killed after {} s, for its monitor did not answer", grace.as_secs_f32())
        }
    };
    Ended::new(Signal::KILL.exit_code(), "killed", detail)
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn failure(source: ControlError) -> SandboxError {
        SandboxError::Machine { what: "cannot press", source }
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_machine_without_a_button_is_not_asked_again() {
        // Taken from the end. What became of the presses is what is told after each.
        let answers = [
            Err(ControlError::NoPowerButton),
            Err(ControlError::Unanswered),
            Ok(()),
            Err(ControlError::Unanswered),
        ];
        let (answers, began) = (Mutex::new(Vec::from(answers)), Instant::now());
        let (tell, presses) = watch::channel(Presses::default());
        let before = Mutex::new(Vec::new());
        again_and_again(Arc::new(tell), || {
            before.lock().unwrap().push((presses.borrow().clone(), began.elapsed()));
            let answer = answers.lock().unwrap().pop().expect("it has come back");
            async { answer.map_err(failure) }
        })
        .await;
        let before = before.into_inner().unwrap();
        assert!(
            matches!(&before[1].0, Presses::Failed(why) if why.starts_with("cannot press")),
            "{before:?}"
        );
        let [first, _, third, fourth] = [0, 1, 2, 3].map(|number| before[number].0.clone());
        assert_eq!([first, third, fourth], [Presses::Unanswered, Presses::Told, Presses::Told]);
        for (number, (_, at)) in (0..).zip(&before) {
            assert!(*at >= PRESS_AGAIN * number, "{before:?}");
        }
    }

    #[test]
    fn a_machine_that_is_killed_says_what_it_was_asked() {
        let grace = LastResort::Grace(Duration::from_millis(1500));
        let failed = Presses::Failed("the host failed".into());
        for (last, presses, detail) in [
            (LastResort::Asked, Presses::Told, ""),
            (LastResort::NoButton, Presses::Unanswered, "no power button"),
            (grace, Presses::Told, "did not switch itself off within 1.5 s"),
            (grace, failed, "after 1.5 s, for its power button could not be pressed: the host failed"),
            (grace, Presses::Unanswered, "after 1.5 s, for its monitor did not answer"),
        ] {
            let ended = killed(last, &presses);
            assert_eq!((ended.exit.code, ended.exit.reason.as_str()), (137, "killed"));
            assert!(ended.detail.contains(detail), "{}", ended.detail);
            assert_eq!(ended.detail.is_empty(), detail.is_empty());
        }
    }
}
