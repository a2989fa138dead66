//! Descriptors that are kept open because they may be needed again, a bounded number of them. What
//! is not among them is opened again.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::stream::Stream;

/// What a descriptor is kept for. Numbers of both are never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// A directory that names are looked up in.
    Node(u64),
    /// A file or directory that the driver has open.
    Handle(u64),
}

/// An open descriptor.
#[derive(Debug)]
pub(crate) struct Open {
    fd: OwnedFd,
    /// For an open directory: what was read of it.
    pub(crate) stream: Mutex<Stream>,
}

impl Open {
    pub(crate) fn new(fd: OwnedFd) -> Arc<Self> {
        Arc::new(Self { fd, stream: Mutex::default() })
    }
}

impl AsFd for Open {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[derive(Debug)]
struct Slot {
    open: Arc<Open>,
    used: bool,
}

#[derive(Debug, Default)]
struct Inner {
    slots: HashMap<Key, Slot>,
    /// In the order in which they are closed: one that was used since it came here comes here
    /// once more. May hold keys that are gone.
    order: VecDeque<Key>,
}

/// The descriptors. One that is evicted is closed when its last user is done.
#[derive(Debug)]
pub(crate) struct Cache {
    inner: Mutex<Inner>,
    room: usize,
}

impl Cache {
    /// Keeps at most `room` descriptors.
    pub(crate) fn new(room: usize) -> Self {
        Self { inner: Mutex::default(), room }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nothing is half done between two statements here.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, key: Key) -> Option<Arc<Open>> {
        let mut inner = self.inner();
        let slot = inner.slots.get_mut(&key)?;
        slot.used = true;
        Some(Arc::clone(&slot.open))
    }

    /// Keeps a descriptor, unless another one was kept meanwhile. Returns the one that is kept.
    pub(crate) fn put(&self, key: Key, open: Arc<Open>) -> Arc<Open> {
        let mut inner = self.inner();
        if let Some(slot) = inner.slots.get(&key) {
            return Arc::clone(&slot.open);
        }
        let evicted = inner.shrink(self.room.saturating_sub(1));
        inner.slots.insert(key, Slot { open: Arc::clone(&open), used: false });
        inner.order.push_back(key);
        drop(inner);
        // Closing may take time.
        drop(evicted);
        open
    }

    pub(crate) fn remove(&self, key: Key) {
        let gone = self.inner().slots.remove(&key);
        drop(gone);
    }

    /// Closes half of them: the process has no more descriptors.
    pub(crate) fn halve(&self) {
        let mut inner = self.inner();
        let room = inner.slots.len() / 2;
        let evicted = inner.shrink(room);
        drop(inner);
        drop(evicted);
    }

    pub(crate) fn clear(&self) {
        let gone = std::mem::take(&mut *self.inner());
        drop(gone);
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.inner().slots.len()
    }
}

impl Inner {
    /// Takes out descriptors until at most `room` are left.
    fn shrink(&mut self, room: usize) -> Vec<Arc<Open>> {
        if self.order.len() > 2 * self.slots.len() + 64 {
            let slots = &self.slots;
            self.order.retain(|key| slots.contains_key(key));
        }
        let mut evicted = Vec::new();
        while self.slots.len() > room {
            let Some(key) = self.order.pop_front() else { break };
            match self.slots.get_mut(&key) {
                Some(slot) if slot.used => {
                    slot.used = false;
                    self.order.push_back(key);
                }
                Some(_) => evicted.extend(self.slots.remove(&key).map(|slot| slot.open)),
                None => {}
            }
        }
        evicted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> Arc<Open> {
        Open::new(std::fs::File::open("/dev/null").unwrap().into())
    }

    #[test]
    fn no_more_than_there_is_room_for_and_the_used_ones_stay() {
        let cache = Cache::new(4);
        for n in 0..4 {
            cache.put(Key::Node(n), open());
        }
        for n in 4..100 {
            assert!(cache.get(Key::Node(2)).is_some(), "{n}");
            cache.put(Key::Node(n), open());
            assert_eq!(cache.len(), 4);
        }
        assert!(cache.get(Key::Node(0)).is_none());
        cache.halve();
        assert_eq!(cache.len(), 2);
        cache.clear();
        assert_eq!(cache.len(), 0);
    }

    #[test]
    fn what_is_evicted_stays_open_for_who_uses_it() {
        let cache = Cache::new(1);
        let first = cache.put(Key::Handle(1), open());
        cache.put(Key::Handle(2), open());
        assert!(cache.get(Key::Handle(1)).is_none());
        assert!(rustix::fs::fstat(&*first).is_ok());
        let second = cache.get(Key::Handle(2)).unwrap();
        assert!(Arc::ptr_eq(&cache.put(Key::Handle(2), open()), &second), "the first one wins");
    }

    #[test]
    fn keys_that_are_gone_do_not_pile_up() {
        let cache = Cache::new(8);
        for n in 0..10_000 {
            cache.put(Key::Handle(n), open());
            cache.remove(Key::Handle(n));
        }
        assert!(cache.inner().order.len() < 200);
    }
}
