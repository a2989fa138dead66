//! `hv_vcpu_*`: vCPUs, each called from the thread that made it alone, but for forced exits.
#![allow(unsafe_code, reason = "functions of C, with pointers of their callers'")]

use std::cell::Cell;
use std::ffi::c_void;

pub use super::processor::Exit;

use super::vm::put;
use super::{kick, processor};
use crate::answer::{Answer, code};

thread_local! {
    /// What the thread's vCPU wrote last: it lives as long as the vCPU.
    static EXIT: Cell<*mut Exit> = const { Cell::new(std::ptr::null_mut()) };
}

/// Makes the calling thread's vCPU.
///
/// # Safety
/// `vcpu` and `exit` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vcpu_create(vcpu: *mut u64, exit: *mut *const Exit, config: *mut c_void) -> i32 {
    if vcpu.is_null() || exit.is_null() || !config.is_null() {
        return Answer::BadArgument.code();
    }
    code(processor::create().and_then(|handle| {
        let unknown = Exit { reason: 3, syndrome: 0, virtual_address: 0, physical_address: 0 };
        let place = Box::into_raw(Box::new(unknown));
        EXIT.set(place);
        // SAFETY: as the caller says.
        unsafe { put(vcpu, Ok(handle)).and_then(|()| put(exit, Ok(place.cast_const()))) }
    }))
}

/// Ends it.
///
/// # Safety
/// Nobody reads its exit any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vcpu_destroy(vcpu: u64) -> i32 {
    code(processor::destroy(vcpu).map(|()| {
        let place = EXIT.replace(std::ptr::null_mut());
        // SAFETY: it is of a box that was made with the vCPU, and taken here once.
        drop(unsafe { Box::from_raw(place) });
    }))
}

/// Runs it up to an exit.
///
/// # Safety
/// Nobody reads its exit meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vcpu_run(vcpu: u64) -> i32 {
    // SAFETY: the thread's vCPU exists if it ran, and with it the place.
    code(processor::with(vcpu, |processor| processor.run()).map(|exit| unsafe { EXIT.get().write(exit) }))
}

/// Forces vCPUs out of their guest, from any thread; of those that are not in there, the next run
/// returns at once.
///
/// # Safety
/// `vcpus` holds `count` handles.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vcpus_exit(vcpus: *const u64, count: u32) -> i32 {
    if vcpus.is_null() {
        return if count == 0 { 0 } else { Answer::BadArgument.code() };
    }
    // SAFETY: as the caller says.
    code(kick::force(unsafe { std::slice::from_raw_parts(vcpus, count as usize) }))
}

/// Reads a register of `hv_reg_t`.
///
/// # Safety
/// `value` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vcpu_get_reg(vcpu: u64, register: u32, value: *mut u64) -> i32 {
    // SAFETY: as the caller says.
    code(unsafe { put(value, processor::with(vcpu, |processor| processor.get(register))) })
}

/// Writes one.
#[unsafe(no_mangle)]
pub extern "C" fn hv_vcpu_set_reg(vcpu: u64, register: u32, value: u64) -> i32 {
    code(processor::with(vcpu, |processor| processor.set(register, value)))
}

/// Reads a register of `hv_sys_reg_t`.
///
/// # Safety
/// `value` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vcpu_get_sys_reg(vcpu: u64, register: u16, value: *mut u64) -> i32 {
    // SAFETY: as the caller says.
    code(unsafe { put(value, processor::with(vcpu, |processor| processor.get_system(register))) })
}

/// Writes one.
#[unsafe(no_mangle)]
pub extern "C" fn hv_vcpu_set_sys_reg(vcpu: u64, register: u16, value: u64) -> i32 {
    code(processor::with(vcpu, |processor| processor.set_system(register, value)))
}

/// Whether exits of the virtual timer are held back. There are none here, so that they cannot be
/// held back either, and letting them through is nothing.
#[unsafe(no_mangle)]
pub extern "C" fn hv_vcpu_set_vtimer_mask(vcpu: u64, masked: bool) -> i32 {
    let answer = if masked { Err(Answer::Unsupported) } else { Ok(()) };
    code(processor::with(vcpu, |_| answer))
}

/// Sets CNTVOFF_EL2. All vCPUs of a machine have the same here.
#[unsafe(no_mangle)]
pub extern "C" fn hv_vcpu_set_vtimer_offset(vcpu: u64, ticks: u64) -> i32 {
    code(processor::with(vcpu, |processor| processor.set_offset(ticks)))
}
