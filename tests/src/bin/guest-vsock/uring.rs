//! Connections by io_uring: a filter of system calls sees neither socket(2) nor connect(2).

#![allow(unsafe_code, reason = "the kernel is told of buffers by their addresses, and shares its rings")]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::io_uring::{
    IORING_OFF_SQ_RING, IORING_OFF_SQES, IoringEnterFlags, IoringOp, io_uring_enter, io_uring_params,
    io_uring_setup,
};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use vsock::VsockStream;

const AF_VSOCK: u16 = 40;
const SOCK_STREAM: u64 = 1;

/// Rings of one entry, mapped until the program ends.
pub(crate) struct Ring {
    fd: OwnedFd,
    /// The page that holds both rings, by words.
    rings: &'static [AtomicU32],
    /// The one entry to submit (io_uring_enter(2), struct io_uring_sqe).
    entry: &'static [AtomicU64],
    params: io_uring_params,
}

/// Maps a page of the rings.
fn page<T>(fd: &OwnedFd, offset: u64) -> io::Result<&'static [T]> {
    const PAGE: usize = 4096;
    let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
    // SAFETY: the kernel chooses a place that nothing else has.
    let place = unsafe { mmap(null_mut(), PAGE, access, flags, fd, offset) }?;
    // SAFETY: the page is zeroed, stays mapped, and is used by atomic words on both sides.
    Ok(unsafe { std::slice::from_raw_parts(place.cast(), PAGE / size_of::<T>()) })
}

impl Ring {
    pub(crate) fn new() -> io::Result<Self> {
        let mut params = io_uring_params::default();
        // SAFETY: without flags it refers to nothing but `params`.
        let fd = unsafe { io_uring_setup(1, &mut params) }?;
        let (rings, entry) = (page(&fd, IORING_OFF_SQ_RING)?, page(&fd, IORING_OFF_SQES)?);
        Ok(Self { fd, rings, entry, params })
    }

    fn word(&self, offset: u32) -> &AtomicU32 {
        &self.rings[offset as usize / size_of::<AtomicU32>()]
    }

    /// Carries out one operation and waits for it.
    fn run(&self, operation: IoringOp, fd: u32, offset: u64, address: *const u8) -> io::Result<u32> {
        let fields =
            [u64::from(operation as u8) | u64::from(fd) << 32, offset, address.expose_provenance() as u64];
        for (to, field) in self.entry.iter().zip(fields) {
            to.store(field, Ordering::Relaxed);
        }
        self.word(self.params.sq_off.array).store(0, Ordering::Relaxed);
        self.word(self.params.sq_off.tail).fetch_add(1, Ordering::Release);
        let (head, tail) = (self.word(self.params.cq_off.head), self.word(self.params.cq_off.tail));
        let mut submit = 1;
        while tail.load(Ordering::Acquire) == head.load(Ordering::Relaxed) {
            // A wait that is interrupted after a submission does not say so.
            // SAFETY: what the entry points to is there until the operation ends, which is waited
            // for.
            match unsafe { io_uring_enter(&self.fd, submit, 1, IoringEnterFlags::GETEVENTS) } {
                Ok(submitted) => submit -= submitted,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let done =
            head.load(Ordering::Relaxed) & self.word(self.params.cq_off.ring_mask).load(Ordering::Relaxed);
        // An entry of 16 bytes: user data, result, flags.
        let result = self.word(self.params.cq_off.cqes + 16 * done + 8).load(Ordering::Acquire).cast_signed();
        head.fetch_add(1, Ordering::Release);
        u32::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
    }

    pub(crate) fn connect(&self, cid: u32, port: u32) -> io::Result<VsockStream> {
        let number = self.run(IoringOp::Socket, AF_VSOCK.into(), SOCK_STREAM, std::ptr::null())?;
        // SAFETY: the descriptor is new, and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(number.cast_signed()) };
        // struct sockaddr_vm: the family, nothing, port, number, nothing.
        let mut address = [0u8; 16];
        address[..2].copy_from_slice(&AF_VSOCK.to_ne_bytes());
        address[4..8].copy_from_slice(&port.to_ne_bytes());
        address[8..12].copy_from_slice(&cid.to_ne_bytes());
        self.run(IoringOp::Connect, number, address.len() as u64, address.as_ptr())?;
        Ok(socket.into())
    }
}
