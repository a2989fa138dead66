//! A program's beginning without that of the standard library.
//!
//! Before `main` Rust's runtime reads /proc/self/maps to find the main thread's guard page, makes a
//! stack for the handler that says "stack overflow", and asks for three descriptors: 17 system
//! calls and a page or two, 0.1 ms of a monitor's start on the clock. A stack that overflows is
//! ended by its guard page all the same. What a program must not miss of it is [`begin`].

#![allow(unsafe_code, reason = "a signal's disposition and a descriptor's number have no safe wrapper")]

use std::ffi::OsString;
use std::os::fd::{BorrowedFd, IntoRawFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, fcntl_getfd};

use super::inherited::forget_environment;

/// Makes `$run` the program's first function: it gets the value of the environment's variable
/// `$variable`, the only one that is kept, and returns the exit code. For programs with
/// `#![no_main]`; `std::env::args_os` works.
#[macro_export]
macro_rules! entry {
    ($run:path, keeping $variable:expr) => {
        /// What the C library calls.
        #[allow(unsafe_code, reason = "the C library knows it by its name")]
        #[unsafe(no_mangle)]
        pub extern "C" fn main() -> i32 {
            let code: u8 = $run($crate::sys::begin($variable));
            code.into()
        }
    };
}

/// What every program does first: a pipe that nobody reads is an error of the write, not the
/// program's end; descriptors 0 to 2 are open, so that no file of the program's gets one of their
/// numbers; and the environment, where callers have their secrets, is gone but for the value of
/// `kept`, which is returned.
pub fn begin(kept: &str) -> Option<OsString> {
    let value = std::env::var_os(kept);
    // SAFETY: nothing else runs yet, and the value is a copy.
    unsafe { forget_environment() };
    // SAFETY: nothing else runs yet, and no handler is installed.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    for number in 0..3 {
        // SAFETY: asked is whether it is open; nothing is done with it.
        let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
        if fcntl_getfd(borrowed) == Err(Errno::BADF)
            && let Ok(nothing) = open("/dev/null", OFlags::RDWR, Mode::empty())
        {
            // The lowest number that is free is this one; it stays open.
            let _kept = nothing.into_raw_fd();
        }
    }
    value
}
