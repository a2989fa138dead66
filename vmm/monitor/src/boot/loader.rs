//! Files into guest memory: mapped where that is allowed, copied otherwise.

use super::PAGE;
use super::error::BootError;
use super::source::Source;
use crate::memory::{GuestRam, Memory};

/// Fewer bytes are copied faster than mapped.
const MAP_MIN: u64 = 64 << 10;

/// Writes files into guest memory, and counts what it mapped.
pub(super) struct Loader<'a> {
    ram: &'a GuestRam,
    pub(super) mapped_bytes: u64,
}

impl<'a> Loader<'a> {
    pub(super) fn new(ram: &'a GuestRam) -> Self {
        Self { ram, mapped_bytes: 0 }
    }

    /// The guest's memory.
    pub(super) fn memory(&self) -> &'a Memory {
        self.ram.memory()
    }

    /// Puts `len` bytes of `source` at `offset` into guest memory at `guest`: whole pages are
    /// mapped where that is allowed and possible, the rest is copied. The caller has checked that
    /// memory is there.
    pub(super) fn put(
        &mut self,
        source: &Source<'_>,
        guest: u64,
        (offset, len): (u64, u64),
        what: &'static str,
    ) -> Result<(), BootError> {
        let first = guest.next_multiple_of(PAGE);
        let last = (guest + len) & !(PAGE - 1);
        let before = first - guest;
        source.check(offset, len, what)?;
        let place = match last.checked_sub(first) {
            // Others see memory that they share by its own file alone.
            Some(pages) if pages >= MAP_MIN && !self.ram.is_shared() => {
                source.mappable(offset + before, pages)
            }
            _ => None,
        };
        let memory = self.ram.memory();
        let Some(place) = place.filter(|place| place.offset.is_multiple_of(PAGE)) else {
            return source.copy_to(memory, guest, offset, len, what);
        };
        self.ram
            .map_file(first, place.file, place.offset, last - first)
            .map_err(|error| BootError::Map { file: source.name().to_owned(), source: error })?;
        self.mapped_bytes += last - first;
        source.copy_to(memory, guest, offset, before, what)?;
        let done = last - guest;
        source.copy_to(memory, last, offset + done, len - done, what)
    }
}
