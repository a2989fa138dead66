//! Further processes in the container: each for one client, for none, or for clients that come
//! and go.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use nelly_protocol::sandbox::messages as wire;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Keeper;
use super::attach::{Clients, Prepared};
use super::offers::{STDERR, STDIN, STDOUT, Token, client_gone};
use super::session::Session;
use crate::agent::{ProcessId, StartFailure};
use crate::instance::{Sandbox, SandboxError, Streams};
use crate::life::{Signal, exit_of};
use crate::spec::{ProcessSpec, SpecError};
use crate::state::{Exit, Timestamp};

/// Most execs whose results are held.
const ENDED_MOST: usize = 128;

/// How long the processes of a client that is gone may take to end after SIGHUP.
const HANG_UP_GRACE: Duration = Duration::from_secs(5);

/// How long the output and the result of a session are held after its end.
const SESSION_HELD: Duration = Duration::from_mins(10);

/// Most sessions that have ended and whose output is held.
const SESSIONS_ENDED_MOST: usize = 8;

/// Most sessions that run at a time: each has a ring.
const SESSIONS_MOST: usize = 64;

/// What an exec's life depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stays {
    /// It ends with its client.
    WithClient,
    /// It has no client.
    Detached,
    /// Its clients come and go.
    Session,
}

/// An exec, while it runs and for a while after.
struct Exec {
    container: String,
    args: Vec<String>,
    terminal: bool,
    started: Timestamp,
    clients: Clients,
    session: Option<Arc<Session>>,
    /// The agent knows it. The sender is gone without that if it did not start.
    begun: watch::Receiver<bool>,
    exit: watch::Receiver<Option<Exit>>,
    order: u64,
}

impl Exec {
    fn ended(&self) -> bool {
        self.exit.borrow().is_some()
    }
}

/// No exec, or more than one, is meant.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FindError {
    /// None begins so.
    #[error("no exec {0:?}")]
    None(String),
    /// Several begin so.
    #[error("several execs begin with {0:?}")]
    Several(String),
}

/// The execs of a sandbox.
#[derive(Default)]
pub struct Execs {
    known: Mutex<(u64, BTreeMap<String, Exec>)>,
}

impl Execs {
    fn known(&self) -> MutexGuard<'_, (u64, BTreeMap<String, Exec>)> {
        self.known.lock().expect("nobody panics while an exec is added or removed")
    }

    /// Those that run, the oldest first.
    #[must_use]
    pub fn running(&self) -> Vec<wire::ExecState> {
        let known = self.known();
        let mut runs: Vec<_> = known.1.iter().filter(|(_, exec)| !exec.ended()).collect();
        runs.sort_by_key(|(_, exec)| exec.order);
        let state = |(id, exec): (&String, &Exec)| wire::ExecState {
            exec_id: id.clone(),
            args: exec.args.clone(),
            session: exec.session.is_some(),
            attached: exec.clients.count(),
            started_unix_ns: exec.started.unix_ns(),
            terminal: exec.terminal,
            container: exec.container.clone(),
            ..Default::default()
        };
        runs.into_iter().map(state).collect()
    }

    /// The exec with this id or the beginning of one, and its container.
    ///
    /// # Errors
    /// There is none, or several begin so.
    pub fn find(&self, word: &str) -> Result<(String, String), FindError> {
        let known = self.known();
        let told = |(id, exec): (&String, &Exec)| (id.clone(), exec.container.clone());
        if let Some(found) = known.1.get_key_value(word) {
            return Ok(told(found));
        }
        let mut found = known.1.iter().filter(|(id, _)| !word.is_empty() && id.starts_with(word));
        match (found.next(), found.next()) {
            (None, _) => Err(FindError::None(word.to_owned())),
            (Some(one), None) => Ok(told(one)),
            _ => Err(FindError::Several(word.to_owned())),
        }
    }

    /// Where the result of one will be.
    #[must_use]
    pub fn result(&self, id: &str) -> Option<watch::Receiver<Option<Exit>>> {
        self.known().1.get(id).map(|exec| exec.exit.clone())
    }

    /// The session with this id, if it is one.
    #[must_use]
    pub(super) fn session(&self, id: &str) -> Option<Arc<Session>> {
        self.known().1.get(id).and_then(|exec| exec.session.clone())
    }

    /// Whether one has begun; none if there is no such exec.
    #[must_use]
    pub(super) fn begun(&self, id: &str) -> Option<watch::Receiver<bool>> {
        self.known().1.get(id).map(|exec| exec.begun.clone())
    }

    /// Whether there is room for one more session.
    fn takes_session(&self) -> bool {
        self.known().1.values().filter(|exec| exec.session.is_some() && !exec.ended()).count() < SESSIONS_MOST
    }

    fn add(
        &self,
        id: &str,
        container: &str,
        (args, terminal): (Vec<String>, bool),
        session: Option<Arc<Session>>,
    ) -> Added {
        let (tell, exit) = watch::channel(None);
        let (begins, begun) = watch::channel(false);
        let clients = session.as_ref().map(|session| session.clients.clone()).unwrap_or_default();
        let mut known = self.known();
        known.0 += 1;
        let exec = Exec {
            container: container.to_owned(),
            args,
            terminal,
            started: Timestamp::now(),
            clients: clients.clone(),
            session,
            begun,
            exit,
            order: known.0,
        };
        known.1.insert(id.to_owned(), exec);
        forget_oldest(&mut known.1, ENDED_MOST, |exec| exec.ended());
        forget_oldest(&mut known.1, SESSIONS_ENDED_MOST, |exec| exec.ended() && exec.session.is_some());
        Added { tell, begins, clients }
    }

    fn remove(&self, id: &str) {
        self.known().1.remove(id);
    }
}

/// What is told of an exec that was added.
struct Added {
    /// Its end.
    tell: watch::Sender<Option<Exit>>,
    /// That it has begun.
    begins: watch::Sender<bool>,
    clients: Clients,
}

/// Removes the oldest of those that are `counted`, if they are more than `most`.
fn forget_oldest(known: &mut BTreeMap<String, Exec>, most: usize, counted: impl Fn(&Exec) -> bool) {
    if known.values().filter(|exec| counted(exec)).count() > most {
        let oldest = known.iter().filter(|(_, exec)| counted(exec)).min_by_key(|(_, exec)| exec.order);
        if let Some(oldest) = oldest.map(|(id, _)| id.clone()) {
            known.remove(&oldest);
        }
    }
}

/// The process that a request asks for, in a container whose first process is `first`.
///
/// # Errors
/// A word cannot be one, or the directory is not absolute.
pub fn process(first: &ProcessSpec, request: &wire::ExecRequest) -> Result<ProcessSpec, SpecError> {
    match request.args.first() {
        None => return Err(SpecError::NoCommand),
        Some(program) if program.is_empty() => return Err(SpecError::EmptyProgram),
        Some(_) => {}
    }
    if let Some(bad) = request.args.iter().find(|word| word.contains('\0')) {
        return Err(SpecError::Argument(bad.clone()));
    }
    let cwd = if request.cwd.is_empty() { &first.cwd } else { &request.cwd };
    if !cwd.starts_with('/') || cwd.contains('\0') {
        return Err(SpecError::Cwd(cwd.clone()));
    }
    let name = |word: &str| word.split('=').next().unwrap_or_default().to_owned();
    let mut env = first.env.clone();
    if request.terminal && !env.iter().any(|word| name(word) == "TERM") {
        env.push("TERM=xterm".to_owned());
    }
    for word in &request.env {
        if !word.contains('=') || name(word).is_empty() || word.contains('\0') {
            return Err(SpecError::Env(word.clone()));
        }
        match env.iter_mut().find(|have| name(have) == name(word)) {
            Some(have) => have.clone_from(word),
            None => env.push(word.clone()),
        }
    }
    Ok(ProcessSpec {
        args: request.args.clone(),
        env,
        cwd: cwd.clone(),
        user: if request.user.is_empty() { first.user.clone() } else { request.user.clone() },
        terminal: request.terminal,
        stdin: request.stdin && !request.detach,
        rights: first.rights.clone(),
    })
}

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
            Stays::WithClient => Self::Streams(super::offers::token()?),
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
            let claim = keeper.offers().offer_as(token, set, descriptors);
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
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
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

pub(super) fn handed(streams: Streams) -> (u8, Vec<OwnedFd>) {
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
            if let Ok(mut stream) = super::output::registered(stream) {
                // Its end is the end of the process or the machine.
                let _copied = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Rights;

    #[test]
    fn an_exec_is_what_the_container_is_but_for_what_is_asked() {
        let first = ProcessSpec {
            args: vec!["first".into()],
            env: vec!["PATH=/bin".into(), "A=1".into()],
            cwd: "/srv".into(),
            user: "web".into(),
            rights: Rights { groups: vec!["audio".into()], ..Rights::default() },
            ..ProcessSpec::default()
        };
        let request = |args: &[&str], env: &[&str]| wire::ExecRequest {
            args: args.iter().map(|word| (*word).to_owned()).collect(),
            env: env.iter().map(|word| (*word).to_owned()).collect(),
            ..Default::default()
        };
        let plain = process(&first, &request(&["x", "y"], &["A=2", "B="])).unwrap();
        assert_eq!((plain.cwd.as_str(), plain.user.as_str(), plain.stdin), ("/srv", "web", false));
        assert_eq!(plain.env, ["PATH=/bin", "A=2", "B="]);
        assert_eq!(plain.rights, first.rights);
        let terminal = wire::ExecRequest { terminal: true, stdin: true, ..request(&["sh"], &[]) };
        let terminal = process(&first, &terminal).unwrap();
        assert!(terminal.stdin && terminal.env.contains(&"TERM=xterm".to_owned()));
        for bad in [
            request(&[], &[]),
            request(&[""], &[]),
            request(&["a\0"], &[]),
            request(&["a"], &["A"]),
            request(&["a"], &["=1"]),
        ] {
            assert!(process(&first, &bad).is_err(), "{bad}");
        }
        assert!(process(&first, &wire::ExecRequest { cwd: "tmp".into(), ..request(&["a"], &[]) }).is_err());
    }

    #[test]
    fn results_are_held_for_so_many() {
        let execs = Execs::default();
        let add = |id: &str, session: bool| {
            let session = session.then(|| Session::new(&ProcessSpec::default()));
            execs.add(id, "c", (vec!["x".into()], false), session).tell
        };
        let running = [add("runs", false), add("stays", true)];
        let done = Some(Exit { code: 0, reason: "exited" });
        for index in 0..2 * ENDED_MOST {
            add(&format!("{index}"), index % 2 == 0).send_replace(done);
        }
        // Of sessions, whose rings are large, there are fewer.
        assert!(execs.result("1").is_none() && execs.result("0").is_none());
        assert!(execs.result("255").is_some() && execs.session("254").is_some());
        assert!(execs.session("200").is_none() && execs.result("201").is_some());
        let runs: Vec<_> = execs.running().into_iter().map(|exec| (exec.exec_id, exec.session)).collect();
        assert_eq!(runs, [("runs".to_owned(), false), ("stays".to_owned(), true)]);
        drop(running);
    }

    #[test]
    fn the_beginning_of_an_id_will_do_if_it_is_the_only_one() {
        let execs = Execs::default();
        for (id, container) in [("ab1", "c"), ("ab2", "d"), ("ab", "e")] {
            drop(execs.add(id, container, (Vec::new(), false), None));
        }
        assert_eq!(execs.find("ab2"), Ok(("ab2".to_owned(), "d".to_owned())));
        assert_eq!(execs.find("ab"), Ok(("ab".to_owned(), "e".to_owned())));
        assert_eq!(execs.find("a"), Err(FindError::Several("a".to_owned())));
        for none in ["", "b", "ab3"] {
            assert_eq!(execs.find(none), Err(FindError::None(none.to_owned())));
        }
    }
}
