//! Whether the link takes messages.

use rustix::io::Errno;

use crate::core::Time;

/// How long to wait where nothing tells when the host has memory again.
const PAUSE: Time = Time::from_millis(10);

/// Whether the link takes messages.
#[derive(Debug)]
pub(super) struct Gate {
    open: bool,
    /// When it is tried again whatever is told.
    again: Option<Time>,
}

impl Gate {
    /// One that is open.
    pub(super) fn new() -> Self {
        Self { open: true, again: None }
    }

    /// Whether a message may be tried.
    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    /// The link has room.
    pub(super) fn opens(&mut self) {
        *self = Self::new();
    }

    /// The link did not take a message, which is to be tried again when this is open.
    ///
    /// # Errors
    /// There is no link any more.
    pub(super) fn refused(&mut self, now: Time, error: Errno) -> Result<(), Errno> {
        match error {
            Errno::INTR => {}
            // That there is room again is told.
            Errno::AGAIN => self.open = false,
            // The link has room, but the host has no memory: that there is some again is not told.
            Errno::NOBUFS | Errno::NOMEM => {
                self.open = false;
                self.again = Some(now + PAUSE);
            }
            error => {
                self.open = false;
                return Err(error);
            }
        }
        Ok(())
    }

    /// When [`Self::tick`] is to be called.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.again
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: Time) {
        if self.again.is_some_and(|time| time <= now) {
            self.opens();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nothing_tells_of_is_tried_again_by_time() {
        let mut gate = Gate::new();
        let now = Time::from_secs(1);
        gate.refused(now, Errno::INTR).unwrap();
        assert!(gate.is_open());
        gate.refused(now, Errno::AGAIN).unwrap();
        gate.tick(now + Time::from_secs(60));
        assert_eq!((gate.is_open(), gate.deadline()), (false, None), "processor time for nothing");
        gate.opens();
        for error in [Errno::NOBUFS, Errno::NOMEM] {
            gate.refused(now, error).unwrap();
            assert_eq!((gate.is_open(), gate.deadline()), (false, Some(now + PAUSE)));
            gate.tick(now);
            assert!(!gate.is_open(), "tried at once");
            gate.tick(now + PAUSE);
            assert_eq!((gate.is_open(), gate.deadline()), (true, None));
        }
        gate.refused(now, Errno::PIPE).unwrap_err();
        assert_eq!((gate.is_open(), gate.deadline()), (false, None));
    }
}
