//! Page sizes of memory ranges.
#![allow(unsafe_code, reason = "madvise takes addresses")]

use std::ptr::NonNull;

/// Size of a huge page in bytes, to which ranges with huge pages are aligned.
pub const HUGE: usize = 2 << 20;

/// The preferred page size of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// Huge pages, if the system supports them: few page faults, each of which zeroes much memory.
    Huge,
    /// Small pages, for memory of which only a small part will be used.
    Small,
}

/// Tells the system which page size to use for the `len` bytes from `start` (both multiples of the
/// page size). This is a hint, and errors are ignored. The contents and the validity of the memory
/// do not change.
#[cfg(target_os = "linux")]
pub fn prefer(start: NonNull<u8>, len: usize, pages: Pages) {
    use rustix::mm::{Advice, madvise};
    let advice = match pages {
        Pages::Huge => Advice::LinuxHugepage,
        Pages::Small => Advice::LinuxNoHugepage,
    };
    // SAFETY: this advice changes neither contents nor protection of any memory, so every address
    // is safe; unmapped memory is an error, which is ignored.
    let _ = unsafe { madvise(start.as_ptr().cast(), len, advice) };
}

/// See the Linux version.
#[cfg(not(target_os = "linux"))]
pub fn prefer(_start: NonNull<u8>, _len: usize, _pages: Pages) {}

/// Whether [`discard`] exists on this system.
pub const CAN_DISCARD: bool = cfg!(target_os = "linux");

/// Returns the pages of `len` bytes from `start` (both multiples of the page size) to the system.
/// After that the memory reads as zeroes.
///
/// # Safety
/// The range must be private anonymous memory of the caller, without Rust references into it.
#[cfg(target_os = "linux")]
pub unsafe fn discard(start: NonNull<u8>, len: usize) -> std::io::Result<()> {
    use rustix::mm::{Advice, madvise};
    // SAFETY: the caller's promise.
    Ok(unsafe { madvise(start.as_ptr().cast(), len, Advice::LinuxDontNeed) }?)
}

/// See the Linux version.
///
/// # Safety
/// Always safe: it returns an error.
#[cfg(not(target_os = "linux"))]
pub unsafe fn discard(_start: NonNull<u8>, _len: usize) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}
