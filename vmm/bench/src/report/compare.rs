//! Two records held against each other.

use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;

use super::time;
use crate::record::{Record, SCHEMA};
use crate::stats::{BELIEVED, Change, LEAST, Verdict};

/// Why two records cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// Not JSON, or not what a benchmark writes.
    #[error("the file is not a result of nelly bench --json")]
    Json(#[from] serde_json::Error),
    /// Of another time.
    #[error("the result has schema {0}; this nelly reads schema {SCHEMA}")]
    Schema(u64),
    /// Different benchmarks.
    #[error("the results are of different benchmarks: bench {} and bench {}", .0[0], .0[1])]
    Benches(Box<[String; 2]>),
    /// Density has no samples of one thing.
    #[error("bench density cannot be compared: each machine is measured once")]
    Density,
    /// Nobody is in both.
    #[error("the results have no monitor with samples in both")]
    Nobody,
}

impl Record {
    /// Reads what `--json` wrote.
    ///
    /// # Errors
    /// It is something else, or of another schema.
    pub fn from_json(text: &[u8]) -> Result<Self, CompareError> {
        let value: Value = serde_json::from_slice(text)?;
        // Of another schema nothing else is known, so that is asked first.
        match value.get("schema").and_then(Value::as_u64) {
            Some(found) if found != u64::from(SCHEMA) => Err(CompareError::Schema(found)),
            _ => Ok(serde_json::from_value(value)?),
        }
    }
}

/// One contestant in both records.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// What its samples say, in nanoseconds.
    #[serde(flatten)]
    pub change: Change,
}

/// The outcome.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Which benchmark.
    pub bench: String,
    /// Changes smaller than this are none, in permille of the first median.
    pub least_permille: u64,
    /// Contestants in both, in the first record's order.
    pub rows: Vec<Row>,
    /// Why to read with care.
    pub warnings: Vec<String>,
}

/// Compares `after` with `before`; `least_permille` is the smallest change that counts.
///
/// # Errors
/// They do not measure the same.
pub fn compare(before: &Record, after: &Record, least_permille: u64) -> Result<Comparison, CompareError> {
    if before.bench != after.bench {
        return Err(CompareError::Benches(Box::new([before.bench.clone(), after.bench.clone()])));
    }
    if before.bench == "density" {
        return Err(CompareError::Density);
    }
    let mut rows = Vec::new();
    for series in &before.series {
        let Some(other) = after.series.iter().find(|other| other.name == series.name) else { continue };
        let change = Change::between(&series.totals(), &other.totals(), least_permille);
        rows.extend(change.map(|change| Row { name: series.name.clone(), change }));
    }
    if rows.is_empty() {
        return Err(CompareError::Nobody);
    }
    let mut warnings = Vec::new();
    let mut differs = |what: &str, one: &str, other: &str| {
        if one != other {
            warnings.push(format!("{what} differs: {one:?}, then {other:?}"));
        }
    };
    differs("what ends a sample", &before.until, &after.until);
    differs("the guest's command line", &before.guest.command_line, &after.guest.command_line);
    let guest = |record: &Record| format!("{} vCPU, {} bytes", record.guest.cpus, record.guest.memory_bytes);
    differs("the guest", &guest(before), &guest(after));
    let host = |record: &Record| format!("{}, {}", record.environment.cpu_model, record.environment.kernel);
    differs("the host", &host(before), &host(after));
    for (which, record) in [("the first", before), ("the second", after)] {
        warnings.extend(record.warnings.iter().map(|warning| format!("{which} result: {warning}")));
    }
    Ok(Comparison { schema: SCHEMA, bench: before.bench.clone(), least_permille, rows, warnings })
}

impl Comparison {
    /// Whether anything got slower.
    #[must_use]
    pub fn regressed(&self) -> bool {
        self.rows.iter().any(|row| row.change.verdict == Verdict::More)
    }

    /// For people; a line break at the end of each line but the last.
    #[must_use]
    pub fn table(&self) -> String {
        let mut out = String::new();
        for Row { name, change } in &self.rows {
            let says = match change.verdict {
                Verdict::TooFew => format!("too few samples: at least {LEAST} are needed in each result"),
                Verdict::Same => "no change".to_owned(),
                Verdict::Less => "FASTER".to_owned(),
                Verdict::More => "SLOWER".to_owned(),
            };
            let signed = |ns: i64| format!("{}{}", if ns < 0 { "-" } else { "+" }, time(ns.unsigned_abs()));
            let (sign, by) = match change.after.checked_sub(change.before) {
                Some(more) => ("+", more),
                None => ("-", change.before - change.after),
            };
            let by = format!("{sign}{}", time(by));
            let _ = writeln!(
                out,
                "{name}: {says}: median {} -> {} ({by}; 99 % within {} to {}; by chance {:.4})",
                time(change.before),
                time(change.after),
                signed(change.low),
                signed(change.high),
                change.chance
            );
        }
        let least = format!("{}.{}", self.least_permille / 10, self.least_permille % 10);
        let _ = writeln!(
            out,
            "bench {}: changes of the median of at least {least} % are reported if their p-value is below {BELIEVED}",
            self.bench
        );
        for warning in &self.warnings {
            let _ = writeln!(out, "warning: {warning}");
        }
        out.truncate(out.trim_end().len());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::html::tests::example;

    #[test]
    fn two_runs_of_the_same_are_the_same_and_ten_milliseconds_are_seen() {
        let before = example();
        let same = compare(&before, &before, 50).unwrap();
        assert!(!same.regressed() && same.table().contains("nelly: no change"), "{}", same.table());
        let mut after = before.clone();
        for sample in &mut after.series[0].samples {
            sample.total_ns += 10_000_000;
        }
        let slower = compare(&before, &after, 50).unwrap();
        assert!(slower.regressed());
        assert!(slower.table().contains("nelly: SLOWER") && slower.table().contains("qemu: no change"));
        let faster = compare(&after, &before, 50).unwrap();
        assert!(!faster.regressed() && faster.table().contains("nelly: FASTER"));
    }

    #[test]
    fn what_cannot_be_compared_is_refused_with_a_sentence() {
        let before = example();
        let text = serde_json::to_vec(&before).unwrap();
        assert_eq!(Record::from_json(&text).unwrap(), before);
        for (text, wanted) in [("", "not a result"), ("{}", "not a result"), (r#"{"schema":2}"#, "schema 2")]
        {
            let error = Record::from_json(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
        let mut other = before.clone();
        other.bench = "run".into();
        assert!(matches!(compare(&before, &other, 0), Err(CompareError::Benches(_))));
        let mut nobody = before.clone();
        nobody.series.clear();
        assert!(matches!(compare(&before, &nobody, 0), Err(CompareError::Nobody)));
        let mut differs = before.clone();
        differs.guest.command_line = "delay_ms=10".into();
        assert!(compare(&before, &differs, 0).unwrap().table().contains("command line differs"));
    }
}
