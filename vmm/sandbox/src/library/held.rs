//! A machine that this process holds, with one container.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use super::process::{Pipes, Process, Way, report};
use super::{EndReport, Error, Signal};
use crate::agent::ProcessId;
use crate::connect::ExecSpec;
use crate::instance::Sandbox as Running;
use crate::keep::execs::{attend, new_id, process};
use crate::life::exit_of;
use crate::spec::ProcessSpec;
use crate::state::Exit;

/// How long a process may take to end by SIGKILL.
const KILLED: Duration = Duration::from_secs(5);

/// How long a guest may take to power off.
const POWER_OFF: Duration = Duration::from_secs(5);

/// A machine and its container. Dropping it kills the machine, which waits for nobody.
pub(super) struct Held {
    pub(super) machine: Arc<Running>,
    /// The container.
    pub(super) id: String,
    /// Its first process.
    pub(super) first: ProcessSpec,
    /// What it is stopped with, if nobody says anything else.
    pub(super) signal: Signal,
    /// How long it may take to end by that.
    pub(super) grace: Duration,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.machine.machine().kill();
    }
}

impl Held {
    fn first_process(&self) -> ProcessId<'_> {
        ProcessId { container: &self.id, exec: "" }
    }

    pub(super) async fn wait(&self) -> Result<EndReport, Error> {
        match self.machine.during(self.machine.agent().wait(self.first_process())).await {
            Ok(done) => Ok(report(exit_of(&done))),
            Err(error) => Err(self.machine.explain(error).await.into()),
        }
    }

    pub(super) async fn kill(&self, signal: Signal) -> Result<(), Error> {
        let told = self.machine.agent().signal(self.first_process(), signal.number().into());
        Ok(self.machine.during(told).await?)
    }

    /// A guest that does not answer costs the grace and no more than [`KILLED`] and [`POWER_OFF`].
    pub(super) async fn stop(&self, grace: Option<Duration>) -> EndReport {
        let by = |signal| async move {
            // What cannot be told has ended, or does not answer: the wait says which.
            let _told = self.kill(signal).await;
            self.wait().await
        };
        let asked = tokio::time::timeout(grace.unwrap_or(self.grace), by(self.signal)).await;
        let ended = match asked {
            Ok(ended) => ended.ok(),
            Err(_) => tokio::time::timeout(KILLED, by(Signal::KILL)).await.ok().and_then(Result::ok),
        };
        self.machine.power_off(POWER_OFF).await;
        let killed = Exit { code: Signal::KILL.exit_code(), reason: "killed" };
        ended.unwrap_or_else(|| report(killed))
    }

    /// Starts a process. When the caller gives up it is hung up, started or not.
    pub(super) async fn exec(&self, spec: &ExecSpec) -> Result<Process, Error> {
        let process =
            process(&self.first, &spec.request()).map_err(|error| Error::invalid("exec")(error.into()))?;
        let id = new_id().map_err(Error::host("read random bytes"))?;
        let size = Some(spec.size).filter(|size| *size != (0, 0));
        let (alive, gone) = oneshot::channel();
        let (tell, exit) = watch::channel(None);
        let (started, streams) = oneshot::channel();
        let (machine, container, exec) = (Arc::clone(&self.machine), self.id.clone(), id.clone());
        let terminal = process.terminal;
        tokio::spawn(async move {
            let target = ProcessId { container: &container, exec: &exec };
            let began = machine.exec(target, &process, size).await;
            let runs = matches!(began, Ok(Ok(_)));
            // Of a caller that has given up, `gone` tells.
            let _told = started.send(began);
            if runs {
                let client = async {
                    // Nothing is ever sent: it is dropped.
                    let _dropped = gone.await;
                };
                tell.send_replace(Some(attend(&machine, target, client, async {}).await));
            }
        });
        let ended = || Error::host("start the process")(std::io::Error::other("the runtime ends"));
        let pipes = Pipes::new(streams.await.map_err(|_| ended())???, terminal)?;
        let (machine, container) = (Arc::clone(&self.machine), self.id.clone());
        Ok(Process::new(id, pipes, Way::Held { machine, container, exit, alive: Some(alive) }))
    }
}
