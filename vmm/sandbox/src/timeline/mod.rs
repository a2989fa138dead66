//! The timeline of a run: stamps of client, monitor, kernel and agent on the host's clock, and the
//! phases between them. docs/timeline.md explains the stamps.

mod guest;
mod show;

use std::borrow::Cow;

use nelly_vmm::timeline as stamped;
use serde::Serialize;

pub use guest::GuestStamps;

/// Names of the stamps of client and guest; the monitor's are in [`nelly_vmm::timeline::name`].
pub mod name {
    /// First line of the client's `main`.
    pub const MAIN: &str = "main";
    /// Flags, settings and environment were evaluated.
    pub const CONFIG_PARSED: &str = "config_parsed";
    /// The image is available as a disk.
    pub const IMAGE_RESOLVED: &str = "image_resolved";
    /// The monitor's process was created.
    pub const MONITOR_SPAWNED: &str = "monitor_spawned";
    /// The kernel's scheduler clock was started, early in its set-up.
    pub const KERNEL_ENTRY: &str = "kernel_entry";
    /// The kernel executes the first program.
    pub const INIT: &str = "init";
    /// First line of the agent's `main`.
    pub const AGENT_MAIN: &str = "agent_main";
    /// The agent listens.
    pub const AGENT_LISTENING: &str = "agent_listening";
    /// The agent has set up the guest and reports it.
    pub const AGENT_READY: &str = "agent_ready";
    /// The client has a stream to the agent.
    pub const AGENT_CONNECTED: &str = "agent_connected";
    /// The agent answered Hello.
    pub const READY: &str = "ready";
    /// The agent reported that the container was created.
    pub const CONTAINER_CREATED: &str = "container_created";
    /// The agent reported that the container's first process was started.
    pub const PROCESS_STARTED: &str = "process_started";
    /// The client wrote the first bytes of the container's output.
    pub const FIRST_BYTE: &str = "first_byte";
    /// The client received the container's exit status.
    pub const EXIT: &str = "exit";
    /// The guest's stamps were read; this phase is only the cost of reading them.
    pub const TIMELINE_READ: &str = "timeline_read";
    /// The monitor's process was reaped.
    pub const MACHINE_GONE: &str = "machine_gone";
}

/// The component that recorded a stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Who {
    /// The `nelly` command, or another program that uses this library.
    Client,
    /// `nelly-monitor`.
    Monitor,
    /// The guest's kernel.
    Kernel,
    /// PID 1 of the guest.
    Agent,
}

/// A named event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stamp {
    /// The name of the event.
    pub name: Cow<'static, str>,
    /// CLOCK_MONOTONIC in nanoseconds.
    pub at_ns: u64,
    /// The component that recorded it.
    pub who: Who,
}

/// The interval between two consecutive stamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phase<'a> {
    /// Name of the stamp that ends it.
    pub name: &'a str,
    /// The component that recorded that stamp.
    pub who: Who,
    /// Its begin: CLOCK_MONOTONIC in nanoseconds.
    pub begin_ns: u64,
    /// Its end: CLOCK_MONOTONIC in nanoseconds.
    pub end_ns: u64,
}

impl Phase<'_> {
    /// Its duration in nanoseconds.
    #[must_use]
    pub fn duration_ns(&self) -> u64 {
        self.end_ns - self.begin_ns
    }
}

/// All stamps of one run, sorted by time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Timeline {
    clock: &'static str,
    origin_ns: u64,
    stamps: Vec<Stamp>,
}

impl Timeline {
    /// An empty timeline that begins at `origin_ns` of CLOCK_MONOTONIC.
    #[must_use]
    pub fn new(origin_ns: u64) -> Self {
        Self { clock: stamped::CLOCK, origin_ns, stamps: Vec::new() }
    }

    /// Adds one stamp, sorted by time. A stamp before the origin cannot be of this run and is
    /// ignored.
    pub fn add(&mut self, who: Who, name: impl Into<Cow<'static, str>>, at_ns: u64) {
        if at_ns >= self.origin_ns {
            let place = self.stamps.partition_point(|stamp| stamp.at_ns <= at_ns);
            self.stamps.insert(place, Stamp { name: name.into(), at_ns, who });
        }
    }

    /// Adds all stamps of a process on the host.
    pub fn merge(&mut self, who: Who, side: stamped::Timeline) {
        for stamp in side.stamps {
            self.add(who, stamp.name, stamp.at_ns);
        }
    }

    /// Adds the guest's stamps: known names, with times between the first entry into the guest and
    /// `until_ns`. Other stamps are ignored, because the guest is not trusted.
    pub fn merge_guest(&mut self, guest: &GuestStamps, counter: &stamped::GuestCounter, until_ns: u64) {
        let Some(from) = self.at(stamped::name::FIRST_ENTRY) else { return };
        for (who, name, at_ns) in guest.on_the_host(counter) {
            if (from..=until_ns).contains(&at_ns) {
                self.add(who, name, at_ns);
            }
        }
    }

    /// The origin in nanoseconds.
    #[must_use]
    pub fn origin_ns(&self) -> u64 {
        self.origin_ns
    }

    /// The stamps, sorted by time.
    #[must_use]
    pub fn stamps(&self) -> &[Stamp] {
        &self.stamps
    }

    /// The time of the stamp `name` in nanoseconds.
    #[must_use]
    pub fn at(&self, name: &str) -> Option<u64> {
        self.stamps.iter().find(|stamp| stamp.name == name).map(|stamp| stamp.at_ns)
    }

    /// From the origin to the last stamp, in nanoseconds.
    #[must_use]
    pub fn total_ns(&self) -> u64 {
        self.stamps.last().map_or(0, |last| last.at_ns - self.origin_ns)
    }

    /// The phases, in order: their durations add up to [`Timeline::total_ns`].
    pub fn phases(&self) -> impl Iterator<Item = Phase<'_>> {
        let mut begin_ns = self.origin_ns;
        self.stamps.iter().map(move |stamp| {
            let phase = Phase { name: &stamp.name, who: stamp.who, begin_ns, end_ns: stamp.at_ns };
            begin_ns = stamp.at_ns;
            phase
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WHO: [Who; 4] = [Who::Client, Who::Monitor, Who::Kernel, Who::Agent];

    proptest! {
        #[test]
        fn phases_follow_each_other_and_add_up(origin in 0u64..1 << 40, moments in prop::collection::vec((0usize..4, 0u64..1 << 41), 0..40)) {
            let mut timeline = Timeline::new(origin);
            for (who, at) in &moments {
                timeline.add(WHO[*who], at.to_string(), *at);
            }
            let kept = moments.iter().filter(|(_, at)| *at >= origin).count();
            prop_assert_eq!(timeline.stamps().len(), kept);
            prop_assert!(timeline.stamps().is_sorted_by_key(|stamp| stamp.at_ns));
            prop_assert_eq!(timeline.phases().count(), kept);
            prop_assert_eq!(timeline.phases().map(|phase| phase.duration_ns()).sum::<u64>(), timeline.total_ns());
            let mut end = origin;
            for phase in timeline.phases() {
                prop_assert_eq!(phase.begin_ns, end);
                prop_assert_eq!(timeline.at(phase.name), Some(phase.end_ns));
                end = phase.end_ns;
            }
        }
    }

    #[test]
    fn sides_are_merged_by_time_and_equal_moments_stay_in_order() {
        let side = |stamps: &[(&'static str, u64)]| {
            let recorder = stamped::Recorder::new(0);
            stamps.iter().for_each(|(name, at)| recorder.stamp_at(name, *at));
            recorder.timeline()
        };
        let mut timeline = Timeline::new(10);
        timeline.merge(Who::Client, side(&[("main", 12), ("exit", 40), ("of_another_run", 9)]));
        timeline.merge(Who::Monitor, side(&[("monitor_main", 20), ("guest_end", 40)]));
        let seen: Vec<_> =
            timeline.phases().map(|phase| (phase.name, phase.who, phase.duration_ns())).collect();
        assert_eq!(
            seen,
            [
                ("main", Who::Client, 2),
                ("monitor_main", Who::Monitor, 8),
                ("exit", Who::Client, 20),
                ("guest_end", Who::Monitor, 0)
            ]
        );
        assert_eq!((timeline.total_ns(), Timeline::new(7).total_ns()), (30, 0));
    }

    #[test]
    fn the_json_is_as_documented() {
        let mut timeline = Timeline::new(5);
        timeline.add(Who::Client, name::MAIN, 7);
        assert_eq!(
            serde_json::to_string(&timeline).unwrap(),
            r#"{"clock":"CLOCK_MONOTONIC","origin_ns":5,"stamps":[{"name":"main","at_ns":7,"who":"client"}]}"#
        );
    }

    #[test]
    fn a_guest_that_lies_is_left_out() {
        let counter = stamped::GuestCounter {
            at_ns: 2_000_000,
            counter: 2_000,
            error_ns: 0,
            span_ns: 1_000,
            span_ticks: 1,
            nominal_khz: 1_000,
        };
        let guest = GuestStamps {
            // One tick is a microsecond.
            agent: vec![
                (name::AGENT_MAIN.into(), 1_500),
                ("rm -rf".into(), 1_500),
                (name::AGENT_LISTENING.into(), 999),
                (name::AGENT_READY.into(), 3_001),
                (name::EXIT.into(), 1_501),
            ],
            kernel: vec![(name::KERNEL_ENTRY.into(), 0), (name::INIT.into(), 400_000)],
            counter: 1_900,
            clock_ns: 500_000,
        };
        let mut timeline = Timeline::new(0);
        timeline.merge_guest(&guest, &counter, 3_000_000);
        assert_eq!(timeline.stamps().len(), 0, "nothing before the first entry is known");
        timeline.add(Who::Monitor, stamped::name::FIRST_ENTRY, 1_000_000);
        timeline.merge_guest(&guest, &counter, 3_000_000);
        let seen: Vec<_> = timeline.stamps().iter().map(|stamp| (&*stamp.name, stamp.at_ns)).collect();
        assert_eq!(
            seen,
            [
                ("first_entry", 1_000_000),
                (name::KERNEL_ENTRY, 1_400_000),
                (name::AGENT_MAIN, 1_500_000),
                (name::INIT, 1_800_000)
            ]
        );
        assert_eq!(guest.on_the_host(&counter).count(), 5);
    }
}
