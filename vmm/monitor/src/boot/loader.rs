//! Files into guest memory: mapped where that is allowed, copied otherwise.

use super::error::BootError;
use super::source::Source;
use crate::memory::{GuestRam, Memory};
use crate::sys::host;

/// Fewer bytes are copied faster than mapped.
const MAP_MIN: u64 = 64 << 10;

/// Writes files into guest memory, and counts what it mapped.
pub(super) struct Loader<'a> {
    ram: &'a GuestRam,
    /// Bytes of the host's pages, the only ones that can be mapped.
    page: u64,
    pub(super) mapped_bytes: u64,
}

impl<'a> Loader<'a> {
    pub(super) fn new(ram: &'a GuestRam) -> Self {
        Self { ram, page: host::page_size(), mapped_bytes: 0 }
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
        let (first, last) = whole_pages(guest, len, self.page);
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
        let Some(place) = place.filter(|place| place.offset.is_multiple_of(self.page)) else {
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

/// First byte and end of the whole pages of `page` bytes, a power of two, among `len` bytes at
/// `guest`. Without any the end is before the first.
fn whole_pages(guest: u64, len: u64, page: u64) -> (u64, u64) {
    (guest.next_multiple_of(page), (guest + len) & !(page - 1))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use nelly_disk::FileReader;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::arch;
    use crate::memory::Backing;

    const KIB: u64 = 1 << 10;

    #[test]
    fn whole_pages_of_every_host() {
        let at = 0x8020_1000;
        for (len, page, expected) in [
            (200 * KIB, 4 * KIB, (at, at + 200 * KIB)),
            (200 * KIB + 1, 4 * KIB, (at, at + 200 * KIB)),
            (200 * KIB, 16 * KIB, (at + 12 * KIB, at + 188 * KIB)),
            (200 * KIB, 64 * KIB, (at + 60 * KIB, at + 188 * KIB)),
            // A whole page and a part before and behind, or none.
            (124 * KIB, 64 * KIB, (at + 60 * KIB, at + 124 * KIB)),
            (123 * KIB, 64 * KIB, (at + 60 * KIB, at + 60 * KIB)),
            (4 * KIB, 64 * KIB, (at + 60 * KIB, at - 4 * KIB)),
        ] {
            assert_eq!(whole_pages(at, len, page), expected, "{len} {page}");
        }
    }

    /// On a host with larger pages less is mapped, and every byte is there all the same.
    #[test]
    fn a_file_is_mapped_as_far_as_the_hosts_pages_go() {
        let base = arch::ram_ranges(4 << 20)[0].0;
        let content: Vec<u8> =
            (0..400_000_u32).map(|at| u8::try_from(at % 251).expect("it is less")).collect();
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&content).expect("it has room");
        let reader = FileReader::new(&file).expect("it is a file").immutable();
        let source = Source::open("FILE", &reader).expect("it is not empty");
        for (page, guest, offset, mapped) in [
            (4 * KIB, base + 4 * KIB, 0, 388 * KIB),
            // Pages of the file that lie elsewhere among the guest's are copied.
            (16 * KIB, base + 4 * KIB, 0, 0),
            (16 * KIB, base + 4 * KIB, 4 * KIB, 368 * KIB),
            (16 * KIB, base + 64 * KIB, 0, 384 * KIB),
            (64 * KIB, base + 64 * KIB, 0, 384 * KIB),
            (64 * KIB, base + 68 * KIB, 4 * KIB, 320 * KIB),
            (64 * KIB, base + 16 * KIB, 0, 0),
        ] {
            // No host maps less than its own pages.
            if page < host::page_size() {
                continue;
            }
            let ram = GuestRam::new(4 << 20, Backing::Anonymous).expect("memory");
            let mut loader = Loader { page, ..Loader::new(&ram) };
            let len = 400_000 - offset;
            loader.put(&source, guest, (offset, len), "file").expect("it fits");
            assert_eq!(loader.mapped_bytes, mapped, "{page} {guest:#x} {offset}");
            let mut seen = vec![0; usize::try_from(len).expect("it is small")];
            ram.memory().read_slice(&mut seen, GuestAddress(guest)).expect("it is there");
            assert!(seen == content[usize::try_from(offset).expect("it is small")..], "{page} {guest:#x}");
        }
    }
}
