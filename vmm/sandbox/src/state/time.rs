//! Points in time, written as RFC 3339 in UTC with nanoseconds, whose order is that of the text.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

const NS: u64 = 1_000_000_000;
const DAY_SECONDS: u64 = 86_400;

/// Nanoseconds since 1970 (UTC, without leap seconds), up to the year 2554.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Timestamp(u64);

impl Timestamp {
    /// The present, by the system's clock. A clock before 1970 is at 1970, one after 2554 at its
    /// end.
    #[must_use]
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(since.as_secs().saturating_mul(NS).saturating_add(since.subsec_nanos().into()))
    }

    /// By its nanoseconds since 1970.
    #[must_use]
    pub const fn from_unix_ns(ns: u64) -> Self {
        Self(ns)
    }

    /// Nanoseconds since 1970.
    #[must_use]
    pub fn unix_ns(self) -> u64 {
        self.0
    }

    /// The time from `earlier` to this one; none if the clock was set back in between.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The point in time that is later by `duration`, at the latest in the year 2554.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        let seconds = duration.as_secs().saturating_mul(NS);
        Self(self.0.saturating_add(seconds.saturating_add(duration.subsec_nanos().into())))
    }

    /// The point in time that is earlier by `duration`, at the earliest 1970.
    #[must_use]
    pub fn before(self, duration: Duration) -> Self {
        let seconds = duration.as_secs().saturating_mul(NS);
        Self(self.0.saturating_sub(seconds.saturating_add(duration.subsec_nanos().into())))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, ns) = (self.0 / NS, self.0 % NS);
        let (days, second) = (seconds / DAY_SECONDS, seconds % DAY_SECONDS);
        let (year, month, day) = date(days);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ns:09}Z")
    }
}

/// A year of the calendar that begins in March, so that a leap day is its last: days before each
/// month.
fn days_before_month(month: u64) -> u64 {
    (153 * month + 2) / 5
}

/// Days from March of year 0 to 1970.
const EPOCH_DAYS: u64 = 719_468;
/// Days in the 400 years after which the calendar repeats.
const ERA_DAYS: u64 = 146_097;

/// Year, month and day of a day that is counted from 1970.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + EPOCH_DAYS;
    let (era, day) = (days / ERA_DAYS, days % ERA_DAYS);
    let year = (day - day / 1460 + day / 36_524 - day / (ERA_DAYS - 1)) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - days_before_month(month) + 1;
    // Month 0 is March.
    let (carry, month) = if month < 10 { (0, month + 3) } else { (1, month - 9) };
    (era * 400 + year + carry, month, day)
}

/// The day, counted from 1970, of a date that is not before it.
fn day_number(year: u64, month: u64, day: u64) -> Option<u64> {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let (era, year) = (year / 400, year % 400);
    let day = 365 * year + year / 4 - year / 100 + days_before_month(month) + day - 1;
    (era * ERA_DAYS + day).checked_sub(EPOCH_DAYS)
}

/// A text that is no point in time.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid time {0:?}: write it as in RFC 3339, e.g. 2026-01-31T12:00:00Z, from 1970 to 2554")]
pub struct TimestampError(String);

impl FromStr for Timestamp {
    type Err = TimestampError;

    /// Takes RFC 3339 with any offset, and fewer parts: a date alone is its midnight, and without
    /// an offset it is UTC.
    fn from_str(text: &str) -> Result<Self, TimestampError> {
        parse(text).ok_or_else(|| TimestampError(text.to_owned()))
    }
}

/// A number of exactly `digits` digits at the beginning, and the rest.
fn number(text: &str, digits: usize) -> Option<(u64, &str)> {
    let (number, rest) = text.split_at_checked(digits)?;
    number.bytes().all(|byte| byte.is_ascii_digit()).then_some(())?;
    Some((number.parse().ok()?, rest))
}

fn parse(text: &str) -> Option<Timestamp> {
    let (year, rest) = number(text, 4)?;
    let (month, rest) = number(rest.strip_prefix('-')?, 2)?;
    let (day, rest) = number(rest.strip_prefix('-')?, 2)?;
    let days = day_number(year, month, day)?;
    if date(days) != (year, month, day) {
        return None;
    }
    let midnight = days * DAY_SECONDS;
    if rest.is_empty() {
        return midnight.checked_mul(NS).map(Timestamp);
    }
    let (hour, rest) = number(rest.strip_prefix(['T', 't', ' '])?, 2)?;
    let (minute, rest) = number(rest.strip_prefix(':')?, 2)?;
    let (second, rest) = number(rest.strip_prefix(':')?, 2)?;
    // A leap second is the last of its minute twice.
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let (ns, rest) = match rest.strip_prefix('.') {
        Some(fraction) => {
            let end = fraction.find(|c: char| !c.is_ascii_digit()).unwrap_or(fraction.len());
            let (digits, rest) = fraction.split_at(end);
            let digits = digits.get(..9).unwrap_or(digits);
            (format!("{digits:0<9}").parse::<u64>().ok().filter(|_| end > 0)?, rest)
        }
        None => (0, rest),
    };
    let local = midnight + hour * 3600 + minute * 60 + second.min(59);
    let offset = |text: &str| {
        let (hours, rest) = number(text, 2)?;
        let (minutes, rest) = number(rest.strip_prefix(':')?, 2)?;
        (rest.is_empty() && hours < 24 && minutes < 60).then_some(hours * 3600 + minutes * 60)
    };
    let seconds = match rest.split_at_checked(1) {
        None => local,
        Some(("Z" | "z", "")) => local,
        Some(("+", east)) => local.checked_sub(offset(east)?)?,
        Some(("-", west)) => local.checked_add(offset(west)?)?,
        Some(_) => return None,
    };
    seconds.checked_mul(NS)?.checked_add(ns).map(Timestamp)
}

impl TryFrom<String> for Timestamp {
    type Error = TimestampError;

    fn try_from(text: String) -> Result<Self, TimestampError> {
        text.parse()
    }
}

impl From<Timestamp> for String {
    fn from(time: Timestamp) -> Self {
        time.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_dates_are_written_and_read() {
        let table = [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000000Z"),
            (1_795_900_000, "2026-11-28T21:06:40.000000000Z"),
        ];
        for (seconds, text) in table {
            let time = Timestamp::from_unix_ns(seconds * NS);
            assert_eq!(time.to_string(), text);
            assert_eq!(text.parse(), Ok(time));
        }
        let hour = |text: &str| text.parse::<Timestamp>().unwrap().unix_ns() / NS;
        assert_eq!(hour("2026-01-31"), hour("2026-01-31T00:00:00Z"));
        assert_eq!(hour("2026-01-31T12:00:00.5+01:30"), hour("2026-01-31 10:30:00"));
        assert_eq!(hour("2026-01-31T12:00:00-02:00"), hour("2026-01-31t14:00:00z"));
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for bad in [
            "",
            "2026",
            "2026-02-30",
            "2025-02-29",
            "2026-13-01",
            "2026-00-01",
            "2026-01-00",
            "1969-12-31",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:00:00.Z",
            "2026-01-01T00:00:00+1",
            "2026-01-01T00:00",
            "2026-01-01T00:00:00Zx",
            "+026-01-01",
            "9999-01-01",
            "2026-01-01ä",
            "1970-01-01T00:00:00+01:00",
        ] {
            assert!(bad.parse::<Timestamp>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn every_time_is_read_as_it_was_written_and_texts_sort_as_times(one in any::<u64>(), two in any::<u64>()) {
            let (one, two) = (Timestamp::from_unix_ns(one), Timestamp::from_unix_ns(two));
            prop_assert_eq!(one.to_string().parse(), Ok(one));
            prop_assert_eq!(one.cmp(&two), one.to_string().cmp(&two.to_string()));
        }

        #[test]
        fn no_text_panics(text in "[0-9TZ:. +-]{0,40}|\\PC*") {
            let _ = text.parse::<Timestamp>();
        }
    }
}
