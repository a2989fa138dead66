//! What a vCPU outside the guest waits for: the power that another one switches on, interrupts,
//! and kicks.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::super::Kicker;
use super::framework::Framework;
use super::psci::Cores;

/// How long a wait for an interrupt lasts at most, for no clock shall overflow.
const LONGEST: Duration = Duration::from_secs(3600);

/// What the vCPUs of a machine share outside the guest.
#[derive(Debug)]
pub(super) struct Wakes {
    state: Mutex<State>,
    changed: Condvar,
}

/// See [`Wakes`].
#[derive(Debug)]
pub(super) struct State {
    /// Who runs.
    pub(super) cores: Cores,
    /// How often a line was raised.
    pub(super) raises: u64,
}

impl Wakes {
    pub(super) fn new() -> Self {
        Self { state: Mutex::new(State { cores: Cores::off(0), raises: 0 }), changed: Condvar::new() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is waited for.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.notify_all();
        result
    }

    /// Waits while `waits` says so, for `limit` at most. It may end sooner than that.
    pub(super) fn wait(&self, limit: Option<Duration>, mut waits: impl FnMut(&State) -> bool) {
        let state = self.lock();
        let limit = limit.unwrap_or(LONGEST).min(LONGEST);
        drop(self.changed.wait_timeout_while(state, limit, |state| waits(state)));
    }
}

/// Gets one vCPU out, from any thread. A kick stays until it is taken, so that one which arrives
/// before the guest is entered is not lost: the flag is looked at before each entry, and the
/// framework has the entry behind a forced exit return at once.
pub(super) struct Kick<F> {
    pending: AtomicBool,
    /// The vCPU while it exists.
    target: Mutex<Option<u64>>,
    framework: Arc<F>,
    wakes: Arc<Wakes>,
}

impl<F: Framework> Kick<F> {
    pub(super) fn new(framework: Arc<F>, wakes: Arc<Wakes>, target: u64) -> Self {
        Self { pending: AtomicBool::new(false), target: Mutex::new(Some(target)), framework, wakes }
    }

    /// Whether there is one.
    pub(super) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::SeqCst)
    }

    /// Takes it, if there is one.
    pub(super) fn take(&self) -> bool {
        self.pending.swap(false, Ordering::SeqCst)
    }

    /// The vCPU ends: from here on kicks do nothing.
    pub(super) fn end(&self) {
        *self.target.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl<F: Framework> Kicker for Kick<F> {
    fn kick(&self) {
        let target = self.target.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(target) = *target else { return };
        self.pending.store(true, Ordering::SeqCst);
        // Also where one is pending: should the framework have lost the exit that was forced for
        // that one, because the guest was about to be entered, this one gets it out. An exit too
        // many costs one turn.
        // It can only refuse a vCPU that is none, and this one exists while `target` is held.
        let forced = self.framework.force_exit(target);
        debug_assert_eq!(forced, Ok(()), "the vCPU exists");
        self.wakes.change(|_| ());
    }
}
