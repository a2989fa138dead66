//! What a running machine shows of itself, as data.

use serde::{Deserialize, Serialize};

use super::confine::Confinement;
use super::outcome::{DeviceFaults, ExitCounts, State};

/// A machine at one moment, as one JSON value: `schema` 1, fields are only ever added. Counts of
/// parts that run meanwhile may lag behind each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// 1.
    pub schema: u32,
    /// Where it is in its life.
    pub state: State,
    /// Times that the guest was started.
    pub starts: u32,
    /// Its memory.
    pub memory: MemorySizes,
    /// What made all vCPUs leave the guest since the last start.
    pub exits: ExitCounts,
    /// The same of each.
    pub vcpus: Vec<ExitCounts>,
    /// Port accesses that no device answers to.
    pub unclaimed_port_accesses: u64,
    /// The same in memory.
    pub unclaimed_memory_accesses: u64,
    /// The virtio devices, by slot.
    pub devices: Vec<DeviceState>,
    /// Serial port and console.
    pub consoles: Vec<ConsoleState>,
    /// What the monitor gave up before the guest ran.
    #[serde(default)]
    pub confinement: Option<Confinement>,
}

/// Guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemorySizes {
    /// There from the start.
    pub boot_bytes: u64,
    /// What the holder wants the guest to have beyond that.
    pub requested_bytes: u64,
    /// What the guest has plugged in of it.
    pub plugged_bytes: u64,
}

/// A virtio device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    /// Its slot.
    pub slot: u16,
    /// What it is: `block`, `vsock`, ...; `none` for an empty slot.
    pub kind: String,
    /// A disk's id, a shared directory's tag.
    pub name: Option<String>,
    /// The device status register without NEEDS_RESET (15: the driver is ready).
    pub status: u8,
    /// It cannot go on until the driver resets it.
    pub needs_reset: bool,
    /// Requests wait because the host's file system is full.
    #[serde(default)]
    pub waits_for_room: bool,
    /// Interrupts since the last start.
    pub interrupts: u64,
    /// Accesses that the specification forbids; they were ignored.
    pub ignored_accesses: u64,
    /// What the driver broke, by kind.
    pub faults: Vec<DeviceFaults>,
    /// Its queues, in order.
    pub queues: Vec<QueueState>,
    /// Connections of the socket device now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u64>,
    /// What a network device has moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkState>,
    /// What a disk has done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskState>,
    /// What was reported to a balloon device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon: Option<BalloonState>,
}

/// What a guest has reported to its balloon device since the last start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BalloonState {
    /// Bytes that it said were free, each as often as it said so.
    pub reported_bytes: u64,
    /// Those of them that were given back to the host.
    pub given_back_bytes: u64,
}

/// What a disk has done since the last start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskState {
    /// Reads that succeeded.
    pub reads: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// Writes that succeeded.
    pub writes: u64,
    /// Their bytes.
    pub written_bytes: u64,
    /// Flushes that succeeded.
    pub flushes: u64,
    /// Discards and writes of zeroes that succeeded.
    pub discards: u64,
    /// Requests that were answered with an error.
    pub failed: u64,
    /// Requests that were held back, because the disk's limits allowed no more at the time.
    pub throttled: u64,
}

/// What a network device has moved since the last start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkState {
    /// The link is up.
    pub link_up: bool,
    /// Pairs of queues that the driver uses; 0 without a driver.
    pub pairs: u16,
    /// Those of them that the host's kernel serves (vhost-net).
    #[serde(default)]
    pub kernel_pairs: u16,
    /// Those that the process at the other end of the link serves (vhost-user).
    #[serde(default)]
    pub peer_pairs: u16,
    /// Frames of the guest. There are none of these counters once somebody else has served a pair:
    /// they do not tell what they have moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent: Option<FrameState>,
    /// Frames to the guest, as `sent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received: Option<FrameState>,
}

/// Frames one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrameState {
    /// Frames that were passed on.
    pub frames: u64,
    /// Their bytes, without the headers of virtio.
    pub bytes: u64,
    /// Frames that were dropped because their sender broke the rules.
    pub bad: u64,
    /// Frames that were dropped because nobody could take them: the link is down, or the guest's
    /// buffers are too small.
    pub lost: u64,
}

/// A queue. Indices run freely from 0 to 65535; they are `null` while the driver does not use the
/// queue, and those of the device while somebody else serves it: the host's kernel, or the peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Requests given back since the last start; `null` once somebody else has served the queue,
    /// who does not tell how many.
    #[serde(default)]
    pub chains: Option<u64>,
    /// Entries of its rings.
    pub size: Option<u16>,
    /// The driver's available index. Ahead of `next_available` by the requests that the device has
    /// not taken.
    pub driver_available: Option<u16>,
    /// What the device takes next. Ahead of `next_used` by the requests that it works on.
    pub next_available: Option<u16>,
    /// What the device gives back next.
    pub next_used: Option<u16>,
}

/// A console.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {
    /// `serial` or `console`.
    pub port: String,
    /// Bytes of the guest so far.
    pub output_bytes: u64,
    /// Bytes that the guest sent although it was held back, and that were dropped.
    pub lost_bytes: u64,
    /// Bytes that wait for the reader.
    pub waiting_output_bytes: u64,
    /// Bytes that wait for the guest.
    pub waiting_input_bytes: u64,
}
