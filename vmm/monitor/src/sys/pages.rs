//! Sizes of the pages behind a range of memory.
#![allow(unsafe_code, reason = "madvise takes addresses")]

use std::ptr::NonNull;

/// Bytes of a huge page: what ranges that want them are aligned to.
pub const HUGE: usize = 2 << 20;

/// What pages a range shall be made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// Large ones where the system can: few faults, and each zeroes a lot.
    Huge,
    /// Small ones: for memory of which little will be used.
    Small,
}

/// Tells the system which pages to make the `len` bytes from `start` of, both in whole pages. A
/// wish: systems without a choice, and such as refuse, go on as they are. The memory's content and
/// the range's validity stay as they were.
#[cfg(target_os = "linux")]
pub fn prefer(start: NonNull<u8>, len: usize, pages: Pages) {
    use rustix::mm::{Advice, madvise};
    let advice = match pages {
        Pages::Huge => Advice::LinuxHugepage,
        Pages::Small => Advice::LinuxNoHugepage,
    };
    // SAFETY: this advice changes neither content nor protection of any memory, so no address can
    // be a wrong one: what is not mapped is an error, which is ignored.
    let _ = unsafe { madvise(start.as_ptr().cast(), len, advice) };
}

/// See the Linux form.
#[cfg(not(target_os = "linux"))]
pub fn prefer(_start: NonNull<u8>, _len: usize, _pages: Pages) {}

/// Gives the pages of `len` bytes from `start` back to the system, both in whole pages: what is
/// touched next is zero.
///
/// # Safety
/// The range is private anonymous memory of the caller's, into which nobody holds a Rust reference.
#[cfg(target_os = "linux")]
pub unsafe fn discard(start: NonNull<u8>, len: usize) -> std::io::Result<()> {
    use rustix::mm::{Advice, madvise};
    // SAFETY: the caller's promise.
    Ok(unsafe { madvise(start.as_ptr().cast(), len, Advice::LinuxDontNeed) }?)
}

/// See the Linux form.
///
/// # Safety
/// None is needed: it refuses.
#[cfg(not(target_os = "linux"))]
pub unsafe fn discard(_start: NonNull<u8>, _len: usize) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}
