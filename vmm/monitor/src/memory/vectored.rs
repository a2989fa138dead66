//! Vectored I/O between a file and guest memory, without a copy in between and without a Rust reference into guest memory.
#![allow(
    unsafe_code,
    reason = "preadv, pwritev, readv and writev take raw pointers; guest memory must not be borrowed as a slice"
)]

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

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
        Self { vecs: Vec::with_capacity(pieces), guards: Vec::new(), bytes: 0, memory: PhantomData }
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

    /// The first piece, as it was pushed.
    #[cfg(test)]
    pub(crate) fn first(&self) -> Option<VolatileSlice<'a>> {
        let (vec, _) = (self.vecs.first()?, self.guards.first()?);
        // SAFETY: the vector describes guest memory that stays mapped for 'a.
        Some(unsafe { VolatileSlice::new(vec.iov_base.cast(), vec.iov_len) })
    }

    /// Writes zeroes over the first `bytes` of the pieces; returns how many those were.
    pub fn zero(&self, bytes: usize) -> io::Result<usize> {
        let mut left = bytes.min(self.bytes);
        let done = left;
        for vec in &self.vecs {
            let piece = vec.iov_len.min(left);
            // SAFETY: the vector describes guest memory that stays mapped for 'a; nothing borrows it as a Rust reference.
            unsafe { std::ptr::write_bytes(vec.iov_base.cast::<u8>(), 0, piece) };
            left -= piece;
        }
        Ok(done)
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

    /// Sends the pieces on a socket; returns the bytes taken. A peer that is gone is an error (`EPIPE`), never a signal. A non-blocking
    /// socket may answer `WouldBlock`.
    pub fn send(&self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: every field of a message header may be zero: no name, no control data, no pieces.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.vecs.as_ptr().cast_mut();
        // The field's type differs between systems.
        message.msg_iovlen = fits(self.vecs.len(), "one call takes at most 1024 pieces");
        // SAFETY: the header and the vectors it points to live until the call returns; the kernel only reads the pieces, see `write_at`.
        retry(|| unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) })
    }

    fn count(&self) -> libc::c_int {
        fits(self.vecs.len(), "one call takes at most 1024 pieces")
    }

    /// Reads from `file` at byte `offset` into the pieces; returns the bytes read, 0 at the end of the file.
    pub fn read_at(&self, file: BorrowedFd<'_>, offset: u64) -> io::Result<usize> {
        let offset = file_offset(offset)?;
        // SAFETY: the vectors describe guest memory that stays mapped for 'a; the kernel writes within them only, and guest memory is
        // never borrowed as a Rust reference, so no aliasing rule is at stake.
        retry(|| unsafe { libc::preadv(file.as_raw_fd(), self.vecs.as_ptr(), self.count(), offset) })
    }

    /// Writes the pieces to `file` at byte `offset`; returns the bytes written.
    pub fn write_at(&self, file: BorrowedFd<'_>, offset: u64) -> io::Result<usize> {
        let offset = file_offset(offset)?;
        // SAFETY: as in `read_at`; the kernel only reads.
        retry(|| unsafe { libc::pwritev(file.as_raw_fd(), self.vecs.as_ptr(), self.count(), offset) })
    }

    /// Reads from a stream into the pieces; returns the bytes read, 0 at its end. A non-blocking one may answer `WouldBlock`.
    pub fn read(&self, stream: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: as in `read_at`.
        retry(|| unsafe { libc::readv(stream.as_raw_fd(), self.vecs.as_ptr(), self.count()) })
    }

    /// Writes the pieces to a stream; returns the bytes taken. A non-blocking one may answer `WouldBlock`.
    pub fn write(&self, stream: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: as in `write_at`.
        retry(|| unsafe { libc::writev(stream.as_raw_fd(), self.vecs.as_ptr(), self.count()) })
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
}
