//! A sandbox's life: starts, ends, and starts again, as its policy and its clients want it.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use nelly_vmm::text;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::output::registered;
use super::{Ended, Keeper, Request, backoff, network};
use crate::agent::{ProcessId, StartFailure};
use crate::instance::{Sandbox, SandboxError, Streams};
use crate::life::{Signal, exit_of};
use crate::spec::ContainerSpec;
use crate::spec::machine::IMAGE_DEVICE;
use crate::state::Timestamp;
use crate::state::outcome;
use crate::state::record::{HealthRecord, Status};
use crate::wire::frames::Source;
use crate::wire::holder;

/// How long the output of a container that has ended may take to arrive.
const LAST_OUTPUT: Duration = Duration::from_secs(10);

/// How long a guest may take to write what it holds and to end.
const POWER_OFF: Duration = Duration::from_secs(if cfg!(test) { 5 } else { 30 });

/// Starts the machine anew.
pub type Start = Box<dyn Fn() -> Pin<Box<dyn Future<Output = Result<Sandbox, SandboxError>>>>>;

/// How the first start went: the container runs, or the code of the command that started it and
/// why.
pub type Begun = Result<(), (u8, String)>;

/// An end that was asked for, and how long it is waited for.
#[derive(Clone, Copy)]
struct Patience {
    until: Instant,
    killed: bool,
}

impl Keeper {
    /// Lives the sandbox's life to its end for good. `begun` hears of the first start, after which
    /// nothing is waited for but the sandbox.
    pub async fn run(
        self: &Arc<Self>,
        start: &Start,
        requests: &mut UnboundedReceiver<Request>,
        begun: impl FnOnce(Begun),
    ) -> Ended {
        let mut begun = Some(begun);
        let mut in_a_row = 0;
        let ended = loop {
            self.set_status(Status::Starting);
            let (ended, ran) = self.once(start, requests, &mut begun).await;
            // A start that failed at first is its command's failure, and not tried again.
            if let Some(begun) = begun.take() {
                begun(Err((ended.exit.code, ended.detail.clone())));
                break ended;
            }
            in_a_row = backoff::in_a_row(in_a_row, ran);
            if !self.again(&ended, in_a_row) {
                break ended;
            }
            self.change(|state| {
                state.exit = Some(ended.exit.clone());
                state.finished_at = Some(Timestamp::now());
                state.status = Status::Starting;
            });
            if !self.pause_before_restart(backoff::wait(in_a_row), &ended, in_a_row, requests).await {
                break ended;
            }
            in_a_row = in_a_row.saturating_add(1);
            self.change(|state| state.restarts = state.restarts.saturating_add(1));
        };
        self.end(&ended);
        ended
    }

    /// Whether the policy of this moment wants another start.
    fn again(&self, ended: &Ended, in_a_row: u32) -> bool {
        !self.is_stopped() && backoff::again(*self.policy.borrow(), ended.exit.code, in_a_row)
    }

    /// Waits before a restart. `false`: it is not wanted any more.
    async fn pause_before_restart(
        &self,
        wait: Duration,
        ended: &Ended,
        in_a_row: u32,
        requests: &mut UnboundedReceiver<Request>,
    ) -> bool {
        let mut policy = self.policy.subscribe();
        let mut wait = pin!(tokio::time::sleep(wait));
        loop {
            tokio::select! {
                biased;
                () = &mut wait => return true,
                Some(Request::Stop { .. }) = requests.recv() => {
                    self.change(|state| self.note_stop(state));
                    return false;
                }
                Ok(()) = policy.changed() => if !self.again(ended, in_a_row) {
                    return false;
                },
            }
        }
    }

    /// One start, to the end of its machine; and how long the container ran.
    async fn once(
        self: &Arc<Self>,
        start: &Start,
        requests: &mut UnboundedReceiver<Request>,
        begun: &mut Option<impl FnOnce(Begun)>,
    ) -> (Ended, Duration) {
        let ran = Duration::ZERO;
        self.forget_containers();
        // Dropping an attempt kills its machine.
        let sandbox = tokio::select! {
            biased;
            sandbox = start() => sandbox,
            () = self.stopped(requests) => return (killed(), ran),
        };
        let sandbox = match sandbox {
            Ok(sandbox) => Arc::new(sandbox),
            Err(error) => return (failed(&error), ran),
        };
        let monitor = sandbox.machine().process_id().and_then(|pid| holder::of(pid).ok());
        self.change(|state| state.monitor = monitor);
        let lived = if self.kept.booted {
            self.live_booted(&sandbox, requests, begun).await
        } else {
            self.live(&sandbox, requests, begun).await
        };
        let Some((ended, ran)) = lived else {
            sandbox.machine().kill();
            return (killed(), Duration::ZERO);
        };
        self.change(|state| {
            state.status = Status::Stopping;
            state.health = None;
            state.network = None;
        });
        *self.sandbox() = None;
        sandbox.end_relays();
        sandbox.power_off(POWER_OFF).await;
        if let Some(usernet) = sandbox.usernet() {
            // Calls of clients may hold the sandbox for longer, and the next start wants its ports.
            usernet.end();
        }
        // Not before: a client whose input nobody reads holds it until the machine's end.
        *self.input.lock().await = None;
        self.change(|state| state.monitor = None);
        (ended, ran)
    }

    /// Runs the container to its end; and how long it ran. `None`: somebody asked for the end
    /// before.
    async fn live(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        requests: &mut UnboundedReceiver<Request>,
        begun: &mut Option<impl FnOnce(Begun)>,
    ) -> Option<(Ended, Duration)> {
        let mut ran = Duration::ZERO;
        let container = self.started_now();
        let run = sandbox.run(&self.kept.id, &container, IMAGE_DEVICE, self.kept.size);
        let streams = tokio::select! {
            biased;
            streams = run => streams,
            () = self.stopped(requests) => return None,
        };
        let ended = match streams {
            Ok(Ok(streams)) => match self.connect(streams).await {
                Ok(pumps) => {
                    *self.sandbox() = Some(Arc::clone(sandbox));
                    self.catch_up(sandbox, &container).await;
                    let health = self.first_health();
                    self.runs(sandbox, health, begun);
                    let began = Instant::now();
                    let watched = (self.watch_health(sandbox), self.watch_network(sandbox));
                    let ended = self.attend(sandbox, requests).await;
                    drop(watched);
                    // They are the first container's, however long others run.
                    sandbox.end_relays();
                    self.forget_health();
                    ran = began.elapsed();
                    self.drain(pumps, sandbox, requests).await;
                    self.last_container(sandbox, requests).await;
                    ended
                }
                Err(error) => Ended::new(
                    outcome::FAILED,
                    "failed",
                    format!("cannot read the container's output: {error}"),
                ),
            },
            Ok(Err(failure)) => not_started(&failure),
            Err(error) => failed(&sandbox.explain(error).await),
        };
        Some((ended, ran))
    }

    /// Writes down and tells that it runs.
    pub(super) fn runs(
        &self,
        sandbox: &Arc<Sandbox>,
        health: Option<HealthRecord>,
        begun: &mut Option<impl FnOnce(Begun)>,
    ) {
        *self.sandbox() = Some(Arc::clone(sandbox));
        self.change(|state| {
            state.status = Status::Running;
            state.health = health;
            state.network = network::state(sandbox);
            state.started_at = Some(Timestamp::now());
            state.exit = None;
            state.detail.clear();
        });
        if let Some(begun) = begun.take() {
            begun(Ok(()));
        }
    }

    /// Sets a limit that was asked for while the container was started with another.
    async fn catch_up(&self, sandbox: &Sandbox, started: &ContainerSpec) {
        let limit = self.started_now().options.memory_limit;
        if limit != started.options.memory_limit {
            // It may use more already, or have ended: then it has the limit from its next start on.
            let _later = sandbox.agent().limit_memory(&self.kept.id, limit).await;
        }
    }

    /// Takes the container's streams.
    pub(super) async fn connect(
        self: &Arc<Self>,
        streams: Streams,
    ) -> std::io::Result<JoinSet<std::io::Result<()>>> {
        let mut pumps = JoinSet::new();
        let Streams { stdin, stdout, stderr } = streams;
        if let Some(stream) = stdin {
            let (reads, writes) = registered(stream)?.into_split();
            *self.input.lock().await = Some(writes);
            if self.kept.container.process.terminal {
                pumps.spawn(Arc::clone(&self.output).pump(reads, Source::Output));
            }
        }
        for (stream, source) in [(stdout, Source::Output), (stderr, Source::Error)] {
            if let Some(stream) = stream {
                pumps.spawn(Arc::clone(&self.output).pump(registered(stream)?, source));
            }
        }
        Ok(pumps)
    }

    /// Waits for the rest of the output. A machine that has ended without a word says no more; a
    /// client that reads slowly is waited for until somebody asks for the end.
    pub(super) async fn drain(
        &self,
        mut pumps: JoinSet<std::io::Result<()>>,
        sandbox: &Sandbox,
        requests: &mut UnboundedReceiver<Request>,
    ) {
        let mut all = pin!(async { while pumps.join_next().await.is_some() {} });
        if self.output.has_client() && !self.is_stopped() {
            tokio::select! {
                biased;
                () = &mut all => return,
                () = self.stopped(requests) => {}
                () = sandbox.gone() => {}
            }
        }
        tokio::select! {
            biased;
            _ = tokio::time::timeout(LAST_OUTPUT, all) => {}
            () = sandbox.gone() => {}
        }
    }

    /// Waits until somebody asks for the end.
    pub(super) async fn stopped(&self, requests: &mut UnboundedReceiver<Request>) {
        match requests.recv().await {
            Some(Request::Stop { .. }) => self.change(|state| self.note_stop(state)),
            None => std::future::pending().await,
        }
    }

    /// Waits for the container's end, and sees to it when it is asked for. What is asked of the
    /// guest is not waited for.
    async fn attend(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        requests: &mut UnboundedReceiver<Request>,
    ) -> Ended {
        let id = ProcessId { container: &self.kept.id, exec: "" };
        let mut wait = pin!(sandbox.during(sandbox.agent().wait(id)));
        let mut patience: Option<Patience> = None;
        // Whether the guest took the SIGKILL.
        let mut kill_told: Option<JoinHandle<bool>> = None;
        loop {
            let impatient = async {
                match patience {
                    Some(Patience { until, killed }) => {
                        sleep_until(until).await;
                        killed
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                done = &mut wait => return match done {
                    Ok(done) => Ended { exit: exit_of(&done).into(), detail: String::new() },
                    Err(error) => failed(&sandbox.explain(error).await),
                },
                killed = impatient => {
                    if killed {
                        let code = Signal::KILL.exit_code();
                        let told = kill_told.take().filter(JoinHandle::is_finished);
                        if let Some(told) = told && told.await.unwrap_or(false) {
                            // The guest is in order: what was written is flushed as at any end.
                            return Ended::new(code, "killed", "a process did not end by SIGKILL in time");
                        }
                        sandbox.machine().kill();
                        return Ended::new(code, "killed", "the guest did not answer: its machine was killed");
                    }
                    kill_told = Some(self.tell(sandbox, Signal::KILL));
                    patience = Some(Patience { until: Instant::now() + self.kept.kill_patience, killed: true });
                }
                Some(Request::Stop { signal, grace }) = requests.recv() => {
                    self.change(|state| {
                        self.note_stop(state);
                        state.status = Status::Stopping;
                    });
                    let grace = grace.unwrap_or(self.kept.stop_grace);
                    if grace.is_zero() {
                        kill_told = Some(self.tell(sandbox, Signal::KILL));
                    } else {
                        // Its own expiry is the answer.
                        drop(self.tell(sandbox, signal.unwrap_or(self.kept.stop_signal)));
                    }
                    self.stop_containers(sandbox, signal, grace);
                    // A second wish may shorten the first one's patience, and never lengthens it.
                    let until = Instant::now() + if grace.is_zero() { self.kept.kill_patience } else { grace };
                    let wish = Patience { until, killed: grace.is_zero() };
                    patience = Some(patience.filter(|first| first.until < until).unwrap_or(wish));
                }
            }
        }
    }

    /// Sends a signal to the container, which may be in a pause, and waits for nothing. The task
    /// says whether the guest took it.
    fn tell(self: &Arc<Self>, sandbox: &Arc<Sandbox>, signal: Signal) -> JoinHandle<bool> {
        let (keeper, sandbox) = (Arc::clone(self), Arc::clone(sandbox));
        tokio::spawn(async move {
            let one = keeper.pausing.lock().await;
            // A machine that runs refuses to; one that is ending cannot. Both are told or gone.
            let _resumed = sandbox.resume().await;
            drop(one);
            let id = ProcessId { container: &keeper.kept.id, exec: "" };
            sandbox.agent().signal(id, signal.number().into()).await.is_ok()
        })
    }
}

fn killed() -> Ended {
    Ended::new(Signal::KILL.exit_code(), "killed", "it was stopped before its container ran")
}

pub(super) fn failed(error: &SandboxError) -> Ended {
    Ended::new(outcome::FAILED, "failed", text::chain(error))
}

fn not_started(failure: &StartFailure) -> Ended {
    let reason = match failure.code {
        outcome::NOT_FOUND => "not_found",
        outcome::NOT_EXECUTABLE => "not_executable",
        _ => "failed",
    };
    Ended::new(failure.code, reason, failure.message.clone())
}
