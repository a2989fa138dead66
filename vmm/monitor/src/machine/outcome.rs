//! What a machine tells about itself: its state, how it ended, what it counted.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::confine::Confinement;
use crate::timeline::Timeline;

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Why.
    pub reason: EndReason,
    /// When things happened, on the host's one clock: the monitor's stamps of the machine's first
    /// start and of its end.
    #[serde(default)]
    pub timeline: Timeline,
    /// What made the vCPUs leave the guest, over all starts of the machine.
    #[serde(default)]
    pub exits: ExitCounts,
    /// Times the guest was started: 1, and one more for each reboot.
    #[serde(default)]
    pub starts: u32,
    /// What the guest's drivers broke, over all starts of the machine.
    #[serde(default)]
    pub faults: Vec<DeviceFaults>,
    /// What may be the cause of a guest's end in its first instructions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// What the monitor gave up before the guest ran; `None` if it did not come to that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confinement: Option<Confinement>,
}

impl Outcome {
    pub(super) fn of(reason: EndReason) -> Self {
        Self {
            reason,
            timeline: Timeline::default(),
            exits: ExitCounts::default(),
            starts: 0,
            faults: Vec::new(),
            hint: None,
            confinement: None,
        }
    }

    /// Adds what was broken in one start. Of more than [`FAULTS_MOST`] records the oldest go.
    pub(super) fn add_faults(&mut self, more: Vec<DeviceFaults>) {
        for fault in more {
            let is_same = |same: &&mut DeviceFaults| {
                (same.slot, &same.device, &same.kind) == (fault.slot, &fault.device, &fault.kind)
            };
            match self.faults.iter_mut().find(is_same) {
                Some(same) => same.count = same.count.saturating_add(fault.count),
                None => self.faults.push(fault),
            }
        }
        let surplus = self.faults.len().saturating_sub(FAULTS_MOST);
        self.faults.drain(..surplus);
    }
}

/// Most records of faults that the outcome of a machine carries: it must fit a frame of the control
/// protocol, however often the guest started and disks were exchanged.
const FAULTS_MOST: usize = 1024;

/// Faults of one kind in one device: what a driver did that it must not, or what failed behind the
/// device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceFaults {
    /// The device's slot.
    pub slot: u16,
    /// What people call the device: its kind, and a disk's id.
    pub device: String,
    /// One word.
    pub kind: String,
    /// What the first of them was.
    pub first: String,
    /// So many there were.
    pub count: u64,
}

/// Why a machine ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// The guest switched itself off.
    PowerOff,
    /// The guest's kernel halted every vCPU for good.
    Halted,
    /// The guest reset itself and `on_reset` is `exit`.
    Reset,
    /// The guest's kernel or agent gave up: its console or its agent said so.
    Panic,
    /// A vCPU could not go on: triple fault.
    TripleFault,
    /// `Machine::stop`, or the end of whoever held the machine.
    Stopped,
    /// `Machine::kill`.
    Killed,
    /// The configured time was over.
    TimeLimit,
    /// Whoever read the console on this process's standard output left, and the guest went on
    /// writing.
    ReaderGone,
    /// The monitor ended without a word; the text says how.
    MonitorDied(String),
    /// The host failed, or the guest did what the hypervisor cannot run; the text says what.
    Error(String),
}

impl EndReason {
    /// The exit code for a guest whose kernel panicked.
    pub const PANICKED: u8 = 121;
    /// The exit code for a triple fault.
    pub const TRIPLE_FAULTED: u8 = 122;
    /// The exit code for a time that was over.
    pub const TIMED_OUT: u8 = 124;
    /// The exit code for everything that is not the guest's doing.
    pub const FAILED: u8 = 125;

    /// Its word in JSON.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::PowerOff => "power_off",
            Self::Halted => "halted",
            Self::Reset => "reset",
            Self::Panic => "panic",
            Self::TripleFault => "triple_fault",
            Self::Stopped => "stopped",
            Self::Killed => "killed",
            Self::TimeLimit => "time_limit",
            Self::ReaderGone => "reader_gone",
            Self::MonitorDied(_) => "monitor_died",
            Self::Error(_) => "error",
        }
    }

    /// The exit code of `nelly boot` and of `nelly-monitor` for this end: 0 for power-off, halt,
    /// reset or stop, 137 when it was killed, 141, as of SIGPIPE, when nobody read the console any
    /// more, and the constants above.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::PowerOff | Self::Halted | Self::Reset | Self::Stopped => 0,
            Self::Panic => Self::PANICKED,
            Self::TripleFault => Self::TRIPLE_FAULTED,
            Self::TimeLimit => Self::TIMED_OUT,
            Self::MonitorDied(_) | Self::Error(_) => Self::FAILED,
            Self::Killed => 137,
            Self::ReaderGone => 141,
        }
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest switched itself off"),
            Self::Halted => f.write_str("the guest halted"),
            Self::Reset => f.write_str("the guest reset itself"),
            Self::Panic => f.write_str("the guest panicked"),
            Self::TripleFault => f.write_str("the guest ended in a triple fault"),
            Self::Stopped => f.write_str("the machine was stopped"),
            Self::Killed => f.write_str("the machine was killed"),
            Self::TimeLimit => f.write_str("the time limit was reached"),
            Self::ReaderGone => f.write_str("nobody reads the console any more"),
            Self::MonitorDied(how) => write!(f, "the monitor ended without a word: {how}"),
            Self::Error(what) => f.write_str(what),
        }
    }
}

/// How often vCPUs left the guest, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitCounts {
    /// Reads of a port.
    #[serde(rename = "pio_read")]
    pub port_read: u64,
    /// Writes to a port.
    #[serde(rename = "pio_write")]
    pub port_write: u64,
    /// Reads of memory that a device emulates.
    #[serde(rename = "mmio_read")]
    pub memory_read: u64,
    /// Writes of memory that a device emulates.
    #[serde(rename = "mmio_write")]
    pub memory_write: u64,
    /// Halts that the hypervisor handed out.
    pub halted: u64,
    /// Kicks by the monitor.
    pub kicked: u64,
    /// Everything else.
    pub other: u64,
}

impl ExitCounts {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        let Self { port_read, port_write, memory_read, memory_write, halted, kicked, other } = *self;
        port_read + port_write + memory_read + memory_write + halted + kicked + other
    }

    pub(super) fn add(&mut self, more: &Self) {
        let Self { port_read, port_write, memory_read, memory_write, halted, kicked, other } = *more;
        self.port_read += port_read;
        self.port_write += port_write;
        self.memory_read += memory_read;
        self.memory_write += memory_write;
        self.halted += halted;
        self.kicked += kicked;
        self.other += other;
    }
}

/// Where a machine is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Being assembled, or assembled again after a reset.
    Starting,
    /// vCPUs run.
    Running,
    /// On its way out of the guest.
    Pausing,
    /// vCPUs out, devices parked, nothing in flight.
    Paused,
    /// Being taken apart.
    Ending,
}

/// What happens to a machine, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// It reached a state.
    State(State),
    /// The guest's console said that its kernel panicked.
    PanicSeen,
    /// It starts again after a reset.
    Rebooting,
    /// Its guest broke something in a way that was not told before.
    Fault(DeviceFaults),
    /// It ended; nothing follows.
    Ended(Outcome),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_of_a_reason_is_that_of_its_json() {
        for reason in [
            EndReason::PowerOff,
            EndReason::Halted,
            EndReason::Reset,
            EndReason::Panic,
            EndReason::TripleFault,
            EndReason::Stopped,
            EndReason::Killed,
            EndReason::TimeLimit,
            EndReason::ReaderGone,
            EndReason::MonitorDied("how".into()),
            EndReason::Error("what".into()),
        ] {
            let json = serde_json::to_value(&reason).unwrap();
            let word = json.as_str().or_else(|| Some(json.as_object()?.keys().next()?));
            assert_eq!(word, Some(reason.word()));
        }
    }
}
