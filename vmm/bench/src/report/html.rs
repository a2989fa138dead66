//! The report as one HTML file: nothing is fetched, nothing runs.

use std::fmt::Write;

use super::plot::{colour, distribution, escape, held, number_of, phases, strip};
use super::{percent, size, time};
use crate::host::hundredths;
use crate::record::{Record, Series, mean};

/// Light and dark as the reader has it; on a narrow screen tables and plots scroll in their own
/// place, with letters as large as elsewhere.
const STYLE: &str = "\
:root{color-scheme:light dark;--text:#222;--soft:#555;--paper:#fff;--line:#ddd;--grid:#e3e3e3;--ink:#111;--warn:#8a4b00}\
@media(prefers-color-scheme:dark){:root{--text:#ddd;--soft:#aaa;--paper:#16181b;--line:#3a3d42;--grid:#303338;--ink:#f4f4f4;--warn:#f0b060}}\
body{font:15px/1.5 system-ui,sans-serif;color:var(--text);background:var(--paper);max-width:62rem;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.5rem;margin:0 0 .3rem}h2{font-size:1.1rem;margin:2rem 0 .5rem}\
p.about{margin:.2rem 0;color:var(--soft);overflow-wrap:anywhere}\
table{border-collapse:collapse;margin:.5rem 0;font-variant-numeric:tabular-nums}\
td,th{padding:.2rem .9rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}\
td:first-child,th:first-child{text-align:left;padding-left:0}\
div.wide{overflow-x:auto}\
.swatch{display:inline-block;width:.8em;height:.8em;margin-right:.4em;border-radius:2px}\
ul.warnings{padding-left:1.2rem}ul.warnings li{color:var(--warn);overflow-wrap:anywhere}\
ul.plain{list-style:none;padding:0}ul.plain li{display:inline-block;margin-right:1.2em}\
svg{width:100%;min-width:54rem;height:auto;display:block}\
svg text{font:13px system-ui,sans-serif;fill:var(--soft)}.tick{text-anchor:middle}.name{text-anchor:end}\
.grid{stroke:var(--grid)}.median{stroke:var(--ink);stroke-width:2}.curve{fill:none;stroke-width:2}\
code{font:13px ui-monospace,monospace;overflow-wrap:anywhere}";

/// A record as an HTML page (well-formed as XML too).
#[must_use]
pub fn html(record: &Record) -> String {
    let title = escape(&format!("nelly bench {}, until {}", record.bench, record.until));
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width\"/>\n<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <h1>{title}</h1>\n"
    );
    about(record, &mut out);
    if record.bench == "density" {
        let _ = write!(
            out,
            "<h2>Resident memory of each machine</h2>\n<ul class=\"plain\">{}{}</ul>\n{}",
            entry(1, "monitor"),
            entry(0, "guest"),
            wide(&held(record))
        );
        steps(record, &mut out);
    } else {
        out.push_str("<h2>From start to end</h2>\n");
        times(record, &mut out);
        let _ = write!(
            out,
            "<h2>Every sample</h2>\n<p class=\"about\">The line is the median, the shade its 95 % interval.</p>\n{}",
            wide(&strip(record))
        );
        let _ = write!(
            out,
            "<h2>Cumulative distribution</h2>\n{}{}",
            legend(record),
            wide(&distribution(record))
        );
        if record.series.iter().any(|series| !series.phases.is_empty()) {
            let _ = write!(
                out,
                "<h2>Mean phases</h2>\n<p class=\"about\">Each phase is named after the event that ends it. Monitors without a timeline are grey.</p>\n{}",
                wide(&phases(record))
            );
            phase_tables(record, &mut out);
        }
        costs(record, &mut out);
        details(record, &mut out);
    }
    out + "</body>\n</html>\n"
}

/// What scrolls by itself where the page is too narrow for it.
fn wide(markup: &str) -> String {
    format!("<div class=\"wide\">{markup}</div>\n")
}

/// Text behind a spot of its colour.
fn swatch(index: usize, text: &str) -> String {
    format!("<span class=\"swatch\" style=\"background:{}\"></span>{}", colour(index), escape(text))
}

fn entry(index: usize, text: &str) -> String {
    format!("<li>{}</li>", swatch(index, text))
}

fn legend(record: &Record) -> String {
    let entries = record.series.iter().enumerate().filter(|(_, series)| series.summary_ns.is_some());
    let entries: String = entries.map(|(index, series)| entry(index, &series.name)).collect();
    format!("<ul class=\"plain\">{entries}</ul>\n")
}

/// A table with a heading, its cells' text escaped here. A row begins with its colour, the number
/// of which is in `spots`, if there is one.
fn table(out: &mut String, head: &[&str], rows: &[Vec<String>], spots: &[usize]) {
    out.push_str("<div class=\"wide\"><table>\n<tr>");
    for cell in head {
        let _ = write!(out, "<th>{}</th>", escape(cell));
    }
    out.push_str("</tr>\n");
    for (number, row) in rows.iter().enumerate() {
        out.push_str("<tr>");
        for (place, cell) in row.iter().enumerate() {
            let spot = spots.get(number).filter(|_| place == 0);
            let text = spot.map_or_else(|| escape(cell), |spot| swatch(*spot, cell));
            let _ = write!(out, "<td>{text}</td>");
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table></div>\n");
}

fn about(record: &Record, out: &mut String) {
    let (guest, host) = (&record.guest, &record.environment);
    let lines = [
        match record.bench.as_str() {
            "density" => format!("Up to {} machines", record.rounds),
            _ => format!("{} rounds, after {} to warm up", record.rounds, record.warm_up_rounds),
        },
        format!(
            "Guest: {} vCPU, {}, kernel {}, initramfs {}{}",
            guest.cpus,
            size(guest.memory_bytes),
            guest.kernel,
            guest.initrd.as_deref().unwrap_or("none"),
            match guest.command_line.as_str() {
                "" => String::new(),
                words => format!(", command line \u{201c}{words}\u{201d}"),
            }
        ),
        format!(
            "Host: {}, {} processors, {}, Linux {}, governor {}, KVM {}, load {} before and {} after",
            host.cpu_model,
            host.cpus,
            size(host.memory_bytes),
            host.kernel,
            host.governor.as_deref().unwrap_or("unknown"),
            host.kvm,
            hundredths(host.load_percent_before),
            hundredths(host.load_percent_after)
        ),
        host.nelly.clone(),
    ];
    for line in lines.iter().filter(|line| !line.is_empty()) {
        let _ = writeln!(out, "<p class=\"about\">{}</p>", escape(line));
    }
    let failures = record.series.iter().flat_map(|series| {
        series.failures.iter().map(|failure| format!("{} failed: {failure}", series.name))
    });
    let skipped =
        record.skipped.iter().map(|skipped| format!("{} was skipped: {}", skipped.name, skipped.why));
    let all: Vec<String> = failures.chain(skipped).chain(record.warnings.iter().cloned()).collect();
    if !all.is_empty() {
        let items: String = all.iter().map(|text| format!("<li>{}</li>", escape(text))).collect();
        let _ = writeln!(out, "<ul class=\"warnings\">{items}</ul>");
    }
}

fn times(record: &Record, out: &mut String) {
    let mut rows = Vec::new();
    for series in &record.series {
        let Some(s) = &series.summary_ns else { continue };
        let mut row = vec![series.name.clone(), s.count.to_string()];
        row.extend([s.min, s.p50, s.p90, s.p99, s.max].map(time));
        row.push(format!("{} to {}", time(s.p50_low), time(s.p50_high)));
        rows.push(row);
    }
    table(out, &["", "samples", "min", "p50", "p90", "p99", "max", "95 % of p50"], &rows, &[]);
}

fn phase_tables(record: &Record, out: &mut String) {
    for series in record.series.iter().filter(|series| !series.phases.is_empty()) {
        let whole = mean(&series.totals()).unwrap_or(0);
        let mut rows: Vec<Vec<String>> = Vec::new();
        for phase in &series.phases {
            let share = percent(phase.mean_ns, whole);
            rows.push(vec![phase.name.clone(), time(phase.mean_ns), share, time(phase.p50_ns)]);
        }
        let rest = series.unattributed_mean_ns.unwrap_or(0);
        rows.push(vec!["(in no phase)".into(), time(rest), percent(rest, whole), String::new()]);
        let spots: Vec<_> = series.phases.iter().map(|phase| number_of(record, &phase.name)).collect();
        table(out, &[&series.name, "mean", "share", "p50"], &rows, &spots);
    }
}

fn costs(record: &Record, out: &mut String) {
    let dash = || "-".to_owned();
    let row = |series: &Series| {
        let exits = |sample: &crate::record::Sample| Some(sample.exits.as_ref()?.values().sum());
        vec![
            series.name.clone(),
            series.median_of(|sample| sample.user_ns).map_or_else(dash, time),
            series.median_of(|sample| sample.system_ns).map_or_else(dash, time),
            series.median_of(|sample| sample.minor_faults).map_or_else(dash, |count| count.to_string()),
            series.median_of(|sample| sample.major_faults).map_or_else(dash, |count| count.to_string()),
            series.median_of(|sample| sample.peak_rss_bytes).map_or_else(dash, size),
            series.held.map_or_else(dash, |held| size(held.outside_rss_bytes)),
            series.median_of(|sample| sample.teardown_ns).map_or_else(dash, time),
            series.median_of(exits).map_or_else(dash, |count| count.to_string()),
            series.syscalls.map_or_else(dash, |count| count.to_string()),
        ]
    };
    let rows: Vec<Vec<String>> =
        record.series.iter().filter(|series| !series.samples.is_empty()).map(row).collect();
    let head = [
        "",
        "CPU user",
        "CPU system",
        "minor faults",
        "major faults",
        "peak RSS",
        "RSS beside the guest",
        "teardown",
        "exits",
        "system calls",
    ];
    if rows.iter().any(|row| row[1..].iter().any(|cell| cell != "-")) {
        out.push_str("<h2>Cost of a start</h2>\n<p class=\"about\">Medians. Peak RSS includes the guest\u{2019}s memory; RSS beside the guest is the monitor\u{2019}s own, private and shared, in one more start whose guest idles; exits are those that reach the VMM.</p>\n");
        table(out, &head, &rows, &[]);
    }
}

fn details(record: &Record, out: &mut String) {
    out.push_str("<h2>Commands</h2>\n");
    for series in &record.series {
        let _ = writeln!(out, "<p>{}: <code>{}</code></p>", escape(&series.name), escape(&series.command));
    }
}

fn steps(record: &Record, out: &mut String) {
    let rows = record.steps.iter().map(|step| {
        let more = u64::try_from(step.marginal_pss_bytes).map_or_else(|_| "less".to_owned(), size);
        vec![
            step.machines.to_string(),
            time(step.start_ns),
            size(step.all_pss_bytes),
            more,
            size(step.held.outside_pss_bytes),
            size(step.held.outside_private_bytes),
            size(step.available_bytes),
        ]
    });
    let head = [
        "machines",
        "start",
        "all PSS",
        "this one more",
        "outside the guest",
        "of it private",
        "host has left",
    ];
    table(out, &head, &rows.collect::<Vec<_>>(), &[]);
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::host::Environment;
    use crate::record::{DensityStep, GuestRecord, SCHEMA, Sample, Skipped};
    use crate::timeline::PhaseDuration;

    /// A record of two contestants, twelve samples each.
    pub(in crate::report) fn example() -> Record {
        let sample = |round: u32, total_ns: u64, timeline: bool| Sample {
            round,
            total_ns,
            teardown_ns: Some(1_500_000),
            user_ns: Some(20_000_000),
            system_ns: Some(9_000_000),
            minor_faults: Some(900),
            major_faults: Some(0),
            peak_rss_bytes: Some(40 << 20),
            exits: timeline
                .then(|| BTreeMap::from([("pio_write".to_owned(), 120), ("kicked".to_owned(), 0)])),
            phases: match timeline {
                true => [("main", 1_000_000), ("first_entry", 2_000_000), ("marker", total_ns - 3_100_000)]
                    .map(|(name, duration_ns)| PhaseDuration { name: name.into(), duration_ns })
                    .to_vec(),
                false => Vec::new(),
            },
            unattributed_ns: timeline.then_some(100_000),
        };
        let samples = |base: u64, timeline: bool| {
            (0..12).map(|round| sample(round, base + u64::from(round * 37 % 12) * 90_000, timeline)).collect()
        };
        Record {
            schema: SCHEMA,
            bench: "boot".into(),
            until: "marker".into(),
            rounds: 12,
            warm_up_rounds: 2,
            guest: GuestRecord {
                kernel: "/k<1>".into(),
                cpus: 1,
                memory_bytes: 128 << 20,
                ..GuestRecord::default()
            },
            environment: Environment {
                cpu_model: "A & B".into(),
                kvm: "mainstream".into(),
                ..Environment::default()
            },
            warnings: vec!["the machine was busy".into()],
            skipped: vec![Skipped { name: "alioth".into(), why: "alioth is not on PATH".into() }],
            series: vec![
                Series::new(
                    "nelly",
                    "nelly-monitor --config 'a b'".into(),
                    samples(38_000_000, true),
                    Vec::new(),
                ),
                Series::new("qemu", "qemu".into(), samples(138_000_000, false), Vec::new()),
            ],
            steps: Vec::new(),
        }
    }

    /// Every element is closed in order, and nothing outside tags is markup.
    fn well_formed(text: &str) {
        let mut open: Vec<&str> = Vec::new();
        let mut rest = text.strip_prefix("<!DOCTYPE html>").unwrap();
        while let Some(at) = rest.find('<') {
            assert!(!rest[..at].contains('>'), "a stray > in {:?}", &rest[..at]);
            let end = at + rest[at..].find('>').expect("a tag ends");
            let tag = &rest[at + 1..end];
            let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap();
            if tag.starts_with('/') {
                assert_eq!(open.pop(), Some(name), "{tag}");
            } else if !tag.ends_with('/') {
                open.push(name);
            }
            rest = &rest[end + 1..];
        }
        assert!(open.is_empty(), "{open:?}");
    }

    #[test]
    fn the_report_is_well_formed_and_whole() {
        let text = html(&example());
        well_formed(&text);
        assert_eq!(text.matches("<svg ").count(), 3);
        assert_eq!(text.matches("<circle ").count(), 24);
        for part in [
            "/k&lt;1&gt;",
            "A &amp; B",
            "alioth was skipped",
            "first_entry",
            "(in no phase)",
            "the machine was busy",
        ] {
            assert!(text.contains(part), "{part}");
        }
        for forbidden in ["http:", "https:", "<script", "NaN", "inf"] {
            assert!(!text.contains(forbidden), "{forbidden}");
        }
    }

    #[test]
    fn a_phase_has_one_colour_whoever_goes_through_it() {
        let mut record = example();
        let phase = record.series[0].phases.last().unwrap().clone();
        record.series[1].phases = vec![phase.clone()];
        let number = record.series[0].phases.len() - 1;
        assert!(number > 0);
        assert_eq!(number_of(&record, &phase.name), number);
        let text = html(&record);
        well_formed(&text);
        assert_eq!(text.matches(&swatch(number, &phase.name)).count(), 2, "{text}");
        assert_eq!(text.matches(&format!("fill=\"{}\"><title>{}", colour(number), phase.name)).count(), 2);
    }

    #[test]
    fn a_record_without_samples_or_of_density_has_a_report_too() {
        let mut record = example();
        record.series = vec![Series::new("nelly", String::new(), Vec::new(), vec!["round 1: died".into()])];
        well_formed(&html(&record));
        assert!(html(&record).contains("nelly failed: round 1: died"));
        record.bench = "density".into();
        record.series.clear();
        let held = crate::memory_use::MemoryUse {
            pss_bytes: 60 << 20,
            outside_pss_bytes: 2 << 20,
            ..Default::default()
        };
        record.steps = vec![DensityStep {
            machines: 1,
            start_ns: 50_000_000,
            held,
            all_pss_bytes: 60 << 20,
            marginal_pss_bytes: 60 << 20,
            available_bytes: 1 << 30,
        }];
        well_formed(&html(&record));
        assert!(crate::report::table(&record).contains("60.0 MiB"));
    }

    #[test]
    fn the_table_says_what_the_report_says() {
        let text = crate::report::table(&example());
        for part in [
            "bench boot, until marker: 12 rounds",
            "38.4 ms",
            "first_entry",
            "(in no phase)",
            "exits by reason, median: pio_write 120",
            "skipped: alioth: alioth is not on PATH",
            "warning: the machine was busy",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert!(!text.contains("system calls") && !text.contains("kicked"), "{text}");
    }
}
