//! Counters, and log lines of which only so many come.

use super::table::Time;

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames of the guest.
    pub from_guest: u64,
    /// Messages for the guest.
    pub to_guest: u64,
    /// Frames that lie about themselves, or are not the guest's to send.
    pub malformed: u64,
    /// Of those: with a source that is not the guest's.
    pub forged: u64,
    /// Fragments of the guest.
    pub fragments: u64,
    /// Packets that were put together from them.
    pub reassembled: u64,
    /// Connections of the guest, and to published ports.
    pub connections: u64,
    /// What the policy did not let out.
    pub refused: u64,
    /// Flows that went to make room.
    pub evicted: u64,
    /// Flows that were silent for too long.
    pub timed_out: u64,
    /// Answers and datagrams that were lost because the guest took none, and callers of published
    /// ports for whom no port of the gateway was free.
    pub lost: u64,
    /// Questions to the resolver.
    pub queries: u64,
}

/// Lines that may come at once.
const BURST: u32 = 20;
/// The time after which one more may come.
const EVERY: Time = Time::from_secs(1);

/// Lines at a bounded rate.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// How many came of the burst.
    used: u32,
    /// When `used` was last right.
    at: Time,
    /// How many did not come.
    held: u64,
}

impl Log {
    /// The line, if it may come.
    pub(super) fn line(&mut self, now: Time, line: &str) -> Option<String> {
        self.refill(now);
        if self.used >= BURST {
            self.held += 1;
            return None;
        }
        self.used += 1;
        Some(line.to_owned())
    }

    fn refill(&mut self, now: Time) {
        while self.used > 0 && self.at + EVERY <= now {
            self.used -= 1;
            self.at += EVERY;
        }
        if self.used == 0 {
            self.at = now;
        }
    }

    /// When those that did not come are told.
    pub(super) fn deadline(&self) -> Option<Time> {
        (self.held > 0).then(|| self.at + EVERY)
    }

    /// How many did not come, if one line may come again.
    pub(super) fn due(&mut self, now: Time) -> Option<String> {
        self.refill(now);
        if self.held == 0 || self.used >= BURST {
            return None;
        }
        self.used += 1;
        Some(format!("{} more lines like these were left out", std::mem::take(&mut self.held)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_is_told_as_a_number() {
        let mut log = Log::default();
        let told = (0..1000).filter(|_| log.line(Time::ZERO, "x").is_some()).count();
        assert_eq!(told, 20);
        assert_eq!(log.due(Time::from_millis(999)), None);
        assert_eq!(log.deadline(), Some(EVERY));
        assert_eq!(log.due(EVERY).unwrap(), "980 more lines like these were left out");
        assert_eq!(log.deadline(), None);
        assert!(log.line(EVERY, "x").is_none());
        assert!(log.line(Time::from_secs(100), "x").is_some());
    }
}
