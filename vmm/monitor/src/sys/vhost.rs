//! The host's own server of virtio queues, /dev/vhost-net (Linux): its calls, as they are.
//!
//! The crate `vhost` has these calls too; what it brings beside them (a second model of guest
//! memory, which its backends share with `vhost-user`) is more than the dozen calls that are here.

#![cfg_attr(
    target_os = "linux",
    allow(unsafe_code, reason = "the calls on /dev/vhost-net take structures that only ioctl knows")
)]

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Memory of this process that the guest knows by another address.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Region {
    /// Where the guest has it.
    pub guest: u64,
    /// Its length in bytes.
    pub len: u64,
    /// Where this process has it.
    pub host: u64,
    /// None are defined.
    pub flags: u64,
}

/// Where this process has the rings of a queue.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// The descriptor table.
    pub descriptors: u64,
    /// The used ring.
    pub used: u64,
    /// The available ring.
    pub available: u64,
}

/// What is told by a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bell {
    /// The driver has rung.
    Kick,
    /// The driver is to be interrupted.
    Call,
    /// The rings are broken.
    Error,
}

#[cfg(target_os = "linux")]
mod platform {
    use std::fs::OpenOptions;
    use std::os::fd::AsRawFd;

    use super::{Addresses, Bell, BorrowedFd, OwnedFd, Region, io};
    use crate::sys::files::{Accept, open as open_file};

    // `linux/vhost.h`; the lengths of what they take are part of the numbers.
    const GET_FEATURES: libc::Ioctl = request(READ, 0x00, 8);
    const SET_FEATURES: libc::Ioctl = request(WRITE, 0x00, 8);
    const SET_OWNER: libc::Ioctl = request(0, 0x01, 0);
    const SET_MEM_TABLE: libc::Ioctl = request(WRITE, 0x03, 8);
    const SET_VRING_NUM: libc::Ioctl = request(WRITE, 0x10, 8);
    const SET_VRING_ADDR: libc::Ioctl = request(WRITE, 0x11, 40);
    const SET_VRING_BASE: libc::Ioctl = request(WRITE, 0x12, 8);
    const GET_VRING_BASE: libc::Ioctl = request(READ | WRITE, 0x12, 8);
    const SET_VRING_KICK: libc::Ioctl = request(WRITE, 0x20, 8);
    const SET_VRING_CALL: libc::Ioctl = request(WRITE, 0x21, 8);
    const SET_VRING_ERR: libc::Ioctl = request(WRITE, 0x22, 8);
    const NET_SET_BACKEND: libc::Ioctl = request(WRITE, 0x30, 8);

    const WRITE: u32 = 1;
    const READ: u32 = 2;

    /// The number of a call, as `asm-generic/ioctl.h` makes it.
    const fn request(direction: u32, number: u32, bytes: u32) -> libc::Ioctl {
        (direction << 30 | bytes << 16 | 0xaf << 8 | number) as libc::Ioctl
    }

    /// Most regions that the kernel takes (its parameter `max_mem_regions`).
    const REGIONS_MAX: usize = 64;

    /// A queue and a number.
    #[repr(C)]
    struct State {
        queue: u32,
        number: u32,
    }

    /// A queue and a descriptor.
    #[repr(C)]
    struct File {
        queue: u32,
        file: libc::c_int,
    }

    #[repr(C)]
    struct Ring {
        queue: u32,
        flags: u32,
        descriptors: u64,
        used: u64,
        available: u64,
        log: u64,
    }

    #[repr(C)]
    struct Table {
        count: u32,
        padding: u32,
        regions: [Region; REGIONS_MAX],
    }

    /// Makes a call that reads, and perhaps writes, `argument`.
    ///
    /// # Safety
    /// `request` is a call of vhost-net on a structure of this type, and what addresses stand in it
    /// is as the caller of the function around it promises.
    unsafe fn call<T>(vhost: BorrowedFd<'_>, request: libc::Ioctl, argument: &mut T) -> io::Result<()> {
        // SAFETY: the structure outlives the call, and is of the type that the call is for.
        match unsafe { libc::ioctl(vhost.as_raw_fd(), request, std::ptr::from_mut(argument)) } {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Opens it.
    ///
    /// # Errors
    /// The system has none, or this user may not.
    pub fn open() -> io::Result<OwnedFd> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        Ok(open_file("/dev/vhost-net".as_ref(), &options, Accept::Stream)?.into())
    }

    /// Features of virtio and of its own that it has.
    ///
    /// # Errors
    /// It is no such device.
    pub fn features(vhost: BorrowedFd<'_>) -> io::Result<u64> {
        let mut features = 0_u64;
        // SAFETY: the call writes 64 bits.
        unsafe { call(vhost, GET_FEATURES, &mut features) }.map(|()| features)
    }

    /// Binds it to the memory of this process.
    ///
    /// # Errors
    /// It is bound already, or the system's refusal.
    pub fn own(vhost: BorrowedFd<'_>) -> io::Result<()> {
        // SAFETY: the call takes nothing.
        unsafe { call(vhost, SET_OWNER, &mut ()) }
    }

    /// Says which features driver and device have agreed on.
    ///
    /// # Errors
    /// One is not its own.
    pub fn set_features(vhost: BorrowedFd<'_>, mut features: u64) -> io::Result<()> {
        // SAFETY: the call reads 64 bits.
        unsafe { call(vhost, SET_FEATURES, &mut features) }
    }

    /// Says where guest memory is.
    ///
    /// # Safety
    /// From the first [`set_backend`] on until that is taken back, all of it is the guest's, to be
    /// written at any time: nobody has a reference into it, and it stays mapped.
    ///
    /// # Errors
    /// There are too many regions, or the system's refusal.
    pub unsafe fn set_memory(vhost: BorrowedFd<'_>, regions: &[Region]) -> io::Result<()> {
        let none = Region { guest: 0, len: 0, host: 0, flags: 0 };
        let count = u32::try_from(regions.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut table = Table { count, padding: 0, regions: [none; REGIONS_MAX] };
        table.regions.get_mut(..regions.len()).ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(regions);
        // SAFETY: as the caller promises; the call reads so many regions as `count` says.
        unsafe { call(vhost, SET_MEM_TABLE, &mut table) }
    }

    /// Says how long a queue is, and the next entry of its available ring.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn set_place(vhost: BorrowedFd<'_>, queue: u32, size: u16, next: u16) -> io::Result<()> {
        // SAFETY: both calls read two numbers.
        unsafe {
            call(vhost, SET_VRING_NUM, &mut State { queue, number: size.into() })?;
            call(vhost, SET_VRING_BASE, &mut State { queue, number: next.into() })
        }
    }

    /// The next entry of the available ring of a queue that is not served.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn place(vhost: BorrowedFd<'_>, queue: u32) -> io::Result<u16> {
        let mut state = State { queue, number: 0 };
        // SAFETY: the call reads one number and writes the other.
        unsafe { call(vhost, GET_VRING_BASE, &mut state) }?;
        u16::try_from(state.number).map_err(|_| io::ErrorKind::InvalidData.into())
    }

    /// Says where the rings of a queue are.
    ///
    /// # Safety
    /// As for [`set_memory`]: the rings, whose lengths are those of the queue's size, are guest
    /// memory.
    ///
    /// # Errors
    /// The system's refusal.
    pub unsafe fn set_rings(vhost: BorrowedFd<'_>, queue: u32, rings: Addresses) -> io::Result<()> {
        let Addresses { descriptors, used, available } = rings;
        let mut ring = Ring { queue, flags: 0, descriptors, used, available, log: 0 };
        // SAFETY: as the caller promises.
        unsafe { call(vhost, SET_VRING_ADDR, &mut ring) }
    }

    /// Gives a queue a descriptor by which something is told.
    ///
    /// # Errors
    /// It is no eventfd, or the system's refusal.
    pub fn set_bell(vhost: BorrowedFd<'_>, queue: u32, bell: Bell, file: BorrowedFd<'_>) -> io::Result<()> {
        let request = match bell {
            Bell::Kick => SET_VRING_KICK,
            Bell::Call => SET_VRING_CALL,
            Bell::Error => SET_VRING_ERR,
        };
        // SAFETY: the call reads two numbers, and keeps the file for itself.
        unsafe { call(vhost, request, &mut File { queue, file: file.as_raw_fd() }) }
    }

    /// Has a queue served with this tap, or, with `None`, no more.
    ///
    /// # Errors
    /// The system's refusal, after which the queue is not served.
    pub fn set_backend(vhost: BorrowedFd<'_>, queue: u32, tap: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let file = tap.map_or(-1, |tap| tap.as_raw_fd());
        // SAFETY: the call reads two numbers, and keeps the file for itself.
        unsafe { call(vhost, NET_SET_BACKEND, &mut File { queue, file }) }
    }
}

#[cfg(not(target_os = "linux"))]
mod platform {
    #![allow(
        unsafe_code,
        clippy::missing_safety_doc,
        reason = "the same functions as on Linux, which do nothing"
    )]

    use super::{Addresses, Bell, BorrowedFd, OwnedFd, Region, io};

    fn none<T>() -> io::Result<T> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "this system has no vhost-net"))
    }

    /// There is none.
    ///
    /// # Errors
    /// Always; so do all others here.
    pub fn open() -> io::Result<OwnedFd> {
        none()
    }

    /// See [`open`].
    ///
    /// # Errors
    /// Always.
    pub fn features(_vhost: BorrowedFd<'_>) -> io::Result<u64> {
        none()
    }

    /// See [`open`].
    ///
    /// # Errors
    /// Always.
    pub fn own(_vhost: BorrowedFd<'_>) -> io::Result<()> {
        none()
    }

    /// See [`open`].
    ///
    /// # Errors
    /// Always.
    pub fn set_features(_vhost: BorrowedFd<'_>, _features: u64) -> io::Result<()> {
        none()
    }

    /// See [`open`].
    ///
    /// # Errors
    /// Always.
    pub unsafe fn set_memory(_vhost: BorrowedFd<'_>, _regions: &[Region]) -> io::Result<()> {
        none()
    }

    /// See [`open`].
    ///
    /// # Errors
    /// Always.
    pub fn set_place(_vhost: BorrowedFd<'_>, _queue: u32, _size: u16, _next: u16) -> io::Result<()> {
        none()
    }

    /// See [`open`].
    ///
    /// # Errors
    /// Always.
    pub fn place(_vhost: BorrowedFd<'_>, _queue: u32) -> io::Result<u16> {
        none()
    }

    /// See [`open`].
    ///
    /// # Errors
    /// Always.
    pub unsafe fn set_rings(_vhost: BorrowedFd<'_>, _queue: u32, _rings: Addresses) -> io::Result<()> {
        none()
    }

    /// See [`open`].
    ///
    /// # Errors
    /// Always.
    pub fn set_bell(_: BorrowedFd<'_>, _queue: u32, _bell: Bell, _file: BorrowedFd<'_>) -> io::Result<()> {
        none()
    }

    /// See [`open`].
    ///
    /// # Errors
    /// Always.
    pub fn set_backend(_: BorrowedFd<'_>, _queue: u32, _tap: Option<BorrowedFd<'_>>) -> io::Result<()> {
        none()
    }
}

pub use platform::{
    features, open, own, place, set_backend, set_bell, set_features, set_memory, set_place, set_rings,
};
