//! Trying again: how long to wait, and what a registry says of that.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::options::Patience;

/// The time before attempt `number` + 1: twice as long each time, and up to a quarter longer, so
/// that many who were refused at once do not come back at once.
pub(crate) fn delay(patience: &Patience, number: u32) -> Duration {
    let doubled = patience.first_delay.saturating_mul(1 << number.saturating_sub(1).min(16));
    let delay = doubled.min(patience.most_delay);
    let random = RandomState::new().build_hasher().finish() % 256;
    delay + delay.saturating_mul(u32::try_from(random).expect("it is below 256")) / 1024
}

/// What `Retry-After` says: seconds, or a date (RFC 9110, 10.2.3). `None` if it is neither.
pub(crate) fn retry_after(header: &str, now: SystemTime) -> Option<Duration> {
    let header = header.trim();
    if !header.is_empty() && header.bytes().all(|byte| byte.is_ascii_digit()) {
        // More than that is a very long time too.
        return Some(Duration::from_secs(header.get(..header.len().min(9))?.parse().ok()?));
    }
    let then = date(header)?;
    Some(then.duration_since(now).unwrap_or_default())
}

/// A date of HTTP, such as `Sun, 06 Nov 1994 08:49:37 GMT`.
fn date(text: &str) -> Option<SystemTime> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = text.split_once(", ")?.1.split(' ');
    let mut word = || words.next();
    let day: u64 = word()?.parse().ok().filter(|day| (1..=31).contains(day))?;
    let name = word()?;
    let month = MONTHS.iter().position(|month| *month == name)? as u64;
    let year: u64 = word()?.parse().ok().filter(|year| (1970..=9999).contains(year))?;
    let clock: Vec<u64> = word()?.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let [hour, minute, second] = clock[..] else { return None };
    if hour > 23 || minute > 59 || second > 60 || words.next() != Some("GMT") {
        return None;
    }
    // Days of the years before, their leap days, and those of the months before this one.
    let leaps = |year: u64| year / 4 - year / 100 + year / 400;
    let leap = leaps(year) - leaps(year - 1);
    let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334][usize::try_from(month).ok()?];
    let days =
        (year - 1970) * 365 + leaps(year - 1) - leaps(1969) + before + if month > 1 { leap } else { 0 } + day
            - 1;
    Some(UNIX_EPOCH + Duration::from_secs(((days * 24 + hour) * 60 + minute) * 60 + second))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_doubles_up_to_a_bound() {
        let patience = Patience::default();
        for (number, least) in [(1, 500), (2, 1000), (3, 2000), (6, 10_000), (60, 10_000)] {
            let delay = delay(&patience, number).as_millis();
            assert!((least..=least + least / 4).contains(&delay), "{number}: {delay}");
        }
    }

    #[test]
    fn seconds_and_dates() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (header, want) in [
            ("0", Some(0)),
            (" 120 ", Some(120)),
            ("99999999999999999999999", Some(999_999_999)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sat, 06 Nov 1993 08:49:37 GMT", Some(0)),
            ("Thu, 29 Feb 1996 00:00:00 GMT", Some(825_552_000 - 784_111_777)),
            ("Fri, 01 Mar 1996 00:00:00 GMT", Some(825_638_400 - 784_111_777)),
            ("Tue, 01 Jan 2097 00:00:00 GMT", Some(4_007_836_800 - 784_111_777)),
            ("", None),
            ("-1", None),
            ("soon", None),
            ("Sun, 06 Nov 1994 08:49:37 CET", None),
            ("Sun, 06 Foo 1994 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 99:49:37 GMT", None),
        ] {
            assert_eq!(retry_after(header, now), want.map(Duration::from_secs), "{header}");
        }
    }
}
