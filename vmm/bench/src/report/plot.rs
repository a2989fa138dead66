//! Plots as SVG elements: no script, no font but the reader's own.

use std::fmt::Write;

use super::{size, time};
use crate::record::{Record, Series, mean};

/// Width of every plot, and of the column of names to its left, in the plot's own units.
const WIDTH: f64 = 960.0;
const LEFT: f64 = 150.0;
const RIGHT: f64 = 30.0;
/// Height of a row of the strip plot and of the bars.
const ROW: f64 = 44.0;

const MIB: f64 = 1_048_576.0;

/// Colours that people with any kind of sight tell apart, on light and on dark; then lighter ones
/// for those that have many phases.
const COLOURS: [&str; 16] = [
    "#0080c8", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7f7f7f", "#7fbfe3",
    "#eaae7f", "#7fceb9", "#e5bcd3", "#f2cf7f", "#aad9f4", "#c5b698", "#bfbfbf",
];

/// The colour of number `index`.
pub(super) fn colour(index: usize) -> &'static str {
    COLOURS[index % COLOURS.len()]
}

/// The number of a phase: the same for every contestant, so that it has one colour.
pub(super) fn number_of(record: &Record, phase: &str) -> usize {
    let mut names: Vec<&str> = Vec::new();
    for name in record.series.iter().flat_map(|series| &series.phases).map(|phase| phase.name.as_str()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.iter().position(|name| *name == phase).unwrap_or(0)
}

/// Text that is no markup.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// An axis from 0 to `most`, in whatever unit; its ticks are round in `unit`.
struct Axis {
    most: f64,
    unit: f64,
}

impl Axis {
    fn to(most: u64) -> Self {
        // A little air, and never nothing.
        Self { most: (most as f64 * 1.03).max(1.0), unit: 1.0 }
    }

    fn of_memory(most: u64) -> Self {
        Self { unit: MIB, ..Self::to(most) }
    }

    fn x(&self, value: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * (value / self.most).min(1.0)
    }

    /// Round values, at most ten of them.
    fn ticks(&self) -> Vec<f64> {
        let rough = self.most / self.unit / 8.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * power).find(|step| *step >= rough);
        let step = step.unwrap_or(rough) * self.unit;
        let mut ticks = Vec::new();
        let mut at = 0.0;
        while at <= self.most && ticks.len() < 12 {
            ticks.push(at);
            at += step;
        }
        ticks
    }

    /// Lines from `top` to `bottom` and labels below.
    fn draw(&self, out: &mut String, top: f64, bottom: f64, label: impl Fn(f64) -> String) {
        for tick in self.ticks() {
            let x = self.x(tick);
            let _ = writeln!(
                out,
                "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top:.1}\" y2=\"{bottom:.1}\"/>\
                 <text class=\"tick\" x=\"{x:.1}\" y=\"{:.1}\">{}</text>",
                bottom + 16.0,
                escape(&label(tick))
            );
        }
    }
}

/// Ticks of time: milliseconds, or microseconds where there are few of them.
fn time_label(most: f64) -> impl Fn(f64) -> String {
    let (unit, name) = if most < 2e6 { (1e3, "us") } else { (1e6, "ms") };
    move |ns| {
        let text = format!("{:.2}", ns / unit);
        format!("{} {name}", text.trim_end_matches('0').trim_end_matches('.'))
    }
}

fn open(height: f64, title: &str) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" aria-label=\"{0}\">\n<title>{0}</title>\n",
        escape(title)
    )
}

/// The name at a row's left; one that is too long for its place ends in dots.
fn name(out: &mut String, y: f64, text: &str) {
    let short: String = if text.chars().count() > 20 {
        text.chars().take(18).chain("..".chars()).collect()
    } else {
        text.into()
    };
    let _ =
        writeln!(out, "<text class=\"name\" x=\"{}\" y=\"{y:.1}\">{}</text>", LEFT - 12.0, escape(&short));
}

fn timed(record: &Record) -> Vec<(usize, &Series)> {
    record.series.iter().enumerate().filter(|(_, series)| series.summary_ns.is_some()).collect()
}

/// Every sample as a point, a row a contestant, with the median and how sure it is.
pub(super) fn strip(record: &Record) -> String {
    let rows = timed(record);
    let axis = Axis::to(
        rows.iter().filter_map(|(_, series)| Some(series.summary_ns.as_ref()?.max)).max().unwrap_or(0),
    );
    let bottom = 10.0 + ROW * rows.len() as f64;
    let mut out = open(bottom + 26.0, "every sample, with the median and its 95 % interval");
    axis.draw(&mut out, 4.0, bottom, time_label(axis.most));
    for (place, (index, series)) in rows.into_iter().enumerate() {
        let Some(summary) = &series.summary_ns else { continue };
        let middle = 10.0 + ROW * (place as f64 + 0.5);
        name(&mut out, middle + 4.0, &series.name);
        let colour = colour(index);
        for (number, sample) in series.samples.iter().enumerate() {
            // Spread over the row's height by the golden ratio, so that neighbours in time are
            // apart.
            let high = (number as f64 * 0.618_034).fract() - 0.5;
            let (x, y) = (axis.x(sample.total_ns as f64), middle + high * (ROW - 18.0));
            let _ = writeln!(
                out,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\" fill-opacity=\"0.55\"><title>round {}: {}</title></circle>",
                sample.round,
                time(sample.total_ns)
            );
        }
        let x = axis.x(summary.p50 as f64);
        let (low, high) = (axis.x(summary.p50_low as f64), axis.x(summary.p50_high as f64));
        let _ = writeln!(
            out,
            "<rect x=\"{low:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{}\" fill=\"{colour}\" fill-opacity=\"0.2\"/>\
             <line class=\"median\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>",
            middle - ROW / 2.0 + 5.0,
            (high - low).max(1.0),
            ROW - 10.0,
            middle - ROW / 2.0 + 3.0,
            middle + ROW / 2.0 - 3.0
        );
    }
    out + "</svg>\n"
}

/// What part of the samples is not above a time, a line a contestant.
pub(super) fn distribution(record: &Record) -> String {
    const HEIGHT: f64 = 220.0;
    let rows = timed(record);
    let axis = Axis::to(
        rows.iter().filter_map(|(_, series)| Some(series.summary_ns.as_ref()?.max)).max().unwrap_or(0),
    );
    let y = |part: f64| 10.0 + HEIGHT * (1.0 - part);
    let mut out = open(HEIGHT + 36.0, "cumulative distribution");
    axis.draw(&mut out, 10.0, y(0.0), time_label(axis.most));
    for percent in [0, 50, 90, 100] {
        let at = y(f64::from(percent) / 100.0);
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>",
            WIDTH - RIGHT
        );
        name(&mut out, at + 4.0, &format!("{percent} %"));
    }
    for (index, series) in rows {
        let mut totals = series.totals();
        totals.sort_unstable();
        let mut path = format!("M{:.1} {:.1}", axis.x(totals[0] as f64), y(0.0));
        for (number, total) in totals.iter().enumerate() {
            let part = (number + 1) as f64 / totals.len() as f64;
            let _ = write!(path, "H{:.1}V{:.1}", axis.x(*total as f64), y(part));
        }
        let _ = write!(path, "H{:.1}", WIDTH - RIGHT);
        let _ = writeln!(out, "<path class=\"curve\" d=\"{path}\" stroke=\"{}\"/>", colour(index));
    }
    out + "</svg>\n"
}

/// Mean phases one behind the other, a bar a contestant; who has no timeline has one grey bar.
pub(super) fn phases(record: &Record) -> String {
    let rows = timed(record);
    let whole = |series: &Series| mean(&series.totals()).unwrap_or(0);
    let axis = Axis::to(rows.iter().map(|(_, series)| whole(series)).max().unwrap_or(0));
    let bottom = 10.0 + ROW * rows.len() as f64;
    let mut out = open(bottom + 26.0, "mean phases");
    axis.draw(&mut out, 4.0, bottom, time_label(axis.most));
    for (place, (_, series)) in rows.into_iter().enumerate() {
        let top = 10.0 + ROW * place as f64 + 9.0;
        name(&mut out, top + 17.0, &series.name);
        let mut from = 0.0;
        let mut bar = |length: u64, fill: &str, says: &str| {
            let (start, end) = (axis.x(from), axis.x(from + length as f64));
            let _ = writeln!(
                out,
                "<rect x=\"{start:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{}\" fill=\"{fill}\"><title>{}: {}</title></rect>",
                (end - start).max(0.0),
                ROW - 18.0,
                escape(says),
                time(length)
            );
            from += length as f64;
        };
        if series.phases.is_empty() {
            bar(whole(series), "#bdbdbd", "no timeline");
        }
        for phase in &series.phases {
            bar(phase.mean_ns, colour(number_of(record, &phase.name)), &phase.name);
        }
    }
    out + "</svg>\n"
}

/// What each machine of `density` holds: its guest's part, and its monitor's.
pub(super) fn held(record: &Record) -> String {
    let axis = Axis::of_memory(record.steps.iter().map(|step| step.held.pss_bytes).max().unwrap_or(0));
    let row = ROW * 0.6;
    let bottom = 10.0 + row * record.steps.len() as f64;
    let mut out = open(bottom + 26.0, "resident memory of each machine, shared pages by their share");
    axis.draw(&mut out, 4.0, bottom, |bytes| format!("{} MiB", bytes / MIB));
    for (place, step) in record.steps.iter().enumerate() {
        let top = 10.0 + row * place as f64 + 4.0;
        name(&mut out, top + 13.0, &format!("machine {}", step.machines));
        let outside = step.held.outside_pss_bytes;
        let (middle, end) = (axis.x(outside as f64), axis.x(step.held.pss_bytes as f64));
        for (from, to, index, what, bytes) in
            [(LEFT, middle, 1, "monitor", outside), (middle, end, 0, "guest", step.held.pss_bytes - outside)]
        {
            let _ = writeln!(
                out,
                "<rect x=\"{from:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\"><title>{what}: {}</title></rect>",
                to - from,
                row - 8.0,
                colour(index),
                size(bytes)
            );
        }
    }
    out + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        for most in [1, 7, 999, 38_000_000, 12_345_678_901] {
            let axis = Axis::to(most);
            let ticks = axis.ticks();
            assert!((4..=12).contains(&ticks.len()), "{most}: {ticks:?}");
            assert!(axis.x(0.0) >= LEFT && axis.x(most as f64 * 2.0) <= WIDTH - RIGHT + 0.1);
        }
        let memory = Axis::of_memory(31 << 20).ticks();
        assert_eq!(memory[..2], [0.0, 5.0 * MIB]);
        assert_eq!(time_label(4e7)(5_000_000.0), "5 ms");
        assert_eq!(time_label(1e6)(2_500.0), "2.5 us");
        assert_eq!(escape("a<b>&\"c"), "a&lt;b&gt;&amp;&quot;c");
    }
}
