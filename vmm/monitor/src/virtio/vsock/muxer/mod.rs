//! All connections of a device: packets of the guest go in ([`Muxer::hear`]), packets for it come
//! out ([`Muxer::serve`]), host descriptors are in between. Knows no queue: a packet is a chain.
//!
//! `slot` is one connection and its end on the host; what is done with them stands by who makes it
//! happen: `inbound` the guest, `outbound` its room for packets, `host` descriptors and requests,
//! `limits` time and a reset; `ends` takes connections apart, and `watch` keeps the poller's
//! registrations and the turns.

mod ends;
mod host;
mod inbound;
mod limits;
mod outbound;
mod slot;
mod watch;

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;

use rustix::process::{Resource, getrlimit};

use super::PowerSink;
use super::control::Inbox;
use super::door::Door;
use super::listeners::Listeners;
use super::packet::Header;
use super::table::{Handle, Table};
use crate::sys::{Notifier, Timer, at_most};
use slot::Slot;

#[cfg(all(test, feature = "figures"))]
pub(super) use slot::SLOT_BYTES;

/// Most connections at once.
pub(super) const CONNECTIONS_MAX: usize = 16_384;
/// Most of them that the guest dialled: the host's own find a place whatever the guest does, and
/// what it makes the host's kernel buffer is bounded also where the limit of descriptors is high.
const DIALLED_MAX: usize = CONNECTIONS_MAX / 4;
/// Most of them whose stream the holder gave: those of processes find a place whatever its relays
/// carry.
const JOINED_MAX: usize = CONNECTIONS_MAX / 4;
/// RSTs that may wait for room in the guest before its packets wait too (virtio 1.2, 5.10.6.1.2).
const RESETS_MAX: usize = 1024;

/// Descriptors that this process may have: each connection to somebody on the host costs it at
/// least one.
fn descriptors() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| at_most(limit, usize::MAX))
}

/// What became of a chain offered to [`Muxer::serve`].
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Served {
    /// It carries this many bytes.
    Written(u32),
    /// Nothing was to be said after all.
    Unused,
}

/// The monitor's own port.
struct Power {
    port: u32,
    sink: PowerSink,
    /// The guest has had its one connection: what dials now is not its agent.
    taken: bool,
}

/// See the module.
pub(super) struct Muxer {
    cid: u64,
    table: Table<Slot>,
    listeners: Listeners,
    door: Option<Door>,
    greetings: usize,
    /// Connections that the guest dialled, and how many they may be.
    dialled: usize,
    dialled_max: usize,
    /// The same of streams that the holder gave.
    joined: usize,
    joined_max: usize,
    power: Option<Power>,
    inbox: Inbox,
    timer: Timer,
    ticking: bool,
    /// Somebody's time runs; looked at by `sync`.
    waiting: bool,
    resets: VecDeque<Header>,
    /// Who may have something to say, each once, in the order of its turns.
    turns: VecDeque<Handle>,
    /// Whose registration may have to change, each once.
    touched: Vec<Handle>,
    /// Streams to take off the poller and close.
    buried: Vec<UnixStream>,
}

impl Muxer {
    pub(super) fn new(
        cid: u64,
        door: Option<Door>,
        power: Option<(u32, PowerSink)>,
        inbox: Inbox,
    ) -> io::Result<Self> {
        Ok(Self {
            cid,
            table: Table::new(CONNECTIONS_MAX),
            listeners: Listeners::default(),
            door,
            greetings: 0,
            dialled: 0,
            dialled_max: DIALLED_MAX.min(descriptors() / 2),
            joined: 0,
            joined_max: JOINED_MAX.min(descriptors() / 4),
            power: power.map(|(port, sink)| Power { port, sink, taken: false }),
            inbox,
            timer: Timer::new()?,
            ticking: false,
            waiting: false,
            resets: VecDeque::new(),
            turns: VecDeque::new(),
            touched: Vec::new(),
            buried: Vec::new(),
        })
    }

    pub(super) fn bell(&self) -> &Notifier {
        self.inbox.bell()
    }

    pub(super) fn timer(&self) -> &Timer {
        &self.timer
    }

    /// So many RSTs wait that no further packet should be heard before some are served.
    pub(super) fn is_choked(&self) -> bool {
        self.resets.len() >= RESETS_MAX
    }

    /// Whether the guest has had its connection to the monitor's own port.
    pub(super) fn power_taken(&self) -> bool {
        self.power.as_ref().is_some_and(|power| power.taken)
    }

    /// What [`Self::power_taken`] said where the guest was saved. Its agent cannot prove that it is
    /// who had that connection, so nobody gets another.
    pub(super) fn set_power_taken(&mut self, taken: bool) {
        if let Some(power) = &mut self.power {
            power.taken = taken;
        }
    }

    /// See [`Table::next_port`].
    pub(super) fn next_port(&self) -> u32 {
        self.table.next_port()
    }

    /// See [`Table::set_next_port`].
    pub(super) fn set_next_port(&mut self, port: u32) {
        self.table.set_next_port(port);
    }

    #[cfg(test)]
    pub(super) fn turns_len(&self) -> usize {
        self.turns.len()
    }

    /// Packets and buffers so far that broke the protocol.
    pub(super) fn faults(&self) -> u64 {
        self.inbox.counters.faults.load(Ordering::Relaxed)
    }

    fn fault(&self) {
        self.inbox.counters.faults.fetch_add(1, Ordering::Relaxed);
    }
}
