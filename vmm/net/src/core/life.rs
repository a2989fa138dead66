//! How flows end: for want of room, for silence, or because they are over.

use std::net::SocketAddr;

use super::Net;
use super::out::Action;
use super::table::{Flow, FlowId, Kind, Time};
use super::tcp::{Due, State};
use crate::config::Protocol;
use crate::number::index;
use crate::policy::Reason;

impl Net {
    /// Makes room for one more flow: the one that was silent for the longest time goes.
    pub(super) fn make_room(&mut self, now: Time) {
        let most = index(self.config.max_flows);
        if self.table.len() < most {
            return;
        }
        // Calls that nobody has answered, and datagrams, go before connections, if they are many:
        // whoever floods a published port with them ends no connection.
        let datagrams = |flow: &Flow| !matches!(flow.kind, Kind::Tcp(_));
        let oldest = if self.opening > most / 2 {
            self.oldest_call()
        } else if self.table.count(datagrams) > most / 8 {
            self.table.oldest(datagrams)
        } else {
            self.table.oldest(|_| true)
        };
        let Some(id) = oldest else { return };
        self.counters.evicted += 1;
        self.note(now, "there are too many flows: the one that was silent for longest is ended");
        self.end(id, true, true);
    }

    /// A connection begins that is not open yet.
    pub(super) fn begins(&mut self, id: FlowId) {
        self.opening += 1;
        self.calls.push_back(id);
        if self.calls.len() > 4 * index(self.config.max_flows) {
            let table = &mut self.table;
            self.calls.retain(|id| table.get(*id).is_some_and(is_call));
        }
    }

    fn oldest_call(&mut self) -> Option<FlowId> {
        while let Some(id) = self.calls.pop_front() {
            if self.table.get(id).is_some_and(is_call) {
                return Some(id);
            }
        }
        None
    }

    /// Asks for a line in the log, of which only so many come.
    pub fn note(&mut self, now: Time, line: &str) {
        if let Some(line) = self.log.line(now, line) {
            self.actions.push_back(Action::Log(line));
        }
    }

    pub(super) fn refused(&mut self, now: Time, protocol: Protocol, to: SocketAddr, reason: Reason) {
        self.counters.refused += 1;
        self.note(now, &format!("refused: {protocol} to {to}: {}", reason.text()));
    }

    /// Ends a flow. The guest of a connection is told if it is to be.
    pub(super) fn end(&mut self, id: FlowId, abort: bool, tell: bool) {
        let Some(flow) = self.table.remove(id) else { return };
        if let Kind::Tcp(tcp) = &flow.kind {
            self.unwritten -= u64::from(tcp.unwritten);
            self.opening -= usize::from(tcp.state != State::Open);
            if tell {
                self.reset_flow(&flow.key, tcp);
            }
        }
        self.actions.push_back(Action::Close { flow: id, abort });
    }

    /// A flow's time is due.
    pub(super) fn flow_due(&mut self, now: Time, id: FlowId) {
        let (limits, udp_idle) = (self.limits, Time::from_secs(self.config.udp_idle.into()));
        let Some(flow) = self.table.get(id) else { return };
        match &mut flow.kind {
            Kind::Tcp(tcp) => match tcp.due(now, limits) {
                Due::Go => {
                    self.wake(id);
                    self.arm(id);
                }
                Due::GiveUp => {
                    self.counters.timed_out += 1;
                    self.end(id, true, true);
                }
            },
            Kind::Udp | Kind::Ping if flow.last + udp_idle <= now => {
                self.counters.timed_out += 1;
                self.end(id, false, false);
            }
            Kind::Udp | Kind::Ping => self.arm(id),
            Kind::Lookup(_) => self.lookup_due(now, id),
        }
    }

    /// Has the flow told when its time is due.
    pub(super) fn arm(&mut self, id: FlowId) {
        let (limits, udp_idle) = (self.limits, Time::from_secs(self.config.udp_idle.into()));
        let Some(flow) = self.table.get(id) else { return };
        let deadline = match &flow.kind {
            Kind::Tcp(tcp) => tcp.deadline(limits),
            Kind::Udp | Kind::Ping => Some(flow.last + udp_idle),
            Kind::Lookup(lookup) => Some(lookup.deadline),
        };
        if let Some(deadline) = deadline {
            self.table.arm(id, deadline);
        }
    }
}

/// Whether a flow is a connection that is not open yet.
fn is_call(flow: &mut Flow) -> bool {
    matches!(&flow.kind, Kind::Tcp(tcp) if tcp.state != State::Open)
}
