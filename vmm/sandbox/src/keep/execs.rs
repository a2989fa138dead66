//! Further processes in the container, each for one client.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use nelly_protocol::sandbox::messages as wire;
use tokio::sync::watch;

use super::Keeper;
use super::offers::{STDERR, STDIN, STDOUT, Token, client_gone};
use crate::agent::{ProcessId, StartFailure};
use crate::instance::{Sandbox, SandboxError, Streams};
use crate::life::{Signal, exit_of};
use crate::spec::{ProcessSpec, SpecError};
use crate::state::Exit;

/// Most execs whose results are held.
const ENDED_MOST: usize = 128;

/// How long the processes of a client that is gone may take to end after SIGHUP.
const HANG_UP_GRACE: Duration = Duration::from_secs(5);

/// An exec, while it runs and for a while after.
struct Exec {
    args: Vec<String>,
    exit: watch::Receiver<Option<Exit>>,
    order: u64,
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

    /// Those that run: id and command.
    #[must_use]
    pub fn running(&self) -> Vec<(String, Vec<String>)> {
        let known = self.known();
        let runs = known.1.iter().filter(|(_, exec)| exec.exit.borrow().is_none());
        runs.map(|(id, exec)| (id.clone(), exec.args.clone())).collect()
    }

    /// Where the result of one will be.
    #[must_use]
    pub fn result(&self, id: &str) -> Option<watch::Receiver<Option<Exit>>> {
        self.known().1.get(id).map(|exec| exec.exit.clone())
    }

    fn add(&self, id: &str, args: Vec<String>) -> watch::Sender<Option<Exit>> {
        let (tell, exit) = watch::channel(None);
        let mut known = self.known();
        known.0 += 1;
        let order = known.0;
        known.1.insert(id.to_owned(), Exec { args, exit, order });
        let ended = |exec: &Exec| exec.exit.borrow().is_some();
        if known.1.values().filter(|exec| ended(exec)).count() > ENDED_MOST {
            let oldest = known.1.iter().filter(|(_, exec)| ended(exec)).min_by_key(|(_, exec)| exec.order);
            if let Some(oldest) = oldest.map(|(id, _)| id.clone()) {
                known.1.remove(&oldest);
            }
        }
        tell
    }

    fn remove(&self, id: &str) {
        self.known().1.remove(id);
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

/// Starts a process in a container, and cares for it until its end: it ends with its client unless
/// it is detached.
///
/// # Errors
/// The sandbox failed; that the program cannot run is the inner error.
pub async fn start(
    keeper: &Arc<Keeper>,
    sandbox: &Arc<Sandbox>,
    container: &str,
    process: &ProcessSpec,
    size: Option<(u16, u16)>,
    detach: bool,
) -> Result<Result<Started, StartFailure>, SandboxError> {
    let mut random = [0; 8];
    let failed = |what| move |source| SandboxError::Host { what, source };
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| failed("cannot read random bytes")(error.into()))?;
    let id = format!("{:016x}", u64::from_ne_bytes(random));
    let tell = keeper.execs().add(&id, process.args.clone());
    let target = ProcessId { container, exec: &id };
    let streams = match sandbox.exec(target, process, size).await {
        Ok(Ok(streams)) => streams,
        failure => {
            keeper.execs().remove(&id);
            return failure.map(|started| started.map(|_| unreachable!("it is a failure")));
        }
    };
    let (token, claim) = if detach {
        discard(streams);
        (None, None)
    } else {
        let (set, descriptors) = handed(streams);
        let offered = keeper.offers().offer(set, descriptors).map_err(failed("cannot make a token"))?;
        (Some(offered.0), Some(offered.1))
    };
    let client = async move {
        match claim {
            Some(claim) => client_gone(claim).await,
            None => std::future::pending().await,
        }
    };
    let target = (container.to_owned(), id.clone());
    tokio::spawn(attend(Arc::clone(sandbox), target, tell, client));
    Ok(Ok(Started { id, token }))
}

/// Waits for an exec's end, and ends it when its client is gone.
async fn attend(
    sandbox: Arc<Sandbox>,
    (container, id): (String, String),
    tell: watch::Sender<Option<Exit>>,
    client: impl Future<Output = ()>,
) {
    let target = ProcessId { container: &container, exec: &id };
    let agent = sandbox.agent();
    let mut ended = std::pin::pin!(sandbox.during(agent.wait(target)));
    let exit = tokio::select! {
        biased;
        exit = &mut ended => exit,
        () = client => {
            let ends = async {
                // What cannot be told has ended, or ends with the machine.
                let _told = agent.signal_group(target, Signal::HUP.number().into()).await;
                tokio::time::sleep(HANG_UP_GRACE).await;
                let _told = agent.signal_group(target, Signal::KILL.number().into()).await;
                std::future::pending::<()>().await;
            };
            tokio::select! {
                exit = &mut ended => exit,
                () = ends => unreachable!("it waits for ever"),
            }
        }
    };
    let exit = match exit {
        Ok(done) => {
            // The agent forgets it in time by itself.
            let _deleted = agent.delete_exec(&container, &id).await;
            exit_of(&done)
        }
        // It ended with the container or its machine.
        Err(_) => Exit { code: Signal::KILL.exit_code(), reason: "killed" },
    };
    // Somebody holds the other end: the table of execs.
    tell.send_replace(Some(exit));
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
        let running = execs.add("runs", vec!["x".into()]);
        for index in 0..2 * ENDED_MOST {
            execs.add(&format!("{index}"), Vec::new()).send_replace(Some(Exit { code: 0, reason: "exited" }));
        }
        assert!(execs.result("0").is_none() && execs.result("255").is_some());
        assert_eq!(execs.running(), [("runs".to_owned(), vec!["x".to_owned()])]);
        drop(running);
    }
}
