//! Ending transfers from another thread.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use ureq::Agent;

const WHOLE: &str = "nobody panics while holding it";

/// Ends the transfers of the clients that it was given to. Its clones are the same switch.
#[derive(Clone, Default)]
pub struct Cancel(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    came: Condvar,
}

#[derive(Default)]
struct State {
    cancelled: bool,
    /// By numbers that count up.
    agents: BTreeMap<u64, Agent>,
    next: u64,
}

/// An agent that is covered for as long as this lives. The agent knows the switch by its resolver:
/// a switch that knew the agent for ever would keep both, and connections that nobody needs.
#[derive(Debug)]
pub(crate) struct Covered {
    cancel: Cancel,
    number: u64,
}

impl Drop for Covered {
    fn drop(&mut self) {
        let agent = self.cancel.state().agents.remove(&self.number);
        drop(agent);
    }
}

impl fmt::Debug for Cancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cancel").field(&self.is_cancelled()).finish()
    }
}

impl Cancel {
    /// A switch that is not thrown.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect(WHOLE)
    }

    /// Ends all transfers now, and those that begin later. Connections are closed.
    pub fn cancel(&self) {
        let mut state = self.state();
        state.cancelled = true;
        let agents = std::mem::take(&mut state.agents);
        drop(state);
        self.0.came.notify_all();
        for agent in agents.into_values() {
            agent.shutdown();
        }
    }

    /// Whether [`Cancel::cancel`] was called.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.state().cancelled
    }

    /// Closes the connections of `agent` when it is time, for as long as what this returns lives.
    pub(crate) fn covers(&self, agent: &Agent) -> Covered {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        if state.cancelled {
            drop(state);
            agent.clone().shutdown();
        } else {
            state.agents.insert(number, agent.clone());
        }
        Covered { cancel: self.clone(), number }
    }

    /// Whether nothing else has this switch, and it covers nothing.
    #[cfg(test)]
    pub(crate) fn is_alone(&self) -> bool {
        Arc::strong_count(&self.0) == 1 && self.state().agents.is_empty()
    }

    /// Waits `time`, or until it is cancelled. Whether it is.
    pub(crate) fn wait(&self, time: Duration) -> bool {
        let go_on = |state: &mut State| !state.cancelled;
        self.0.came.wait_timeout_while(self.state(), time, go_on).expect(WHOLE).0.cancelled
    }
}
