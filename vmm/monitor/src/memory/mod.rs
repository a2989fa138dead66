//! Guest memory: the only owner of host pointers.
//!
//! A [`Slot`] is one range of guest physical memory over one range of host addresses, whose parts
//! may have different backings: anonymous memory, a memory file (shared or private), or a private
//! mapping of a kernel file's segments. Parts are replaced by mapping over the range, so slots and
//! regions never move.
//!
//! **Ownership.** The host range is unmapped when its last user is dropped. A [`Slot`] (which the
//! hypervisor keeps as long as it is registered, and its vCPUs keep the machine) and every region
//! of every clone of a [`Memory`] (through its [`Lease`]) hold a reference to it. There are no Rust
//! references into memory that the guest can write: all access is volatile.

#![allow(unsafe_code, reason = "maps and unmaps the guest's memory")]

mod file;
mod image;
mod range;
#[cfg(test)]
mod tests;
mod vectored;
mod vhost;

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use vm_memory::bitmap::{Bitmap, NewBitmap, WithBitmapSlice};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::arch;
use crate::sys::pages::{HUGE, Pages};
use crate::sys::{anonymous, fits, host};
use range::HostRange;

pub use file::read_at;
pub use image::ImageError;
pub use vectored::IoVecs;
pub use vhost::{KernelNet, KernelQueue};

/// The interface through which devices and loaders access guest memory: volatile copies and checked
/// ranges. It is cheap to clone, and keeps the memory mapped.
pub type Memory = GuestMemoryMmap<Lease>;

/// What a region of a [`Memory`] holds instead of a dirty bitmap: its share of the host range.
#[derive(Debug, Default)]
pub struct Lease {
    /// Never read: it keeps the range mapped. `None` where a region maps its own (tests make such
    /// with `Memory::from_ranges`).
    _range: Option<Arc<HostRange>>,
}

impl NewBitmap for Lease {
    fn with_len(_len: usize) -> Self {
        Self::default()
    }
}

impl WithBitmapSlice<'_> for Lease {
    type S = ();
}

impl Bitmap for Lease {
    fn mark_dirty(&self, _offset: usize, _len: usize) {}

    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }

    fn slice_at(&self, _offset: usize) {}
}

/// What stands behind a slot before pieces of it are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Backing {
    /// Anonymous memory, of this process alone.
    #[default]
    Anonymous,
    /// A memory file, mapped shared: other processes may map it too (vhost-user, a file server with
    /// DAX).
    SharedFile,
    /// A memory file, mapped privately: writes stay in this process.
    PrivateFile,
}

/// One slot as the hypervisor registers it. Holding it keeps the host range mapped.
#[derive(Clone, Debug)]
pub struct Slot {
    index: u32,
    guest: u64,
    read_only: bool,
    range: Arc<HostRange>,
}

impl Slot {
    /// Maps `len` bytes of `backing` for guest physical address `guest`, both in whole pages.
    /// `index` is unique in a machine. The monitor may write to a slot that is `read_only` to the
    /// guest.
    ///
    /// # Errors
    /// A size or address that is not in whole pages, or the host's refusal.
    pub fn new(
        index: u32,
        guest: u64,
        len: u64,
        backing: Backing,
        read_only: bool,
    ) -> Result<Self, MemoryError> {
        let page = host::page_size();
        let end = guest.checked_add(len);
        if len == 0 || !len.is_multiple_of(page) || !guest.is_multiple_of(page) || end.is_none() {
            return Err(MemoryError::Slot { guest, len });
        }
        let map = |source| MemoryError::Map { len, source };
        let bytes = usize::try_from(len).map_err(|_| MemoryError::Slot { guest, len })?;
        let range = match backing {
            Backing::Anonymous => HostRange::anonymous(bytes).map_err(map)?,
            Backing::SharedFile | Backing::PrivateFile => {
                let file = anonymous::memory_file("guest-memory").map_err(map)?;
                file.set_len(len).map_err(map)?;
                // Whoever shares it could otherwise have this process killed by its next access.
                anonymous::seal_size(&file).map_err(map)?;
                HostRange::file(bytes, file, backing == Backing::SharedFile).map_err(map)?
            }
        };
        Ok(Self { index, guest, read_only, range: Arc::new(range) })
    }

    /// Slot number.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Guest physical address.
    #[must_use]
    pub fn guest(&self) -> u64 {
        self.guest
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        fits(self.range.len(), "no host has more than 64 bits")
    }

    /// Never: a slot has at least one page.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// First host virtual address, for the hypervisor's call.
    #[must_use]
    pub fn host(&self) -> *mut u8 {
        self.range.pointer()
    }

    /// Whether the guest may only read.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The memory file behind a slot of [`Backing::SharedFile`] or [`Backing::PrivateFile`].
    #[must_use]
    pub fn file(&self) -> Option<&Arc<File>> {
        self.range.backing_file()
    }

    /// Gives the pages of `len` bytes from byte `start` of the slot back to the host, both in whole
    /// pages: they are zero when they are touched again. Nobody else reads them by mistake: whoever
    /// has a view of the slot may, and sees zeros.
    ///
    /// # Errors
    /// Outside the slot, or the host's refusal.
    pub fn discard(&self, start: u64, len: u64) -> io::Result<()> {
        let number = |value| usize::try_from(value).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
        self.range.discard(number(start)?, number(len)?)
    }

    /// Gives back to the host what the slot has of the `len` bytes from guest physical address
    /// `guest`, as far as it is whole pages of the host and no file's; returns how many bytes that
    /// was. They are zero when they are touched again.
    ///
    /// # Errors
    /// The host's refusal: what it refused is as it was.
    pub fn give_back(&self, guest: u64, len: u64) -> io::Result<u64> {
        let page = host::page_size();
        let start = guest.saturating_sub(self.guest).min(self.len());
        let end = guest.saturating_add(len).saturating_sub(self.guest).min(self.len());
        let (start, end) = (start.next_multiple_of(page), end - end % page);
        if start >= end {
            return Ok(0);
        }
        let offset = |value| fits(value, "it is less than the length of a mapping");
        let mut given = 0;
        for piece in self.range.own_pieces(offset(start)..offset(end)) {
            self.range.discard(piece.start, piece.len())?;
            given += fits::<_, u64>(piece.len(), "no host has more than 64 bits");
        }
        Ok(given)
    }

    fn region(&self) -> Result<GuestRegionMmap<Lease>, MemoryError> {
        let refused = || MemoryError::Slot { guest: self.guest, len: self.len() };
        let lease = Lease { _range: Some(Arc::clone(&self.range)) };
        let mut builder = MmapRegionBuilder::new_with_bitmap(self.range.len(), lease)
            .with_mmap_prot(range::PROTECTION)
            .with_mmap_flags(self.range.flags());
        if let Some(file) = self.range.backing_file() {
            builder = builder.with_file_offset(FileOffset::from_arc(Arc::clone(file), 0));
        }
        // SAFETY: the range is mapped readable and writable for its whole length, and stays so
        // until the lease that the region holds is dropped with it. The region does not unmap it.
        let builder = unsafe { builder.with_raw_mmap_pointer(self.range.pointer()) };
        let region = builder.build().map_err(|_| refused())?;
        GuestRegionMmap::new(region, GuestAddress(self.guest)).ok_or_else(refused)
    }
}

/// A view of `slots`, which must not overlap in guest addresses.
///
/// # Errors
/// They overlap.
pub fn view(slots: &[Slot]) -> Result<Memory, MemoryError> {
    let mut regions = slots.iter().map(Slot::region).collect::<Result<Vec<_>, _>>()?;
    regions.sort_by_key(vm_memory::GuestMemoryRegion::start_addr);
    Memory::from_regions(regions).map_err(|_| MemoryError::Overlap)
}

/// The machine's RAM: slots 0 and up, laid out as the architecture's address map says.
#[derive(Clone, Debug)]
pub struct GuestRam {
    slots: Vec<Slot>,
    /// So many of the slots, the first ones, are there from the start; the one behind them is
    /// memory that is plugged in later.
    boot_slots: usize,
    memory: Memory,
    size: u64,
}

impl GuestRam {
    /// RAM of `size` bytes, whole pages. Nothing of it is touched: a page costs memory when the
    /// guest or a loader first uses it.
    ///
    /// # Errors
    /// A size of no or broken pages, more than the host's memory, or the host's refusal.
    pub fn new(size: u64, backing: Backing) -> Result<Self, MemoryError> {
        Self::with_hotplug(size, 0, backing)
    }

    /// The same with room for `hotplug` bytes more, whole pages, that the guest gets while it runs:
    /// one more slot, see [`GuestRam::hotplug_slot`].
    ///
    /// # Errors
    /// As [`GuestRam::new`], for both together.
    pub fn with_hotplug(size: u64, hotplug: u64, backing: Backing) -> Result<Self, MemoryError> {
        let more = (hotplug > 0).then(|| (arch::hotplug_start(size, hotplug), hotplug));
        Self::laid_out(&arch::ram_ranges(size), more, backing)
    }

    /// RAM at these places (first byte and length, by rising address), and one more for what is
    /// plugged in later.
    ///
    /// # Errors
    /// As [`GuestRam::with_hotplug`].
    pub fn laid_out(
        ranges: &[(u64, u64)],
        hotplug: Option<(u64, u64)>,
        backing: Backing,
    ) -> Result<Self, MemoryError> {
        let size = ranges.iter().fold(0u64, |size, (_, len)| size.saturating_add(*len));
        let all = size.saturating_add(hotplug.map_or(0, |(_, len)| len));
        let host = host::memory_bytes().map_err(|source| MemoryError::Map { len: all, source })?;
        if all > host {
            return Err(MemoryError::MoreThanHost { size: all, host });
        }
        let mut slots = Vec::with_capacity(3);
        for (index, &(guest, len)) in (0u32..).zip(ranges) {
            slots.push(Slot::new(index, guest, len, backing, false)?);
        }
        let boot_slots = slots.len();
        if let Some((guest, len)) = hotplug {
            let index = fits(boot_slots, "memory has one or two slots");
            slots.push(Slot::new(index, guest, len, backing, false)?);
        }
        if backing == Backing::Anonymous {
            for slot in &slots {
                // Of the first pages a program uses a dozen, for tables and its start; see
                // `system_starts`.
                let sparse = if slot.guest == 0 { HUGE } else { 0 };
                slot.range.prefer(0, sparse, Pages::Small);
                slot.range.prefer(sparse, usize::MAX, Pages::Huge);
            }
        }
        let memory = view(&slots)?;
        Ok(Self { slots, boot_slots, memory, size })
    }

    /// What starts is a system, which uses the first pages as it uses others, and looks through all
    /// that may hold firmware: of Linux's 300 small pages there each is an exit, 2.2 ms in counted
    /// time, where a huge one is 0.5. To be said before anything is written there; a wish, like all
    /// choices of pages.
    pub fn system_starts(&self) {
        if let Some(first) = self.slots.first().filter(|slot| slot.guest == 0 && slot.file().is_none()) {
            first.range.prefer(0, HUGE, Pages::Huge);
        }
    }

    /// Bytes that are there from the start.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether other processes may map it by its files, which then are all that there is of it: no
    /// page is one of another file.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.slots.iter().all(|slot| slot.range.is_shared())
    }

    /// The slots to register, by rising guest address.
    #[must_use]
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Those of them that a kernel finds when it starts.
    #[must_use]
    pub fn boot_slots(&self) -> &[Slot] {
        &self.slots[..self.boot_slots]
    }

    /// The slot of memory that is plugged in later, if there is any. The hypervisor has all of it
    /// from the start, as devices do: what of it the guest may use is between its driver and the
    /// device.
    #[must_use]
    pub fn hotplug_slot(&self) -> Option<&Slot> {
        self.slots.get(self.boot_slots)
    }

    /// The view of all of it.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Replaces the pages at `guest` by a private mapping of `len` bytes of `file` from `offset`:
    /// the guest sees the file's bytes without a copy, its writes stay its own. `guest` and
    /// `offset` are in whole pages; the rest of the last page is zeroed.
    ///
    /// Only for a file that nobody can truncate (a sealed memory file, our own cache): a page
    /// beyond the end of a file that was made shorter is a bus error for whoever touches it.
    ///
    /// # Errors
    /// Unaligned or outside RAM, the file is shorter than `offset + len`, or the host's refusal.
    /// RAM is then as it was.
    pub fn map_file(
        &self,
        guest: u64,
        file: BorrowedFd<'_>,
        offset: u64,
        len: u64,
    ) -> Result<(), MemoryError> {
        let page = host::page_size();
        let refused = || MemoryError::File { guest, offset, len };
        let whole = len.checked_next_multiple_of(page).ok_or_else(refused)?;
        let inside = |slot: &&Slot| {
            guest
                .checked_sub(slot.guest)
                .is_some_and(|start| start.checked_add(whole).is_some_and(|end| end <= slot.len()))
        };
        let slot = self.boot_slots().iter().find(inside).ok_or_else(refused)?;
        if len == 0 || !guest.is_multiple_of(page) || !offset.is_multiple_of(page) {
            return Err(refused());
        }
        let map = |source: rustix::io::Errno| MemoryError::Map { len, source: source.into() };
        let size = u64::try_from(rustix::fs::fstat(file).map_err(map)?.st_size).map_err(|_| refused())?;
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(refused());
        }
        let start = usize::try_from(guest - slot.guest).map_err(|_| refused())?;
        let bytes = usize::try_from(whole).map_err(|_| refused())?;
        slot.range.replace(start, bytes, file, offset).map_err(|source| MemoryError::Map { len, source })?;
        let rest = usize::try_from(whole - len).map_err(|_| refused())?;
        let zeros = vec![0; rest];
        self.memory.write_slice(&zeros, GuestAddress(guest + len)).map_err(|_| refused())
    }
}

/// Why guest memory could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// More than the host has.
    #[error("{} MiB of guest memory exceed this host's {} MiB of memory", size >> 20, host >> 20)]
    MoreThanHost {
        /// Bytes asked for.
        size: u64,
        /// Bytes of the host.
        host: u64,
    },
    /// Not in whole pages, or beyond the address space.
    #[error("a memory slot of {len:#x} bytes at guest address {guest:#x} is invalid")]
    Slot {
        /// Guest physical address.
        guest: u64,
        /// Bytes.
        len: u64,
    },
    /// Two slots claim one address.
    #[error("memory slots overlap")]
    Overlap,
    /// A file's bytes cannot stand where they were asked to.
    #[error("cannot map {len:#x} bytes at file offset {offset:#x} to guest address {guest:#x}")]
    File {
        /// Guest physical address.
        guest: u64,
        /// Offset in the file, bytes.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// The host refused.
    #[error("cannot map {len:#x} bytes of guest memory")]
    Map {
        /// Bytes.
        len: u64,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}
