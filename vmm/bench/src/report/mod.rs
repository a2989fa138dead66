//! What was measured, for people and for programs. Pure: text out of a record.

mod compare;
mod csv;
mod html;
mod plot;
mod table;

pub use compare::{CompareError, Comparison, compare};
pub use csv::csv;
pub use html::html;
pub use table::table;

/// Nanoseconds as people read them: three or four digits and a unit.
#[must_use]
pub(crate) fn time(ns: u64) -> String {
    let scaled = |unit: u64, name: &str| {
        let hundredths = u128::from(ns) * 100 / u128::from(unit);
        let (whole, part) = (hundredths / 100, hundredths % 100);
        match whole {
            100.. => format!("{whole} {name}"),
            10.. => format!("{whole}.{} {name}", part / 10),
            _ => format!("{whole}.{part:02} {name}"),
        }
    };
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => scaled(1_000, "us"),
        1_000_000..10_000_000_000 => scaled(1_000_000, "ms"),
        _ => scaled(1_000_000_000, "s"),
    }
}

/// Bytes as people read them.
#[must_use]
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{} KiB", bytes >> 10),
        0x10_0000..0x1_9000_0000 => {
            let tenths = (bytes * 10) >> 20;
            format!("{}.{} MiB", tenths / 10, tenths % 10)
        }
        _ => format!("{} GiB", bytes >> 30),
    }
}

/// `part` of `whole` in percent with one digit behind the point.
#[must_use]
pub(crate) fn percent(part: u64, whole: u64) -> String {
    let permille = crate::record::permille(part, whole);
    format!("{}.{} %", permille / 10, permille % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        for (ns, text) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1_500, "1.50 us"),
            (38_049_000, "38.0 ms"),
            (1_348_000_000, "1348 ms"),
            (12_000_000_000, "12.0 s"),
        ] {
            assert_eq!(time(ns), text);
        }
        for (bytes, text) in
            [(4096, "4 KiB"), (2_621_440, "2.5 MiB"), (128 << 20, "128.0 MiB"), (8 << 30, "8 GiB")]
        {
            assert_eq!(size(bytes), text, "{bytes}");
        }
        assert_eq!(percent(1, 3), "33.3 %");
        assert_eq!(percent(1, 0), "0.0 %");
    }
}
