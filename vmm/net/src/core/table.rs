//! The flows: found by their addresses or their number, and each with a time at which something is
//! due.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use super::resolver::Lookup;
use super::talk::Talk;
use super::tcp::Tcp;
use crate::config::Protocol;
use crate::number::{index, len32};
use crate::policy::Check;

/// Time since the network began.
pub type Time = Duration;

/// The number of a flow. It is not used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId {
    /// Its place, which is used again.
    pub slot: u32,
    /// How many flows had this place before.
    pub generation: u32,
}

/// Between whom a flow is, as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// TCP, UDP or pings.
    pub(crate) protocol: Protocol,
    /// The guest's end. Of pings: the port is their number.
    pub(crate) guest: SocketAddr,
    /// The other end. Of pings: the port is 0.
    pub(crate) remote: SocketAddr,
    /// The number of a question to the resolver.
    pub(crate) query: Option<u16>,
}

/// What a flow is.
#[derive(Debug)]
pub(crate) enum Kind {
    /// A connection.
    Tcp(Tcp),
    /// Datagrams.
    Udp,
    /// Echo requests.
    Ping,
    /// A question to the resolver.
    Lookup(Lookup),
}

/// The first bytes of a stream.
#[derive(Debug)]
pub(crate) struct Held {
    /// What they must say.
    pub(crate) check: Check,
    /// The bytes.
    pub(crate) bytes: Vec<u8>,
}

/// A flow.
#[derive(Debug)]
pub(crate) struct Flow {
    /// Its number.
    pub(crate) id: FlowId,
    /// Between whom it is.
    pub(crate) key: Key,
    /// What the host's socket is connected to.
    pub(crate) to: SocketAddr,
    /// What it is.
    pub(crate) kind: Kind,
    /// When something last came or went.
    pub(crate) last: Time,
    /// What the guest sent, until it is known whom it is for.
    pub(crate) held: Option<Box<Held>>,
    /// It is a stream of questions to the resolver.
    pub(crate) talk: Option<Box<Talk>>,
    /// It stands in the queue of those that have something for the guest.
    pub(crate) queued: bool,
    /// The entry it has among the timers.
    armed: Option<Time>,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    flow: Option<Box<Flow>>,
}

/// All flows.
#[derive(Debug, Default)]
pub(crate) struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_key: HashMap<Key, u32>,
    timers: BTreeSet<(Time, FlowId)>,
}

impl Table {
    /// How many there are.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Adds a flow.
    ///
    /// # Panics
    /// There is one with this key: a bug.
    pub(crate) fn insert(&mut self, now: Time, key: Key, to: SocketAddr, kind: Kind) -> FlowId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            len32(self.slots.len() - 1)
        });
        let place = &mut self.slots[index(slot)];
        let id = FlowId { slot, generation: place.generation };
        place.flow = Some(Box::new(Flow {
            id,
            key,
            to,
            kind,
            last: now,
            held: None,
            talk: None,
            queued: false,
            armed: None,
        }));
        assert!(self.by_key.insert(key, slot).is_none(), "a bug: two flows between the same ends");
        id
    }

    /// The flow between these ends.
    #[must_use]
    pub(crate) fn find(&self, key: &Key) -> Option<FlowId> {
        let slot = *self.by_key.get(key)?;
        Some(FlowId { slot, generation: self.slots[index(slot)].generation })
    }

    /// The flow with this number, if it still is.
    pub(crate) fn get(&mut self, id: FlowId) -> Option<&mut Flow> {
        self.slots.get_mut(index(id.slot))?.flow.as_deref_mut().filter(|flow| flow.id == id)
    }

    /// Takes a flow out.
    pub(crate) fn remove(&mut self, id: FlowId) -> Option<Flow> {
        let place = self.slots.get_mut(index(id.slot))?;
        let flow = *place.flow.take_if(|flow| flow.id == id)?;
        place.generation = place.generation.wrapping_add(1);
        self.by_key.remove(&flow.key);
        if let Some(armed) = flow.armed {
            self.timers.remove(&(armed, id));
        }
        self.free.push(id.slot);
        Some(flow)
    }

    /// Sees to it that the flow is told of `deadline`, perhaps before it.
    pub(crate) fn arm(&mut self, id: FlowId, deadline: Time) {
        let Some(flow) = self.slots.get_mut(index(id.slot)).and_then(|slot| slot.flow.as_deref_mut()) else {
            return;
        };
        match flow.armed {
            Some(armed) if armed <= deadline => return,
            Some(armed) => _ = self.timers.remove(&(armed, id)),
            None => {}
        }
        flow.armed = Some(deadline);
        self.timers.insert((deadline, id));
    }

    /// The next time at which something is due.
    #[must_use]
    pub(crate) fn deadline(&self) -> Option<Time> {
        self.timers.first().map(|(time, _)| *time)
    }

    /// Takes out a flow's timer that is due.
    pub(crate) fn due(&mut self, now: Time) -> Option<FlowId> {
        let &(_, id) = self.timers.first().filter(|(time, _)| *time <= now)?;
        self.timers.pop_first();
        if let Some(flow) = self.get(id) {
            flow.armed = None;
        }
        Some(id)
    }

    /// The flow that is silent for the longest time, of those that `are` so.
    pub(crate) fn oldest(&self, are: impl Fn(&Flow) -> bool) -> Option<FlowId> {
        let flows = self.slots.iter().filter_map(|slot| slot.flow.as_deref());
        flows.filter(|flow| are(flow)).min_by_key(|flow| flow.last).map(|flow| flow.id)
    }

    /// How many `are` so.
    pub(crate) fn count(&self, are: impl Fn(&Flow) -> bool) -> usize {
        self.flows().filter(|flow| are(flow)).count()
    }

    /// All of them.
    pub(crate) fn flows(&self) -> impl Iterator<Item = &Flow> {
        self.slots.iter().filter_map(|slot| slot.flow.as_deref())
    }

    /// The numbers of all flows.
    #[must_use]
    pub(crate) fn ids(&self) -> Vec<FlowId> {
        self.flows().map(|flow| flow.id).collect()
    }
}
