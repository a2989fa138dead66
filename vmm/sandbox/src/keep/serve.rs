//! The work of the program `nelly-keeper`, from its order to its end.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nelly_image::trusted::TrustedDir;
use serde::Serialize;
use tokio::io::AsyncReadExt;
use tokio::net::unix::OwnedReadHalf;
use tokio::task::JoinHandle;

use super::output::{Client, Output, Sink, registered};
use super::sockets::{Open, Sockets, Watch};
use super::{Books, Ended, Keeper, Kept, machine};
use crate::life::Signal;
use crate::state::logs::{DEFAULT_CAP_BYTES, LogWriter, Stream};
use crate::state::record::{SandboxState, Status};
use crate::state::runtime::RuntimeDir;
use crate::state::{Change, Id, SandboxDir, SandboxLock, SandboxRecord, Sandboxes, StateError, Timestamp};
use crate::wire::frames::Source;
use crate::wire::holder;
use crate::wire::order::{Answer, ClientEnds, Files, Last, Order};

/// How long a guest may take to end what was killed in it, before its machine is ended.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// How long clients that are connected at the end may take to read their answers.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// How often it is looked whether they have.
const LOOK: Duration = Duration::from_millis(5);

/// How long making sockets waits after it failed, or after they vanished.
const SOCKETS_AGAIN: Duration = Duration::from_millis(200);

/// Keeps the sandbox of `order` until it has ended for good. `client` waits for the answer to the
/// first start; `environment` says where sockets go. What comes through `stops` asks for an orderly
/// end.
///
/// # Errors
/// The sandbox's files cannot be used. The client was told.
pub async fn serve(
    order: Order,
    files: Files,
    client: UnixStream,
    environment: impl Fn(&str) -> Option<PathBuf> + Copy + Send + Sync + 'static,
    mut stops: tokio::sync::mpsc::UnboundedReceiver<()>,
) -> Result<(), StateError> {
    let tell = match client.try_clone() {
        Ok(tell) => tell,
        Err(source) => return Err(StateError::Io { action: "use", path: order.sandboxes, source }),
    };
    let held = match Held::open(&order, files) {
        Ok(held) => held,
        Err(error) => {
            answer(&tell, 125, nelly_vmm::text::chain(&error));
            return Err(error);
        }
    };
    let Held { sandboxes, directory, lock, record, files, log, client: (typed, told) } = held;
    if files.secrets.any()
        && let Err(source) = crate::sys::hide()
    {
        let error = StateError::Io { action: "hide the values of secrets of", path: order.sandboxes, source };
        answer(&tell, 125, nelly_vmm::text::chain(&error));
        return Err(error);
    }
    let shared = Arc::new((directory, lock));
    let books = books(&order.sandboxes, &shared);
    let kept = Kept {
        id: record.id.to_string(),
        container: record.container.clone(),
        stop_signal: Signal::new(record.stop_signal).unwrap_or(Signal::TERM),
        stop_grace: Duration::from_millis(record.stop_grace_ms),
        kill_patience: KILL_PATIENCE,
        restart: record.restart,
        memory: record.machine.memory_bytes,
        size: order.size,
        foreground: false,
        booted: record.boot.is_some(),
    };
    let (id, auto_remove, terminal) = (record.id, record.auto_remove, record.container.process.terminal);
    let before = shared.0.state().unwrap_or_else(|_damaged| SandboxState::created());
    let state =
        SandboxState { status: Status::Starting, holder: holder::own().ok(), ..SandboxState::created() };
    let (keeper, mut requests) = Keeper::new(kept, state, books, Output::with_client(log, told));
    // Before anything starts: a sandbox that nobody can reach is none.
    let serving = match Serving::begin(&keeper, id, environment).await {
        Ok(serving) => serving,
        Err(error) => {
            let why = nelly_vmm::text::chain(&error);
            // It is what it was.
            let _kept = shared.0.write_state(&shared.1, &before);
            answer(&tell, 125, format!("the sockets of the sandbox cannot be made: {why}"));
            drop(keeper);
            if auto_remove && let Some((directory, lock)) = Arc::into_inner(shared) {
                sandboxes.remove(&directory, lock)?;
            }
            return Err(error);
        }
    };
    // Those of a keeper that was killed, where it had another environment.
    if let Some(old) = before.runtime_dir.filter(|old| Some(old) != keeper.state().runtime_dir.as_ref()) {
        let _kept = RuntimeDir::clean(&old, id);
    }
    let leaving = tokio::spawn(client_leaves(Arc::clone(&keeper), client));
    let stopping = {
        let keeper = Arc::clone(&keeper);
        tokio::spawn(async move {
            while stops.recv().await.is_some() {
                keeper.leave();
            }
        })
    };
    let leaves = leaving.abort_handle();
    let begun = |begun: super::Begun| {
        // From here on it lives without whoever started it.
        leaves.abort();
        match begun {
            Ok(()) => {
                answer(&tell, 0, String::new());
                if let Some(typed) = typed {
                    tokio::spawn(Arc::clone(&keeper).type_in(typed, !terminal));
                }
            }
            Err((code, message)) => answer(&tell, code, message),
        }
    };
    // Beside the sandboxes.
    let networks = order.sandboxes.with_file_name("networks");
    let start = machine::start(record, (files.machine, files.secrets), networks, environment);
    let ended = keeper.run(&start, &mut requests, begun).await;
    if order.client.any() {
        let Ended { exit, detail } = ended;
        say(&tell, &Last { code: exit.code, reason: exit.reason, detail });
    }
    stopping.abort();
    drop(start);
    let removed = serving.close(keeper, !auto_remove).await;
    if auto_remove && let Some((directory, lock)) = Arc::into_inner(shared) {
        sandboxes.remove(&directory, lock)?;
    }
    removed
}

/// What an order stands for, opened.
struct Held {
    sandboxes: Sandboxes,
    directory: SandboxDir,
    lock: SandboxLock,
    record: SandboxRecord,
    files: Files,
    log: Sink,
    /// What the client types, and where it reads.
    client: (Option<OwnedReadHalf>, Client),
}

impl Held {
    fn open(order: &Order, mut files: Files) -> Result<Self, StateError> {
        let missing = || StateError::Missing { word: order.id.short() };
        let sandboxes = Sandboxes::open(&order.sandboxes)?.ok_or_else(missing)?;
        let directory = sandboxes.by_id(order.id)?.ok_or_else(missing)?;
        let lock = files.lock.take().ok_or(StateError::Busy { id: order.id })?;
        let lock = directory.adopt(lock)?;
        let record = directory.record()?;
        let log = log(directory.logs()?)?;
        let terminal = record.container.process.terminal;
        let unusable = |source| StateError::Io {
            action: "use the client's streams for",
            path: directory.dir().path().to_owned(),
            source,
        };
        let client = streams(std::mem::take(&mut files.client), terminal).map_err(unusable)?;
        Ok(Self { sandboxes, directory, lock, record, files, log, client })
    }
}

/// Where a container's output is written down.
fn log(directory: TrustedDir) -> Result<Sink, StateError> {
    let mut log = LogWriter::open(directory, DEFAULT_CAP_BYTES, Timestamp::now())?;
    Ok(Box::new(move |source, piece| {
        let stream = match source {
            Source::Output => Stream::Stdout,
            Source::Error => Stream::Stderr,
        };
        match piece {
            [] => log.finish(stream, Timestamp::now()),
            piece => log.write(stream, piece, Timestamp::now()),
        }
    }))
}

pub(super) fn books(sandboxes: &std::path::Path, shared: &Arc<(SandboxDir, SandboxLock)>) -> Books {
    let path = sandboxes.to_owned();
    let (states, id) = (Arc::downgrade(shared), shared.0.id());
    let change = move |change: Change| {
        // It may wait, and holds nothing that the keeper's end waits for.
        let sandboxes = Sandboxes::open(&path).map_err(io::Error::other)?;
        let sandboxes = sandboxes.ok_or_else(|| io::Error::other("the state directory is gone"))?;
        let gone = || io::Error::other("the sandbox was removed");
        let directory = sandboxes.by_id(id).map_err(io::Error::other)?.ok_or_else(gone)?;
        sandboxes.update(&directory, |record| change.apply(record)).map_err(io::Error::other)?;
        Ok(())
    };
    let state = move |state: &SandboxState| {
        if let Some(shared) = states.upgrade() {
            let (directory, lock) = &*shared;
            // A full disk keeps the old one: without its lock that is an unclean end, which it is.
            let _kept = directory.write_state(lock, state);
        }
    };
    let directories = Arc::downgrade(shared);
    let log = move |id: Id| {
        let gone = || StateError::Missing { word: id.short() };
        let shared = directories.upgrade().ok_or_else(gone)?;
        log(shared.0.container_logs(id)?)
    };
    let directories = Arc::downgrade(shared);
    let forget = move |id: Id| {
        if let Some(shared) = directories.upgrade() {
            // What stays behind goes with the sandbox.
            let _left = shared.0.remove_container_logs(id);
        }
    };
    Books { state: Box::new(state), change: Box::new(change), log: Box::new(log), forget: Box::new(forget) }
}

/// The sockets of a sandbox, which are made anew when they vanish.
pub(super) struct Serving {
    id: Id,
    open: Open,
    /// Where they are.
    place: Arc<Mutex<Option<PathBuf>>>,
    sockets: JoinHandle<()>,
}

impl Serving {
    /// Makes them, and writes down where they are; `environment` says where they go.
    ///
    /// # Errors
    /// They cannot be made.
    pub(super) async fn begin<E>(keeper: &Arc<Keeper>, id: Id, environment: E) -> Result<Self, StateError>
    where
        E: Fn(&str) -> Option<PathBuf> + Copy + Send + Sync + 'static,
    {
        let (open, place) = (Open::default(), Arc::new(Mutex::new(None)));
        let listening = Listening {
            keeper: Arc::clone(keeper),
            id,
            environment,
            open: open.clone(),
            place: Arc::clone(&place),
        };
        let first = listening.begin().await?;
        Ok(Self { id, open, place, sockets: tokio::spawn(listening.go_on(first)) })
    }

    /// Removes them, after clients that are connected have had a moment to read their answers. In
    /// the state of a sandbox that `stays`, nothing is written of them any more.
    ///
    /// # Errors
    /// Something of them cannot be removed.
    pub(super) async fn close(self, keeper: Arc<Keeper>, stays: bool) -> Result<(), StateError> {
        let Self { id, open, place, sockets } = self;
        let left = async {
            while open.count() > 0 {
                tokio::time::sleep(LOOK).await;
            }
        };
        let _late = tokio::time::timeout(LAST_ANSWERS, left).await;
        sockets.abort();
        let _aborted = sockets.await;
        let place = place.lock().expect("nobody panics while it is set").take();
        if let Some(place) = place {
            RuntimeDir::remove(&place, id)?;
        }
        if stays {
            keeper.change(|state| state.runtime_dir = None);
        }
        Ok(())
    }
}

/// What making the sockets takes.
struct Listening<E> {
    keeper: Arc<Keeper>,
    id: Id,
    environment: E,
    open: Open,
    /// Where they are.
    place: Arc<Mutex<Option<PathBuf>>>,
}

impl<E: Fn(&str) -> Option<PathBuf> + Copy> Listening<E> {
    /// Makes the sockets, and writes down where they are.
    async fn begin(&self) -> Result<(RuntimeDir, Sockets), StateError> {
        // Written down first, so that whoever finds the sandbox dead knows what to remove.
        let path = RuntimeDir::path_for(self.environment, self.id)?;
        self.keeper.change(|state| state.runtime_dir = Some(path.clone()));
        let directory = RuntimeDir::make(self.environment, self.id)?;
        let sockets = match Sockets::serve(&directory, &self.keeper, &self.open).await {
            Ok(sockets) => sockets,
            Err(error) => {
                // What cannot be removed is what made it fail.
                let _kept = RuntimeDir::remove(&path, self.id);
                return Err(error);
            }
        };
        *self.place.lock().expect("nobody panics while it is set") = Some(path);
        Ok((directory, sockets))
    }

    /// Serves the sockets for as long as this is polled, and makes them anew when they vanish.
    async fn go_on(self, first: (RuntimeDir, Sockets)) {
        let mut made = Some(first);
        loop {
            if let Some((directory, sockets)) = made {
                while let Ok(watch) = Watch::new(directory.path()) {
                    if !Sockets::are_in(directory.path()) {
                        break;
                    }
                    watch.gone().await;
                }
                sockets.close().await;
            }
            tokio::time::sleep(SOCKETS_AGAIN).await;
            made = self.begin().await.ok();
        }
    }
}

/// Gives up a start whose client is killed while it waits for it.
async fn client_leaves(keeper: Arc<Keeper>, client: UnixStream) {
    if let Ok(mut client) = registered(client) {
        // It says nothing more: whatever comes is its end.
        let _end = client.read(&mut [0]).await;
        keeper.stop(None, Some(Duration::ZERO));
    }
}

fn answer(client: &UnixStream, code: u8, message: String) {
    say(client, &Answer { code, message });
}

fn say(mut client: &UnixStream, what: &impl Serialize) {
    if let Ok(mut text) = serde_json::to_vec(what) {
        text.push(b'\n');
        // A client that is gone hears nothing.
        let _gone = client.write_all(&text);
    }
}

/// The streams of the client: what it types, and where it reads.
fn streams(client: ClientEnds, terminal: bool) -> io::Result<(Option<OwnedReadHalf>, Client)> {
    let halves = |stream: Option<UnixStream>| {
        io::Result::Ok(stream.map(registered).transpose()?.map(tokio::net::UnixStream::into_split))
    };
    let written = |stream| io::Result::Ok(halves(stream)?.map(|(_, write)| write));
    let (typed, shown) = halves(client.stdin)?.unzip();
    let (stdout, stderr) = (written(client.stdout)?, written(client.stderr)?);
    // With a terminal, one stream goes both ways.
    let stdout = if terminal { shown } else { stdout };
    Ok((typed, Client { stdout, stderr }))
}
