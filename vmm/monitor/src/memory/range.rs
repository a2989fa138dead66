//! One mapped range of host addresses.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use nelly_disk::sys::punch_hole;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use crate::sys::pages::{HUGE, Pages, discard, prefer};

/// Protection of every guest page, as the C library writes it (`PROT_READ | PROT_WRITE`).
pub(super) const PROTECTION: i32 = libc::PROT_READ | libc::PROT_WRITE;

const READ_WRITE: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

/// A range of host addresses, mapped from the start of its life to its end; pieces of it may be
/// mapped over.
#[derive(Debug)]
pub(super) struct HostRange {
    start: NonNull<u8>,
    len: usize,
    file: Option<Arc<File>>,
    shared: bool,
    /// Pieces in whose place there are others' files.
    replaced: Mutex<Vec<Range<usize>>>,
}

// SAFETY: the range is plain memory that no Rust reference points into; mapping over a piece of it
// and reading or writing it with volatile accesses is sound from any thread, and it is unmapped
// only by its one owner's drop.
unsafe impl Send for HostRange {}
// SAFETY: as above.
unsafe impl Sync for HostRange {}

impl HostRange {
    /// Private anonymous memory; nothing is reserved or touched. From one huge page on it is
    /// aligned to huge pages: a hypervisor maps a huge page as one only if guest and host address
    /// agree in its lower bits.
    pub(super) fn anonymous(len: usize) -> io::Result<Self> {
        let range = Self::unaligned(len)?;
        let over = range.start.addr().get() % HUGE;
        if len < HUGE || over == 0 {
            return Ok(range);
        }
        // Recent kernels align by themselves. Elsewhere: more than is needed, and what is too much
        // goes back.
        drop(range);
        let mut range = Self::unaligned(len + HUGE)?;
        let before = (HUGE - range.start.addr().get() % HUGE) % HUGE;
        // SAFETY: `before` is less than a huge page, which was asked for beyond `len`; the ends of
        // the mapping are page-aligned, nobody knows of it yet, and what stays mapped is what
        // `range` describes from here on.
        unsafe {
            let start = range.start.add(before);
            if before > 0 {
                munmap(range.start.as_ptr().cast(), before)?;
            }
            munmap(start.add(len).as_ptr().cast(), HUGE - before)?;
            (range.start, range.len) = (start, len);
        }
        Ok(range)
    }

    fn unaligned(len: usize) -> io::Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: without MAP_FIXED the system chooses addresses that nothing else uses.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), len, READ_WRITE, flags) }?;
        Self::owned(start.cast(), len, None, false)
    }

    /// Chooses pages for the `len` bytes from `start`, in whole pages and within the range; what is
    /// beyond it is cut off.
    pub(super) fn prefer(&self, start: usize, len: usize, pages: Pages) {
        let len = len.min(self.len.saturating_sub(start));
        if len > 0 {
            // SAFETY: `start` is less than the range's length.
            prefer(unsafe { self.start.add(start) }, len, pages);
        }
    }

    /// The first `len` bytes of `file`, which has that many.
    pub(super) fn file(len: usize, file: File, shared: bool) -> io::Result<Self> {
        let kind = if shared { MapFlags::SHARED } else { MapFlags::PRIVATE };
        let flags = kind | MapFlags::NORESERVE;
        // SAFETY: as in `anonymous`.
        let start = unsafe { mmap(std::ptr::null_mut(), len, READ_WRITE, flags, file.as_fd(), 0) }?;
        Self::owned(start.cast(), len, Some(Arc::new(file)), shared)
    }

    fn owned(start: *mut u8, len: usize, file: Option<Arc<File>>, shared: bool) -> io::Result<Self> {
        let start = NonNull::new(start).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { start, len, file, shared, replaced: Mutex::default() })
    }

    /// Maps `len` bytes of `file` from `offset` privately over the pages from `start`: all three in
    /// whole pages, and `start + len` within the range (asserted).
    pub(super) fn replace(
        &self,
        start: usize,
        len: usize,
        file: BorrowedFd<'_>,
        offset: u64,
    ) -> io::Result<()> {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.len), "a piece lies within its range");
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        // First, so that nobody ever finds the file there and takes it for memory.
        self.replaced.lock().unwrap_or_else(PoisonError::into_inner).push(start..start + len);
        // SAFETY: the pages replaced lie within this range (asserted), which this object owns;
        // nobody holds a Rust reference into it, so that its bytes may change under everybody's
        // eyes, as they do whenever the guest writes.
        unsafe { mmap(self.pointer().add(start).cast(), len, READ_WRITE, flags, file, offset) }?;
        Ok(())
    }

    /// Gives the `len` bytes from `start`, in whole pages and within the range, back to the host.
    /// They read as zeros from then on. A private mapping of a file has them from the file again,
    /// so such a range is refused.
    pub(super) fn discard(&self, start: usize, len: usize) -> io::Result<()> {
        if start.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        match &self.file {
            // SAFETY: the piece lies within this range, which is anonymous and private; nobody
            // holds a Rust reference into it.
            None => unsafe { discard(self.start.add(start), len) },
            Some(file) if self.shared => {
                let number = |value| u64::try_from(value).map_err(|_| io::ErrorKind::InvalidInput);
                punch_hole(file.as_fd(), number(start)?, number(len)?)
            }
            Some(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// The pieces of `wanted` that are this range's own memory, without those that were replaced.
    pub(super) fn own_pieces(&self, wanted: Range<usize>) -> Vec<Range<usize>> {
        let mut pieces = vec![wanted];
        for taken in self.replaced.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let around = |piece: Range<usize>| {
                let before = piece.start..piece.end.min(taken.start);
                let behind = piece.start.max(taken.end)..piece.end;
                [before, behind].into_iter().filter(|piece| !piece.is_empty())
            };
            pieces = pieces.into_iter().flat_map(around).collect();
        }
        pieces
    }

    /// It is a file that others may map, too.
    pub(super) fn is_shared(&self) -> bool {
        self.shared
    }

    pub(super) fn pointer(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn backing_file(&self) -> Option<&Arc<File>> {
        self.file.as_ref()
    }

    /// The mapping's flags, as the C library writes them.
    pub(super) fn flags(&self) -> i32 {
        let kind = if self.shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        let anonymous = if self.file.is_none() { libc::MAP_ANONYMOUS } else { 0 };
        kind | anonymous | libc::MAP_NORESERVE
    }
}

impl Drop for HostRange {
    fn drop(&mut self) {
        if let (true, Some(file)) = (self.shared, &self.file) {
            // Whoever else has it mapped would keep all of it: what a guest leaves is nobody's to
            // read or to pay for. What the system refuses is given back with the last mapping.
            let _ = punch_hole(file.as_fd(), 0, self.len as u64);
        }
        // SAFETY: this object mapped the range and is its last user: whoever else reaches it holds
        // an `Arc` of this object.
        let result = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert!(result.is_ok(), "a mapped range can be unmapped");
    }
}
