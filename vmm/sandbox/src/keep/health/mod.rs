//! The health check of the container: a probe, a wait, and the next one, for as long as it runs.
//! A container without a check costs nothing.

mod judge;
mod probe;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

pub use judge::{Judge, Probed};
use nelly_protocol::sandbox::messages as wire;
use probe::Probe;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::{Keeper, execs};
use crate::instance::Sandbox;
use crate::spec::{HealthCheck, ProcessSpec};
use crate::state::Timestamp;
use crate::state::record::{HealthRecord, SandboxState, Status};

/// Least time from one write of the status to the next. Each is a sync of the host's disk, and how
/// often the status changes, the container decides.
const WRITE_LEAST: Duration = Duration::from_secs(1);

/// What is known of the container's health since its start; nothing while it does not run, or has
/// no health check.
#[derive(Debug, Default)]
pub struct Health(Mutex<Option<Judge>>);

impl Health {
    fn judge(&self) -> MutexGuard<'_, Option<Judge>> {
        self.0.lock().expect("nobody panics while a result is added")
    }

    /// Status and number of failures, for clients: an empty word if there is no check.
    #[must_use]
    pub fn told(&self) -> (String, u32) {
        let judge = self.judge();
        judge
            .as_ref()
            .map_or_else(Default::default, |judge| (judge.status().word().to_owned(), judge.failures()))
    }

    /// All of it, for clients.
    #[must_use]
    pub fn response(&self) -> wire::HealthResponse {
        let judge = self.judge();
        let Some(judge) = judge.as_ref() else { return wire::HealthResponse::default() };
        let result = |probed: &Probed| wire::HealthResult {
            started_unix_ns: probed.started.unix_ns(),
            ended_unix_ns: probed.ended.unix_ns(),
            code: probed.code.map(u32::from),
            output: probed.output.clone(),
            ..Default::default()
        };
        wire::HealthResponse {
            health: judge.status().word().to_owned(),
            failures: judge.failures(),
            results: judge.results().map(result).collect(),
            ..Default::default()
        }
    }
}

/// The probes of a container that runs. Dropping it ends them.
pub(super) struct Watched(JoinHandle<()>);

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Waits until the container runs and its machine is not paused, or until that is not so.
async fn until_runs(state: &mut watch::Receiver<SandboxState>, runs: bool) {
    // Whoever waits holds the sender.
    drop(state.wait_for(|state| (state.status == Status::Running) == runs).await);
}

impl Keeper {
    /// The health with which a container starts, if it has a check.
    pub(super) fn first_health(&self) -> Option<HealthRecord> {
        let judge = self.kept.container.options.health.clone().map(Judge::new);
        let first = judge.as_ref().map(|judge| HealthRecord::now(judge.status()));
        *self.health.judge() = judge;
        first
    }

    /// Runs the probes of the container that has just started, if it has a check.
    pub(super) fn watch_health(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Option<Watched> {
        let check = self.kept.container.options.health.clone()?;
        let (keeper, sandbox) = (Arc::clone(self), Arc::clone(sandbox));
        Some(Watched(tokio::spawn(watch(keeper, sandbox, check))))
    }

    /// Forgets the health of a container that has ended.
    pub(super) fn forget_health(&self) {
        *self.health.judge() = None;
    }

    /// Waits until the next probe is due. After a pause the wait begins anew.
    async fn next_probe(&self, state: &mut watch::Receiver<SandboxState>, began: Instant) {
        loop {
            until_runs(state, true).await;
            let wait = self.health.judge().as_ref().map(|judge| judge.wait(began.elapsed()));
            tokio::select! {
                biased;
                () = until_runs(state, false) => {}
                () = sleep(wait.unwrap_or_default()), if wait.is_some() => return,
            }
        }
    }

    /// Takes the result of a probe; `changed` is told when the status is another now.
    fn take_health(&self, probed: Probed, since_start: Duration, changed: &Notify) {
        let new = self.health.judge().as_mut().and_then(|judge| judge.take(probed, since_start));
        if let Some(status) = new {
            self.state.send_modify(|state| state.health = Some(HealthRecord::now(status)));
            changed.notify_one();
        }
    }

    /// Writes the status down: at its first change at once, at those that follow the latest.
    async fn write_health(&self, changed: &Notify) {
        loop {
            changed.notified().await;
            self.write();
            sleep(WRITE_LEAST).await;
        }
    }
}

/// The process of a probe: that of an exec which asks for nothing.
fn process(first: &ProcessSpec, check: &HealthCheck) -> Result<ProcessSpec, String> {
    let request = wire::ExecRequest { args: check.command.clone(), ..Default::default() };
    execs::process(first, &request).map_err(|error| error.to_string())
}

async fn watch(keeper: Arc<Keeper>, sandbox: Arc<Sandbox>, check: HealthCheck) {
    let changed = Notify::new();
    tokio::select! {
        () = probes(&keeper, &sandbox, &check, &changed) => {}
        () = keeper.write_health(&changed) => {}
    }
}

async fn probes(keeper: &Arc<Keeper>, sandbox: &Arc<Sandbox>, check: &HealthCheck, changed: &Notify) {
    let began = Instant::now();
    let mut state = keeper.state.subscribe();
    let process = process(&keeper.kept.container.process, check);
    // One that was killed, and has not ended: there is never a second one beside it.
    let mut left: Option<Probe> = None;
    for number in 1_u64.. {
        keeper.next_probe(&mut state, began).await;
        let (since_start, started) = (began.elapsed(), Timestamp::now());
        let ended = match (&process, left.take_if(|probe| probe.has_ended()), &left) {
            (Err(error), ..) => Some((None, error.clone().into_bytes())),
            (Ok(_), _, Some(_)) => Some((None, b"the probe before has not ended by SIGKILL".to_vec())),
            (Ok(process), _, None) => {
                let exec = format!("health-{number}");
                let mut probe = Probe::start(sandbox, keeper.id(), exec, process.clone());
                let ended = probe.result(&mut state, check.timeout()).await;
                left = Some(probe).filter(|probe| !probe.has_ended());
                ended
            }
        };
        if let Some((code, output)) = ended {
            let probed = Probed { started, ended: Timestamp::now(), code, output };
            keeper.take_health(probed, since_start, changed);
        }
    }
}
