//! Seatbelt, by which a process of macOS gives up what its profile does not allow.

#![allow(unsafe_code, reason = "sandbox_init has no safe wrapper")]

use std::ffi::{CStr, c_char, c_int};
use std::io;

// Of libSystem. Both are declared deprecated, without anything in their place for programs that
// are no bundles.
unsafe extern "C" {
    fn sandbox_init(profile: *const c_char, flags: u64, error: *mut *mut c_char) -> c_int;
    fn sandbox_free_error(error: *mut c_char);
}

/// The profile is a text, and not the name of one of the system's.
const TEXT: u64 = 0;

/// Gives up, for this process and for good, what `profile` does not allow.
///
/// # Errors
/// The system refuses the profile, with its words.
pub(crate) fn enter(profile: &CStr) -> io::Result<()> {
    let mut error: *mut c_char = std::ptr::null_mut();
    // SAFETY: the profile is a C string that lives as long as the call, and the last pointer is
    // where the system may write one.
    if unsafe { sandbox_init(profile.as_ptr(), TEXT, &raw mut error) } == 0 {
        return Ok(());
    }
    let refused = io::Error::last_os_error();
    if error.is_null() {
        return Err(refused);
    }
    // SAFETY: after a failure it is a C string of the system's, which is given back once.
    let words = unsafe {
        let words = CStr::from_ptr(error).to_string_lossy().into_owned();
        sandbox_free_error(error);
        words
    };
    Err(io::Error::other(words))
}
