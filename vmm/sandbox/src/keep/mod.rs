//! The keeper of a sandbox: holds its machine for as long as it lives, says its state, takes its
//! output, starts it again where its policy wants it, and serves its clients.
//!
//! [`Keeper`] is what all of that shares. [`Keeper::run`] is the sandbox's life; [`sockets`] serves
//! clients beside it, and no client is waited for.

pub mod attach;
pub mod backoff;
mod boot;
pub mod containers;
pub mod execs;
pub mod foreground;
pub mod health;
mod life;
mod machine;
mod network;
pub mod offers;
pub mod output;
pub mod ring;
mod serve;
pub mod service;
mod session;
pub mod sockets;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use containers::Containers;
use execs::Execs;
use health::Health;
pub use life::{Begun, Start};
use nelly_protocol::MACHINE;
use nelly_vmm::config::MemorySize;
use offers::Offers;
use output::{Output, Sink};
pub use serve::serve;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use ttrpc::Code;

use crate::instance::Sandbox;
use crate::life::Signal;
use crate::spec::ContainerSpec;
use crate::state::record::{ExitRecord, RestartPolicy, SandboxState, Status};
use crate::state::{Change, Id, StateError, Timestamp};

/// Bytes of input that are moved at once.
const TYPED: usize = 64 << 10;

/// What a keeper needs to know of its sandbox.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The container's id, which is the sandbox's.
    pub id: String,
    /// The container.
    pub container: ContainerSpec,
    /// The signal that asks it to end.
    pub stop_signal: Signal,
    /// How long it may take for that.
    pub stop_grace: Duration,
    /// How long it may take to end by SIGKILL, before its machine is ended.
    pub kill_patience: Duration,
    /// When it is started again.
    pub restart: RestartPolicy,
    /// The memory of its machine, which bounds the container's.
    pub memory: MemorySize,
    /// First size of its terminal, rows and columns; the kernel's if there is none.
    pub size: Option<(u16, u16)>,
    /// Its streams are those of the process that holds it.
    pub foreground: bool,
    /// It is no container: its machine is one of `nelly boot`, whose serial port is its terminal.
    pub booted: bool,
}

/// How a sandbox ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Code and reason.
    pub exit: ExitRecord,
    /// A sentence, where code and reason alone do not tell.
    pub detail: String,
}

impl Ended {
    /// A code and a reason as in [`crate::state::Exit`], and a sentence.
    #[must_use]
    pub fn new(code: u8, reason: &str, detail: impl Into<String>) -> Self {
        Self { exit: ExitRecord { code, reason: reason.to_owned() }, detail: detail.into() }
    }
}

/// What is asked of a life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// An end in order, with this signal and grace, or the sandbox's own.
    Stop {
        /// The first signal.
        signal: Option<Signal>,
        /// The time until SIGKILL.
        grace: Option<Duration>,
    },
}

/// Writes what is to outlive the keeper.
pub struct Books {
    /// Called at each change of the state.
    pub state: Box<dyn Fn(&SandboxState) + Send + Sync>,
    /// Called with a change of the record. It may wait, and is called on a thread of its own.
    pub change: Box<dyn Fn(Change) -> std::io::Result<()> + Send + Sync>,
    /// Called for the log of a further container.
    pub log: Box<dyn Fn(Id) -> Result<Sink, StateError> + Send + Sync>,
    /// Called when a further container is not listed any more: its log goes, too.
    pub forget: Box<dyn Fn(Id) + Send + Sync>,
}

/// One sandbox that is kept.
pub struct Keeper {
    kept: Kept,
    books: Books,
    state: watch::Sender<SandboxState>,
    policy: watch::Sender<RestartPolicy>,
    /// Limit of the container's memory in bytes.
    memory_limit: Mutex<Option<u64>>,
    /// The end for good.
    over: watch::Sender<Option<Ended>>,
    /// While the container runs.
    sandbox: Mutex<Option<Arc<Sandbox>>>,
    /// Where attachments write; none when the container has no input.
    input: attach::Input,
    /// Clients that are attached to the container.
    clients: attach::Clients,
    output: Arc<Output>,
    offers: Offers,
    execs: Execs,
    health: Health,
    containers: Containers,
    requests: UnboundedSender<Request>,
    /// The keeper itself was told to end, as by a host that shuts down: no policy starts the
    /// sandbox again now, and it is not as if a user had stopped it.
    leaving: AtomicBool,
    /// One pause or resume at a time.
    pausing: tokio::sync::Mutex<()>,
    /// One change of the record at a time, so that the last one holds.
    updating: tokio::sync::Mutex<()>,
}

impl Keeper {
    /// A keeper of what is not started yet, and what will be asked of it.
    #[must_use]
    pub fn new(
        kept: Kept,
        state: SandboxState,
        books: Books,
        output: Arc<Output>,
    ) -> (Arc<Self>, UnboundedReceiver<Request>) {
        let (requests, asked) = unbounded_channel();
        let keeper = Self {
            policy: watch::Sender::new(kept.restart),
            memory_limit: Mutex::new(kept.container.options.memory_limit),
            kept,
            books,
            state: watch::Sender::new(state),
            over: watch::Sender::new(None),
            sandbox: Mutex::new(None),
            input: attach::Input::default(),
            clients: attach::Clients::default(),
            output,
            offers: Offers::default(),
            execs: Execs::default(),
            health: Health::default(),
            containers: Containers::default(),
            requests,
            leaving: AtomicBool::new(false),
            pausing: tokio::sync::Mutex::new(()),
            updating: tokio::sync::Mutex::new(()),
        };
        (Arc::new(keeper), asked)
    }

    /// The sandbox's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.kept.id
    }

    /// The id by which the guest's agent knows the container, or the machine as a whole.
    fn id_in_guest(&self) -> &str {
        if self.kept.booted { MACHINE } else { &self.kept.id }
    }

    /// Makes a change that was checked: of the container that runs, then of the record.
    async fn make(self: &Arc<Self>, change: Change) -> ttrpc::Result<()> {
        // Writing may wait for a lock, which must not hold up the sandbox's other clients.
        let _one = self.updating.lock().await;
        if let Some(limit) = change.memory_limit {
            let sandbox = self.sandbox().clone();
            if let Some(sandbox) = sandbox {
                let limited = sandbox.agent().limit_memory(self.id_in_guest(), limit).await;
                limited.map_err(|error| service::refused(&error.into()))?;
            }
        }
        let keeper = Arc::clone(self);
        let written = tokio::task::spawn_blocking(move || (keeper.books.change)(change)).await;
        written.unwrap_or_else(|error| Err(std::io::Error::other(error))).map_err(|error| {
            service::status(Code::INTERNAL, format!("cannot write the sandbox's record: {error}"))
        })?;
        if let Some(limit) = change.memory_limit {
            *self.memory_limit.lock().expect("nobody panics while it is set") = limit;
        }
        if let Some(policy) = change.restart {
            self.policy.send_replace(policy);
        }
        Ok(())
    }

    /// The container as it is started now.
    fn started_now(&self) -> ContainerSpec {
        let mut container = self.kept.container.clone();
        container.options.memory_limit = *self.memory_limit.lock().expect("nobody panics while it is set");
        container
    }

    /// Asks for an end in order, as `nelly stop` does.
    pub fn stop(&self, signal: Option<Signal>, grace: Option<Duration>) {
        // A life that is over has ended already.
        let _over = self.requests.send(Request::Stop { signal, grace });
    }

    /// Copies what is typed into the container's input, until its end, which is that of the input,
    /// too, if `closes`: as far as a pipe is concerned, whoever has typed is gone.
    async fn type_in(self: Arc<Self>, mut typed: OwnedReadHalf, closes: bool) {
        let mut buffer = vec![0; TYPED];
        while let Ok(count @ 1..) = typed.read(&mut buffer).await {
            if let Some(input) = self.input.lock().await.as_mut()
                && input.write_all(&buffer[..count]).await.is_err()
            {
                // The container reads no more.
                return;
            }
        }
        if closes && let Some(input) = self.input.lock().await.as_mut() {
            // It may be closed already.
            let _closed = input.shutdown().await;
        }
    }

    /// Ends the sandbox in order, because this process is told to end.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
        self.stop(None, None);
    }

    /// Notes that an end was asked for, in the state that is about to be written.
    fn note_stop(&self, state: &mut SandboxState) {
        state.stopped_by_command |= !self.leaving.load(Ordering::Relaxed);
    }

    /// Whether an end was asked for.
    fn is_stopped(&self) -> bool {
        self.leaving.load(Ordering::Relaxed) || self.state.borrow().stopped_by_command
    }

    /// The end for good: written down, and told to whoever waits for it.
    fn end(&self, ended: &Ended) {
        self.output.finish();
        self.change(|state| {
            state.exit = Some(ended.exit.clone());
            state.detail.clone_from(&ended.detail);
            state.finished_at = Some(Timestamp::now());
            state.status = Status::Exited;
            state.holder = None;
            // Where the sockets are stands there until they are removed: whoever finds this process
            // killed knows what to remove.
        });
        self.over.send_replace(Some(ended.clone()));
    }

    /// Waits until the sandbox has ended for good.
    pub async fn ended(&self) -> Ended {
        let mut over = self.over.subscribe();
        let ended = over.wait_for(Option::is_some).await.ok().and_then(|ended| ended.clone());
        ended.expect("the sender is ours, and the value is there")
    }

    /// The state as it was last written.
    #[must_use]
    pub fn state(&self) -> SandboxState {
        self.state.borrow().clone()
    }

    /// Changes the state, and writes it.
    pub fn change(&self, change: impl FnOnce(&mut SandboxState)) {
        self.state.send_modify(change);
        self.write();
    }

    /// Writes the state.
    fn write(&self) {
        (self.books.state)(&self.state.borrow());
    }

    fn set_status(&self, status: Status) {
        self.change(|state| state.status = status);
    }

    fn offers(&self) -> &Offers {
        &self.offers
    }

    fn execs(&self) -> &Execs {
        &self.execs
    }

    fn sandbox(&self) -> MutexGuard<'_, Option<Arc<Sandbox>>> {
        self.sandbox.lock().expect("nobody panics while the sandbox is set")
    }
}

#[cfg(test)]
mod tests;
