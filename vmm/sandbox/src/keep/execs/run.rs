//! An exec from its start to its end.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{Added, SESSIONS_MOST, Stays};
use crate::agent::{ProcessId, StartFailure};
use crate::instance::{Sandbox, SandboxError, Streams};
use crate::keep::Keeper;
use crate::keep::attach::Prepared;
use crate::keep::offers::{STDERR, STDIN, STDOUT, Token, client_gone};
use crate::keep::session::Session;
use crate::life::{Signal, exit_of};
use crate::spec::ProcessSpec;
use crate::state::Exit;

/// How long the processes of a client that is gone may take to end after SIGHUP.
const HANG_UP_GRACE: Duration = Duration::from_secs(5);

/// How long the output and the result of a session are held after its end.
const SESSION_HELD: Duration = Duration::from_mins(10);

/// What a client is given for an exec that started.
#[derive(Debug)]
pub struct Started {
    /// Its id.
    pub id: String,
    /// The token of its streams; none of a detached one.
    pub token: Option<Token>,
}

/// How a client is given an exec's streams. All that can fail on the host is done before the exec
/// starts, so that none runs that nobody cares for.
enum Way {
    None,
    Streams(Token),
    Session(Arc<Session>, Prepared),
}

impl Way {
    fn prepare(process: &ProcessSpec, stays: Stays) -> std::io::Result<Self> {
        Ok(match stays {
            Stays::Detached => Self::None,
            Stays::WithClient => Self::Streams(crate::keep::offers::token()?),
            Stays::Session => Self::Session(Session::new(process), Prepared::new()?),
        })
    }

    fn session(&self) -> Option<Arc<Session>> {
        match self {
            Self::Session(session, _) => Some(Arc::clone(session)),
            _ => None,
        }
    }
}

/// Starts a process in a container, and cares for it until its end.
///
/// # Errors
/// The sandbox failed, or too many sessions run; that the program cannot run is the inner error.
pub async fn start(
    keeper: &Arc<Keeper>,
    sandbox: &Arc<Sandbox>,
    container: &str,
    process: &ProcessSpec,
    size: Option<(u16, u16)>,
    stays: Stays,
) -> Result<Result<Started, StartFailure>, SandboxError> {
    let failed = |what| move |source| SandboxError::Host { what, source };
    let id = new_id().map_err(failed("cannot read random bytes"))?;
    if stays == Stays::Session && !keeper.execs().takes_session() {
        let error = format!("{SESSIONS_MOST} sessions run already");
        return Err(failed("cannot start a session")(std::io::Error::other(error)));
    }
    let way = Way::prepare(process, stays).map_err(failed("cannot make a stream"))?;
    let what = (process.args.clone(), process.terminal);
    let Added { tell, begins, clients } = keeper.execs().add(&id, container, what, way.session());
    let target = ProcessId { container, exec: &id };
    let streams = match sandbox.exec(target, process, size).await {
        Ok(Ok(streams)) => streams,
        failure => {
            keeper.execs().remove(&id);
            return failure.map(|started| started.map(|_| unreachable!("it is a failure")));
        }
    };
    begins.send_replace(true);
    let attended =
        Attended { sandbox: Arc::clone(sandbox), container: container.to_owned(), id: id.clone(), tell };
    let token = match way {
        Way::None => {
            discard(streams);
            tokio::spawn(attended.attend(std::future::pending(), async {}));
            None
        }
        Way::Streams(token) => {
            let (set, descriptors) = handed(streams);
            let claim = keeper.offers().offer_process(token, set, descriptors);
            let client = async move {
                let _counted = clients.one();
                client_gone(claim).await;
            };
            tokio::spawn(attended.attend(client, async {}));
            Some(token)
        }
        Way::Session(session, prepared) => {
            let token = prepared.offer(keeper.offers(), session.first_attachment());
            let connected = session.connect(streams).await;
            let (keeper, sandbox, id) = (Arc::clone(keeper), Arc::clone(sandbox), id.clone());
            tokio::spawn(async move {
                let (pumps, unusable) = match connected {
                    Ok(pumps) => (pumps, false),
                    Err(_) => (JoinSet::new(), true),
                };
                let client = async {
                    // One whose streams cannot be read is ended.
                    if !unusable {
                        std::future::pending().await
                    }
                };
                attended.attend(client, session.drain(pumps, &sandbox)).await;
                // The machine need not wait for it.
                drop(sandbox);
                tokio::time::sleep(SESSION_HELD).await;
                keeper.execs().remove(&id);
            });
            Some(token)
        }
    };
    Ok(Ok(Started { id, token }))
}

/// An exec that runs.
struct Attended {
    sandbox: Arc<Sandbox>,
    container: String,
    id: String,
    tell: watch::Sender<Option<Exit>>,
}

impl Attended {
    /// Waits for the exec's end, and ends it when its client is gone. Its end is told after what is
    /// `last`.
    async fn attend(self, client: impl Future<Output = ()>, last: impl Future<Output = ()>) {
        let Self { sandbox, container, id, tell } = self;
        let exit = attend(&sandbox, ProcessId { container: &container, exec: &id }, client, last).await;
        // Somebody holds the other end: the table of execs.
        tell.send_replace(Some(exit));
    }
}

/// The id of an exec.
pub(crate) fn new_id() -> std::io::Result<String> {
    let mut random = [0; 8];
    nelly_vmm::sys::random(&mut random)?;
    Ok(format!("{:016x}", u64::from_ne_bytes(random)))
}

/// Waits for the end of an exec. When its `client` is gone, its process group gets SIGHUP, and
/// after [`HANG_UP_GRACE`] SIGKILL. Returns after what is `last`.
pub(crate) async fn attend(
    sandbox: &Sandbox,
    exec: ProcessId<'_>,
    client: impl Future<Output = ()>,
    last: impl Future<Output = ()>,
) -> Exit {
    let agent = sandbox.agent();
    let mut ended = std::pin::pin!(sandbox.during(agent.wait(exec)));
    let exit = tokio::select! {
        biased;
        exit = &mut ended => exit,
        () = client => {
            let ends = async {
                // What cannot be told has ended, or ends with the machine.
                let _told = agent.signal_group(exec, Signal::HUP.number().into()).await;
                tokio::time::sleep(HANG_UP_GRACE).await;
                let _told = agent.signal_group(exec, Signal::KILL.number().into()).await;
                std::future::pending::<()>().await;
            };
            tokio::select! {
                exit = &mut ended => exit,
                () = ends => unreachable!("it waits for ever"),
            }
        }
    };
    last.await;
    match exit {
        Ok(done) => {
            // The agent forgets it in time by itself.
            let _deleted = agent.delete_exec(exec.container, exec.exec).await;
            exit_of(&done)
        }
        // It ended with the container or its machine.
        Err(_) => Exit { code: Signal::KILL.exit_code(), reason: "killed" },
    }
}

pub(in crate::keep) fn handed(streams: Streams) -> (u8, Vec<OwnedFd>) {
    let all = [(STDIN, streams.stdin), (STDOUT, streams.stdout), (STDERR, streams.stderr)];
    let given = all.into_iter().filter_map(|(bit, stream)| Some((bit, OwnedFd::from(stream?))));
    given.fold((0, Vec::new()), |(set, mut descriptors), (bit, descriptor)| {
        descriptors.push(descriptor);
        (set | bit, descriptors)
    })
}

/// Reads what a detached process says, so that it can go on.
fn discard(streams: Streams) {
    for stream in [streams.stdin, streams.stdout, streams.stderr].into_iter().flatten() {
        tokio::spawn(async move {
            if let Ok(mut stream) = crate::keep::output::registered(stream) {
                // Its end is the end of the process or the machine.
                let _copied = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            }
        });
    }
}
