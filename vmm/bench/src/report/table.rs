//! The table on standard output.

use std::fmt::Write;

use super::{percent, size, time};
use crate::host::hundredths;
use crate::record::{Record, Series, mean};

/// A record as text, a line break at the end of each line but the last.
#[must_use]
pub fn table(record: &Record) -> String {
    let mut out = heading(record);
    if record.bench == "density" {
        steps(record, &mut out);
    } else {
        times(record, &mut out);
        phases(record, &mut out);
        costs(record, &mut out);
    }
    for skipped in &record.skipped {
        let _ = writeln!(out, "skipped: {}: {}", skipped.name, skipped.why);
    }
    for series in &record.series {
        for failure in &series.failures {
            let _ = writeln!(out, "failed: {}: {failure}", series.name);
        }
    }
    for warning in &record.warnings {
        let _ = writeln!(out, "warning: {warning}");
    }
    out.truncate(out.trim_end().len());
    out
}

fn heading(record: &Record) -> String {
    let (guest, host) = (&record.guest, &record.environment);
    let load = |load| hundredths(load);
    let rounds = match record.bench.as_str() {
        "density" => format!("up to {} machines", record.rounds),
        _ => format!("{} rounds after {} to warm up", record.rounds, record.warm_up_rounds),
    };
    format!(
        "bench {}, until {}: {rounds}\n\
         guest: {} vCPU, {}, {}\n\
         host: {}, {} processors, Linux {}, governor {}, KVM {}, load {} to {}\n\n",
        record.bench,
        record.until,
        guest.cpus,
        size(guest.memory_bytes),
        guest.kernel,
        host.cpu_model,
        host.cpus,
        host.kernel,
        host.governor.as_deref().unwrap_or("unknown"),
        host.kvm,
        load(host.load_percent_before),
        load(host.load_percent_after),
    )
}

/// Rows under a heading, each column as wide as it needs; the first to the left, the others to the
/// right.
fn columns(out: &mut String, rows: &[Vec<String>]) {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..count).map(|column| width(column).unwrap_or(0)).collect();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            let _ = match column {
                0 => write!(line, "{cell:<width$}"),
                _ => write!(line, "  {cell:>width$}"),
            };
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out.push('\n');
}

fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

fn times(record: &Record, out: &mut String) {
    let mut rows = vec![row(&["", "min", "p50", "p90", "p99", "max", "95 % of p50"])];
    for series in &record.series {
        let Some(summary) = &series.summary_ns else { continue };
        let mut cells = vec![series.name.clone()];
        let figures = [summary.min, summary.p50, summary.p90, summary.p99, summary.max];
        cells.extend(figures.into_iter().map(time));
        cells.push(format!("{} to {}", time(summary.p50_low), time(summary.p50_high)));
        rows.push(cells);
    }
    columns(out, &rows);
}

fn phases(record: &Record, out: &mut String) {
    for series in record.series.iter().filter(|series| !series.phases.is_empty()) {
        let whole = mean(&series.totals()).unwrap_or(0);
        let name = format!("{}: phase (named after the event that ends it)", series.name);
        let mut rows = vec![row(&[&name, "mean", "share", "p50"])];
        for phase in &series.phases {
            let cells =
                [&phase.name, &time(phase.mean_ns), &percent(phase.mean_ns, whole), &time(phase.p50_ns)];
            rows.push(cells.map(ToOwned::to_owned).to_vec());
        }
        let rest = series.unattributed_mean_ns.unwrap_or(0);
        rows.push(row(&["(in no phase)", &time(rest), &percent(rest, whole)]));
        columns(out, &rows);
    }
}

/// Medians of what a start costs. A column that nobody has is left out.
fn costs(record: &Record, out: &mut String) {
    type Figure = (&'static str, fn(&Series) -> Option<String>);
    let figures: [Figure; 8] = [
        ("CPU user", |series| series.median_of(|sample| sample.user_ns).map(time)),
        ("CPU system", |series| series.median_of(|sample| sample.system_ns).map(time)),
        ("page faults", |series| {
            series
                .median_of(|sample| Some(sample.minor_faults? + sample.major_faults?))
                .map(|n| n.to_string())
        }),
        ("peak RSS", |series| series.median_of(|sample| sample.peak_rss_bytes).map(size)),
        ("RSS beside the guest", |series| series.held.map(|held| size(held.outside_rss_bytes))),
        ("teardown", |series| series.median_of(|sample| sample.teardown_ns).map(time)),
        ("exits to the VMM", |series| {
            series.median_of(|sample| Some(sample.exits.as_ref()?.values().sum())).map(|n| n.to_string())
        }),
        ("system calls", |series| series.syscalls.map(|n| n.to_string())),
    ];
    let known: Vec<&Figure> = figures
        .iter()
        .filter(|(_, figure)| record.series.iter().any(|series| figure(series).is_some()))
        .collect();
    if known.is_empty() {
        return;
    }
    let mut rows = vec![vec!["median of a start".to_owned()]];
    rows[0].extend(known.iter().map(|(name, _)| (*name).to_owned()));
    for series in record.series.iter().filter(|series| !series.samples.is_empty()) {
        let mut cells = vec![series.name.clone()];
        cells.extend(known.iter().map(|(_, figure)| figure(series).unwrap_or_else(|| "-".to_owned())));
        rows.push(cells);
    }
    columns(out, &rows);
    exits(record, out);
}

fn exits(record: &Record, out: &mut String) {
    for series in &record.series {
        let Some(exits) = series.samples.iter().find_map(|sample| sample.exits.as_ref()) else { continue };
        let count = |reason: &String| series.median_of(|sample| sample.exits.as_ref()?.get(reason).copied());
        let counts: Vec<String> = exits
            .keys()
            .filter_map(|reason| Some((reason, count(reason)?)))
            .filter(|(_, count)| *count > 0)
            .map(|(reason, count)| format!("{reason} {count}"))
            .collect();
        let _ = writeln!(out, "{}: exits by reason, median: {}\n", series.name, counts.join(", "));
    }
}

fn steps(record: &Record, out: &mut String) {
    let mut rows = vec![row(&[
        "machines",
        "start",
        "all PSS",
        "this one more",
        "outside the guest",
        "of it private",
        "host has left",
    ])];
    for step in &record.steps {
        let more = u64::try_from(step.marginal_pss_bytes).map_or_else(|_| "less".to_owned(), size);
        rows.push(vec![
            step.machines.to_string(),
            time(step.start_ns),
            size(step.all_pss_bytes),
            more,
            size(step.held.outside_pss_bytes),
            size(step.held.outside_private_bytes),
            size(step.available_bytes),
        ]);
    }
    columns(out, &rows);
    // The first machine pays for what the others share.
    let later = record.steps.get(1..).unwrap_or_default();
    let median = |figure: fn(&crate::record::DensityStep) -> u64| {
        crate::stats::median(&later.iter().map(figure).collect::<Vec<_>>())
    };
    if !later.is_empty() {
        let marginal = median(|step| step.marginal_pss_bytes.max(0).unsigned_abs());
        let outside = median(|step| step.held.outside_private_bytes);
        let _ = writeln!(
            out,
            "each further machine uses {}, of which {} are private to its monitor (medians without the first machine)\n",
            size(marginal),
            size(outside)
        );
    }
}
