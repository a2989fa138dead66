//! What a machine and its vCPUs share: the kernel's machine, and the memory that it maps.

#![allow(unsafe_code, reason = "the bindings own their descriptors and do not lend them")]

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Mutex;

use kvm_ioctls::VmFd;

use super::super::HvError;
use crate::arch::x86_64::cpuid::Leaf;
use crate::memory::Slot;

/// Fields are dropped in order: the kernel's machine (whose vCPUs are gone, since they hold this) before the memory it maps.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) fd: VmFd,
    /// What the hypervisor supports, asked once.
    pub(super) supported: Vec<Leaf>,
    /// Registered slots, which keep their host ranges mapped.
    pub(super) slots: Mutex<BTreeMap<u32, Slot>>,
}

/// The descriptor of one of the bindings' types, which own theirs and do not lend it.
pub(super) fn lend(owner: &impl AsRawFd) -> BorrowedFd<'_> {
    // SAFETY: `owner` is one of the bindings' objects; it keeps its descriptor open for as long as it is borrowed.
    unsafe { BorrowedFd::borrow_raw(owner.as_raw_fd()) }
}

pub(super) fn failed(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> HvError {
    move |error| HvError::Call { call, source: error.into() }
}
