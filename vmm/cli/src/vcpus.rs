//! Numbers of vCPUs as people write them.

/// A number of vCPUs. Docker's shares of a processor are told that a machine has whole ones.
pub(crate) fn whole(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(count) => Ok(count),
        Err(_) if text.parse::<f64>().is_ok_and(|share| share.is_finite() && share > 0.0) => {
            Err(format!("a machine has whole vCPUs, so {text} is not possible: write 1, 2, ..."))
        }
        Err(_) => Err(format!("{text:?} is not a number of vCPUs: write 1, 2, ...")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_a_processor_is_told_what_there_is() {
        assert_eq!(whole("4"), Ok(4));
        assert!(whole("0.5").unwrap_err().contains("whole vCPUs"));
        for bad in ["", "-1", "x", "inf", "0x2", "99999999999"] {
            assert!(whole(bad).is_err(), "{bad}");
        }
    }
}
