//! Counters, and log lines of which only so many come.

use serde_json::json;

use super::table::Time;
use crate::control::Traffic;

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
    /// Connections, flows of datagrams and pings that the policy let out.
    pub allowed: u64,
    /// What the policy did not let out, names among it.
    pub refused: u64,
    /// Names that were looked up.
    pub names_allowed: u64,
    /// Names that were not, or whose answer was held back.
    pub names_refused: u64,
    /// Flows that went to make room.
    pub evicted: u64,
    /// Flows that were silent for too long.
    pub timed_out: u64,
    /// Answers and datagrams that were lost because the guest took none, and callers of published
    /// ports for whom no port of the gateway was free.
    pub lost: u64,
    /// Questions to the resolver.
    pub queries: u64,
    /// Those of them that a kept answer was given to.
    pub cached: u64,
}

impl Counters {
    /// What whoever holds the machine is told of them.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        Traffic {
            allowed: self.allowed,
            denied: self.refused - self.names_refused,
            names_allowed: self.names_allowed,
            names_denied: self.names_refused,
        }
    }
}

/// Lines about what was allowed that may come at once.
const ALLOWED: u32 = 1000;
/// And about everything else.
const OTHERS: u32 = 100;
/// The time after which one more of what is allowed may come.
const ALLOWED_EVERY: Time = Time::from_millis(5);
/// And of everything else.
const OTHERS_EVERY: Time = Time::from_millis(100);

/// What a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum About {
    /// Something was let out.
    Allowed,
    /// Something was not.
    Denied,
    /// The network itself.
    Itself,
}

/// The log: objects of JSON, a line each, without the time, which the core does not know.
#[derive(Debug)]
pub(super) struct Log {
    /// Somebody reads it.
    is_on: bool,
    allowed: Lines,
    others: Lines,
}

impl Log {
    pub(super) fn new(is_on: bool) -> Self {
        Self { is_on, allowed: Lines::new(ALLOWED, ALLOWED_EVERY), others: Lines::new(OTHERS, OTHERS_EVERY) }
    }

    /// A line, if it may come. It is made only then.
    pub(super) fn line(
        &mut self,
        now: Time,
        about: About,
        fields: impl FnOnce() -> serde_json::Value,
    ) -> Option<String> {
        let lines = if about == About::Allowed { &mut self.allowed } else { &mut self.others };
        (self.is_on && lines.may_come(now)).then(|| plain(&fields().to_string()))
    }

    /// When those that did not come are told.
    pub(super) fn deadline(&self) -> Option<Time> {
        [self.allowed.deadline(), self.others.deadline()].into_iter().flatten().min()
    }

    /// How many did not come, where a line may come again.
    pub(super) fn due(&mut self, now: Time) -> Option<String> {
        let of = |count: Option<u64>, what: &str| {
            let note = format!("{} more lines about {what} were left out", count?);
            Some(json!({"note": note}).to_string())
        };
        of(self.allowed.due(now), "what is allowed")
            .or_else(|| of(self.others.due(now), "what is denied, and others,"))
    }
}

/// JSON without characters that a terminal may take for more than text: names are the guest's, and
/// may hold any byte. They stand in strings only, so that an escape says the same.
fn plain(json: &str) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if matches!(c, ' '..='~') {
            text.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a string does not fail.
                let _ = write!(text, "\\u{unit:04x}");
            }
        }
    }
    text
}

/// Lines at a bounded rate.
#[derive(Debug)]
struct Lines {
    burst: u32,
    every: Time,
    /// How many came of the burst.
    used: u32,
    /// When `used` was last right.
    at: Time,
    /// How many did not come.
    held: u64,
}

impl Lines {
    fn new(burst: u32, every: Time) -> Self {
        Self { burst, every, used: 0, at: Time::ZERO, held: 0 }
    }

    fn may_come(&mut self, now: Time) -> bool {
        self.refill(now);
        if self.used >= self.burst {
            self.held += 1;
            return false;
        }
        self.used += 1;
        true
    }

    fn refill(&mut self, now: Time) {
        while self.used > 0 && self.at + self.every <= now {
            self.used -= 1;
            self.at += self.every;
        }
        if self.used == 0 {
            self.at = now;
        }
    }

    fn deadline(&self) -> Option<Time> {
        (self.held > 0).then(|| self.at + self.every)
    }

    /// How many did not come, if one line may come again.
    fn due(&mut self, now: Time) -> Option<u64> {
        self.refill(now);
        if self.held == 0 || self.used >= self.burst {
            return None;
        }
        self.used += 1;
        Some(std::mem::take(&mut self.held))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_is_told_as_a_number() {
        let mut log = Log::new(true);
        let mut line = |now, about| log.line(now, about, || json!({"note": "x"}));
        assert_eq!((0..1000).filter(|_| line(Time::ZERO, About::Denied).is_some()).count(), 100);
        // What is allowed is told still.
        assert_eq!(line(Time::ZERO, About::Allowed).unwrap(), r#"{"note":"x"}"#);
        assert!(line(Time::ZERO, About::Itself).is_none());
        assert_eq!(log.due(Time::from_millis(99)), None);
        assert_eq!(log.deadline(), Some(OTHERS_EVERY));
        assert!(log.due(OTHERS_EVERY).unwrap().contains("901 more lines"));
        assert_eq!((log.deadline(), log.due(OTHERS_EVERY)), (None, None));
        assert!(log.line(OTHERS_EVERY, About::Denied, || json!({})).is_none());
        assert!(log.line(Time::from_secs(100), About::Denied, || json!({})).is_some());
    }

    #[test]
    fn a_name_of_any_bytes_is_text() {
        let name: String = (0..=255_u8).map(char::from).chain("\u{202e}\u{1f600}".chars()).collect();
        let line = Log::new(true).line(Time::ZERO, About::Denied, || json!({"name": name})).unwrap();
        assert!(line.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{line}");
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(read["name"], json!(name));
    }

    #[test]
    fn a_log_that_nobody_reads_costs_nothing() {
        let mut log = Log::new(false);
        assert_eq!(log.line(Time::ZERO, About::Denied, || panic!("made for nobody")), None);
        assert_eq!(log.deadline(), None);
    }
}
