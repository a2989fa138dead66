//! Stamps on one clock: the host's CLOCK_MONOTONIC in absolute nanoseconds.
//!
//! A *stamp* is a name and a time. A *phase* is the interval between two consecutive stamps and has
//! the name of the one that ends it, so the phases of a timeline add up to the total. A stamp costs
//! one read of the clock through the vDSO, without a system call. See docs/timeline.md.

mod counter;
mod moment;

use std::borrow::Cow;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::sys;
pub use counter::GuestCounter;
pub use moment::Moment;

/// The environment variable with the time at which the parent process started this one, in the
/// format of [`now_ns`].
pub const ORIGIN_VARIABLE: &str = "NELLY_ORIGIN_NS";

/// The name of the clock in a timeline.
pub const CLOCK: &str = "CLOCK_MONOTONIC";

/// Names of the monitor's stamps.
pub mod name {
    /// The first line of `main` in `nelly-monitor`, or of a machine's thread.
    pub const MONITOR_MAIN: &str = "monitor_main";
    /// The machine's configuration was read and is valid.
    pub const MONITOR_CONFIG: &str = "monitor_config";
    /// Files were opened, and guest memory was mapped and registered with the hypervisor.
    pub const MEMORY_MAPPED: &str = "memory_mapped";
    /// Kernel, initrd, command line and tables are in guest memory.
    pub const KERNEL_LOADED: &str = "kernel_loaded";
    /// The saved machine's memory is in guest memory, in the place of a kernel.
    pub const MEMORY_RESTORED: &str = "memory_restored";
    /// The interrupt controllers exist.
    pub const VM_CREATED: &str = "vm_created";
    /// All devices have their address, interrupt line and doorbells.
    pub const DEVICES_READY: &str = "devices_ready";
    /// vCPU 0 exists, with its initial registers.
    pub const VCPU_CREATED: &str = "vcpu_created";
    /// The last moment before vCPU 0 enters the guest for the first time.
    pub const FIRST_ENTRY: &str = "first_entry";
    /// All vCPUs and devices have stopped.
    pub const GUEST_END: &str = "guest_end";
}

/// Maximum time between the value of the environment variable and the start of `main`, in
/// nanoseconds: one minute.
const PLAUSIBLE_NS: u64 = 60_000_000_000;

/// CLOCK_MONOTONIC now, in nanoseconds.
#[must_use]
pub fn now_ns() -> u64 {
    sys::host::monotonic_ns()
}

/// The start of a process: the value of [`ORIGIN_VARIABLE`], if it is at most a minute before
/// `main_ns`, otherwise `main_ns`.
#[must_use]
pub fn origin(variable: Option<&str>, main_ns: u64) -> u64 {
    let word = variable.and_then(|text| text.parse::<u64>().ok());
    word.filter(|&at| at <= main_ns && main_ns - at <= PLAUSIBLE_NS).unwrap_or(main_ns)
}

/// A named event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// The name of the event.
    pub name: Cow<'static, str>,
    /// CLOCK_MONOTONIC in nanoseconds.
    pub at_ns: u64,
}

/// The stamps of one process, sorted by time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// [`CLOCK`].
    pub clock: Cow<'static, str>,
    /// The start of the process in nanoseconds, see [`origin`].
    pub origin_ns: u64,
    /// The stamps. Events that did not happen are absent.
    pub stamps: Vec<Stamp>,
}

impl Default for Timeline {
    /// A timeline without stamps, for a machine that recorded none.
    fn default() -> Self {
        Self { clock: Cow::Borrowed(CLOCK), origin_ns: 0, stamps: Vec::new() }
    }
}

impl Timeline {
    /// The time of the stamp `name` in nanoseconds.
    #[must_use]
    pub fn at(&self, name: &str) -> Option<u64> {
        self.stamps.iter().find(|stamp| stamp.name == name).map(|stamp| stamp.at_ns)
    }
}

/// Maximum number of stamps of a [`Recorder`], more than any process records.
const MOST: usize = 16;

/// Records stamps from any thread, without allocating. Only the first stamp of each name is kept,
/// so a machine that restarts after a reset keeps those of its first start.
#[derive(Debug)]
pub struct Recorder {
    origin_ns: u64,
    taken: Mutex<Taken>,
}

#[derive(Debug)]
struct Taken {
    stamps: [(&'static str, u64); MOST],
    count: usize,
}

impl Recorder {
    /// A recorder without stamps, of a process that started at `origin_ns`.
    #[must_use]
    pub fn new(origin_ns: u64) -> Self {
        Self { origin_ns, taken: Mutex::new(Taken { stamps: [("", 0); MOST], count: 0 }) }
    }

    /// The start of the process in nanoseconds.
    #[must_use]
    pub fn origin_ns(&self) -> u64 {
        self.origin_ns
    }

    /// Records the current time, and returns it.
    pub fn stamp(&self, name: &'static str) -> u64 {
        let now = now_ns();
        self.stamp_at(name, now);
        now
    }

    /// Records a time that was read before, in nanoseconds.
    pub fn stamp_at(&self, name: &'static str, at_ns: u64) {
        let mut taken = self.lock();
        let count = taken.count;
        if count < MOST && taken.stamps[..count].iter().all(|(other, _)| *other != name) {
            taken.stamps[count] = (name, at_ns);
            taken.count += 1;
        }
    }

    /// The time of the stamp `name` in nanoseconds.
    #[must_use]
    pub fn at(&self, name: &str) -> Option<u64> {
        let taken = self.lock();
        taken.stamps[..taken.count].iter().find(|(other, _)| *other == name).map(|(_, at)| *at)
    }

    /// The stamps so far.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        let taken = self.lock();
        let stamp = |&(name, at_ns): &(&'static str, u64)| Stamp { name: Cow::Borrowed(name), at_ns };
        let mut stamps: Vec<_> = taken.stamps[..taken.count].iter().map(stamp).collect();
        stamps.sort_by_key(|stamp| stamp.at_ns);
        Timeline { clock: Cow::Borrowed(CLOCK), origin_ns: self.origin_ns, stamps }
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_believed_only_when_it_can_be_true() {
        let main = 100_000_000_000;
        let table = [
            (None, main),
            (Some("99999999000"), 99_999_999_000),
            (Some("100000000000"), main),
            (Some("40000000000"), 40_000_000_000),
            // In the future, from another boot, not a number.
            (Some("100000000001"), main),
            (Some("39999999999"), main),
            (Some("-5"), main),
            (Some("soon"), main),
            (Some(""), main),
        ];
        for (word, origin_ns) in table {
            assert_eq!(origin(word, main), origin_ns, "{word:?}");
        }
    }

    #[test]
    fn the_first_stamp_of_a_name_counts_and_order_is_times() {
        let recorder = Recorder::new(5);
        recorder.stamp_at("late", 30);
        recorder.stamp_at("early", 10);
        recorder.stamp_at("late", 20);
        let timeline = recorder.timeline();
        let names: Vec<_> = timeline.stamps.iter().map(|stamp| (&*stamp.name, stamp.at_ns)).collect();
        assert_eq!(names, [("early", 10), ("late", 30)]);
        assert_eq!(
            (timeline.at("late"), timeline.at("never"), recorder.at("early")),
            (Some(30), None, Some(10))
        );
        let before = now_ns();
        assert!(before <= recorder.stamp("now") && recorder.at("now").unwrap() <= now_ns());
    }

    #[test]
    fn stamps_beyond_the_room_are_dropped() {
        const NAMES: [&str; 18] =
            ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q", "r"];
        let recorder = Recorder::new(0);
        NAMES.into_iter().zip(0..).for_each(|(name, at)| recorder.stamp_at(name, at));
        assert_eq!(recorder.timeline().stamps.len(), MOST);
    }

    #[test]
    fn the_json_is_as_documented() {
        let recorder = Recorder::new(5);
        recorder.stamp_at(name::FIRST_ENTRY, 7);
        let text = serde_json::to_string(&recorder.timeline()).unwrap();
        assert_eq!(
            text,
            r#"{"clock":"CLOCK_MONOTONIC","origin_ns":5,"stamps":[{"name":"first_entry","at_ns":7}]}"#
        );
        assert_eq!(serde_json::from_str::<Timeline>(&text).unwrap(), recorder.timeline());
    }
}
