//! The entries of an open directory, a bounded number at a time.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use crate::errno::Errno;
use crate::sys;

/// An entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DirEntry<'a> {
    pub(crate) ino: u64,
    /// The place behind it.
    pub(crate) next: u64,
    /// A DT_ number.
    pub(crate) kind: u8,
    pub(crate) name: &'a CStr,
}

#[derive(Clone, Copy, Debug)]
struct Stored {
    ino: u64,
    next: u64,
    kind: u8,
    /// Where its name begins, which ends with a NUL.
    name: usize,
}

/// What one call of the system returned: about 8 KiB of names. It is kept until the driver asks
/// for what is behind, so that it can go back inside of it without the file system's help; tmpfs,
/// for one, counts its entries anew after a deletion.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    entries: Vec<Stored>,
    names: Vec<u8>,
    /// The place of the first entry.
    start: u64,
    /// Where the descriptor is.
    position: u64,
}

impl Stream {
    /// Makes sure that the entry at `place` is here, and returns its index, which is the number of
    /// entries at the end of the directory. Place 0 is its beginning, read anew.
    pub(crate) fn find(&mut self, fd: BorrowedFd<'_>, place: u64) -> Result<usize, Errno> {
        if place != 0 {
            if self.start == place && !self.entries.is_empty() {
                return Ok(0);
            }
            let behind = self.entries.iter().position(|entry| entry.next == place).map(|index| index + 1);
            if let Some(index) = behind.filter(|index| *index < self.entries.len()) {
                return Ok(index);
            }
        }
        if place != self.position {
            sys::seek_dir(fd, place)?;
            self.position = place;
        }
        self.load(fd)?;
        Ok(0)
    }

    fn load(&mut self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        self.entries.clear();
        self.names.clear();
        self.start = self.position;
        let (entries, names) = (&mut self.entries, &mut self.names);
        sys::read_dir(fd, |ino, next, kind, name| {
            entries.push(Stored { ino, next, kind, name: names.len() });
            names.extend_from_slice(name.to_bytes_with_nul());
        })?;
        match self.entries.last() {
            Some(last) => self.position = last.next,
            // At the end nothing is kept.
            None => *self = Self { start: self.start, position: self.position, ..Self::default() },
        }
        Ok(())
    }

    /// The place behind the last entry that is here.
    pub(crate) fn last_place(&self) -> Option<u64> {
        self.entries.last().map(|entry| entry.next)
    }

    /// The entry with this index.
    pub(crate) fn get(&self, index: usize) -> Option<DirEntry<'_>> {
        let &Stored { ino, next, kind, name } = self.entries.get(index)?;
        let name = CStr::from_bytes_until_nul(self.names.get(name..)?).ok()?;
        Some(DirEntry { ino, next, kind, name })
    }
}
