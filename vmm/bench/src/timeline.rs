//! Phases of a timeline: the intervals between consecutive stamps, named after the stamp that ends
//! them.

use nelly_vmm::timeline::{CLOCK, Stamp, Timeline};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The duration of a phase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseDuration {
    /// The name of the stamp that ends it.
    pub name: String,
    /// Its duration.
    pub duration_ns: u64,
}

/// The phases of one sample, and the time that they do not cover.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Phases {
    /// Sorted by time.
    pub phases: Vec<PhaseDuration>,
    /// The sample's total time minus the sum of the phases.
    pub unattributed_ns: u64,
}

/// An empty timeline that begins at `origin_ns`.
#[must_use]
pub fn begun_at(origin_ns: u64) -> Timeline {
    Timeline { origin_ns, ..Timeline::default() }
}

/// Reads the `timeline` field of `object`. `None` if there is none, or it has another clock or
/// form.
#[must_use]
pub fn read(object: &Value) -> Option<Timeline> {
    let mut timeline: Timeline = serde_json::from_value(object.get("timeline")?.clone()).ok()?;
    timeline.stamps.sort_by_key(|stamp| stamp.at_ns);
    (timeline.clock == CLOCK).then_some(timeline)
}

/// Adds stamps of a guest: names and how long before `end_ns` they occurred, in nanoseconds. Stamps
/// before the last stamp of the monitor are invalid and are ignored.
pub fn add_ages(timeline: &mut Timeline, ages: &[(&str, u64)], end_ns: u64) {
    let earlier = timeline.stamps.iter().map(|stamp| stamp.at_ns).filter(|at| *at <= end_ns);
    let least = earlier.max().unwrap_or(timeline.origin_ns);
    let stamps = ages.iter().filter_map(|(name, age)| {
        let at_ns = end_ns.checked_sub(*age).filter(|at| *at >= least)?;
        Some(Stamp { name: (*name).to_owned().into(), at_ns })
    });
    timeline.stamps.extend(stamps);
    timeline.stamps.sort_by_key(|stamp| stamp.at_ns);
}

/// The phases between `start_ns` and the benchmark's own stamp `end` at `end_ns`. Time before the
/// first stamp is not attributed to a phase, but reported separately.
#[must_use]
pub fn phases(timeline: &Timeline, start_ns: u64, end: &str, end_ns: u64) -> Phases {
    let mut from = timeline.origin_ns.clamp(start_ns, end_ns.max(start_ns));
    let mut phases = Vec::new();
    let within = timeline.stamps.iter().filter(|stamp| (from..=end_ns).contains(&stamp.at_ns));
    let within: Vec<_> = within.map(|stamp| (&*stamp.name, stamp.at_ns)).collect();
    for (name, at) in within.into_iter().chain([(end, end_ns.max(from))]) {
        phases.push(PhaseDuration { name: name.to_owned(), duration_ns: at - from });
        from = at;
    }
    let sum: u64 = phases.iter().map(|phase| phase.duration_ns).sum();
    Phases { phases, unattributed_ns: end_ns.saturating_sub(start_ns).saturating_sub(sum) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Option<Timeline> {
        read(&serde_json::from_str(text).unwrap())
    }

    const TEXT: &str = r#"{"reason":"reset","timeline":{"clock":"CLOCK_MONOTONIC","origin_ns":1000,"stamps":[
        {"name":"main","at_ns":1100,"who":"client"},{"name":"first_entry","at_ns":1400},{"name":"machine_gone","at_ns":9000}]}}"#;

    #[test]
    fn phases_add_up_to_the_whole() {
        let phases = super::phases(&parsed(TEXT).unwrap(), 1000, "marker", 2000);
        let seen: Vec<_> =
            phases.phases.iter().map(|phase| (phase.name.as_str(), phase.duration_ns)).collect();
        assert_eq!(seen, [("main", 100), ("first_entry", 300), ("marker", 600)]);
        assert_eq!(phases.unattributed_ns, 0);
    }

    #[test]
    fn time_before_the_first_known_moment_is_said() {
        let phases = super::phases(&parsed(TEXT).unwrap(), 900, "marker", 2000);
        assert_eq!(phases.unattributed_ns, 100);
        let late = super::phases(&parsed(TEXT).unwrap(), 3000, "marker", 4000);
        assert_eq!(late.phases, [PhaseDuration { name: "marker".into(), duration_ns: 1000 }]);
    }

    #[test]
    fn what_a_guest_says_stands_between_its_monitors_word_and_the_end() {
        let mut timeline = parsed(TEXT).unwrap();
        add_ages(
            &mut timeline,
            &[("kernel_entry", 500), ("init", 100), ("early", 601), ("never", u64::MAX)],
            2000,
        );
        let phases = super::phases(&timeline, 1000, "marker", 2000);
        let seen: Vec<_> =
            phases.phases.iter().map(|phase| (phase.name.as_str(), phase.duration_ns)).collect();
        assert_eq!(
            seen,
            [("main", 100), ("first_entry", 300), ("kernel_entry", 100), ("init", 400), ("marker", 100)]
        );

        let mut alone = begun_at(1000);
        add_ages(&mut alone, &[("init", 100)], 2000);
        let phases = super::phases(&alone, 1000, "marker", 2000);
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
            assert_eq!(parsed(text), None, "{text}");
        }
    }
}
