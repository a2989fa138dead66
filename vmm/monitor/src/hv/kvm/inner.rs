//! What a machine and its vCPUs share: the kernel's machine, and the memory that it maps.

#![allow(unsafe_code, reason = "the bindings own their descriptors and do not lend them")]

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use kvm_ioctls::VmFd;

use super::super::HvError;
use super::own;
use crate::memory::Slot;
use crate::sys::leave_behind;

/// Dropped when the last vCPU is, since they hold this: from then on nobody can enter the machine
/// or reach the memory it maps.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) fd: VmFd,
    /// What its architecture needs.
    pub(super) own: own::Machine,
    pub(super) slots: Mutex<Slots>,
    /// Descriptors of vCPUs that are gone: the kernel's machine lives as long as they do.
    pub(super) ended: Mutex<Vec<OwnedFd>>,
}

/// The memory of a machine.
#[derive(Debug, Default)]
pub(super) struct Slots {
    /// Those registered, by number: they keep their host ranges mapped.
    pub(super) registered: BTreeMap<u32, Slot>,
    /// There are interrupt controllers, so no slot is added any more.
    pub(super) complete: bool,
}

/// The end of a machine waits 10 ms and more in the kernel, for a grace period after the last
/// nested page table. Nothing of ours depends on it, so that neither a process nor an embedder's
/// thread waits for it.
///
/// What the kernel's machine still names is harmless meanwhile: its slots are ranges of this
/// process, which it follows as they are unmapped, and without a vCPU's descriptor nobody can enter
/// it.
impl Drop for Inner {
    fn drop(&mut self) {
        let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut left: Vec<_> = ended.iter().map(AsFd::as_fd).collect();
        left.push(lend(&self.fd));
        // Refused: closing them takes its time.
        let _slow = leave_behind(&left);
    }
}

/// The descriptor of one of the bindings' types, which own theirs and do not lend it.
pub(super) fn lend(owner: &impl AsRawFd) -> BorrowedFd<'_> {
    // SAFETY: `owner` is one of the bindings' objects; it keeps its descriptor open for as long as
    // it is borrowed.
    unsafe { BorrowedFd::borrow_raw(owner.as_raw_fd()) }
}

pub(super) fn failed(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> HvError {
    move |error| HvError::Call { call, source: error.into() }
}

/// Asks again where a signal of the embedder's arrived meanwhile: it is none of our business.
pub(super) fn uninterrupted<T>(
    ask: impl Fn() -> Result<T, kvm_ioctls::Error>,
) -> Result<T, kvm_ioctls::Error> {
    loop {
        match ask() {
            Err(error) if error.errno() == libc::EINTR => {}
            result => return result,
        }
    }
}
