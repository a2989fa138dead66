//! One further container, from its start to its end.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nelly_vmm::config::DiskId;
use nelly_vmm::sys::files::{self, Accept};
use nelly_vmm::text;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{Counted, Known};
use crate::agent::{ProcessId, StartFailure};
use crate::instance::{Sandbox, SandboxError, Streams};
use crate::keep::offers::{Token, client_gone};
use crate::keep::output::{Output, registered};
use crate::keep::{Keeper, execs};
use crate::life::{Signal, exit_of};
use crate::spec::ContainerSpec;
use crate::state::record::{ImageRecord, Status};
use crate::state::{Exit, Id, Name, Timestamp};
use crate::wire::frames::Source;

/// How long the processes of a client that is gone may take to end after SIGHUP.
const HANG_UP_GRACE: Duration = Duration::from_secs(5);

/// How long the output of a container that has ended may take to arrive in its log.
const LAST_OUTPUT: Duration = Duration::from_secs(10);

/// A container that is asked for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Its name.
    pub name: Option<Name>,
    /// Its image.
    pub image: ImageRecord,
    /// The container.
    pub container: ContainerSpec,
    /// First size of its terminal, rows and columns.
    pub size: Option<(u16, u16)>,
    /// It has no streams, and outlives its client.
    pub detach: bool,
}

/// What a client is given for a container that runs.
#[derive(Debug)]
pub struct Started {
    /// Its id.
    pub id: Id,
    /// Its name.
    pub name: Name,
    /// The token of its streams; none of a detached one.
    pub token: Option<Token>,
}

/// Why a container was not started.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Another container of the sandbox has the name.
    #[error("another container of the sandbox has the name {0}")]
    NameTaken(Name),
    /// The first container has ended, whose network would be shared.
    #[error("the sandbox's first container has ended, whose network and IPC a further one shares")]
    Alone,
    /// A file of the image's disk cannot be used.
    #[error("cannot open the image's disk {path}")]
    Disk {
        /// The file.
        path: String,
        /// The error.
        #[source]
        source: io::Error,
    },
    /// The machine or its guest failed.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The host failed.
    #[error("{what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The error.
        #[source]
        source: io::Error,
    },
}

pub(super) fn host(what: &'static str) -> impl FnOnce(io::Error) -> RunError {
    move |source| RunError::Host { what, source }
}

/// Starts a container, and cares for it until its end: it ends with its client unless it is
/// detached.
///
/// # Errors
/// The container cannot be made; that its program cannot run is the inner error.
pub async fn run(
    keeper: &Arc<Keeper>,
    sandbox: &Arc<Sandbox>,
    wanted: Wanted,
) -> Result<Result<Started, StartFailure>, RunError> {
    let counted = Counted::new(keeper);
    let (id, name) = keeper.add_container(&wanted)?;
    let (disk, streams) = match start(keeper, sandbox, id, &wanted).await {
        Ok(Ok(started)) => started,
        failure => {
            keeper.change(|state| state.containers.retain(|one| one.id != id));
            return failure.map(|started| started.map(|_| unreachable!("it is a failure")));
        }
    };
    let (tell, exit) = watch::channel(None);
    let process = wanted.container.process.clone();
    keeper.containers.known().insert(id, Known { process, exit });
    keeper.change_container(id, |one| one.status = Status::Running);
    let (token, client, logged) = if wanted.detach {
        (Ok(None), None, log(keeper, id, streams))
    } else {
        let (set, descriptors) = execs::handed(streams);
        match keeper.offers().offer(set, descriptors) {
            Ok((token, claim)) => (Ok(Some(token)), Some(Some(claim)), JoinSet::new()),
            // Nobody will ever have its streams: as if its client had died.
            Err(error) => (Err(host("cannot make a token")(error)), Some(None), JoinSet::new()),
        }
    };
    let gone = async move {
        match client {
            Some(Some(claim)) => client_gone(claim).await,
            Some(None) => {}
            None => std::future::pending().await,
        }
    };
    let attended = Attended { id, disk, tell, logged, _counted: counted };
    tokio::spawn(attended.attend(Arc::clone(keeper), Arc::clone(sandbox), gone));
    Ok(Ok(Started { id, name, token: token? }))
}

/// Attaches the image's disk, and makes and starts the container. What fails leaves nothing in the
/// machine.
async fn start(
    keeper: &Arc<Keeper>,
    sandbox: &Arc<Sandbox>,
    id: Id,
    wanted: &Wanted,
) -> Result<Result<(DiskId, Streams), StartFailure>, RunError> {
    let first = sandbox.during(sandbox.agent().first_process(keeper.id_in_guest())).await?;
    let mut container = wanted.container.clone();
    container.shares_with = Some(first.ok_or(RunError::Alone)?);
    // The sandbox's disk is the first container's.
    container.upper_device = None;
    let disk = DiskId::new(&id.to_string()[..16])
        .map_err(|reason| host("cannot name the image's disk")(io::Error::other(reason)))?;
    let paths = wanted.image.disk_paths.clone();
    let files = tokio::task::spawn_blocking(move || open(&paths)).await;
    let files = files.map_err(|error| host("cannot open the image's disk")(io::Error::other(error)))??;
    let device = sandbox.attach_image(&disk, files).await?;
    match sandbox.run(&id.to_string(), &container, &device, wanted.size).await {
        Ok(Ok(streams)) => Ok(Ok((disk, streams))),
        failure => {
            let sandbox = Arc::clone(sandbox);
            // The client need not wait for the guest to let go of it.
            tokio::spawn(async move { sandbox.detach_image(&disk).await });
            Ok(failure?.map(|_| unreachable!("it is a failure")))
        }
    }
}

/// Opens the files of an image's disk.
fn open(paths: &[PathBuf]) -> Result<Vec<File>, RunError> {
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |source| RunError::Disk { path, source }
    };
    let open = |path: &PathBuf| {
        if !path.is_absolute() {
            return Err(failed(path)(io::Error::other("it is not an absolute path")));
        }
        files::open(path, File::options().read(true), Accept::Regular).map_err(failed(path))
    };
    paths.iter().map(open).collect()
}

/// Writes what a container says into its log, for as long as it says something.
fn log(keeper: &Arc<Keeper>, id: Id, streams: Streams) -> JoinSet<io::Result<()>> {
    // Without a log, what it says is read nevertheless, so that it can go on.
    let sink = (keeper.books.log)(id).unwrap_or_else(|error| {
        keeper.change_container(id, |one| one.detail = format!("it has no log: {}", text::chain(&error)));
        Box::new(|_, _| {})
    });
    let output = Output::new(sink);
    let Streams { stdin, stdout, stderr } = streams;
    let mut pumps = JoinSet::new();
    // Standard input is that of nobody, unless it is a terminal, which says something, too.
    let streams = [(stdin, Source::Output), (stdout, Source::Output), (stderr, Source::Error)];
    for (stream, source) in streams {
        if let Some(stream) = stream.and_then(|stream| registered(stream).ok()) {
            pumps.spawn(Arc::clone(&output).pump(stream, source));
        }
    }
    pumps
}

/// A container that runs.
struct Attended {
    id: Id,
    disk: DiskId,
    tell: watch::Sender<Option<Exit>>,
    logged: JoinSet<io::Result<()>>,
    _counted: Counted,
}

impl Attended {
    /// Waits for the container's end, and ends it when its client is `gone`.
    async fn attend(mut self, keeper: Arc<Keeper>, sandbox: Arc<Sandbox>, gone: impl Future<Output = ()>) {
        let id = self.id.to_string();
        let target = ProcessId { container: &id, exec: "" };
        let agent = sandbox.agent();
        let ended = {
            let mut ended = std::pin::pin!(sandbox.during(agent.wait(target)));
            let ends = async {
                gone.await;
                // What cannot be told has ended, or ends with the machine.
                let _told = agent.signal_group(target, Signal::HUP.number().into()).await;
                tokio::time::sleep(HANG_UP_GRACE).await;
                let _told = agent.signal(target, Signal::KILL.number().into()).await;
                std::future::pending::<()>().await;
            };
            tokio::select! {
                biased;
                ended = &mut ended => ended,
                () = ends => unreachable!("it waits for ever"),
            }
        };
        let logged = async { while self.logged.join_next().await.is_some() {} };
        let _late = tokio::time::timeout(LAST_OUTPUT, logged).await;
        let exit = match ended {
            Ok(done) => exit_of(&done),
            // It ended with its machine.
            Err(_) => Exit { code: Signal::KILL.exit_code(), reason: "killed" },
        };
        keeper.change_container(self.id, |one| {
            one.status = Status::Exited;
            one.exit = Some(exit.into());
            one.finished_at = Some(Timestamp::now());
        });
        self.tell.send_replace(Some(exit));
        if let Err(error) = sandbox.detach_image(&self.disk).await
            && keeper.sandbox().is_some()
        {
            let detail = format!("its disk is still in the machine: {}", text::chain(&error));
            keeper.change_container(self.id, |one| one.detail = detail);
        }
    }
}
