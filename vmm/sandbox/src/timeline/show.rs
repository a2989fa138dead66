//! A timeline for people (a table) and for trace viewers (the Chrome trace event format).

use std::fmt::{self, Write as _};

use serde_json::{Value, json};

use super::{Phase, Timeline, Who};

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Client => "client",
            Self::Monitor => "monitor",
            Self::Kernel => "kernel",
            Self::Agent => "agent",
        })
    }
}

impl Who {
    /// The track of a trace: kernel and agent share the guest's.
    fn track(self) -> u32 {
        match self {
            Self::Client => 1,
            Self::Monitor => 2,
            Self::Kernel | Self::Agent => 3,
        }
    }
}

/// Milliseconds with three decimals.
struct Milliseconds(u64);

impl fmt::Display for Milliseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let microseconds = self.0 / 1_000 + u64::from(self.0 % 1_000 >= 500);
        f.pad(&format!("{}.{:03}", microseconds / 1_000, microseconds % 1_000))
    }
}

impl Timeline {
    /// The phases as a table of lines: name, duration and time since the origin in milliseconds,
    /// who stamped its end.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = format!("{:<18} {:>11} {:>11}  by\n", "phase", "ms", "since start");
        for phase in self.phases() {
            let (took, since) = (phase.duration_ns(), phase.end_ns - self.origin_ns);
            // Writing to a string does not fail.
            let _ = writeln!(
                text,
                "{:<18} {:>11} {:>11}  {}",
                phase.name,
                Milliseconds(took),
                Milliseconds(since),
                phase.who
            );
        }
        text
    }

    /// The phases in the Chrome trace event format: one complete event a phase, on the track of who
    /// stamped its end; time in microseconds since the origin, whose place on the clock stands in
    /// `otherData`.
    #[must_use]
    pub fn trace(&self) -> Value {
        let tracks = [(Who::Client, "client"), (Who::Monitor, "monitor"), (Who::Agent, "guest")];
        let named = |(who, name): (Who, &str)| {
            let tid = who.track();
            [
                json!({ "ph": "M", "name": "thread_name", "pid": 1, "tid": tid, "args": { "name": name } }),
                json!({ "ph": "M", "name": "thread_sort_index", "pid": 1, "tid": tid, "args": { "sort_index": tid } }),
            ]
        };
        let process = json!({ "ph": "M", "name": "process_name", "pid": 1, "args": { "name": "nelly" } });
        let events = self.phases().map(|phase| self.event(phase));
        let events: Vec<Value> =
            std::iter::once(process).chain(tracks.into_iter().flat_map(named)).chain(events).collect();
        let other = json!({ "clock": self.clock, "origin_ns": self.origin_ns });
        json!({ "displayTimeUnit": "ms", "otherData": other, "traceEvents": events })
    }

    fn event(&self, phase: Phase<'_>) -> Value {
        json!({
            "ph": "X",
            "name": phase.name,
            "cat": phase.who,
            "pid": 1,
            "tid": phase.who.track(),
            "ts": microseconds(phase.begin_ns - self.origin_ns),
            "dur": microseconds(phase.duration_ns()),
            "args": { "who": phase.who, "at_ns": phase.end_ns },
        })
    }
}

/// Exact to the nanosecond up to a hundred days.
#[expect(
    clippy::cast_precision_loss,
    reason = "2^53 ns are a hundred days, and the format has numbers of that kind only"
)]
fn microseconds(ns: u64) -> f64 {
    ns as f64 / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Timeline {
        let mut timeline = Timeline::new(1_000_000);
        timeline.add(Who::Client, "main", 1_000_400);
        timeline.add(Who::Monitor, "first_entry", 3_500_500);
        timeline.add(Who::Kernel, "init", 1_234_567_890);
        timeline
    }

    #[test]
    fn the_table_is_read_by_people() {
        let text = sample().table();
        assert_eq!(
            text,
            "\
phase                       ms since start  by
main                     0.000       0.000  client
first_entry              2.500       2.501  monitor
init                  1231.067    1233.568  kernel
"
        );
    }

    #[test]
    fn the_trace_has_a_track_for_each_side_and_adds_up() {
        let trace = sample().trace();
        let events = trace["traceEvents"].as_array().unwrap();
        let names: Vec<_> = events.iter().filter(|event| event["name"] == "thread_name").collect();
        assert_eq!(names.len(), 3);
        let complete: Vec<_> = events.iter().filter(|event| event["ph"] == "X").collect();
        assert_eq!(complete.len(), 3);
        let mut end = 0.0;
        for event in &complete {
            assert!((event["ts"].as_f64().unwrap() - end).abs() < 1e-6, "{event}");
            end += event["dur"].as_f64().unwrap();
        }
        assert!((end - 1_233_567.89).abs() < 1e-6);
        assert_eq!(complete[2]["tid"], 3);
        assert_eq!(trace["otherData"]["origin_ns"], 1_000_000);
    }
}
