//! Ranges of clusters that are in use: many read or write in place at once, one changes where a
//! cluster lies.

use std::ops::RangeInclusive;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Who uses what, in the order of arrival: nobody passes one that waits, so nobody waits for ever.
#[derive(Debug, Default)]
pub(crate) struct Ranges {
    state: Mutex<State>,
    left: Condvar,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    users: Vec<User>,
}

#[derive(Debug)]
struct User {
    ticket: u64,
    clusters: RangeInclusive<u64>,
    alone: bool,
}

/// A range in use until this is dropped.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    ranges: &'a Ranges,
    ticket: u64,
}

impl Ranges {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody before uses one of the clusters alone, or, if `alone`, at all.
    pub(crate) fn hold(&self, clusters: RangeInclusive<u64>, alone: bool) -> Held<'_> {
        let mut state = self.state();
        let ticket = state.next;
        state.next += 1;
        state.users.push(User { ticket, clusters: clusters.clone(), alone });
        let conflict = |user: &User| {
            let apart = user.clusters.end() < clusters.start() || clusters.end() < user.clusters.start();
            !apart && (alone || user.alone)
        };
        while state.users.iter().take_while(|user| user.ticket != ticket).any(conflict) {
            state = self.left.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Held { ranges: self, ticket }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.ranges.state().users.retain(|user| user.ticket != self.ticket);
        self.ranges.left.notify_all();
    }
}
