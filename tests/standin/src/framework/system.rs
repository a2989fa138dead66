//! What of macOS beside the framework is called.
#![allow(unsafe_code, reason = "functions of C, with pointers of their callers'")]

use std::ffi::{CStr, c_char, c_int, c_void};

use super::{machine, objects};

/// Gives an object back.
#[unsafe(no_mangle)]
pub extern "C" fn os_release(object: *mut c_void) {
    objects::release(object);
}

/// The host's counter, of which guests' counters are made.
#[unsafe(no_mangle)]
pub extern "C" fn mach_absolute_time() -> u64 {
    let counter: u64;
    // SAFETY: reads a register that Linux lets its processes read; the barrier keeps it from being
    // read early.
    unsafe {
        std::arch::asm!("isb", "mrs {}, cntvct_el0", out(reg) counter, options(nostack, preserves_flags))
    };
    counter
}

/// `kern.hv_support`: whether there are virtual machines. No other name is known.
///
/// # Safety
/// `name` ends with a NUL, and `old` may be written for `*old_len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sysctlbyname(
    name: *const c_char,
    old: *mut c_void,
    old_len: *mut usize,
    new: *mut c_void,
    _new_len: usize,
) -> c_int {
    // SAFETY: as the caller says.
    let known = unsafe { CStr::from_ptr(name) } == c"kern.hv_support";
    // SAFETY: as the caller says.
    if !known || old.is_null() || !new.is_null() || unsafe { *old_len } < size_of::<c_int>() {
        return -1;
    }
    let supported = c_int::from(machine::supported());
    // SAFETY: as the caller says.
    unsafe {
        old.cast::<c_int>().write_unaligned(supported);
        *old_len = size_of::<c_int>();
    }
    0
}
