//! `hv_gic_*`: the interrupt controller.
#![allow(unsafe_code, reason = "functions of C, with pointers of their callers'")]

use std::ffi::c_void;

use super::objects::{self, Object};
use super::vm::put;
use super::{controller, machine, processor};
use crate::answer::{Answer, code};

/// A configuration of an interrupt controller, to be released by `os_release`.
#[unsafe(no_mangle)]
pub extern "C" fn hv_gic_config_create() -> *mut c_void {
    objects::create(Object::Controller { distributor: None, redistributors: None })
}

fn set(config: *mut c_void, set: impl FnOnce(&mut Option<u64>, &mut Option<u64>)) -> i32 {
    code(objects::change(config, |object| match object {
        Object::Controller { distributor, redistributors } => {
            set(distributor, redistributors);
            Ok(())
        }
        Object::Vm(_) => Err(Answer::BadArgument),
    }))
}

/// Sets the guest physical address of the distributor.
#[unsafe(no_mangle)]
pub extern "C" fn hv_gic_config_set_distributor_base(config: *mut c_void, place: u64) -> i32 {
    set(config, |distributor, _| *distributor = Some(place))
}

/// Sets that of the region of all redistributors.
#[unsafe(no_mangle)]
pub extern "C" fn hv_gic_config_set_redistributor_base(config: *mut c_void, place: u64) -> i32 {
    set(config, |_, redistributors| *redistributors = Some(place))
}

/// Makes the machine's controller: after the machine, before any vCPU.
#[unsafe(no_mangle)]
pub extern "C" fn hv_gic_create(config: *mut c_void) -> i32 {
    code(objects::get(config).and_then(|object| match object {
        Object::Controller { distributor: Some(distributor), redistributors: Some(redistributors) } => {
            machine::current()?.create_controller(distributor, redistributors)
        }
        _ => Err(Answer::BadArgument),
    }))
}

/// The lowest number of a shared interrupt, and how many there are.
///
/// # Safety
/// Both may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_gic_get_spi_interrupt_range(first: *mut u32, count: *mut u32) -> i32 {
    // SAFETY: as the caller says.
    code(unsafe { put(first, Ok(controller::FIRST)).and_then(|()| put(count, Ok(controller::COUNT))) })
}

/// Sets the level of a shared interrupt.
#[unsafe(no_mangle)]
pub extern "C" fn hv_gic_set_spi(number: u32, high: bool) -> i32 {
    code(machine::current().and_then(|machine| {
        machine.controller.get().ok_or(Answer::NoDevice)?.set_line(&machine.fd, number, high)
    }))
}

/// Guest physical address of a vCPU's redistributor, once its affinity is set.
///
/// # Safety
/// `place` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_gic_get_redistributor_base(vcpu: u64, place: *mut u64) -> i32 {
    // SAFETY: as the caller says.
    code(unsafe { put(place, processor::with(vcpu, |processor| processor.redistributor())) })
}
