//! The state of containers and processes, and which operations are allowed in each state. It makes
//! no system calls and never waits; `C` and `P` are the caller's data of a container and a process.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use thiserror::Error;

/// Why an operation is not possible.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RegistryError {
    /// The container was never created, or was deleted.
    #[error("no such container: {0}")]
    NoContainer(String),
    /// The exec was never created, or was deleted.
    #[error("no such exec in container {0}: {1}")]
    NoExec(String, String),
    /// The id is in use.
    #[error("container {0} already exists")]
    ContainerExists(String),
    /// The id is in use by an exec that has not ended, or whose result was not read.
    #[error("exec {1} already exists in container {0}")]
    ExecExists(String, String),
    /// The exec has ended, and only its result is left.
    #[error("exec {1} in container {0} has ended")]
    ExecEnded(String, String),
    /// The exec must end first.
    #[error("exec {1} in container {0} has not ended")]
    ExecAlive(String, String),
    /// The container is in the wrong state.
    #[error("container {id} is {status}; this call needs it to be {wanted}")]
    State {
        /// The container.
        id: String,
        /// Its state.
        status: Status,
        /// The state that is needed.
        wanted: &'static str,
    },
}

/// The state of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It is being created.
    Creating,
    /// Its first process waits before it executes the program.
    Created,
    /// Its first process was told to execute the program.
    Starting,
    /// The program runs.
    Running,
    /// The first process has ended.
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Creating => "being created",
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopped => "stopped",
        })
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProcessExit {
    /// 0 to 255; 128 + signal number if it was ended by a signal.
    pub code: u32,
    /// The signal number, or 0.
    pub signal: u32,
    /// Whether the kernel's OOM killer ended it.
    pub oom_killed: bool,
    /// CLOCK_BOOTTIME of the end, in nanoseconds.
    pub at_ns: u64,
}

/// Maximum number of records of ended execs that a container keeps, as documented in the protocol.
/// A record has about a hundred bytes.
pub const ENDED_MOST: usize = 1024;

/// The key of a process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ProcessKey {
    /// Container id.
    pub container: String,
    /// Exec id; `None` for the container's first process.
    pub exec: Option<String>,
}

impl ProcessKey {
    /// From the two ids of a request; an empty exec id is the first process.
    #[must_use]
    pub fn new(container: &str, exec: &str) -> Self {
        let exec = if exec.is_empty() { None } else { Some(exec.to_owned()) };
        Self { container: container.to_owned(), exec }
    }
}

/// An id given to an exec. The id may be given again while whoever reserved it still cleans up: the
/// two are told apart by a number that is given once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    key: ProcessKey,
    number: u64,
}

struct Process<P> {
    pid: i32,
    handle: P,
}

struct Entry<C, P> {
    status: Status,
    data: C,
    first: Option<Process<P>>,
    exit: Option<ProcessExit>,
    execs: BTreeMap<String, Slot<P>>,
    /// Execs that have ended so far, which numbers their records.
    ended: u64,
}

/// An exec's id, and whose it is.
struct Slot<P> {
    reservation: u64,
    exec: Exec<P>,
}

/// Where an exec is.
enum Exec<P> {
    /// Its process is being created.
    Reserved,
    There(Process<P>),
    Ended(Record),
}

/// The record of an ended exec.
struct Record {
    exit: ProcessExit,
    /// Its result was reported to a client.
    told: bool,
    /// Its number among the ended execs of the container.
    number: u64,
}

impl<C, P> Entry<C, P> {
    /// Removes records beyond [`ENDED_MOST`]: first the oldest that was reported, otherwise the
    /// oldest.
    fn bound_records(&mut self) {
        let records = || {
            self.execs.iter().filter_map(|(id, slot)| match &slot.exec {
                Exec::Ended(record) => Some((record.told, record.number, id)),
                _ => None,
            })
        };
        if records().count() <= ENDED_MOST {
            return;
        }
        let first = records().min_by_key(|(told, number, _)| (!told, *number));
        if let Some(id) = first.map(|(_, _, id)| id.clone()) {
            self.execs.remove(&id);
        }
    }
}

/// A summary of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerSummary {
    /// Its id.
    pub id: String,
    /// Its state.
    pub status: Status,
    /// Process id of its first process, 0 if it does not exist yet.
    pub pid: i32,
    /// How the first process ended.
    pub exit: Option<ProcessExit>,
    /// Its execs, including ended ones that were not reported.
    pub exec_ids: Vec<String>,
}

/// All containers of the guest.
pub struct Registry<C, P> {
    containers: BTreeMap<String, Entry<C, P>>,
    pids: HashMap<i32, ProcessKey>,
    /// Reservations of execs so far, which numbers them.
    reservations: u64,
}

impl<C, P> Default for Registry<C, P> {
    fn default() -> Self {
        Self { containers: BTreeMap::new(), pids: HashMap::new(), reservations: 0 }
    }
}

impl<C, P> Registry<C, P> {
    fn entry(&self, id: &str) -> Result<&Entry<C, P>, RegistryError> {
        self.containers.get(id).ok_or_else(|| RegistryError::NoContainer(id.to_owned()))
    }

    fn entry_mut(&mut self, id: &str) -> Result<&mut Entry<C, P>, RegistryError> {
        self.containers.get_mut(id).ok_or_else(|| RegistryError::NoContainer(id.to_owned()))
    }

    /// Reserves a container id; the container is in the state [`Status::Creating`].
    ///
    /// # Errors
    /// [`RegistryError::ContainerExists`].
    pub fn reserve_container(&mut self, id: &str, data: C) -> Result<(), RegistryError> {
        if self.containers.contains_key(id) {
            return Err(RegistryError::ContainerExists(id.to_owned()));
        }
        let (status, execs) = (Status::Creating, BTreeMap::new());
        let entry = Entry { status, data, first: None, exit: None, execs, ended: 0 };
        self.containers.insert(id.to_owned(), entry);
        Ok(())
    }

    /// Reserves an exec id. It replaces the record of an ended exec whose result was reported.
    ///
    /// # Errors
    /// [`RegistryError`]: the container must run, the id must be free.
    pub fn reserve_exec(&mut self, container: &str, exec: &str) -> Result<Reservation, RegistryError> {
        let number = self.reservations;
        let entry = self.entry_mut(container)?;
        if entry.status != Status::Running {
            let (id, status) = (container.to_owned(), entry.status);
            return Err(RegistryError::State { id, status, wanted: "running" });
        }
        match entry.execs.get(exec).map(|slot| &slot.exec) {
            None | Some(Exec::Ended(Record { told: true, .. })) => {}
            Some(_) => return Err(RegistryError::ExecExists(container.to_owned(), exec.to_owned())),
        }
        entry.execs.insert(exec.to_owned(), Slot { reservation: number, exec: Exec::Reserved });
        self.reservations += 1;
        Ok(Reservation { key: ProcessKey::new(container, exec), number })
    }

    /// Remembers the first process of a container.
    ///
    /// # Errors
    /// [`RegistryError::NoContainer`].
    pub fn set_first(&mut self, container: &str, pid: i32, handle: P) -> Result<(), RegistryError> {
        self.entry_mut(container)?.first = Some(Process { pid, handle });
        self.pids.insert(pid, ProcessKey::new(container, ""));
        Ok(())
    }

    /// Remembers the process of an exec.
    ///
    /// # Errors
    /// [`RegistryError`] when it is not reserved any more.
    pub fn set_exec(&mut self, reservation: &Reservation, pid: i32, handle: P) -> Result<(), RegistryError> {
        let Reservation { key, number } = reservation;
        let exec = key.exec.as_deref().unwrap_or_default();
        match self.entry_mut(&key.container)?.execs.get_mut(exec) {
            Some(slot) if slot.reservation == *number => slot.exec = Exec::There(Process { pid, handle }),
            _ => return Err(RegistryError::NoExec(key.container.clone(), exec.to_owned())),
        }
        self.pids.insert(pid, key.clone());
        Ok(())
    }

    /// The process of this reservation, if it has one that has not ended; never that of another
    /// exec with the same id.
    #[must_use]
    pub fn exec_process(&self, reservation: &Reservation) -> Option<&P> {
        let Reservation { key, number } = reservation;
        match self.containers.get(&key.container)?.execs.get(key.exec.as_ref()?)? {
            Slot { reservation, exec: Exec::There(process) } if reservation == number => {
                Some(&process.handle)
            }
            _ => None,
        }
    }

    /// Moves a container on; a container that stopped meanwhile stays so.
    ///
    /// # Errors
    /// [`RegistryError`] if it is not in the state `from`.
    pub fn advance(&mut self, id: &str, from: Status, to: Status) -> Result<(), RegistryError> {
        let entry = self.entry_mut(id)?;
        if entry.status != from {
            let wanted = match from {
                Status::Creating => "being created",
                Status::Created => "created",
                Status::Starting => "starting",
                Status::Running => "running",
                Status::Stopped => "stopped",
            };
            return Err(RegistryError::State { id: id.to_owned(), status: entry.status, wanted });
        }
        entry.status = to;
        Ok(())
    }

    /// Forgets a container with all its execs. Its processes, if still alive, are nobody's.
    pub fn forget_container(&mut self, id: &str) {
        self.containers.remove(id);
        self.pids.retain(|_, one| one.container != id);
    }

    /// Forgets an exec, however far it came. Its process, if still alive, is nobody's. Another exec
    /// that has its id by now stays.
    pub fn forget_exec(&mut self, reservation: &Reservation) {
        let Reservation { key, number } = reservation;
        let Some(entry) = self.containers.get_mut(&key.container) else { return };
        let Some(exec) = &key.exec else { return };
        if entry.execs.get(exec).is_none_or(|slot| slot.reservation != *number) {
            return;
        }
        if let Some(Slot { exec: Exec::There(process), .. }) = entry.execs.remove(exec)
            && self.pids.get(&process.pid) == Some(key)
        {
            self.pids.remove(&process.pid);
        }
    }

    /// The owner of a process id, if it is known.
    #[must_use]
    pub fn owner(&self, pid: i32) -> Option<&ProcessKey> {
        self.pids.get(&pid)
    }

    /// Called when a process was reaped; returns its owner, if it is known. The process id may be
    /// reused after that.
    pub fn reaped(&mut self, pid: i32) -> Option<ProcessKey> {
        self.pids.remove(&pid)
    }

    /// Called when the process of an exec has ended and its output is drained; only its record is
    /// kept. `is_it` checks the process, because the id may have been reused.
    pub fn exec_ended(&mut self, key: &ProcessKey, is_it: impl FnOnce(&P) -> bool, exit: ProcessExit) {
        let Some(exec) = &key.exec else { return };
        let Some(entry) = self.containers.get_mut(&key.container) else { return };
        if let Some(slot) = entry.execs.get_mut(exec)
            && let Exec::There(process) = &slot.exec
            && is_it(&process.handle)
        {
            slot.exec = Exec::Ended(Record { exit, told: false, number: entry.ended });
            entry.ended += 1;
            entry.bound_records();
        }
    }

    /// The result of an exec, if it has ended.
    #[must_use]
    pub fn exec_exit(&self, key: &ProcessKey) -> Option<ProcessExit> {
        match &self.containers.get(&key.container)?.execs.get(key.exec.as_ref()?)?.exec {
            Exec::Ended(record) => Some(record.exit),
            Exec::Reserved | Exec::There(_) => None,
        }
    }

    /// Called when a result was reported. The record stays, but is removed before unreported ones.
    pub fn exit_reported(&mut self, key: &ProcessKey, exit: ProcessExit) {
        let Some(exec) = &key.exec else { return };
        let slot = self.containers.get_mut(&key.container).and_then(|entry| entry.execs.get_mut(exec));
        // Of the same id there may be another by now, which ended later.
        if let Some(Slot { exec: Exec::Ended(record), .. }) = slot
            && record.exit == exit
        {
            record.told = true;
        }
    }

    /// Deletes the record of an exec.
    ///
    /// # Errors
    /// [`RegistryError`] if there is none, or the exec has not ended.
    pub fn delete_exec(&mut self, container: &str, exec: &str) -> Result<(), RegistryError> {
        let entry = self.entry_mut(container)?;
        match entry.execs.get(exec).map(|slot| &slot.exec) {
            Some(Exec::Ended(_)) => {
                entry.execs.remove(exec);
                Ok(())
            }
            Some(_) => Err(RegistryError::ExecAlive(container.to_owned(), exec.to_owned())),
            None => Err(RegistryError::NoExec(container.to_owned(), exec.to_owned())),
        }
    }

    /// Called when the first process of a container has ended.
    pub fn stopped(&mut self, id: &str, exit: ProcessExit) {
        if let Some(entry) = self.containers.get_mut(id) {
            entry.status = Status::Stopped;
            entry.exit = Some(exit);
        }
    }

    /// The data of a process.
    ///
    /// # Errors
    /// [`RegistryError`] if there is none (yet) with this key.
    pub fn process(&self, key: &ProcessKey) -> Result<&P, RegistryError> {
        let entry = self.entry(&key.container)?;
        match &key.exec {
            None => entry.first.as_ref().ok_or_else(|| RegistryError::NoContainer(key.container.clone())),
            Some(exec) => match entry.execs.get(exec).map(|slot| &slot.exec) {
                Some(Exec::There(process)) => Ok(process),
                Some(Exec::Ended(_)) => Err(RegistryError::ExecEnded(key.container.clone(), exec.clone())),
                Some(Exec::Reserved) | None => {
                    Err(RegistryError::NoExec(key.container.clone(), exec.clone()))
                }
            },
        }
        .map(|process| &process.handle)
    }

    /// The data of a container.
    ///
    /// # Errors
    /// [`RegistryError::NoContainer`].
    pub fn data(&mut self, id: &str) -> Result<&mut C, RegistryError> {
        Ok(&mut self.entry_mut(id)?.data)
    }

    /// A summary of a container.
    ///
    /// # Errors
    /// [`RegistryError::NoContainer`].
    pub fn summary(&self, id: &str) -> Result<ContainerSummary, RegistryError> {
        let entry = self.entry(id)?;
        Ok(ContainerSummary {
            id: id.to_owned(),
            status: entry.status,
            pid: entry.first.as_ref().map_or(0, |process| process.pid),
            exit: entry.exit,
            exec_ids: entry
                .execs
                .iter()
                .filter(|(_, slot)| !matches!(slot.exec, Exec::Ended(Record { told: true, .. })))
                .map(|(id, _)| id.clone())
                .collect(),
        })
    }

    /// All container ids, sorted.
    #[must_use]
    pub fn ids(&self) -> Vec<String> {
        self.containers.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Plain = Registry<(), i32>;

    fn running(id: &str, pid: i32) -> Plain {
        let mut registry = Plain::default();
        registry.reserve_container(id, ()).expect("new");
        registry.set_first(id, pid, pid).expect("reserved");
        registry.advance(id, Status::Creating, Status::Created).expect("created");
        registry.advance(id, Status::Created, Status::Starting).expect("starting");
        registry.advance(id, Status::Starting, Status::Running).expect("running");
        registry
    }

    #[test]
    fn a_life() {
        let mut registry = running("a", 10);
        assert_eq!(registry.reserve_container("a", ()), Err(RegistryError::ContainerExists("a".into())));
        let e = registry.reserve_exec("a", "e").expect("running");
        assert_eq!(registry.reserve_exec("a", "e"), Err(RegistryError::ExecExists("a".into(), "e".into())));
        assert_eq!(
            registry.process(&ProcessKey::new("a", "e")),
            Err(RegistryError::NoExec("a".into(), "e".into()))
        );
        registry.set_exec(&e, 11, 11).expect("reserved");
        assert_eq!(registry.process(&ProcessKey::new("a", "e")), Ok(&11));
        assert_eq!(registry.reaped(11), Some(ProcessKey::new("a", "e")));
        assert_eq!(registry.reaped(11), None);
        registry.forget_exec(&e);
        assert_eq!(registry.reaped(10), Some(ProcessKey::new("a", "")));
        let exit = ProcessExit { code: 7, ..ProcessExit::default() };
        registry.stopped("a", exit);
        let summary = registry.summary("a").expect("still there");
        assert_eq!((summary.status, summary.exit, summary.pid), (Status::Stopped, Some(exit), 10));
        assert!(summary.exec_ids.is_empty());
        assert!(matches!(registry.reserve_exec("a", "f"), Err(RegistryError::State { .. })));
        registry.forget_container("a");
        assert!(registry.ids().is_empty());
    }

    #[test]
    fn a_container_that_stopped_while_starting_stays_stopped() {
        let mut registry = Plain::default();
        registry.reserve_container("a", ()).expect("new");
        assert!(registry.advance("a", Status::Created, Status::Starting).is_err());
        registry.advance("a", Status::Creating, Status::Created).expect("created");
        registry.advance("a", Status::Created, Status::Starting).expect("starting");
        registry.stopped("a", ProcessExit::default());
        let error = registry.advance("a", Status::Starting, Status::Running).expect_err("it stopped");
        assert_eq!(error.to_string(), "container a is stopped; this call needs it to be starting");
    }

    #[test]
    fn a_number_given_again_belongs_to_the_new_process() {
        let mut registry = running("a", 10);
        let one = registry.reserve_exec("a", "one").expect("running");
        registry.set_exec(&one, 11, 11).expect("reserved");
        registry.reaped(11);
        let two = registry.reserve_exec("a", "two").expect("running");
        registry.set_exec(&two, 11, 11).expect("reserved");
        registry.forget_exec(&one);
        assert_eq!(registry.reaped(11), Some(ProcessKey::new("a", "two")));
    }

    #[test]
    fn the_clean_up_of_one_exec_spares_the_next_of_its_id() {
        let mut registry = running("a", 10);
        let key = ProcessKey::new("a", "e");
        let failed = registry.reserve_exec("a", "e").expect("running");
        registry.set_exec(&failed, 11, 11).expect("reserved");
        // Its process ends, somebody is told, and the id is given again before its clean-up.
        registry.reaped(11);
        registry.exec_ended(&key, |process| *process == 11, ProcessExit::default());
        registry.exit_reported(&key, ProcessExit::default());
        let next = registry.reserve_exec("a", "e").expect("told of");
        assert_eq!(registry.exec_process(&failed), None);
        registry.forget_exec(&failed);
        assert!(matches!(registry.set_exec(&failed, 12, 12), Err(RegistryError::NoExec(..))));
        registry.set_exec(&next, 12, 12).expect("it is there");
        assert_eq!((registry.exec_process(&failed), registry.exec_process(&next)), (None, Some(&12)));
        registry.forget_exec(&failed);
        assert_eq!(registry.process(&key), Ok(&12));
        assert_eq!(registry.reaped(12), Some(key));
    }

    /// An exec that has ended at this moment.
    fn ended(registry: &mut Plain, id: &str, at_ns: u64) -> ProcessKey {
        let key = ProcessKey::new("a", id);
        let reservation = registry.reserve_exec("a", id).expect("free");
        registry.set_exec(&reservation, 11, 11).expect("reserved");
        registry.reaped(11);
        registry.exec_ended(&key, |process| *process == 11, ProcessExit { at_ns, ..ProcessExit::default() });
        key
    }

    #[test]
    fn a_record_outlives_whoever_is_told_until_its_id_is_wanted_or_it_is_deleted() {
        let mut registry = running("a", 10);
        let key = ended(&mut registry, "e", 1);
        let exit = registry.exec_exit(&key).expect("ended");
        assert_eq!(registry.process(&key), Err(RegistryError::ExecEnded("a".into(), "e".into())));
        assert_eq!(registry.reserve_exec("a", "e"), Err(RegistryError::ExecExists("a".into(), "e".into())));
        assert_eq!(registry.summary("a").expect("there").exec_ids, ["e"]);
        for _ in 0..2 {
            registry.exit_reported(&key, exit);
            assert_eq!(registry.exec_exit(&key), Some(exit));
            assert!(registry.summary("a").expect("there").exec_ids.is_empty());
        }
        // A later exec with the same id was not reported.
        ended(&mut registry, "e", 2);
        registry.exit_reported(&key, exit);
        assert_eq!(registry.summary("a").expect("there").exec_ids, ["e"]);
        registry.delete_exec("a", "e").expect("ended");
        assert_eq!(registry.exec_exit(&key), None);
        assert_eq!(registry.delete_exec("a", "e"), Err(RegistryError::NoExec("a".into(), "e".into())));
        let reservation = registry.reserve_exec("a", "e").expect("free");
        assert_eq!(registry.delete_exec("a", "e"), Err(RegistryError::ExecAlive("a".into(), "e".into())));
        // A process that is not the one of the record ends nothing.
        registry.set_exec(&reservation, 12, 12).expect("reserved");
        registry.exec_ended(&key, |process| *process == 11, exit);
        assert_eq!(registry.process(&key), Ok(&12));
    }

    #[test]
    fn the_oldest_records_go_and_first_those_that_somebody_was_told_of() {
        let mut registry = running("a", 10);
        let keys: Vec<_> =
            (0..ENDED_MOST as u64).map(|n| ended(&mut registry, &format!("e{n}"), n)).collect();
        let known = |registry: &Plain, n: usize| registry.exec_exit(&keys[n]).is_some();
        assert!((0..ENDED_MOST).all(|n| known(&registry, n)));
        for n in [7, 5] {
            registry.exit_reported(&keys[n], registry.exec_exit(&keys[n]).expect("ended"));
        }
        ended(&mut registry, "one more", 10_000);
        assert!(!known(&registry, 5) && known(&registry, 7));
        ended(&mut registry, "two more", 10_001);
        assert!(!known(&registry, 7) && known(&registry, 0));
        ended(&mut registry, "three more", 10_002);
        assert!(!known(&registry, 0) && known(&registry, 1));
    }

    proptest! {
        #[test]
        fn a_thousand_execs_leave_nothing(ids in prop::collection::vec(0..50i32, 0..200)) {
            let mut registry = running("a", 1);
            for id in ids {
                let reservation = registry.reserve_exec("a", &id.to_string()).expect("forgotten each time");
                registry.set_exec(&reservation, 100 + id, id).expect("reserved");
                if id % 3 != 0 {
                    registry.reaped(100 + id);
                }
                registry.forget_exec(&reservation);
            }
            prop_assert_eq!(registry.pids.len(), 1);
            prop_assert!(registry.summary("a").expect("there").exec_ids.is_empty());
        }
    }
}
