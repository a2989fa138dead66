//! A sandbox whose container is in the foreground of another process, `nelly run --rm`: listed and
//! served as one that a keeper holds, while its container runs, and removed at its end.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use super::output::Output;
use super::serve::{Serving, books};
use super::{Ended, Keeper, Kept, Request, network};
use crate::instance::Sandbox;
use crate::life::{ProcessRequest, Signal};
use crate::state::record::{SandboxState, Status};
use crate::state::{SandboxDir, SandboxLock, SandboxRecord, Sandboxes, StateError, Timestamp};
use crate::wire::holder;

/// How long a container runs before its sandbox is listed: the start of one that ends at once
/// costs nothing.
const AFTER: Duration = Duration::from_millis(100);

/// Finds a directory or an address by the name of an environment variable.
pub type Environment = fn(&str) -> Option<PathBuf>;

/// The listing of a sandbox in the foreground.
#[derive(Debug)]
pub struct Foreground {
    tell: oneshot::Sender<Ended>,
    listing: JoinHandle<Result<(), StateError>>,
}

impl Foreground {
    /// Lists `sandbox`, whose container has just started, in the state directory `sandboxes`, a
    /// moment later. Whoever stops it meanwhile asks through `asked`.
    #[must_use]
    pub fn begin(
        sandbox: &Arc<Sandbox>,
        record: SandboxRecord,
        sandboxes: PathBuf,
        environment: Environment,
        asked: UnboundedSender<ProcessRequest>,
    ) -> Self {
        let (tell, told) = oneshot::channel();
        let sandbox = Arc::clone(sandbox);
        let started = Timestamp::now();
        let listing = tokio::spawn(async move {
            let mut told = told;
            let listed = tokio::select! {
                () = sleep(AFTER) => Listed::make(sandbox, record, started, sandboxes, environment).await?,
                _ended = &mut told => return Ok(()),
            };
            listed.attend(told, &asked).await
        });
        Self { tell, listing }
    }

    /// Tells whoever waits for the sandbox how it ended, and removes it.
    ///
    /// # Errors
    /// It could not be listed, or something of it cannot be removed; it is not listed any more.
    pub async fn end(self, ended: Ended) -> Result<(), StateError> {
        // One that could not be listed listens no more.
        let _gone = self.tell.send(ended);
        self.listing.await.expect("the listing does not panic and is not cancelled")
    }
}

/// A sandbox that is listed and served.
struct Listed {
    keeper: Arc<Keeper>,
    requests: UnboundedReceiver<Request>,
    serving: Serving,
    sandboxes: Sandboxes,
    shared: Arc<(SandboxDir, SandboxLock)>,
}

impl Listed {
    async fn make(
        sandbox: Arc<Sandbox>,
        record: SandboxRecord,
        started: Timestamp,
        path: PathBuf,
        environment: Environment,
    ) -> Result<Self, StateError> {
        let kept = Kept {
            id: record.id.to_string(),
            container: record.container.clone(),
            stop_signal: Signal::new(record.stop_signal).unwrap_or(Signal::TERM),
            stop_grace: Duration::from_millis(record.stop_grace_ms),
            kill_patience: Duration::ZERO,
            restart: record.restart,
            memory: record.machine.memory_bytes,
            size: None,
            foreground: true,
            booted: false,
        };
        let state = SandboxState {
            status: Status::Running,
            holder: holder::own().ok(),
            monitor: sandbox.machine().process_id().and_then(|pid| holder::of(pid).ok()),
            started_at: Some(started),
            foreground: true,
            network: network::state(&sandbox),
            ..SandboxState::created()
        };
        let (id, first, place) = (record.id, state.clone(), path.clone());
        // Locks and disks may keep one waiting, which must not hold up the container's streams.
        let made = tokio::task::spawn_blocking(move || {
            let sandboxes = Sandboxes::make(&path)?;
            let draft = sandboxes.draft(record)?;
            draft.write_state(&first)?;
            let shared = Arc::new(draft.publish()?);
            Ok::<_, StateError>((sandboxes, shared))
        });
        let (sandboxes, shared) = made.await.expect("making directories does not panic")?;
        let books = books(&place, &shared);
        let (keeper, requests) = Keeper::new(kept, state, books, Output::new(Box::new(|_, _| {})));
        *keeper.sandbox() = Some(sandbox);
        match Serving::begin(&keeper, id, environment).await {
            Ok(serving) => Ok(Self { keeper, requests, serving, sandboxes, shared }),
            Err(error) => {
                drop(keeper);
                remove(&sandboxes, shared)?;
                Err(error)
            }
        }
    }

    /// Serves it until it has ended, and removes it.
    async fn attend(
        mut self,
        mut told: oneshot::Receiver<Ended>,
        asked: &UnboundedSender<ProcessRequest>,
    ) -> Result<(), StateError> {
        let mut kill_at: Option<Instant> = None;
        let watched = self.keeper.sandbox().clone().and_then(|sandbox| self.keeper.watch_network(&sandbox));
        let ended = loop {
            let late: Pin<Box<dyn Future<Output = ()> + Send>> = match kill_at {
                Some(at) => Box::pin(sleep_until(at)),
                None => Box::pin(std::future::pending()),
            };
            tokio::select! {
                biased;
                ended = &mut told => break ended,
                () = late => {
                    kill_at = None;
                    // Whoever runs it has ended, or ends it.
                    let _ending = asked.send(ProcessRequest::Kill(Signal::KILL));
                }
                Some(Request::Stop { signal, grace }) = self.requests.recv() => {
                    let grace = grace.unwrap_or(self.keeper.kept.stop_grace);
                    self.stop(signal, grace, asked).await;
                    let until = Instant::now() + grace;
                    kill_at = Some(kill_at.map_or(until, |first| first.min(until)));
                }
            }
        };
        drop(watched);
        let Self { keeper, serving, sandboxes, shared, .. } = self;
        // Whoever runs it is about to end in a way of its own.
        let ended = ended.unwrap_or_else(|_| Ended::new(125, "failed", "its process gave it up"));
        *keeper.sandbox() = None;
        keeper.end(&ended);
        serving.close(keeper, false).await?;
        remove(&sandboxes, shared)
    }

    /// Asks the container to end. A machine that is paused runs on for that.
    async fn stop(&self, signal: Option<Signal>, grace: Duration, asked: &UnboundedSender<ProcessRequest>) {
        self.keeper.change(|state| {
            self.keeper.note_stop(state);
            state.status = Status::Stopping;
        });
        if grace.is_zero() {
            return;
        }
        let sandbox = self.keeper.sandbox().clone();
        if let Some(sandbox) = sandbox {
            let _one = self.keeper.pausing.lock().await;
            // One that runs refuses to.
            let _resumed = sandbox.resume().await;
        }
        let signal = signal.unwrap_or(self.keeper.kept.stop_signal);
        let _ending = asked.send(ProcessRequest::Signal(signal));
    }
}

fn remove(sandboxes: &Sandboxes, shared: Arc<(SandboxDir, SandboxLock)>) -> Result<(), StateError> {
    match Arc::into_inner(shared) {
        Some((directory, lock)) => sandboxes.remove(&directory, lock),
        // A call that still writes holds it: the next command removes what this one leaves.
        None => Ok(()),
    }
}
