//! Parts of tables in memory: read once, written when they are committed, bounded in number.

use std::collections::{HashMap, VecDeque};
use std::io;

use crate::number::fits;
use crate::store::Store;

/// Most parts in memory beside those that wait to be written: 16 MiB of 4 KiB.
const PARTS_MAX: usize = 4096;

/// Parts of tables by their offset in the file.
#[derive(Debug)]
pub(crate) struct Cache {
    parts: HashMap<u64, Part>,
    /// The offsets of all parts, in the order in which they are considered for removal.
    clock: VecDeque<u64>,
    part_bytes: u64,
    dirty: usize,
}

#[derive(Debug)]
struct Part {
    bytes: Box<[u8]>,
    /// Changed since it was read or taken.
    dirty: bool,
    /// A commit is writing it: what the file has is older.
    taken: bool,
    /// Used since the clock passed.
    used: bool,
}

/// Parts that a commit writes: offset and bytes.
pub(crate) type Taken = Vec<(u64, Box<[u8]>)>;

impl Cache {
    pub(crate) fn new(part_bytes: u64) -> Self {
        Self { parts: HashMap::new(), clock: VecDeque::new(), part_bytes, dirty: 0 }
    }

    /// Parts that wait to be written.
    pub(crate) fn dirty(&self) -> usize {
        self.dirty
    }

    fn part(&mut self, store: &dyn Store, at: u64) -> io::Result<&mut Part> {
        if !self.parts.contains_key(&at) {
            let mut bytes = vec![0; fits(self.part_bytes, "4 KiB at most")].into_boxed_slice();
            store.read_padded(&mut bytes, at)?;
            self.make_room();
            self.clock.push_back(at);
            self.parts.insert(at, Part { bytes, dirty: false, taken: false, used: true });
        }
        let part = self.parts.get_mut(&at).ok_or_else(|| io::Error::other("a bug: it was just added"))?;
        part.used = true;
        Ok(part)
    }

    fn make_room(&mut self) {
        // Each is looked at twice at most: the first time it may have been used.
        for _ in 0..2 * self.clock.len() {
            if self.parts.len() < PARTS_MAX {
                return;
            }
            let Some(at) = self.clock.pop_front() else { return };
            match self.parts.get_mut(&at) {
                Some(part) if part.used || part.dirty || part.taken => {
                    part.used = false;
                    self.clock.push_back(at);
                }
                _ => _ = self.parts.remove(&at),
            }
        }
    }

    /// The bytes of the part that holds `offset`, and the position in it.
    pub(crate) fn read(&mut self, store: &dyn Store, offset: u64) -> io::Result<(&[u8], usize)> {
        let inside = offset % self.part_bytes;
        let part = self.part(store, offset - inside)?;
        Ok((&part.bytes, fits(inside, "4 KiB at most")))
    }

    /// The same, to be changed.
    pub(crate) fn write(&mut self, store: &dyn Store, offset: u64) -> io::Result<(&mut [u8], usize)> {
        let inside = offset % self.part_bytes;
        let newly = {
            let part = self.part(store, offset - inside)?;
            !std::mem::replace(&mut part.dirty, true)
        };
        self.dirty += usize::from(newly);
        let part = self.part(store, offset - inside)?;
        Ok((&mut part.bytes, fits(inside, "4 KiB at most")))
    }

    /// An entry of 8 bytes.
    pub(crate) fn entry(&mut self, store: &dyn Store, offset: u64) -> io::Result<u64> {
        let (bytes, at) = self.read(store, offset)?;
        Ok(long(bytes, at))
    }

    /// Changes an entry of 8 bytes.
    pub(crate) fn set_entry(&mut self, store: &dyn Store, offset: u64, value: u64) -> io::Result<()> {
        let (bytes, at) = self.write(store, offset)?;
        bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
        Ok(())
    }

    /// Forgets the parts from byte `start` to `end`: nothing of them is to be written.
    pub(crate) fn forget(&mut self, start: u64, end: u64) {
        let gone = |at: &u64| (start..end).contains(at);
        let dirty = self.parts.iter().filter(|(at, part)| gone(at) && part.dirty).count();
        self.dirty -= dirty;
        self.parts.retain(|at, _| !gone(at));
        self.clock.retain(|at| !gone(at));
    }

    /// What is changed, for a commit to write. Until [`Cache::settle`] nobody reads these parts
    /// from the file.
    pub(crate) fn take(&mut self) -> Taken {
        let mut taken = Taken::new();
        for (at, part) in &mut self.parts {
            if std::mem::take(&mut part.dirty) {
                part.taken = true;
                taken.push((*at, part.bytes.clone()));
            }
        }
        self.dirty = 0;
        taken.sort_unstable_by_key(|(at, _)| *at);
        taken
    }

    /// The parts that were taken are written, or else they wait again.
    pub(crate) fn settle(&mut self, taken: &Taken, written: bool) {
        for (at, _) in taken {
            if let Some(part) = self.parts.get_mut(at) {
                part.taken = false;
                if !written && !std::mem::replace(&mut part.dirty, true) {
                    self.dirty += 1;
                }
            }
        }
    }
}

/// Writes parts, neighbours together.
pub(crate) fn write_parts(store: &dyn Store, parts: &Taken) -> io::Result<()> {
    let mut run: Vec<u8> = Vec::new();
    let mut start = 0;
    for (at, bytes) in parts {
        if start + crate::buffer::wide(run.len()) != *at || run.len() > 1 << 20 {
            store.write_bytes(&run, start)?;
            run.clear();
            start = *at;
        }
        run.extend_from_slice(bytes);
    }
    store.write_bytes(&run, start)
}

/// A number of 8 bytes, the first byte the highest.
pub(crate) fn long(bytes: &[u8], at: usize) -> u64 {
    let mut long = [0; 8];
    long.copy_from_slice(&bytes[at..at + 8]);
    u64::from_be_bytes(long)
}
