//! Who is who: connections by handle (for the poller) and by ports (for packets).

use std::collections::HashMap;

use super::connection::Key;
use crate::sys::fits;

/// Bits of a handle that number the entry; the rest counts how often it was reused.
const INDEX_BITS: u32 = 17;
const INDEX_MASK: u32 = (1 << INDEX_BITS) - 1;
/// A handle as a poller's key has this bit, the keys of queues and the like do not.
const KEY_BIT: u32 = 1 << 31;
/// The first port given to the host's end of a dialled connection; below it are ports that services
/// are known by.
pub(super) const FIRST_HOST_PORT: u32 = 1 << 30;

/// Names an entry for its lifetime: an event that was under way when an entry was removed does not
/// find the one that followed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Handle(u32);

impl Handle {
    fn new(index: usize, generation: u16) -> Self {
        let index = fits::<_, u32>(index, "a table has fewer entries than an index has values") & INDEX_MASK;
        Self((u32::from(generation) << INDEX_BITS | index) & !KEY_BIT)
    }

    fn index(self) -> usize {
        fits(self.0 & INDEX_MASK, "usize has at least 32 bits on every host of Nelly")
    }

    /// The handle as the key of a registration.
    pub(super) fn key(self) -> u32 {
        self.0 | KEY_BIT
    }

    /// The handle that `key` is, if it is one.
    pub(super) fn from_key(key: u32) -> Option<Self> {
        (key & KEY_BIT != 0).then_some(Self(key & !KEY_BIT))
    }
}

#[derive(Debug)]
struct Entry<T> {
    generation: u16,
    entry: Option<T>,
}

/// A bounded set of entries.
#[derive(Debug)]
pub(super) struct Table<T> {
    entries: Vec<Entry<T>>,
    free: Vec<usize>,
    index: HashMap<Key, Handle>,
    most: usize,
    next_port: u32,
}

impl<T> Table<T> {
    /// A table of at most `most` entries (131072 at the outside).
    pub(super) fn new(most: usize) -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            index: HashMap::new(),
            most: most.min(1 << INDEX_BITS),
            next_port: FIRST_HOST_PORT,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() >= self.most
    }

    /// Adds an entry; gives it back when the table is full.
    pub(super) fn insert(&mut self, entry: T) -> Result<Handle, T> {
        if self.is_full() {
            return Err(entry);
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry { generation: 0, entry: None });
            self.entries.len() - 1
        });
        let there = &mut self.entries[index];
        there.entry = Some(entry);
        Ok(Handle::new(index, there.generation))
    }

    fn valid(&self, handle: Handle) -> Option<&Entry<T>> {
        let found = self.entries.get(handle.index())?;
        (found.entry.is_some() && Handle::new(handle.index(), found.generation) == handle).then_some(found)
    }

    pub(super) fn get(&self, handle: Handle) -> Option<&T> {
        self.valid(handle)?.entry.as_ref()
    }

    pub(super) fn get_mut(&mut self, handle: Handle) -> Option<&mut T> {
        self.valid(handle)?;
        self.entries[handle.index()].entry.as_mut()
    }

    pub(super) fn remove(&mut self, handle: Handle) -> Option<T> {
        self.valid(handle)?;
        let found = &mut self.entries[handle.index()];
        found.generation = found.generation.wrapping_add(1);
        self.free.push(handle.index());
        found.entry.take()
    }

    pub(super) fn handles(&self) -> Vec<Handle> {
        let live = self.entries.iter().enumerate().filter(|(_, found)| found.entry.is_some());
        live.map(|(index, found)| Handle::new(index, found.generation)).collect()
    }

    /// From now on `key` leads to `handle`.
    pub(super) fn bind(&mut self, key: Key, handle: Handle) {
        self.index.insert(key, handle);
    }

    pub(super) fn unbind(&mut self, key: Key) {
        self.index.remove(&key);
    }

    pub(super) fn find(&self, key: Key) -> Option<Handle> {
        self.index.get(&key).copied()
    }

    /// Where the search for the host's next port begins.
    pub(super) fn next_port(&self) -> u32 {
        self.next_port
    }

    /// Goes on from what [`Self::next_port`] said where the guest was saved: it may still hold the
    /// ends of connections that are gone, and refuses a new one with the ports of such.
    pub(super) fn set_next_port(&mut self, port: u32) {
        self.next_port = port.clamp(FIRST_HOST_PORT, u32::MAX - 1);
    }

    /// A port for the host's end of a connection to `guest`. Ports go round: one comes back only
    /// after 3 billion others, and never while the same pair is in use.
    pub(super) fn host_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            // The last port number means "any".
            self.next_port = if host >= u32::MAX - 1 { FIRST_HOST_PORT } else { host + 1 };
            if !self.index.contains_key(&Key { guest, host }) {
                return host;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_handle_finds_nothing() {
        let mut table = Table::new(2);
        let first = table.insert('a').unwrap();
        assert_eq!(Handle::from_key(first.key()), Some(first));
        assert_eq!(Handle::from_key(5), None);
        assert_eq!(table.remove(first), Some('a'));
        let second = table.insert('b').unwrap();
        assert_eq!(second.index(), first.index());
        assert_eq!(table.get(first), None);
        assert_eq!(table.remove(first), None);
        assert_eq!(table.get(second), Some(&'b'));
    }

    #[test]
    fn a_full_table_gives_the_entry_back() {
        let mut table = Table::new(2);
        let handles = [table.insert(1).unwrap(), table.insert(2).unwrap()];
        assert_eq!(table.insert(3), Err(3));
        assert_eq!(table.handles(), handles);
        table.remove(handles[0]);
        assert!(table.insert(3).is_ok());
        assert_eq!(table.len(), 2);
    }

    #[test]
    fn host_ports_go_round_and_skip_those_in_use() {
        let mut table = Table::new(4);
        let handle = table.insert(()).unwrap();
        assert_eq!(table.host_port(9), FIRST_HOST_PORT);
        table.next_port = u32::MAX - 1;
        table.bind(Key { guest: 9, host: FIRST_HOST_PORT }, handle);
        assert_eq!(table.host_port(9), u32::MAX - 1);
        assert_eq!(table.host_port(9), FIRST_HOST_PORT + 1);
        table.next_port = FIRST_HOST_PORT;
        assert_eq!(table.host_port(8), FIRST_HOST_PORT, "another guest port, another pair");
        table.unbind(Key { guest: 9, host: FIRST_HOST_PORT });
        assert_eq!(table.find(Key { guest: 9, host: FIRST_HOST_PORT }), None);
    }
}
