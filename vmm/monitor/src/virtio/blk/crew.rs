//! Threads that serve requests beside the worker's own, so that several wait for the host at once.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// The threads' work. Whoever makes the threads gives each [`Crew::serve`] to run; they outlive the
/// workers of the device, one after the other.
#[derive(Clone, Default)]
pub struct Crew(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// Threads that serve.
    threads: usize,
    ended: bool,
}

type Job = Box<dyn FnOnce() + Send>;

impl Crew {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what is given to it, one after the other, until [`Crew::end`].
    pub fn serve(&self) {
        let _there = Member::of(self);
        let mut state = self.state();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job();
                state = self.state();
            } else if state.ended {
                return;
            } else {
                state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Threads that serve: 0 before they have begun, and after a bug has ended them.
    pub(super) fn size(&self) -> usize {
        self.state().threads
    }

    /// Gives a job to the next thread that is free. If a bug has ended all of them, it is done at
    /// once.
    pub(super) fn give(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.state();
        if state.threads == 0 {
            drop(state);
            return job();
        }
        state.jobs.push_back(Box::new(job));
        drop(state);
        self.0.changed.notify_one();
    }

    /// Ends the threads when all is done that was given.
    pub fn end(&self) {
        self.state().ended = true;
        self.0.changed.notify_all();
    }
}

/// A thread that serves, until it ends, by whatever.
struct Member<'a>(&'a Crew);

impl<'a> Member<'a> {
    fn of(crew: &'a Crew) -> Self {
        crew.state().threads += 1;
        Self(crew)
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.threads -= 1;
        if state.threads == 0 {
            // Nobody would do them: whoever waits hears of it by their end.
            let left = std::mem::take(&mut state.jobs);
            drop(state);
            drop(left);
        }
    }
}
