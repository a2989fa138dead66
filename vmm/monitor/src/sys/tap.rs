//! Taps: Ethernet interfaces of the host whose other end is a descriptor (Linux).

#![cfg_attr(
    target_os = "linux",
    allow(unsafe_code, reason = "the calls on /dev/net/tun take structures that only ioctl knows")
)]

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

/// What an end may receive: checksums that are still to be made, and segments of which it makes
/// packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TapOffloads {
    /// Checksums, without which there is none of the others.
    pub checksum: bool,
    /// TCP over IPv4.
    pub tso4: bool,
    /// TCP over IPv6.
    pub tso6: bool,
    /// UDP over both (Linux 6.2).
    pub uso: bool,
}

#[cfg(target_os = "linux")]
mod platform {
    use std::fs::OpenOptions;
    use std::os::fd::AsRawFd;

    use super::{BorrowedFd, OwnedFd, TapOffloads, io};
    use crate::sys::files::{Accept, open as open_file};

    /// What `linux/if_tun.h` calls `TUN_F_*`.
    const CHECKSUM: libc::c_ulong = 0x01;
    const TSO4: libc::c_ulong = 0x02;
    const TSO6: libc::c_ulong = 0x04;
    const USO4: libc::c_ulong = 0x20;
    const USO6: libc::c_ulong = 0x40;

    /// The flags that every tap of a machine has.
    const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

    fn flags(bits: libc::c_int) -> libc::c_short {
        crate::sys::fits(bits, "a tap's flags have 16 bits and not the sign")
    }

    /// A request about the interface `name`.
    fn request(name: &str, flags: libc::c_short) -> io::Result<libc::ifreq> {
        // SAFETY: zero is a value of each of its fields.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        if name.len() >= request.ifr_name.len() || name.bytes().any(|byte| byte == 0) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        request.ifr_ifru.ifru_flags = flags;
        Ok(request)
    }

    fn outcome(result: libc::c_int) -> io::Result<()> {
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Whether there is an interface `name` in this network namespace.
    #[must_use]
    pub fn exists(name: &str) -> bool {
        let Ok(name) = std::ffi::CString::new(name) else { return false };
        // SAFETY: a C string that outlives the call, which only reads it.
        unsafe { libc::if_nametoindex(name.as_ptr()) != 0 }
    }

    /// Opens one queue of the tap `name`, with a virtio header before each frame. The interface is
    /// made if there is none and this process may.
    ///
    /// # Errors
    /// The system's refusal: this process may neither use nor make it, or it is of another kind.
    pub fn open(name: &str, several_queues: bool) -> io::Result<OwnedFd> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let tap = open_file("/dev/net/tun".as_ref(), &options, Accept::Stream)?;
        let wanted = if several_queues { FLAGS | libc::IFF_MULTI_QUEUE } else { FLAGS };
        let mut request = request(name, flags(wanted))?;
        // SAFETY: the request lives until the call returns, and is what the call reads and writes.
        outcome(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
        Ok(tap.into())
    }

    /// Checks that `tap` is one, with a virtio header, and sets the header's length. Says whether
    /// the queue is in use, see [`use_queue`].
    ///
    /// # Errors
    /// It is something else, or the system's refusal.
    pub fn prepare(tap: BorrowedFd<'_>, header_bytes: u8) -> io::Result<bool> {
        let mut request = request("", 0)?;
        // SAFETY: as in `open`.
        outcome(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
        // SAFETY: the call has filled in the flags.
        let found = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        if found & FLAGS != FLAGS {
            let text = "it is no tap with a virtio header (IFF_TAP, IFF_NO_PI and IFF_VNET_HDR)";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let mut bytes = libc::c_int::from(header_bytes);
        // SAFETY: as in `open`.
        outcome(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw mut bytes) })?;
        Ok(found & libc::IFF_DETACH_QUEUE == 0)
    }

    /// Says what this end can receive.
    ///
    /// # Errors
    /// The system's refusal: this kernel does not know one of them.
    pub fn set_offloads(tap: BorrowedFd<'_>, offloads: TapOffloads) -> io::Result<()> {
        let TapOffloads { checksum, tso4, tso6, uso } = offloads;
        let bits = [(checksum, CHECKSUM), (tso4, TSO4), (tso6, TSO6), (uso, USO4 | USO6)];
        let bits = bits.into_iter().filter(|(wanted, _)| *wanted).fold(0, |all, (_, bit)| all | bit);
        // SAFETY: the call takes a number.
        outcome(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, bits) })
    }

    /// Puts one of several queues into use, or out of it: then the interface gives it no frames.
    ///
    /// # Errors
    /// The system's refusal: the queue is as it should be already, or its tap has one queue only.
    pub fn use_queue(tap: BorrowedFd<'_>, used: bool) -> io::Result<()> {
        let bit = if used { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
        let mut request = request("", flags(bit))?;
        // SAFETY: as in `open`.
        outcome(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETQUEUE, &raw mut request) })
    }

    /// Whether a read or write failed because the interface does not exist any more.
    #[must_use]
    pub fn is_deleted(error: &io::Error) -> bool {
        error.raw_os_error() == Some(libc::EBADFD)
    }
}

#[cfg(not(target_os = "linux"))]
mod platform {
    use super::{BorrowedFd, OwnedFd, TapOffloads, io};

    fn none<T>() -> io::Result<T> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "this system has no taps"))
    }

    /// There is none.
    ///
    /// # Errors
    /// Always.
    pub fn open(_name: &str, _several_queues: bool) -> io::Result<OwnedFd> {
        none()
    }

    /// There is none.
    ///
    /// # Errors
    /// Always.
    pub fn prepare(_tap: BorrowedFd<'_>, _header_bytes: u8) -> io::Result<bool> {
        none()
    }

    /// There is none.
    ///
    /// # Errors
    /// Always.
    pub fn set_offloads(_tap: BorrowedFd<'_>, _offloads: TapOffloads) -> io::Result<()> {
        none()
    }

    /// There is none.
    ///
    /// # Errors
    /// Always.
    pub fn use_queue(_tap: BorrowedFd<'_>, _used: bool) -> io::Result<()> {
        none()
    }

    /// There is none.
    #[must_use]
    pub fn exists(_name: &str) -> bool {
        false
    }

    /// There is none.
    #[must_use]
    pub fn is_deleted(_error: &io::Error) -> bool {
        false
    }
}

pub use platform::{exists, is_deleted, open, prepare, set_offloads, use_queue};
