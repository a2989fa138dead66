//! Vectored I/O between a file and guest memory, without a copy in between and without a Rust
//! reference into guest memory.
#![allow(
    unsafe_code,
    reason = "preadv, pwritev, readv and writev take raw pointers; guest memory must not be borrowed as a slice"
)]

use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

use nelly_disk::{ReadBuffer, WriteBuffer};
use vm_memory::VolatileSlice;
use vm_memory::volatile_memory::PtrGuardMut;

use crate::sys::fits;

/// Most pieces one system call takes (POSIX promises 16, Linux and macOS take 1024).
const PIECES_MAX: usize = 1024;

/// Pieces of guest memory for one system call. They keep the memory they point into borrowed.
#[derive(Default)]
pub struct IoVecs<'a> {
    vecs: Vec<libc::iovec>,
    /// Keep the pieces mapped (a guard is a no-op unless memory is mapped on demand).
    guards: Vec<PtrGuardMut>,
    bytes: usize,
    memory: PhantomData<VolatileSlice<'a>>,
}

impl<'a> IoVecs<'a> {
    /// No pieces, with room for `pieces`.
    #[must_use]
    pub fn with_capacity(pieces: usize) -> Self {
        let pieces = pieces.min(PIECES_MAX);
        // Two more for the buffers of `with_ends`.
        Self { vecs: Vec::with_capacity(pieces + 2), guards: Vec::new(), bytes: 0, memory: PhantomData }
    }

    /// Appends `slice`; `false` when one system call takes no more.
    pub fn push(&mut self, slice: &VolatileSlice<'a>) -> bool {
        if self.vecs.len() == PIECES_MAX {
            return false;
        }
        let guard = slice.ptr_guard_mut();
        self.vecs.push(libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: slice.len() });
        self.guards.push(guard);
        self.bytes += slice.len();
        true
    }

    /// What of the pieces lies in `range`, piece by piece.
    fn within(&self, range: Range<usize>) -> impl Iterator<Item = libc::iovec> {
        assert!(range.start <= range.end && range.end <= self.bytes, "a bug: a range lies within its buffer");
        let mut end = 0;
        self.vecs.iter().filter_map(move |vec| {
            let start = end;
            end += vec.iov_len;
            let (from, to) = (range.start.max(start), range.end.min(end));
            // The pointer stays inside the piece: `from` is less than its end.
            (from < to).then(|| libc::iovec {
                iov_base: vec.iov_base.wrapping_byte_add(from - start),
                iov_len: to - from,
            })
        })
    }

    /// As [`IoVecs::within`], for volatile access.
    fn slices(&self, range: Range<usize>) -> impl Iterator<Item = VolatileSlice<'a>> {
        self.within(range).map(|vec| {
            // SAFETY: the vector describes guest memory that stays mapped for 'a, and lies in one
            // piece of it.
            unsafe { VolatileSlice::new(vec.iov_base.cast(), vec.iov_len) }
        })
    }

    /// One system call with what lies in `range`.
    fn part<T>(&self, range: Range<usize>, call: impl FnOnce(&Self) -> T) -> T {
        if range == (0..self.bytes) {
            return call(self);
        }
        let bytes = range.len();
        let vecs = self.within(range).collect();
        // The guards of the whole outlive the call.
        call(&Self { vecs, guards: Vec::new(), bytes, memory: PhantomData })
    }

    /// Bytes of all pieces.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// `true` without a byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Sends the pieces on a socket; returns the bytes taken. A peer that is gone is an error
    /// (`EPIPE`), never a signal. A non-blocking socket may answer `WouldBlock`.
    pub fn send(&self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: every field of a message header may be zero: no name, no control data, no pieces.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.vecs.as_ptr().cast_mut();
        // The field's type differs between systems.
        message.msg_iovlen = fits(self.vecs.len(), "one call takes at most 1024 pieces");
        // SAFETY: the header and the vectors it points to live until the call returns; the kernel
        // only reads the pieces, see `write_at`.
        retry(|| unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) })
    }

    /// Sends `head` and then the pieces as one message, or the first bytes of both on a stream;
    /// otherwise as [`IoVecs::send`]. At least one piece of the system's most must be free.
    pub fn send_behind(&mut self, head: &[u8], socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.with_ends((head.as_ptr().cast_mut(), head.len()), None, |all| all.send(socket))
    }

    /// Writes `head` and then the pieces with one call; otherwise as [`IoVecs::write`].
    pub fn write_behind(&mut self, head: &[u8], file: BorrowedFd<'_>) -> io::Result<usize> {
        self.with_ends((head.as_ptr().cast_mut(), head.len()), None, |all| all.write(file))
    }

    /// Reads into `head`, then into the pieces, then into `tail`, with one call; otherwise as
    /// [`IoVecs::read`].
    pub fn read_between(
        &mut self,
        head: &mut [u8],
        tail: &mut [u8],
        file: BorrowedFd<'_>,
    ) -> io::Result<usize> {
        let ends = ((head.as_mut_ptr(), head.len()), (tail.as_mut_ptr(), tail.len()));
        self.with_ends(ends.0, Some(ends.1), |all| all.read(file))
    }

    /// One system call with a buffer of the host before the pieces, and one behind them, which the
    /// caller has borrowed for as long as the call. A call that only reads memory gets what may not
    /// be written.
    fn with_ends<T>(
        &mut self,
        head: (*mut u8, usize),
        tail: Option<(*mut u8, usize)>,
        call: impl FnOnce(&Self) -> io::Result<T>,
    ) -> io::Result<T> {
        let vec = |(base, len): (*mut u8, usize)| libc::iovec { iov_base: base.cast(), iov_len: len };
        let pieces = self.vecs.len();
        if pieces + 1 + usize::from(tail.is_some()) > PIECES_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.vecs.insert(0, vec(head));
        self.vecs.extend(tail.map(vec));
        let result = call(self);
        // Pointers to what is no longer borrowed do not stay.
        self.vecs.remove(0);
        self.vecs.truncate(pieces);
        result
    }

    fn count(&self) -> libc::c_int {
        fits(self.vecs.len(), "one call takes at most 1024 pieces")
    }

    /// Reads from `file` at byte `offset` into the pieces; returns the bytes read, 0 at the end of
    /// the file.
    pub fn read_at(&self, file: BorrowedFd<'_>, offset: u64) -> io::Result<usize> {
        let offset = file_offset(offset)?;
        // SAFETY: the vectors describe guest memory that stays mapped for 'a; the kernel writes
        // within them only, and guest memory is never borrowed as a Rust reference, so no aliasing
        // rule is at stake.
        retry(|| unsafe { libc::preadv(file.as_raw_fd(), self.vecs.as_ptr(), self.count(), offset) })
    }

    /// Writes the pieces to `file` at byte `offset`; returns the bytes written.
    pub fn write_at(&self, file: BorrowedFd<'_>, offset: u64) -> io::Result<usize> {
        let offset = file_offset(offset)?;
        // SAFETY: as in `read_at`; the kernel only reads.
        retry(|| unsafe { libc::pwritev(file.as_raw_fd(), self.vecs.as_ptr(), self.count(), offset) })
    }

    /// Reads from a stream into the pieces; returns the bytes read, 0 at its end. A non-blocking
    /// one may answer `WouldBlock`.
    pub fn read(&self, stream: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: as in `read_at`.
        retry(|| unsafe { libc::readv(stream.as_raw_fd(), self.vecs.as_ptr(), self.count()) })
    }

    /// Writes the pieces to a stream; returns the bytes taken. A non-blocking one may answer
    /// `WouldBlock`.
    pub fn write(&self, stream: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: as in `write_at`.
        retry(|| unsafe { libc::writev(stream.as_raw_fd(), self.vecs.as_ptr(), self.count()) })
    }
}

impl ReadBuffer for IoVecs<'_> {
    fn size(&self) -> usize {
        self.bytes
    }

    fn read_file(&mut self, range: Range<usize>, file: BorrowedFd<'_>, offset: u64) -> io::Result<usize> {
        self.part(range, |part| part.read_at(file, offset))
    }

    fn copy_in(&mut self, at: usize, mut bytes: &[u8]) {
        for slice in self.slices(at..at.saturating_add(bytes.len())) {
            let (piece, rest) = bytes.split_at(slice.len());
            slice.copy_from(piece);
            bytes = rest;
        }
    }

    fn zero(&mut self, range: Range<usize>) {
        for vec in self.within(range) {
            // SAFETY: the vector describes guest memory that stays mapped for 'a; nothing borrows
            // it as a Rust reference.
            unsafe { std::ptr::write_bytes(vec.iov_base.cast::<u8>(), 0, vec.iov_len) };
        }
    }
}

impl WriteBuffer for IoVecs<'_> {
    fn size(&self) -> usize {
        self.bytes
    }

    fn write_file(&self, range: Range<usize>, file: BorrowedFd<'_>, offset: u64) -> io::Result<usize> {
        self.part(range, |part| part.write_at(file, offset))
    }

    fn copy_out(&self, at: usize, mut bytes: &mut [u8]) {
        for slice in self.slices(at..at.saturating_add(bytes.len())) {
            let (piece, rest) = bytes.split_at_mut(slice.len());
            slice.copy_to(piece);
            bytes = rest;
        }
    }
}

fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(bytes) => return Ok(bytes),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

    use super::*;

    #[test]
    fn scatters_and_gathers_at_an_offset() {
        let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"__hello world").unwrap();
        let mut vecs = IoVecs::with_capacity(2);
        assert!(vecs.push(&memory.get_slice(GuestAddress(0x10), 5).unwrap()));
        assert!(vecs.push(&memory.get_slice(GuestAddress(0x100), 20).unwrap()));
        assert_eq!(vecs.read_at(file.as_fd(), 2).unwrap(), 11);
        let mut bytes = [0; 6];
        memory.read_slice(&mut bytes, GuestAddress(0x100)).unwrap();
        assert_eq!(&bytes, b" world");
        assert_eq!(vecs.write_at(file.as_fd(), 100).unwrap(), 25);
        assert_eq!(file.metadata().unwrap().len(), 125);
        assert!(vecs.read_at(file.as_fd(), u64::MAX).is_err());
    }

    #[test]
    fn buffers_of_the_host_stand_before_and_behind_the_pieces() {
        let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let (near, far) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let mut vecs = IoVecs::with_capacity(2);
        assert!(vecs.push(&memory.get_slice(GuestAddress(0x10), 3).unwrap()));
        assert!(vecs.push(&memory.get_slice(GuestAddress(0x100), 2).unwrap()));
        let read = |vecs: &mut IoVecs<'_>| {
            let (mut head, mut tail) = ([0; 2], [0; 1]);
            let bytes = vecs.read_between(&mut head, &mut tail, far.as_fd());
            (bytes.unwrap(), head, tail)
        };
        for (message, ends) in [
            (&b"a"[..], (1, *b"a\0", [0])),
            (b"abcdefg", (7, *b"ab", [0])),
            (b"abcdefgh", (8, *b"ab", *b"h")),
            (b"abcdefghijk", (8, *b"ab", *b"h")),
        ] {
            near.send(message).unwrap();
            assert_eq!(read(&mut vecs), ends);
        }
        assert_eq!(vecs.send_behind(b"xy", near.as_fd()).unwrap(), 7);
        assert_eq!(vecs.write_behind(b"z", near.as_fd()).unwrap(), 6);
        let mut message = [0; 9];
        assert_eq!((far.recv(&mut message).unwrap(), &message[..7]), (7, &b"xycdefg"[..]));
        assert_eq!((far.recv(&mut message).unwrap(), &message[..6]), (6, &b"zcdefg"[..]));
        // What stood around them is forgotten.
        assert_eq!((vecs.bytes(), vecs.vecs.len()), (5, 2));
        let mut full = IoVecs::with_capacity(PIECES_MAX);
        while full.push(&memory.get_slice(GuestAddress(0x10), 1).unwrap()) {}
        assert!(full.send_behind(b"x", near.as_fd()).is_err());
    }

    /// Five pieces of guest memory, and the same bytes as one slice of the host.
    #[test]
    fn serves_as_a_buffer_of_disks_wherever_a_range_lies() {
        let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let places = [(0x10, 5), (0x100, 1), (0x80, 20), (0x300, 7), (0x200, 3)];
        let size: usize = places.iter().map(|(_, len)| len).sum();
        let mut vecs = IoVecs::with_capacity(places.len());
        for (address, len) in places {
            assert!(vecs.push(&memory.get_slice(GuestAddress(address), len).unwrap()));
        }
        let content: Vec<u8> = (1..=64).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content).unwrap();
        let mut model = vec![0; size];
        let (vecs, host): (&mut dyn ReadBuffer, &mut dyn ReadBuffer) = (&mut vecs, &mut model);
        assert_eq!((vecs.size(), host.size()), (size, size));
        for start in 0..=size {
            for end in start..=size {
                let offset = (start + end) as u64 % 60;
                let read = vecs.read_file(start..end, file.as_fd(), offset).unwrap();
                assert_eq!(host.read_file(start..end, file.as_fd(), offset).unwrap(), read);
                for buffer in [&mut *vecs, &mut *host] {
                    buffer.zero((start + end) / 2..end);
                    buffer.copy_in(start / 2, &content[..(end - start) / 2]);
                }
            }
        }
        let mut vecs = IoVecs::with_capacity(places.len());
        for (address, len) in places {
            vecs.push(&memory.get_slice(GuestAddress(address), len).unwrap());
        }
        let mut found = vec![0; size];
        vecs.copy_out(0, &mut found);
        assert_eq!(found, model);
        vecs.copy_out(3, &mut found[..10]);
        assert_eq!(found[..10], model[3..13]);
        // What lies around the pieces was never touched.
        let mut all = vec![0; 0x1000];
        memory.read_slice(&mut all, GuestAddress(0)).unwrap();
        for (address, len) in places {
            let at = usize::try_from(address).unwrap();
            all[at..at + len].fill(0);
        }
        assert!(all.iter().all(|byte| *byte == 0));
        let written = vecs.write_file(4..30, file.as_fd(), 100).unwrap();
        let mut back = [0; 26];
        assert_eq!(back.read_file(0..26, file.as_fd(), 100).unwrap(), written);
        assert_eq!(back, model[4..30]);
        let beyond =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| vecs.copy_in(size - 1, &[0; 2])));
        assert!(beyond.is_err());
    }
}
