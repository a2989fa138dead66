//! Phases out of a timeline: stamps on one clock, and the intervals between them. A phase bears the name of the stamp that ends it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The only clock.
const CLOCK: &str = "CLOCK_MONOTONIC";

/// A moment: absolute nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Stamp {
    /// What was reached.
    pub name: String,
    /// When.
    pub at_ns: u64,
}

/// What a program says of its own time.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Timeline {
    clock: String,
    /// Where its first phase begins.
    pub origin_ns: u64,
    /// In order of time.
    pub stamps: Vec<Stamp>,
}

/// An interval with its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// The stamp that ends it.
    pub name: String,
    /// How long it took.
    pub duration_ns: u64,
}

/// Phases of one sample, and what they leave out of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Phases {
    /// In order of time.
    pub phases: Vec<Phase>,
    /// The sample's time less the phases' sum.
    pub unattributed_ns: u64,
}

impl Timeline {
    /// One without stamps, of what began at `origin_ns`.
    #[must_use]
    pub fn begun_at(origin_ns: u64) -> Self {
        Self { clock: CLOCK.to_owned(), origin_ns, stamps: Vec::new() }
    }

    /// Adds what a guest says of itself: names, and how long before `end_ns`, in nanoseconds. What it says of a time before its
    /// monitor's last word until then cannot be, and is left out.
    pub fn add_ages(&mut self, ages: &[(&str, u64)], end_ns: u64) {
        let earlier = self.stamps.iter().map(|stamp| stamp.at_ns).filter(|at| *at <= end_ns);
        let least = earlier.max().unwrap_or(self.origin_ns);
        let stamps = ages.iter().filter_map(|(name, age)| {
            let at_ns = end_ns.checked_sub(*age).filter(|at| *at >= least)?;
            Some(Stamp { name: (*name).to_owned(), at_ns })
        });
        self.stamps.extend(stamps);
        self.stamps.sort_by_key(|stamp| stamp.at_ns);
    }

    /// Reads the `timeline` field of `object`. `None` when it has none, or one of another clock or shape.
    #[must_use]
    pub fn read(object: &Value) -> Option<Self> {
        let mut timeline: Self = serde_json::from_value(object.get("timeline")?.clone()).ok()?;
        timeline.stamps.sort_by_key(|stamp| stamp.at_ns);
        (timeline.clock == CLOCK).then_some(timeline)
    }

    /// The phases of what began at `start_ns` and ended, by the benchmark's own stamp `end`, at `end_ns`. Time before the program's
    /// first known moment is nobody's: it is not shared out but said.
    #[must_use]
    pub fn phases(&self, start_ns: u64, end: &str, end_ns: u64) -> Phases {
        let mut from = self.origin_ns.clamp(start_ns, end_ns.max(start_ns));
        let mut phases = Vec::new();
        let within = self.stamps.iter().filter(|stamp| (from..=end_ns).contains(&stamp.at_ns));
        let within: Vec<_> = within.map(|stamp| (stamp.name.as_str(), stamp.at_ns)).collect();
        for (name, at) in within.into_iter().chain([(end, end_ns.max(from))]) {
            phases.push(Phase { name: name.to_owned(), duration_ns: at - from });
            from = at;
        }
        let sum: u64 = phases.iter().map(|phase| phase.duration_ns).sum();
        Phases { phases, unattributed_ns: end_ns.saturating_sub(start_ns).saturating_sub(sum) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<Timeline> {
        Timeline::read(&serde_json::from_str(text).unwrap())
    }

    const TEXT: &str = r#"{"reason":"reset","timeline":{"clock":"CLOCK_MONOTONIC","origin_ns":1000,"stamps":[
        {"name":"main","at_ns":1100},{"name":"first_entry","at_ns":1400},{"name":"machine_gone","at_ns":9000}]}}"#;

    #[test]
    fn phases_add_up_to_the_whole() {
        let phases = read(TEXT).unwrap().phases(1000, "marker", 2000);
        let seen: Vec<_> =
            phases.phases.iter().map(|phase| (phase.name.as_str(), phase.duration_ns)).collect();
        assert_eq!(seen, [("main", 100), ("first_entry", 300), ("marker", 600)]);
        assert_eq!(phases.unattributed_ns, 0);
    }

    #[test]
    fn time_before_the_first_known_moment_is_said() {
        let phases = read(TEXT).unwrap().phases(900, "marker", 2000);
        assert_eq!(phases.unattributed_ns, 100);
        let late = read(TEXT).unwrap().phases(3000, "marker", 4000);
        assert_eq!(late.phases, [Phase { name: "marker".into(), duration_ns: 1000 }]);
    }

    #[test]
    fn what_a_guest_says_stands_between_its_monitors_word_and_the_end() {
        let mut timeline = read(TEXT).unwrap();
        timeline.add_ages(&[("kernel_entry", 500), ("init", 100), ("early", 601), ("never", u64::MAX)], 2000);
        let phases = timeline.phases(1000, "marker", 2000);
        let seen: Vec<_> =
            phases.phases.iter().map(|phase| (phase.name.as_str(), phase.duration_ns)).collect();
        assert_eq!(
            seen,
            [("main", 100), ("first_entry", 300), ("kernel_entry", 100), ("init", 400), ("marker", 100)]
        );

        let mut alone = Timeline::begun_at(1000);
        alone.add_ages(&[("init", 100)], 2000);
        let phases = alone.phases(1000, "marker", 2000);
        assert_eq!((phases.phases.len(), phases.phases[0].duration_ns, phases.unattributed_ns), (2, 900, 0));
    }

    #[test]
    fn what_is_no_timeline_is_none() {
        for text in [
            "{}",
            r#"{"timeline":null}"#,
            r#"{"timeline":{"clock":"CLOCK_REALTIME","origin_ns":1,"stamps":[]}}"#,
            r#"{"timeline":{"clock":"CLOCK_MONOTONIC","stamps":[]}}"#,
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
