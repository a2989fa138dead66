//! A page of words that the monitor writes and the guest reads without an exit.

use std::sync::atomic::AtomicU32;

use super::{Backing, MemoryError, Slot};
use crate::sys::host;

/// One page in a slot of its own that is read-only to the guest: its reads go to memory, its writes exit as ever.
#[derive(Clone, Debug)]
pub struct RegisterPage(Slot);

impl RegisterPage {
    /// Bytes of registers. Where the host's pages are larger the slot is one of them, and no place of a device alone can show it.
    pub const BYTES: u64 = 4096;

    /// A page of zeros for guest physical address `guest`, in whole pages of the host. `index` is its slot's, unique in a machine.
    ///
    /// # Errors
    /// An address that is not in whole pages, or the host's refusal.
    pub fn new(index: u32, guest: u64) -> Result<Self, MemoryError> {
        Slot::new(index, guest, host::page_size().max(Self::BYTES), Backing::Anonymous, true).map(Self)
    }

    /// The slot, for the hypervisor.
    #[must_use]
    pub fn slot(&self) -> &Slot {
        &self.0
    }

    /// The word at `offset`, in the byte order that hosts and guests here share.
    ///
    /// # Panics
    /// Not a multiple of 4 below [`RegisterPage::BYTES`]: a bug.
    #[must_use]
    pub fn word(&self, offset: u64) -> &AtomicU32 {
        assert!(offset < Self::BYTES && offset.is_multiple_of(4), "a word of the page");
        let offset = usize::try_from(offset).unwrap_or(0);
        // SAFETY: the page is mapped for as long as the slot lives, which the reference borrows; the offset lies within it and is
        // aligned. The guest cannot write here, and all of the monitor's accesses are atomic.
        unsafe { &*self.0.host().add(offset).cast::<AtomicU32>() }
    }
}
