//! The table of what was run: `figures.tsv` has a line a target, which `run --record` adds to, and
//! `findings.tsv` one a finding.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::TARGETS;

/// Where the table begins and ends in its document.
const PLACE: [&str; 2] = ["<!-- table -->\n", "<!-- end of the table -->\n"];

/// What a target should have been run for, in seconds of a processor.
const WANTED: f64 = 30.0 * 60.0;

/// What was run of a target.
struct Figures<'a> {
    executions: u64,
    /// Of a processor, in user mode.
    seconds: f64,
    edges: u64,
    inputs: u64,
    date: &'a str,
    revision: &'a str,
}

/// The table, in Markdown, from the texts of both files.
///
/// # Errors
/// A line has another form.
pub fn table(figures: &str, findings: &str) -> Result<String, String> {
    let figures = figures.lines().map(line).collect::<Result<BTreeMap<_, _>, _>>()?;
    let mut found: BTreeMap<&str, u32> = BTreeMap::new();
    for line in findings.lines() {
        let [target, ..] = line.split('\t').collect::<Vec<_>>()[..] else { return Err(line.to_owned()) };
        *found.entry(target).or_default() += 1;
    }
    let mut text = String::new();
    text.push_str(
        "| target | what is attacked | executions | CPU minutes | edges | inputs | findings | last run |\n",
    );
    text.push_str("|---|---|--:|--:|--:|--:|--:|---|\n");
    let mut all = (0, 0.0, 0, 0);
    for target in TARGETS {
        let (name, attacks) = (target.name, target.attacks);
        let count = found.get(name).copied().unwrap_or(0);
        let Some(it) = figures.get(name) else {
            writeln!(text, "| `{name}` | {attacks} | 0 | 0.0, below 30 | | | {count} | |")
                .map_err(|error| error.to_string())?;
            all.3 += 1;
            continue;
        };
        let short = if it.seconds < WANTED { ", below 30" } else { "" };
        all =
            (all.0 + it.executions, all.1 + it.seconds, all.2 + count, all.3 + u32::from(!short.is_empty()));
        writeln!(
            text,
            "| `{name}` | {attacks} | {} | {:.1}{short} | {} | {} | {count} | {}, {} |",
            grouped(it.executions),
            it.seconds / 60.0,
            grouped(it.edges),
            grouped(it.inputs),
            it.date,
            it.revision
        )
        .map_err(|error| error.to_string())?;
    }
    writeln!(
        text,
        "| all | | {} | {:.1} | | | {} | {} of {} targets below 30 CPU minutes |",
        grouped(all.0),
        all.1 / 60.0,
        all.2,
        all.3,
        TARGETS.len()
    )
    .map_err(|error| error.to_string())?;
    Ok(text)
}

/// The document with this table in the place of the one that it has.
#[must_use]
pub fn with_table(document: &str, table: &str) -> Option<String> {
    let [begin, end] = PLACE;
    let (before, rest) = document.split_once(begin)?;
    let (_, after) = rest.split_once(end)?;
    Some([before, begin, table, end, after].concat())
}

fn line(text: &str) -> Result<(&str, Figures<'_>), String> {
    let wrong = || format!("figures.tsv: {text}");
    let [name, executions, seconds, edges, inputs, date, revision] = text.split('\t').collect::<Vec<_>>()[..]
    else {
        return Err(wrong());
    };
    let number = |text: &str| text.parse::<u64>().map_err(|_| wrong());
    let seconds = seconds.parse().map_err(|_| wrong())?;
    let (executions, edges, inputs) = (number(executions)?, number(edges)?, number(inputs)?);
    Ok((name, Figures { executions, seconds, edges, inputs, date, revision }))
}

/// A number with a space between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}
