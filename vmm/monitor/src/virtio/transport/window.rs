//! A page in which a guest reads a device's registers without an exit.
//!
//! A driver reads some 20 registers to find a device and one for every interrupt, and each such read is an exit to the monitor. All that they
//! tell changes only when the driver writes, which exits as ever, or by the device's interrupt. So the page is shown
//! to the guest, read-only, when it reads the first of them, and the monitor keeps it up to date. While a reset waits for the
//! device's worker it is hidden: what the registers tell then changes by itself.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::memory::{RegisterPage, Slot};

/// Who can show pages to the guest: the machine. Both calls say whether they succeeded.
pub trait PageHost: Send + Sync {
    /// The guest reads the page from here on.
    fn show(&self, page: &Slot) -> bool;

    /// Its reads exit from here on. When this returns, no vCPU reads the page any more.
    fn hide(&self, page: &Slot) -> bool;
}

/// A page and whether the guest sees it.
pub struct Window {
    page: RegisterPage,
    host: Arc<dyn PageHost>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Hidden,
    Shown,
    /// The hypervisor would not. Every read exits, which is as good.
    Refused,
}

impl Window {
    /// A window on `page`, hidden.
    #[must_use]
    pub fn new(page: RegisterPage, host: Arc<dyn PageHost>) -> Self {
        Self { page, host, state: State::Hidden }
    }

    /// Whether there is nothing to be shown: it is, or it cannot be.
    pub(super) fn is_settled(&self) -> bool {
        self.state != State::Hidden
    }

    pub(super) fn is_shown(&self) -> bool {
        self.state == State::Shown
    }

    pub(super) fn show(&mut self) {
        self.state = if self.host.show(self.page.slot()) { State::Shown } else { State::Refused };
    }

    /// A hypervisor that refuses leaves a guest that reads what was true before, until its next write.
    pub(super) fn hide(&mut self) {
        if self.host.hide(self.page.slot()) {
            self.state = State::Hidden;
        }
    }

    pub(super) fn put(&self, offset: u64, value: u32) {
        self.page.word(offset).store(value, Ordering::SeqCst);
    }
}
