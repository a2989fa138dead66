//! A timer that can be polled: a timerfd on Linux, a kqueue of its own elsewhere.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// Becomes readable at every period until it is disarmed. Ticks that nobody took in time count as
/// one.
#[derive(Debug)]
pub struct Timer(OwnedFd);

#[cfg(target_os = "linux")]
impl Timer {
    /// A non-blocking, close-on-exec timer that is not armed. It stands still while the host
    /// sleeps.
    pub fn new() -> io::Result<Self> {
        use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self(timerfd_create(TimerfdClockId::Monotonic, flags)?))
    }

    /// Ticks every `period` from now on (at least 1 ns); `None` disarms and takes back a tick that
    /// is pending.
    pub fn set(&self, period: Option<Duration>) -> io::Result<()> {
        use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec, timerfd_settime};
        let period = match period {
            None => Timespec { tv_sec: 0, tv_nsec: 0 },
            Some(period) => Timespec::try_from(period.max(Duration::from_nanos(1)))
                .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
        };
        let spec = Itimerspec { it_interval: period, it_value: period };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &spec)?;
        Ok(())
    }

    /// Takes the pending tick; `true` when there was one.
    pub fn consume(&self) -> io::Result<bool> {
        loop {
            match rustix::io::read(&self.0, &mut [0u8; 8]) {
                Ok(_) => return Ok(true),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod kqueue {
    use super::{Duration, Timer, io};
    use rustix::buffer::spare_capacity;
    use rustix::event::kqueue::{Event, EventFilter, EventFlags, kevent, kqueue};
    use rustix::io::{Errno, FdFlags, fcntl_setfd};

    impl Timer {
        /// A close-on-exec timer that is not armed.
        pub fn new() -> io::Result<Self> {
            let queue = kqueue()?;
            fcntl_setfd(&queue, FdFlags::CLOEXEC)?;
            Ok(Self(queue))
        }

        /// Ticks every `period` from now on; `None` disarms and takes back a tick that is pending.
        pub fn set(&self, period: Option<Duration>) -> io::Result<()> {
            let flags = if period.is_some() { EventFlags::ADD } else { EventFlags::DELETE };
            let filter = EventFilter::Timer { ident: 0, timer: period };
            let change = [Event::new(filter, flags, std::ptr::null_mut())];
            match self.exchange(&change, &mut Vec::new()) {
                Err(Errno::NOENT) if period.is_none() => Ok(()),
                result => Ok(result?),
            }
        }

        /// Takes the pending tick; `true` when there was one.
        pub fn consume(&self) -> io::Result<bool> {
            let mut events = Vec::with_capacity(1);
            self.exchange(&[], &mut events)?;
            Ok(!events.is_empty())
        }

        #[allow(unsafe_code, reason = "kevent names descriptors by number; a timer's event names none")]
        fn exchange(&self, changes: &[Event], events: &mut Vec<Event>) -> Result<(), Errno> {
            // SAFETY: the only filter used is EVFILT_TIMER, which refers to no descriptor that
            // could be closed meanwhile.
            unsafe { kevent(&self.0, changes, spare_capacity(events), Some(Duration::ZERO)) }.map(|_| ())
        }
    }
}

impl AsFd for Timer {
    /// To poll for reading.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{Interest, Poller};

    #[test]
    fn ticks_until_disarmed() {
        let (timer, poller, mut ready) = (Timer::new().unwrap(), Poller::new().unwrap(), Vec::new());
        poller.add(timer.as_fd(), 1, Interest::READ).unwrap();
        poller.wait(&mut ready, Some(Duration::ZERO)).unwrap();
        assert!(ready.is_empty() && !timer.consume().unwrap());
        timer.set(Some(Duration::from_millis(1))).unwrap();
        for _ in 0..2 {
            poller.wait(&mut ready, None).unwrap();
            assert!(timer.consume().unwrap());
        }
        std::thread::sleep(Duration::from_millis(5));
        timer.set(None).unwrap();
        poller.wait(&mut ready, Some(Duration::from_millis(5))).unwrap();
        assert!(ready.is_empty() && !timer.consume().unwrap());
        timer.set(None).unwrap();
    }
}
