//! Further containers in the sandbox's machine. Each has an image of its own on a disk that is
//! attached while the machine runs, and shares network and IPC with the first container. What it
//! writes is in the guest's memory, and is forgotten with it.

mod run;
pub(super) mod wire;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

pub use run::{RunError, Started, Wanted, run};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::{Keeper, Request};
use crate::agent::ProcessId;
use crate::instance::Sandbox;
use crate::life::Signal;
use crate::spec::ProcessSpec;
use crate::state::record::{ContainerRecord, Status};
use crate::state::{Exit, Id, Name, Timestamp};

/// Most containers that have ended and are still listed.
const ENDED_MOST: usize = 32;

/// What is known of a container beside its record.
struct Known {
    process: ProcessSpec,
    exit: watch::Receiver<Option<Exit>>,
}

/// The further containers of a sandbox.
pub struct Containers {
    known: Mutex<BTreeMap<Id, Known>>,
    /// How many run or are being started.
    running: watch::Sender<usize>,
    /// When those that have not ended by then are ended with their machine, once an end was asked
    /// for.
    until: Mutex<Option<Instant>>,
}

impl Default for Containers {
    fn default() -> Self {
        let running = watch::Sender::new(0);
        Self { known: Mutex::default(), running, until: Mutex::default() }
    }
}

/// Counts a container as running until it is dropped.
struct Counted(Arc<Keeper>);

impl Counted {
    fn new(keeper: &Arc<Keeper>) -> Self {
        keeper.containers.running.send_modify(|running| *running += 1);
        Self(Arc::clone(keeper))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.containers.running.send_modify(|running| *running -= 1);
    }
}

impl Containers {
    fn known(&self) -> MutexGuard<'_, BTreeMap<Id, Known>> {
        self.known.lock().expect("nobody panics while a container is added or removed")
    }

    /// The first process of a container, as it was asked for.
    #[must_use]
    pub fn process(&self, id: Id) -> Option<ProcessSpec> {
        self.known().get(&id).map(|known| known.process.clone())
    }

    /// Where the result of a container will be.
    #[must_use]
    pub fn result(&self, id: Id) -> Option<watch::Receiver<Option<Exit>>> {
        self.known().get(&id).map(|known| known.exit.clone())
    }

    /// Sets how long the containers may take to end. A later wish may shorten it, and never
    /// lengthens it.
    pub(super) fn end_by(&self, until: Instant) {
        let mut wish = self.until.lock().expect("nobody panics while it is set");
        *wish = Some(wish.filter(|first| *first < until).unwrap_or(until));
    }

    fn until(&self) -> Option<Instant> {
        *self.until.lock().expect("nobody panics while it is set")
    }
}

impl Keeper {
    /// The further container that a client means, see [`SandboxState::container`].
    #[must_use]
    pub fn container(&self, word: &str) -> Option<Id> {
        self.state.borrow().container(word).map(|one| one.id)
    }

    /// Forgets the containers of an earlier start.
    pub(super) fn forget_containers(&self) {
        let forgotten: Vec<Id> = self.state.borrow().containers.iter().map(|one| one.id).collect();
        if !forgotten.is_empty() {
            self.change(|state| state.containers.clear());
            forgotten.into_iter().for_each(|id| (self.books.forget)(id));
        }
        self.containers.known().clear();
        *self.containers.until.lock().expect("nobody panics while it is set") = None;
    }

    /// Sends a signal to every further container, and waits for nothing.
    pub(super) fn tell_containers(self: &Arc<Self>, sandbox: &Arc<Sandbox>, signal: Signal) {
        let running = self.state().containers.into_iter().filter(|one| one.status == Status::Running);
        for one in running {
            let (keeper, sandbox) = (Arc::clone(self), Arc::clone(sandbox));
            tokio::spawn(async move {
                // A paused machine is resumed by whoever tells the first container.
                drop(keeper.pausing.lock().await);
                let id = one.id.to_string();
                let id = ProcessId { container: &id, exec: "" };
                // What has just ended cannot be told.
                let _told = sandbox.agent().signal(id, signal.number().into()).await;
            });
        }
    }

    /// Waits until no further container runs, or for as long as was asked for.
    pub(super) async fn last_container(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        requests: &mut UnboundedReceiver<Request>,
    ) {
        let mut running = self.containers.running.subscribe();
        loop {
            let until = self.containers.until();
            let impatient = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = running.wait_for(|running| *running == 0) => return,
                () = impatient => return,
                Some(Request::Stop { signal, grace }) = requests.recv() => {
                    self.change(|state| {
                        self.note_stop(state);
                        state.status = Status::Stopping;
                    });
                    self.stop_containers(sandbox, signal, grace.unwrap_or(self.kept.stop_grace));
                }
            }
        }
    }

    /// Asks every further container to end within `grace`.
    pub(super) fn stop_containers(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        signal: Option<Signal>,
        grace: Duration,
    ) {
        let signal = if grace.is_zero() { Signal::KILL } else { signal.unwrap_or(Signal::TERM) };
        self.containers.end_by(Instant::now() + grace);
        self.tell_containers(sandbox, signal);
    }

    /// Changes what is written of a container.
    fn change_container(&self, id: Id, change: impl FnOnce(&mut ContainerRecord)) {
        self.change(|state| {
            if let Some(one) = state.containers.iter_mut().find(|one| one.id == id) {
                change(one);
            }
        });
    }

    /// Adds the record of a container that is being started, so that its name is taken and its
    /// image in use.
    fn add_container(&self, wanted: &Wanted) -> Result<(Id, Name), RunError> {
        let id = Id::random().map_err(run::host("cannot create a random id"))?;
        let name = wanted.name.clone().unwrap_or_else(|| id.name());
        let record = ContainerRecord {
            id,
            name: name.clone(),
            image: wanted.image.clone(),
            args: wanted.container.process.args.clone(),
            status: Status::Starting,
            created: Timestamp::now(),
            finished_at: None,
            exit: None,
            detail: String::new(),
        };
        let mut taken = false;
        let mut forgotten = Vec::new();
        self.change(|state| {
            let lives = |one: &ContainerRecord| one.status != Status::Exited;
            taken = state.containers.iter().any(|one| one.name == name && lives(one));
            if taken {
                return;
            }
            while state.containers.iter().filter(|one| !lives(one)).count() >= ENDED_MOST {
                let Some(oldest) = state.containers.iter().position(|one| !lives(one)) else { break };
                forgotten.push(state.containers.remove(oldest).id);
            }
            state.containers.push(record);
        });
        self.containers.known().retain(|id, _| !forgotten.contains(id));
        forgotten.into_iter().for_each(|id| (self.books.forget)(id));
        if taken { Err(RunError::NameTaken(name)) } else { Ok((id, name)) }
    }
}
