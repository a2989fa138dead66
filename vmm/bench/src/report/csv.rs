//! Raw samples as CSV: one line each, a column a phase and an exit's reason.

use std::fmt::Write;

use crate::record::{Record, Sample};

/// A sample's figures: name with unit, value.
type Figure = (&'static str, fn(&Sample) -> Option<u64>);

const FIGURES: [Figure; 9] = [
    ("round", |sample| Some(sample.round.into())),
    ("total_ns", |sample| Some(sample.total_ns)),
    ("teardown_ns", |sample| sample.teardown_ns),
    ("user_ns", |sample| sample.user_ns),
    ("system_ns", |sample| sample.system_ns),
    ("minor_faults", |sample| sample.minor_faults),
    ("major_faults", |sample| sample.major_faults),
    ("peak_rss_bytes", |sample| sample.peak_rss_bytes),
    ("unattributed_ns", |sample| sample.unattributed_ns),
];

/// The record's samples (of `density` its steps); what is unknown is empty.
#[must_use]
pub fn csv(record: &Record) -> String {
    if record.bench == "density" {
        return steps(record);
    }
    let samples = || record.series.iter().flat_map(|series| &series.samples);
    let mut phases: Vec<&str> = Vec::new();
    let mut reasons: Vec<&str> = Vec::new();
    for sample in samples() {
        let names = sample.phases.iter().map(|phase| phase.name.as_str());
        phases.extend(names.filter(|name| !phases.contains(name)).collect::<Vec<_>>());
        let names = sample.exits.iter().flat_map(|exits| exits.keys().map(String::as_str));
        reasons.extend(names.filter(|name| !reasons.contains(name)).collect::<Vec<_>>());
    }
    let mut out = "bench,vmm".to_owned();
    for (name, _) in FIGURES {
        let _ = write!(out, ",{name}");
    }
    for name in &phases {
        let _ = write!(out, ",{}", field(&format!("phase_{name}_ns")));
    }
    for name in &reasons {
        let _ = write!(out, ",{}", field(&format!("exits_{name}")));
    }
    out.push('\n');
    for series in &record.series {
        for sample in &series.samples {
            let _ = write!(out, "{},{}", field(&record.bench), field(&series.name));
            let phase = |name: &&str| {
                let of = sample.phases.iter().filter(|phase| phase.name == *name);
                of.map(|phase| phase.duration_ns).reduce(|a, b| a + b)
            };
            let exits = |name: &&str| sample.exits.as_ref()?.get(*name).copied();
            let figures = FIGURES.iter().map(|(_, figure)| figure(sample));
            for value in figures.chain(phases.iter().map(phase)).chain(reasons.iter().map(exits)) {
                out.push(',');
                out.push_str(&value.map(|value| value.to_string()).unwrap_or_default());
            }
            out.push('\n');
        }
    }
    out
}

fn steps(record: &Record) -> String {
    let mut out = "bench,machines,start_ns,pss_bytes,private_bytes,outside_pss_bytes,outside_private_bytes,all_pss_bytes,marginal_pss_bytes,available_bytes\n".to_owned();
    for step in &record.steps {
        let held = &step.held;
        let _ = writeln!(
            out,
            "density,{},{},{},{},{},{},{},{},{}",
            step.machines,
            step.start_ns,
            held.pss_bytes,
            held.private_bytes,
            held.outside_pss_bytes,
            held.outside_private_bytes,
            step.all_pss_bytes,
            step.marginal_pss_bytes,
            step.available_bytes
        );
    }
    out
}

/// A field, quoted where it must be.
fn field(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::html::tests::example;

    #[test]
    fn every_line_has_every_column() {
        let text = csv(&example());
        let counts: Vec<usize> = text.lines().map(|line| line.split(',').count()).collect();
        assert_eq!(counts.len(), 1 + 12 + 12);
        assert!(counts.iter().all(|count| *count == counts[0]), "{text}");
        assert!(text.starts_with("bench,vmm,round,total_ns,"), "{text}");
        assert!(text.lines().next().unwrap().contains(",phase_main_ns,"), "{text}");
        assert_eq!(field("a\"b,c"), "\"a\"\"b,c\"");
    }
}
