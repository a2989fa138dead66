//! Requests that wait for a lock (SETLKW of FUSE).
//!
//! A server that waited would hold up every other request, the unlock among them. So it is asked
//! for the lock at once, and asked again every [`AGAIN`] while the answer is that another one has
//! it. Nothing waits in the host meanwhile, and a pause takes the requests along as they are.

use std::os::fd::AsFd;
use std::time::Duration;

use crate::sys::{Interest, Timer};
use crate::virtio::device::{DeviceFault, Registrar};
use crate::virtio::queue::Chain;

/// How often a lock is asked for again.
pub(super) const AGAIN: Duration = Duration::from_millis(10);

/// Those that wait, in the order in which they came, and what tells that it is time.
#[derive(Default)]
pub(super) struct Locks {
    /// No more than the ring of the queue has places.
    waiting: Vec<Chain>,
    /// Ticks while there are any. Most machines never make one.
    timer: Option<Timer>,
}

impl Locks {
    /// Puts a request aside.
    pub(super) fn wait(&mut self, chain: Chain) {
        self.waiting.push(chain);
    }

    /// Asks for each lock again: `attempt` says whether its request still waits.
    pub(super) fn try_again(
        &mut self,
        attempt: &mut dyn FnMut(&Chain) -> Result<bool, DeviceFault>,
    ) -> Result<(), DeviceFault> {
        let mut failed = Ok(());
        self.waiting.retain(|chain| {
            if failed.is_err() {
                return true;
            }
            attempt(chain).unwrap_or_else(|fault| {
                failed = Err(fault);
                false
            })
        });
        failed
    }

    /// Takes a tick.
    pub(super) fn tick(&self) -> Result<(), DeviceFault> {
        if let Some(timer) = &self.timer {
            timer.consume()?;
        }
        Ok(())
    }

    /// Has the timer tick if, and only if, some wait.
    pub(super) fn settle(&mut self, registrar: &mut Registrar<'_>, key: u32) -> Result<(), DeviceFault> {
        match (self.waiting.is_empty(), &self.timer) {
            (false, None) => {
                let timer = Timer::new()?;
                timer.set(Some(AGAIN))?;
                registrar.add(timer.as_fd(), key, Interest::READ)?;
                self.timer = Some(timer);
            }
            (true, Some(_)) => self.end(registrar),
            _ => {}
        }
        Ok(())
    }

    /// A worker begins, perhaps with requests of the one before it.
    pub(super) fn begin(&mut self, registrar: &mut Registrar<'_>, key: u32) -> Result<(), DeviceFault> {
        self.timer = None;
        self.settle(registrar, key)
    }

    /// Waits no more for a tick.
    pub(super) fn end(&mut self, registrar: &mut Registrar<'_>) {
        if let Some(timer) = self.timer.take() {
            // One that was never added is not there any more: what was wanted.
            let _ = registrar.remove(timer.as_fd());
        }
    }
}
