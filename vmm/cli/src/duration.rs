//! Durations as people write them.

use std::time::Duration;

use anyhow::{Result, bail};

/// Parses `500ms`, `30s`, `5m`, `1h`: a whole number and its unit.
pub(crate) fn parse(text: &str) -> Result<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let Ok(number) = digits.parse::<u64>() else {
        bail!("invalid duration {text:?}: write a whole number with a unit ms, s, m or h, e.g. 30s");
    };
    let milliseconds = match &text[digits.len()..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "" => {
            bail!("duration {text:?} has no unit: write {number}s for seconds or {number}ms for milliseconds")
        }
        unit => bail!("duration {text:?} has the unknown unit {unit:?}: use ms, s, m or h"),
    };
    match number.checked_mul(milliseconds) {
        Some(0) => bail!("duration {text:?} must be more than zero"),
        Some(total) if total <= 365 * 24 * 3_600_000 => Ok(Duration::from_millis(total)),
        _ => bail!("duration {text:?} is longer than a year"),
    }
}

/// As [`parse`], and also a number of seconds without a unit, where docker has a flag of that name.
pub(crate) fn parse_or_seconds(text: &str) -> Result<Duration> {
    match text.parse::<u64>() {
        Ok(seconds) => parse(&format!("{seconds}s")),
        Err(_) => parse(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_required() {
        for (text, milliseconds) in [("1ms", 1), ("30s", 30_000), ("5m", 300_000), ("1h", 3_600_000)] {
            assert_eq!(parse(text).unwrap(), Duration::from_millis(milliseconds));
        }
        assert_eq!(parse_or_seconds("5").unwrap(), Duration::from_secs(5));
        assert_eq!(parse_or_seconds("5m").unwrap(), Duration::from_secs(300));
        assert!(parse_or_seconds("1.5").is_err() && parse_or_seconds("").is_err());
        for bad in ["", "5", "s", "0s", "-1s", "1.5s", "1d", "99999999999h"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
