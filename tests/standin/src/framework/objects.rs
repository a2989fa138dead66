//! Objects that the caller makes, fills and gives back (`os_release`): configurations.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use crate::answer::Answer;

/// What is behind the caller's pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Object {
    /// `hv_vm_config_t`: bits of guest physical addresses, if they were set.
    Vm(Option<u32>),
    /// `hv_gic_config_t`: where distributor and redistributors are, if that was set.
    Controller {
        /// Of the distributor.
        distributor: Option<u64>,
        /// Of the region of all redistributors.
        redistributors: Option<u64>,
    },
}

/// Those that live, by their number, which is the pointer: nobody else looks behind it.
static OBJECTS: Mutex<(usize, BTreeMap<usize, Object>)> = Mutex::new((0, BTreeMap::new()));

/// A new one.
pub(super) fn create(object: Object) -> *mut c_void {
    let mut objects = OBJECTS.lock().unwrap_or_else(PoisonError::into_inner);
    objects.0 += 16;
    let number = objects.0;
    objects.1.insert(number, object);
    std::ptr::without_provenance_mut(number)
}

/// What an object is now.
pub(super) fn get(object: *mut c_void) -> Result<Object, Answer> {
    let objects = OBJECTS.lock().unwrap_or_else(PoisonError::into_inner);
    objects.1.get(&object.addr()).copied().ok_or(Answer::BadArgument)
}

/// Changes one.
pub(super) fn change(
    object: *mut c_void,
    change: impl FnOnce(&mut Object) -> Result<(), Answer>,
) -> Result<(), Answer> {
    let mut objects = OBJECTS.lock().unwrap_or_else(PoisonError::into_inner);
    change(objects.1.get_mut(&object.addr()).ok_or(Answer::BadArgument)?)
}

/// Gives one back.
///
/// # Panics
/// It is none, or was given back before: the real one corrupts memory then.
pub(super) fn release(object: *mut c_void) {
    let mut objects = OBJECTS.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(objects.1.remove(&object.addr()).is_some(), "os_release of what is no object");
}
