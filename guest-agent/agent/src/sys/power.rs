//! The machine: clocks, the random pool, the end.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::check;

fn clock(id: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live structure. Neither clock can fail.
    unsafe { libc::clock_gettime(id, &raw mut time) };
    let part = |value: i64| u64::try_from(value).expect("these clocks count from 1970 or the boot");
    part(time.tv_sec) * 1_000_000_000 + part(time.tv_nsec)
}

/// CLOCK_BOOTTIME in nanoseconds.
#[must_use]
pub fn boot_time_ns() -> u64 {
    clock(libc::CLOCK_BOOTTIME)
}

/// CLOCK_REALTIME in nanoseconds since 1970.
#[must_use]
pub fn real_time_ns() -> u64 {
    clock(libc::CLOCK_REALTIME)
}

/// Sets CLOCK_REALTIME to nanoseconds since 1970.
///
/// # Errors
/// Those of clock_settime(2).
pub fn set_real_time_ns(now: u64) -> io::Result<()> {
    let part = |value: u64| i64::try_from(value).map_err(io::Error::other);
    let time = libc::timespec { tv_sec: part(now / 1_000_000_000)?, tv_nsec: part(now % 1_000_000_000)? };
    // SAFETY: the pointer is to a live structure.
    check(unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &raw const time) }).map(drop)
}

#[repr(C)]
struct PoolInfo {
    entropy_bits: libc::c_int,
    bytes: libc::c_int,
    buffer: [u8; 64],
}

/// Credits up to 64 bytes to the random pool; `device` is /dev/urandom.
///
/// # Errors
/// Those of ioctl(2).
pub fn add_entropy(device: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    // _IOW('R', 3, int[2])
    const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
    let mut info = PoolInfo { entropy_bits: 0, bytes: 0, buffer: [0; 64] };
    for (slot, byte) in info.buffer.iter_mut().zip(bytes) {
        *slot = *byte;
        info.bytes += 1;
    }
    info.entropy_bits = info.bytes * 8;
    // `as _`: the request's type differs between C libraries.
    // SAFETY: the pointer is to a live structure of the shape that the call reads.
    check(unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY as _, &raw const info) }).map(drop)
}

/// Fills `bytes`, at most 256, from the kernel's random pool. Waits until that has been fed, once
/// in the life of a guest.
///
/// # Errors
/// Those of getrandom(2).
pub fn random_bytes(bytes: &mut [u8]) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of a live, writable slice.
    let count = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    match usize::try_from(count) {
        Ok(count) if count == bytes.len() => Ok(()),
        // So few bytes come whole: a signal does not cut them short.
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// reboot(2): the last resort when nobody answers on the power port. Always a reset: a kernel
/// without a way to power off would halt instead, and a halted machine runs for ever. Returns only
/// if the kernel refuses.
pub fn reset_machine() {
    // SAFETY: no pointer.
    unsafe { libc::reboot(libc::RB_AUTOBOOT) };
}
