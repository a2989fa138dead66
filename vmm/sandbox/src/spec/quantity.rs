//! Sizes and durations as people write them: numbers, each with its unit. One grammar for all
//! flags, settings and options.

use std::time::Duration;

use super::SpecError;

/// The units of sizes; the letters may be small, and each may be followed by `B` or `iB`.
const SIZES: [(&str, u32); 4] = [("K", 10), ("M", 20), ("G", 30), ("T", 40)];

/// The units of durations, in nanoseconds.
const TIMES: [(&str, u64); 4] =
    [("ms", 1_000_000), ("s", 1_000_000_000), ("m", 60_000_000_000), ("h", 3_600_000_000_000)];

const SIZE_FORM: &str = "write a number and K, M, G or T (binary), such as 512M, 512MB, 512MiB or 1.5G";
const TIME_FORM: &str = "write numbers with ms, s, m or h, such as 500ms, 30s, 1.5h or 1m30s";

/// Fractions have at most this many digits.
const DIGITS: usize = 9;

/// A number with its fraction in billionths, the unit behind it, and what follows.
fn part(text: &str) -> Option<(u64, u64, &str, &str)> {
    let end = |text: &str, of: fn(char) -> bool| text.find(|c| !of(c)).unwrap_or(text.len());
    let digit = |c: char| c.is_ascii_digit();
    let (whole, rest) = text.split_at(end(text, digit));
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(end(rest, digit)),
        None => ("0", rest),
    };
    if fraction.is_empty() || fraction.len() > DIGITS {
        return None;
    }
    let billionths = format!("{fraction:0<DIGITS$}").parse().ok()?;
    let (unit, rest) = rest.split_at(end(rest, |c| c.is_ascii_alphabetic()));
    Some((whole.parse().ok()?, billionths, unit, rest))
}

/// Bytes of `512M`, `512MB`, `512MiB`, `2g`, `1.5G`: binary units; a unit is required, so that
/// nobody guesses. A fraction is rounded down to a whole number of the next smaller unit.
///
/// # Errors
/// A bare number is refused with the spelling meant, as are zero, overflow and anything else.
pub fn bytes(text: &str) -> Result<u64, SpecError> {
    let refuse = |hint: String| SpecError::Quantity { what: "size", text: text.to_owned(), hint };
    let Some((whole, billionths, unit, "")) = part(text) else { return Err(refuse(SIZE_FORM.into())) };
    if unit.is_empty() {
        return Err(refuse(format!("it has no unit: write {text}M for mebibytes or {text}G for gibibytes")));
    }
    let upper = unit.to_ascii_uppercase();
    let letter = upper.strip_suffix("IB").or(upper.strip_suffix('B')).unwrap_or(&upper);
    let Some((_, shift)) = SIZES.iter().find(|(name, _)| *name == letter) else {
        return Err(refuse(format!("the unit {unit:?} is unknown: {SIZE_FORM}")));
    };
    // Less than 1024 of the smaller unit.
    let smaller = billionths * 1024 / 1_000_000_000;
    let sum = whole.checked_mul(1 << shift).and_then(|bytes| bytes.checked_add(smaller << (shift - 10)));
    match sum {
        Some(0) => Err(refuse("it must be more than zero".into())),
        Some(bytes) => Ok(bytes),
        None => Err(refuse("it does not fit into 64 bits".into())),
    }
}

/// Writes `bytes` with the largest unit that divides it.
#[must_use]
pub fn show_bytes(bytes: u64) -> String {
    SIZES
        .into_iter()
        .rev()
        .find(|(_, shift)| bytes > 0 && bytes.trailing_zeros() >= *shift)
        .map_or_else(|| format!("{bytes} bytes"), |(unit, shift)| format!("{}{unit}", bytes >> shift))
}

/// Which durations a flag takes beside those with units: whole milliseconds, at most a year.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time {
    /// A bare number is seconds, as where docker has a flag of that name.
    seconds: bool,
    /// It may be zero.
    zero: bool,
}

impl Time {
    /// More than zero, with units.
    pub const SPAN: Self = Self { seconds: false, zero: false };
    /// More than zero; a bare number is seconds.
    pub const LIMIT: Self = Self { seconds: true, zero: false };
    /// Zero, too; a bare number is seconds.
    pub const GRACE: Self = Self { seconds: true, zero: true };
    /// Zero, too, with units.
    pub const DELAY: Self = Self { seconds: false, zero: true };

    /// The duration of `500ms`, `30s`, `1.5h`, `1m30s`. What is left of a millisecond is dropped.
    ///
    /// # Errors
    /// Anything else, with the forms that are taken.
    pub fn parse(self, text: &str) -> Result<Duration, SpecError> {
        let refuse = |hint: String| SpecError::Quantity { what: "duration", text: text.to_owned(), hint };
        let form = || {
            let bare = if self.seconds { ", or a number of seconds" } else { "" };
            format!("{TIME_FORM}{bare}")
        };
        let (mut rest, mut nanoseconds) = (text, Some(0_u64));
        loop {
            let Some((whole, billionths, unit, after)) = part(rest) else { return Err(refuse(form())) };
            let alone = rest == text && after.is_empty();
            let unit = match unit {
                "" if alone && billionths == 0 && (self.seconds || (self.zero && whole == 0)) => "s",
                "" if alone => {
                    let hint =
                        format!("it has no unit: write {text}s for seconds or {text}ms for milliseconds");
                    return Err(refuse(hint));
                }
                unit => unit,
            };
            let Some((_, length)) = TIMES.iter().find(|(name, _)| *name == unit) else {
                return Err(refuse(if unit.is_empty() {
                    form()
                } else {
                    format!("the unit {unit:?} is unknown: {}", form())
                }));
            };
            let fraction = u128::from(billionths) * u128::from(*length) / 1_000_000_000;
            let sum = whole.checked_mul(*length).and_then(|n| n.checked_add(u64::try_from(fraction).ok()?));
            nanoseconds = nanoseconds.zip(sum).and_then(|(before, more)| before.checked_add(more));
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        let milliseconds = nanoseconds.map(|nanoseconds| nanoseconds / 1_000_000);
        match milliseconds {
            Some(0) if nanoseconds != Some(0) => Err(refuse("it is shorter than a millisecond".into())),
            Some(0) if !self.zero => Err(refuse("it must be more than zero".into())),
            Some(total) if total <= 365 * 24 * 3_600_000 => Ok(Duration::from_millis(total)),
            _ => Err(refuse("it is longer than a year".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary_and_have_a_unit() {
        for (text, wanted) in [
            ("64K", 65536),
            ("512M", 512 << 20),
            ("512MB", 512 << 20),
            ("512MiB", 512 << 20),
            ("512mb", 512 << 20),
            ("2g", 2 << 30),
            ("1GiB", 1 << 30),
            ("1T", 1 << 40),
            ("0.5G", 512 << 20),
            ("1.5G", 1536 << 20),
            ("1.3G", 1331 << 20),
            ("0.25K", 256),
            ("16777215T", 16_777_215 << 40),
        ] {
            assert_eq!(bytes(text), Ok(wanted), "{text}");
        }
        for (bad, part) in [
            ("", "such as 512M"),
            ("512", "write 512M for mebibytes"),
            ("1.5", "1.5G for gibibytes"),
            ("M", "such as 512M"),
            (".5G", "such as 512M"),
            ("1.G", "such as 512M"),
            ("0M", "more than zero"),
            ("0.0001K", "more than zero"),
            ("-1M", "such as 512M"),
            ("1 M", "such as 512M"),
            ("1M2", "such as 512M"),
            ("1,5G", "such as 512M"),
            ("12Q", "unit \"Q\" is unknown"),
            ("12iB", "unit \"iB\" is unknown"),
            ("12B", "unit \"B\" is unknown"),
            ("12MBB", "unit \"MBB\" is unknown"),
            ("16777216T", "64 bits"),
            ("99999999999999999999M", "such as 512M"),
            ("1.0000000001G", "such as 512M"),
        ] {
            let error = bytes(bad).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains(&format!("{bad:?}")), "{bad}: {error}");
        }
        for text in ["64K", "512M", "2G", "3T"] {
            assert_eq!(show_bytes(bytes(text).unwrap()), text);
        }
        assert_eq!((show_bytes(0).as_str(), show_bytes(1000).as_str()), ("0 bytes", "1000 bytes"));
    }

    #[test]
    fn durations_are_numbers_with_units() {
        for (text, milliseconds) in [
            ("1ms", 1),
            ("30s", 30_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("1m30s", 90_000),
            ("1h0m1s5ms", 3_601_005),
            ("1.5s", 1500),
            ("0.5h", 1_800_000),
            ("1.5ms", 1),
            ("8760h", 365 * 24 * 3_600_000),
        ] {
            for form in [Time::SPAN, Time::LIMIT, Time::GRACE, Time::DELAY] {
                assert_eq!(form.parse(text), Ok(Duration::from_millis(milliseconds)), "{text}");
            }
        }
        for (form, text, seconds) in [
            (Time::LIMIT, "5", 5),
            (Time::GRACE, "5", 5),
            (Time::GRACE, "0", 0),
            (Time::GRACE, "0s", 0),
            (Time::DELAY, "0", 0),
            (Time::DELAY, "0m0s", 0),
        ] {
            assert_eq!(form.parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for (form, bad, part) in [
            (Time::SPAN, "5", "write 5s for seconds or 5ms"),
            (Time::DELAY, "5", "write 5s for seconds"),
            (Time::SPAN, "0", "write 0s"),
            (Time::SPAN, "0s", "more than zero"),
            (Time::LIMIT, "0", "more than zero"),
            (Time::GRACE, "", "or a number of seconds"),
            (Time::GRACE, "soon", "or a number of seconds"),
            (Time::GRACE, "-1", "such as 500ms"),
            (Time::GRACE, "1.5", "write 1.5s for seconds"),
            (Time::SPAN, "s", "such as 500ms"),
            (Time::SPAN, "1s 2ms", "such as 500ms"),
            (Time::LIMIT, "1m30", "such as 500ms"),
            (Time::LIMIT, "30 s", "such as 500ms"),
            (Time::SPAN, "1d", "unit \"d\" is unknown"),
            (Time::SPAN, "1M", "unit \"M\" is unknown"),
            (Time::SPAN, "0.0001ms", "shorter than a millisecond"),
            (Time::GRACE, "0.0001ms", "shorter than a millisecond"),
            (Time::SPAN, "8760h1ms", "longer than a year"),
            (Time::LIMIT, "99999999999999999", "longer than a year"),
            (Time::SPAN, "5124095h5124095h", "longer than a year"),
        ] {
            let error = form.parse(bad).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains(&format!("{bad:?}")), "{bad}: {error}");
        }
    }
}
