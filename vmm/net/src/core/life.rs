//! How flows end: for want of room, for silence, or because they are over.

use std::net::SocketAddr;

use serde_json::json;

use super::Net;
use super::log::About;
use super::out::Action;
use super::table::{Flow, FlowId, Key, Kind, Time};
use super::tcp::{Due, State};
use crate::config::Protocol;
use crate::dns::Query;
use crate::number::index;
use crate::policy::{Naming, Reason};

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
        let asked = self.table.get(id).map(|flow| match &flow.kind {
            Kind::Lookup(lookup) => lookup.failures(&flow.key),
            _ => Vec::new(),
        });
        self.end(id, true, true);
        self.answer_all(now, asked.unwrap_or_default());
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
    pub fn note(&mut self, now: Time, note: &str) {
        let line = self.log.line(now, About::Itself, || json!({"note": note}));
        self.actions.extend(line.map(Action::Log));
    }

    /// Something of the guest is not let out.
    pub(super) fn refused(&mut self, now: Time, key: &Key, reason: Reason) {
        self.refused_because(now, key, reason, reason.text());
    }

    pub(super) fn refused_because(&mut self, now: Time, key: &Key, reason: Reason, why: &str) {
        self.counters.refused += 1;
        let policy = &self.policy;
        let line = self.log.line(now, About::Denied, || {
            let mut line = about(key, policy.name_of(now, key.remote.ip()));
            line["verdict"] = json!("denied");
            line["reason"] = json!(why);
            if let Some(rule) = policy.denied_by(reason) {
                line["rule"] = json!(format!("deny {rule}"));
            }
            line
        });
        self.actions.extend(line.map(Action::Log));
    }

    /// Something of the guest is let out.
    pub(super) fn let_out(&mut self, now: Time, key: &Key, by: Option<usize>) {
        self.counters.allowed += 1;
        let policy = &self.policy;
        let line = self.log.line(now, About::Allowed, || {
            let mut line = about(key, policy.name_of(now, key.remote.ip()));
            line["verdict"] = json!("allowed");
            let rule = policy.allowed_by(by);
            line["rule"] = json!(rule.map_or("default".to_owned(), |rule| format!("allow {rule}")));
            line
        });
        self.actions.extend(line.map(Action::Log));
    }

    /// The guest asked for a name.
    pub(super) fn named(&mut self, now: Time, guest: SocketAddr, query: &Query, naming: Naming) {
        let about_it = match naming {
            Naming::Allowed(_) => {
                self.counters.names_allowed += 1;
                About::Allowed
            }
            Naming::Refused(_) => {
                self.counters.refused += 1;
                self.counters.names_refused += 1;
                About::Denied
            }
        };
        let policy = &self.policy;
        let line = self.log.line(now, about_it, || {
            let mut line =
                json!({"protocol": "dns", "from": guest.to_string(), "name": query.name, "type": query.kind});
            match naming {
                Naming::Allowed(by) => {
                    line["verdict"] = json!("allowed");
                    let rule = policy.allowed_by(by);
                    line["rule"] = json!(rule.map_or("default".to_owned(), |rule| format!("allow {rule}")));
                }
                Naming::Refused(reason) => {
                    line["verdict"] = json!("denied");
                    line["reason"] = json!(reason.text());
                    if let Some(rule) = policy.denied_by(reason) {
                        line["rule"] = json!(format!("deny {rule}"));
                    }
                }
            }
            line
        });
        self.actions.extend(line.map(Action::Log));
    }

    /// Ends a flow. The guest of a connection is told if it is to be.
    pub(super) fn end(&mut self, id: FlowId, abort: bool, tell: bool) {
        let Some(flow) = self.table.remove(id) else { return };
        if let Kind::Tcp(tcp) = &flow.kind {
            self.unwritten -= u64::from(tcp.unwritten);
            self.opening -= usize::from(tcp.state != State::Open);
            self.unread -= flow.talk.as_ref().map_or(0, |talk| talk.unread);
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

/// What a line says of a flow. Of pings there is no port.
fn about(key: &Key, name: Option<&str>) -> serde_json::Value {
    let end = |end: SocketAddr| match key.protocol {
        Protocol::Icmp => end.ip().to_string(),
        Protocol::Tcp | Protocol::Udp => end.to_string(),
    };
    let mut line =
        json!({"protocol": key.protocol.to_string(), "from": end(key.guest), "to": end(key.remote)});
    if let Some(name) = name {
        line["name"] = json!(name);
    }
    line
}

/// Whether a flow is a connection that is not open yet.
fn is_call(flow: &mut Flow) -> bool {
    matches!(&flow.kind, Kind::Tcp(tcp) if tcp.state != State::Open)
}
