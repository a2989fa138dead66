//! Sizes as people write them: a number with a binary suffix.

use super::SpecError;

/// Parses `512M`, `2G`, `64K`: binary units, suffix required so that nobody guesses.
///
/// # Errors
/// A bare number is refused with the spelling meant, as are zero, overflow and anything else.
pub fn parse(text: &str) -> Result<u64, SpecError> {
    let refuse = |hint: String| SpecError::Size { text: text.to_owned(), hint };
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let suffix = &text[digits.len()..];
    let number: u64 =
        digits.parse().map_err(|_| refuse("write a whole number and K, M, G or T, e.g. 512M".into()))?;
    let shift = match suffix.to_ascii_uppercase().as_str() {
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        "T" | "TIB" => 40,
        "" => {
            return Err(refuse(format!(
                "it has no suffix: write {number}M for mebibytes or {number}G for gibibytes"
            )));
        }
        _ => return Err(refuse(format!("unknown suffix {suffix:?}: use K, M, G or T (binary)"))),
    };
    match number.checked_shl(shift).filter(|bytes| bytes >> shift == number && *bytes > 0) {
        Some(bytes) => Ok(bytes),
        None if number == 0 => Err(refuse("it must be more than zero".into())),
        None => Err(refuse("it does not fit into 64 bits".into())),
    }
}

/// Writes `bytes` with the largest suffix that divides it.
#[must_use]
pub fn show(bytes: u64) -> String {
    [(40, 'T'), (30, 'G'), (20, 'M'), (10, 'K')]
        .into_iter()
        .find(|(shift, _)| bytes > 0 && bytes.trailing_zeros() >= *shift)
        .map_or_else(|| format!("{bytes} bytes"), |(shift, suffix)| format!("{}{suffix}", bytes >> shift))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_are_binary_and_required() {
        for (text, bytes) in
            [("64K", 65536), ("512M", 512 << 20), ("2g", 2 << 30), ("1GiB", 1 << 30), ("1T", 1 << 40)]
        {
            assert_eq!(parse(text).unwrap(), bytes, "{text}");
        }
        for bad in ["", "512", "M", "0M", "-1M", "1.5G", "12Q", "99999999999999T", "1 M"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse("512").unwrap_err().to_string().contains("512M"));
        for text in ["64K", "512M", "2G", "3T"] {
            assert_eq!(show(parse(text).unwrap()), text);
        }
    }
}
