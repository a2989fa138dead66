//! The end of a machine, however it comes, and what is collected then.

use std::os::fd::{AsFd, BorrowedFd};
use std::process::Child;
use std::sync::{MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::Machine;
use super::polling::first_ready;
use crate::machine::outcome::{EndReason, Outcome};
use crate::machine::wire::{Received, Receiver};

/// How long `nelly-monitor` has to end by itself once it should. It takes milliseconds; what takes
/// longer is stuck in the host, or is the guest's own by now, and is killed.
const DROP_PATIENCE: Duration = Duration::from_secs(2);

/// What is known of a machine's end so far, and what is left to collect.
#[derive(Debug)]
pub(super) struct EndState {
    receiver: Receiver,
    /// When the first of the last word was heard, or that there will be none.
    begun: Option<Instant>,
    outcome: Option<Outcome>,
    body: Option<Body>,
}

/// Where a machine's server is.
#[derive(Debug)]
pub(super) enum Body {
    Process(Child),
    Thread(JoinHandle<()>),
}

impl EndState {
    /// Of a machine that lives.
    pub(super) fn new(body: Body) -> Self {
        Self { receiver: Receiver::new(0), begun: None, outcome: None, body: Some(body) }
    }

    /// Reads what has come of the last word, and says whether anything has: a byte, or that there
    /// will be none.
    fn hear(&mut self, done: BorrowedFd<'_>) -> bool {
        if self.outcome.is_none() {
            let nothing = match self.receiver.receive::<Outcome>(done) {
                Ok(Received::Frame(outcome, _)) => {
                    self.outcome = Some(outcome);
                    false
                }
                Ok(Received::Nothing) => self.receiver.is_empty(),
                Ok(Received::End) | Err(_) => false,
            };
            if !nothing {
                self.begin();
            }
        }
        self.begun.is_some()
    }

    /// The end has begun, if only now.
    fn begin(&mut self) {
        self.begun.get_or_insert_with(Instant::now);
    }

    /// The number of the process, if there is one that was not collected.
    pub(super) fn process_id(&self) -> Option<u32> {
        match &self.body {
            Some(Body::Process(child)) => Some(child.id()),
            _ => None,
        }
    }

    /// Whether there is a process that has not ended.
    fn lives(&mut self) -> bool {
        match &mut self.body {
            Some(Body::Process(child)) => matches!(child.try_wait(), Ok(None)),
            _ => false,
        }
    }

    /// Kills the process, if there is one.
    fn kill(&mut self) {
        if let Some(Body::Process(child)) = &mut self.body {
            // A failure means that it ended already.
            drop(child.kill());
        }
    }

    /// As [`EndState::reap`], if that need not wait.
    fn collect(&mut self) -> Option<String> {
        let ended = match &self.body {
            Some(Body::Thread(thread)) => thread.is_finished(),
            _ => !self.lives(),
        };
        ended.then(|| self.reap())
    }

    /// Collects process or thread, which ends or has ended, and says how.
    fn reap(&mut self) -> String {
        match self.body.take() {
            Some(Body::Process(mut child)) => match child.wait() {
                Ok(status) => status.to_string(),
                Err(error) => format!("its exit status is unknown: {error}"),
            },
            Some(Body::Thread(thread)) => match thread.join() {
                Ok(()) => "its thread ended".into(),
                Err(_) => "its thread panicked".into(),
            },
            None => "it was collected before".into(),
        }
    }
}

impl Machine {
    /// Waits for the end. A monitor that begins to tell of it and does not end within two seconds
    /// is killed.
    pub fn wait(&self) -> Outcome {
        // What is there is read first: the monitor may wait for room for the rest of a long word.
        while !self.ending().hear(self.as_fd()) {
            self.control.wait_for_end(None);
            if self.control.process_is_gone() {
                self.ending().begin();
            }
        }
        if !self.process_ended(DROP_PATIENCE) {
            self.end_process();
        }
        let mut ending = self.ending();
        let how = ending.reap();
        self.conclude(&mut ending, how)
    }

    /// The end, if it came. Waits for nothing.
    pub fn try_wait(&self) -> Option<Outcome> {
        let mut ending = self.ending();
        ending.hear(self.as_fd());
        if self.control.process_is_gone() {
            ending.begin();
        }
        if let (None, Some(since)) = (&ending.outcome, ending.begun) {
            if let Some(how) = ending.collect() {
                return Some(self.conclude(&mut ending, how));
            }
            if since.elapsed() > DROP_PATIENCE {
                ending.kill();
            }
        }
        ending.outcome.clone()
    }

    /// The end of a machine whose process or thread was collected: what it said of it, or else how
    /// it went.
    fn conclude(&self, ending: &mut EndState, how: String) -> Outcome {
        ending.hear(self.as_fd());
        let unsaid = || {
            let killed = self.control.was_killed();
            Outcome::of(if killed { EndReason::Killed } else { EndReason::MonitorDied(how) })
        };
        ending.outcome.get_or_insert_with(unsaid).clone()
    }

    /// Ends the machine at once: nothing is flushed. Waits for nobody and nothing: neither for
    /// requests that other threads have under way, which end by it, nor for a monitor that reads
    /// none.
    pub fn kill(&self) {
        self.control.set_killed();
        self.end_process();
        // A server without a holder ends its machine at once, and there is no other way to a
        // thread.
        self.control.close();
    }

    /// What dropping it does, and how it ended: at once, every thread and mapping given back.
    pub fn close(&self) -> Outcome {
        self.control.close();
        if !self.control.wait_for_end(Some(DROP_PATIENCE)) {
            self.kill();
        }
        self.wait()
    }

    /// Kills the monitor's process, if the machine has one, and waits for nobody.
    fn end_process(&self) {
        if let Some(killer) = self.control.killer() {
            killer.kill();
        } else if let Ok(mut ending) = self.ending.try_lock() {
            // A lock that is taken means that somebody collects it.
            ending.kill();
        }
    }

    /// Waits until the monitor's process has ended; `false` when `timeout` was over first. There is
    /// none for a machine in threads.
    fn process_ended(&self, timeout: Duration) -> bool {
        match self.control.killer() {
            Some(killer) => killer.ended(timeout),
            // The next best sign is that it has closed everything.
            None => !self.ending().lives() || (hung_up(self.as_fd(), timeout) && !self.ending().lives()),
        }
    }

    pub(super) fn ending(&self) -> MutexGuard<'_, EndState> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // End of file on the control connection ends the machine.
        self.control.close();
        if !self.process_ended(DROP_PATIENCE) {
            self.end_process();
        }
        self.ending().reap();
    }
}

/// Waits until the other end of `fd` is closed; `false` when `timeout` was over first.
pub(super) fn hung_up(fd: BorrowedFd<'_>, timeout: Duration) -> bool {
    // What cannot be waited for is looked at.
    first_ready(&[(fd, PollFlags::empty())], Some(timeout)).map_or(true, |ready| ready.is_some())
}
