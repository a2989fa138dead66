//! Locks on the host's files ([`Locks::Host`]).
//!
//! Each owner of locks on an inode has a descriptor of its own here, for locks of the host belong
//! to open files (F_OFD_SETLK, flock). Nothing waits in the host's kernel: a request that waits
//! tries again when a lock is released here, and at intervals, for one may be released elsewhere.
//! It ends when the driver interrupts it or is reset. How many wait at a time is bounded, so that
//! others can be answered, those that release locks above all.

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Answer, Result, Server};
use crate::cache::Open;
use crate::config::Locks;
use crate::errno::Errno;
use crate::sys::{self, OpenHow};
use crate::wire::{LockKind, LockRange, lock_out};

/// First and longest pause between two tries.
const PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));

/// Inode, owner, and whether it is a lock of flock.
type Key = (u64, u64, bool);

#[derive(Debug, Default)]
struct Inner {
    files: HashMap<Key, Arc<Open>>,
    /// Requests that wait, and those of them that shall not any more.
    waiting: HashSet<u64>,
    interrupted: HashSet<u64>,
}

/// Locks that are held, by their owners.
#[derive(Debug)]
pub(super) struct LockTable {
    inner: Mutex<Inner>,
    changed: Condvar,
    max: usize,
    mode: Locks,
}

impl LockTable {
    /// At most `max` owners of locks.
    pub(super) fn new(max: usize, mode: Locks) -> Self {
        Self { inner: Mutex::default(), changed: Condvar::new(), max, mode }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All locks end, and all waits.
    pub(super) fn reset(&self) {
        let mut inner = self.inner();
        inner.files.clear();
        inner.interrupted = inner.waiting.clone();
        self.changed.notify_all();
    }

    /// The locks of an owner on an inode end.
    pub(super) fn drop_owner(&self, node: u64, owner: u64, flock: bool) {
        let gone = self.inner().files.remove(&(node, owner, flock));
        if gone.is_some() {
            drop(gone);
            self.changed.notify_all();
        }
    }

    /// A request shall wait no longer. One that has not begun to is not known and goes on: with
    /// virtio, requests and their interruption come by different queues.
    pub(super) fn interrupt(&self, unique: u64) {
        let mut inner = self.inner();
        if inner.waiting.contains(&unique) {
            inner.interrupted.insert(unique);
            self.changed.notify_all();
        }
    }

    /// Waits for a change. `EINTR`: the request was interrupted.
    fn wait(&self, unique: u64, pause: Duration) -> Result<()> {
        let inner = self.inner();
        let (mut inner, _) = if inner.interrupted.contains(&unique) {
            (inner, None)
        } else {
            let (inner, timeout) =
                self.changed.wait_timeout(inner, pause).unwrap_or_else(PoisonError::into_inner);
            (inner, Some(timeout))
        };
        if inner.interrupted.remove(&unique) { Err(Errno::INTR) } else { Ok(()) }
    }

    /// A request begins to wait.
    fn begin(&self, unique: u64) -> Result<()> {
        let Locks::Host { waiters } = self.mode else { return Err(Errno::NOSYS) };
        let mut inner = self.inner();
        if inner.waiting.len() >= waiters || !inner.waiting.insert(unique) {
            return Err(Errno::NOLCK);
        }
        Ok(())
    }

    fn end(&self, unique: u64) {
        let mut inner = self.inner();
        inner.waiting.remove(&unique);
        inner.interrupted.remove(&unique);
    }
}

impl Server {
    fn lock_key(&self, lock: &LockRange) -> Result<Key> {
        if self.locks.mode == Locks::Guest {
            return Err(Errno::NOSYS);
        }
        let handle = self.handle_of(lock.handle)?;
        if handle.is_dir && !lock.flock {
            return Err(Errno::BADF);
        }
        Ok((handle.node, lock.owner, lock.flock))
    }

    /// An open file for locks alone.
    fn lock_file(&self, lock: &LockRange) -> Result<Arc<Open>> {
        let handle = self.handle_of(lock.handle)?;
        let _names = self.reading_names();
        if handle.is_dir {
            let dir = self.dir(handle.node)?;
            return Ok(Open::new(self.descriptor(|| sys::open_dir(dir.as_fd()))?));
        }
        let (leaf, _) = self.leaf(handle.node)?;
        let open = |how| self.descriptor(|| sys::reopen(leaf.as_fd(), OpenHow(how)));
        let fd = if self.options.read_only { open(0) } else { open(2).or_else(|_| open(0)) };
        Ok(Open::new(fd?))
    }

    pub(super) fn get_lock(&self, lock: &LockRange) -> Result<Answer> {
        let key = self.lock_key(lock)?;
        let known = self.locks.inner().files.get(&key).cloned();
        let file = match known {
            Some(file) => file,
            None => self.lock_file(lock)?,
        };
        let found = sys::lock_in_the_way(file.as_fd(), lock)?;
        Ok(lock_out(&found.unwrap_or(LockRange { kind: LockKind::Unlock, ..*lock })).into())
    }

    /// SETLK, and SETLKW with the request's number.
    pub(super) fn set_lock(&self, lock: &LockRange, waits: Option<u64>) -> Result<Answer> {
        let key = self.lock_key(lock)?;
        if lock.kind == LockKind::Unlock {
            return self.unlock(key, lock);
        }
        match self.try_lock(key, lock) {
            Err(Errno::AGAIN) => {}
            done => return done.map(|()| Answer::Done),
        }
        let Some(unique) = waits else { return Err(Errno::AGAIN) };
        self.locks.begin(unique)?;
        let mut pause = PAUSE.0;
        let result = loop {
            match self.locks.wait(unique, pause).and_then(|()| self.try_lock(key, lock)) {
                Err(Errno::AGAIN) => pause = (pause * 2).min(PAUSE.1),
                done => break done,
            }
        };
        self.locks.end(unique);
        result.map(|()| Answer::Done)
    }

    fn unlock(&self, key: Key, lock: &LockRange) -> Result<Answer> {
        let known = self.locks.inner().files.get(&key).cloned();
        let Some(file) = known else { return Ok(Answer::Done) };
        let everything = lock.start == 0 && i64::try_from(lock.end).ok().is_none_or(|end| end == i64::MAX);
        if lock.flock || everything {
            drop(file);
            self.locks.drop_owner(key.0, key.1, key.2);
        } else {
            sys::set_lock(file.as_fd(), lock)?;
            self.locks.changed.notify_all();
        }
        Ok(Answer::Done)
    }

    fn try_lock(&self, key: Key, lock: &LockRange) -> Result<()> {
        let known = self.locks.inner().files.get(&key).cloned();
        if let Some(file) = known {
            return sys::set_lock(file.as_fd(), lock);
        }
        let file = self.lock_file(lock)?;
        let mut inner = self.locks.inner();
        if inner.files.len() >= self.locks.max {
            return Err(Errno::NOLCK);
        }
        // Two threads for one owner at once: whoever comes second uses the first one's file.
        if let Some(file) = inner.files.get(&key).cloned() {
            drop(inner);
            return sys::set_lock(file.as_fd(), lock);
        }
        sys::set_lock(file.as_fd(), lock)?;
        inner.files.insert(key, file);
        Ok(())
    }
}
