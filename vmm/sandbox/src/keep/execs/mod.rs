//! Further processes in the container: each for one client, for none, or for clients that come
//! and go. This is the table of them; [`run`] starts them and cares for them.

mod process;
mod run;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use nelly_protocol::sandbox::messages as wire;
pub use process::process;
pub(super) use run::handed;
pub use run::{Started, start};
pub(crate) use run::{attend, new_id};
use tokio::sync::watch;

use super::attach::Clients;
use super::session::Session;
use crate::state::{Exit, Timestamp};

/// Most execs whose results are held.
const ENDED_MOST: usize = 128;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::ProcessSpec;

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
