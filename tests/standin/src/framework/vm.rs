//! `hv_vm_*`: the machine and its memory.
#![allow(unsafe_code, reason = "functions of C, with pointers of their callers'")]

use std::ffi::c_void;

use super::machine;
use super::objects::{self, Object};
use crate::answer::{Answer, code};

/// HV_MEMORY_READ, WRITE and EXEC.
const READ: u64 = 1;
const WRITE: u64 = 2;
const EXECUTE: u64 = 4;

/// Writes an answer where the caller wants it.
///
/// # Safety
/// `place` may be written, or is null.
pub(super) unsafe fn put<T>(place: *mut T, value: Result<T, Answer>) -> Result<(), Answer> {
    let value = value?;
    if place.is_null() {
        return Err(Answer::BadArgument);
    }
    // SAFETY: as the caller says.
    unsafe { place.write(value) };
    Ok(())
}

/// The widest guest physical addresses, in bits.
///
/// # Safety
/// `bits` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vm_config_get_max_ipa_size(bits: *mut u32) -> i32 {
    // SAFETY: as the caller says.
    code(unsafe { put(bits, machine::address_bits()) })
}

/// A configuration of a machine, to be released by `os_release`.
#[unsafe(no_mangle)]
pub extern "C" fn hv_vm_config_create() -> *mut c_void {
    objects::create(Object::Vm(None))
}

/// Sets the bits of guest physical addresses.
#[unsafe(no_mangle)]
pub extern "C" fn hv_vm_config_set_ipa_size(config: *mut c_void, bits: u32) -> i32 {
    code(machine::address_bits().and_then(|most| {
        if bits > most {
            return Err(Answer::BadArgument);
        }
        objects::change(config, |object| match object {
            Object::Vm(known) => {
                *known = Some(bits);
                Ok(())
            }
            Object::Controller { .. } => Err(Answer::BadArgument),
        })
    }))
}

/// Makes the process's machine. Without a configuration (null) it is the default.
#[unsafe(no_mangle)]
pub extern "C" fn hv_vm_create(config: *mut c_void) -> i32 {
    let bits = if config.is_null() {
        Ok(None)
    } else {
        objects::get(config).and_then(|object| match object {
            Object::Vm(bits) => Ok(bits),
            Object::Controller { .. } => Err(Answer::BadArgument),
        })
    };
    code(bits.and_then(machine::create))
}

/// Ends it. No vCPU is left.
#[unsafe(no_mangle)]
pub extern "C" fn hv_vm_destroy() -> i32 {
    code(machine::destroy())
}

/// Shows the guest memory of this process.
///
/// # Safety
/// `address` is mapped for `size` bytes until the machine ends.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vm_map(address: *const c_void, guest: u64, size: usize, flags: u64) -> i32 {
    code(machine::current().and_then(|machine| {
        if flags & !(READ | WRITE | EXECUTE) != 0 {
            return Err(Answer::BadArgument);
        }
        // KVM has no memory that a guest may not read, or not run.
        if flags & (READ | EXECUTE) != READ | EXECUTE {
            return Err(Answer::Unsupported);
        }
        // SAFETY: as the caller says.
        unsafe { machine.map(address.addr() as u64, guest, size as u64, flags & WRITE != 0) }
    }))
}

/// The most vCPUs of a machine.
///
/// # Safety
/// `most` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vm_get_max_vcpu_count(most: *mut u32) -> i32 {
    // SAFETY: as the caller says.
    code(unsafe { put(most, machine::most_vcpus()) })
}
