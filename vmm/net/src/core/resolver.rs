//! The guest's resolver: what it does not know itself it asks the host's resolvers, the next one
//! when one does not answer.

use std::net::SocketAddr;

use super::Net;
use super::out::Action;
use super::table::{FlowId, Key, Kind, Time};
use crate::config::Protocol;
use crate::dns::{self, Code, Query};
use crate::policy::Naming;

/// How long a resolver has to answer.
const PATIENCE: Time = Time::from_secs(2);
/// How many are asked for one question.
const TRIES: u8 = 4;
/// Questions at once.
const MOST: usize = 256;

/// A question that a resolver of the host was asked.
#[derive(Debug)]
pub(crate) struct Lookup {
    /// When the next one is asked.
    pub(crate) deadline: Time,
    query: Query,
    message: Vec<u8>,
    /// The number that the resolver was asked under.
    id: u16,
    tries: u8,
}

/// The host's resolvers, those that answer first.
#[derive(Debug)]
pub(super) struct Upstreams(Vec<SocketAddr>);

impl Upstreams {
    pub(super) fn new(servers: Vec<SocketAddr>) -> Self {
        Self(servers)
    }

    /// The list has become another, if this is true. One that is the same keeps its order.
    pub(super) fn set(&mut self, servers: Vec<SocketAddr>) -> bool {
        let (mut old, mut new) = (self.0.clone(), servers.clone());
        old.sort_unstable();
        new.sort_unstable();
        let differs = old != new;
        if differs {
            self.0 = servers;
        }
        differs
    }

    /// The one to ask.
    pub(super) fn first(&self) -> Option<SocketAddr> {
        self.0.first().copied()
    }

    /// It did not answer: others are asked first from now on.
    pub(super) fn failed(&mut self, server: SocketAddr) {
        if self.first() == Some(server) {
            self.0.rotate_left(1);
        }
    }
}

impl Net {
    /// A question of the guest.
    pub(super) fn query(&mut self, now: Time, guest: SocketAddr, resolver: SocketAddr, message: &[u8]) {
        self.counters.queries += 1;
        let query = match Query::parse(message) {
            Ok(query) => query,
            Err(Some(code)) => return self.send_datagram(resolver, guest, dns::error(message, code)),
            Err(None) => return,
        };
        if query.name == dns::HOST {
            let addresses = [self.config.gateway4.into(), self.config.gateway6.into()];
            return self.send_datagram(resolver, guest, query.answer(message, &addresses));
        }
        if let Some(answer) = self.peers_answer(&query, message) {
            return self.send_datagram(resolver, guest, answer);
        }
        if self.config.isolated {
            return self.send_datagram(resolver, guest, dns::error(message, Code::Refused));
        }
        let key = Key { protocol: Protocol::Udp, guest, remote: resolver, query: query.id };
        if self.table.find(&key).is_some() {
            // It is being asked.
            return;
        }
        let naming = self.policy.name(&query.name);
        self.named(now, guest, &query, naming);
        if let Naming::Refused(_) = naming {
            self.counters.refused += 1;
            return self.send_datagram(resolver, guest, dns::error(message, Code::Refused));
        }
        // Addresses that the host has no way to would only be tried in vain, and records of
        // services have addresses, and keys that hide names, where nobody looks for them.
        let useless = query.kind == dns::AAAA && !self.has_v6;
        if useless || dns::SERVICES.contains(&query.kind) && self.policy.is_about_names() {
            return self.send_datagram(resolver, guest, query.answer(message, &[]));
        }
        if let Some(kept) = self.cache.find(now, &query, message) {
            self.counters.cached += 1;
            let answer = match self.withheld(now, guest, &query, &kept) {
                Some(code) => dns::error(message, code),
                None => kept,
            };
            return self.send_datagram(resolver, guest, answer);
        }
        let lookups = |flow: &super::table::Flow| matches!(flow.kind, Kind::Lookup(_));
        if self.table.count(lookups) >= MOST
            && let Some(oldest) = self.table.oldest(lookups)
        {
            self.end(oldest, false, false);
        }
        self.ask(now, key, query, message.to_vec(), 0);
    }

    fn ask(&mut self, now: Time, key: Key, query: Query, mut message: Vec<u8>, tries: u8) {
        let Some(to) = self.upstreams.first().filter(|_| tries < TRIES) else {
            return self.send_datagram(key.remote, key.guest, dns::error(&message, Code::Failed));
        };
        self.make_room(now);
        let id = u16::from_le_bytes([self.number().to_le_bytes()[0], self.number().to_le_bytes()[1]]);
        let mut question = message.clone();
        question[..2].copy_from_slice(&id.to_be_bytes());
        message.shrink_to_fit();
        let lookup = Lookup { deadline: now + PATIENCE, query, message, id, tries };
        let flow = self.table.insert(now, key, to, Kind::Lookup(lookup));
        self.arm(flow);
        self.actions.push_back(Action::Connect { flow, protocol: Protocol::Udp, to, trusted: true });
        self.actions.push_back(Action::Datagram { flow, bytes: question });
    }

    /// A resolver answered.
    pub(super) fn lookup_answered(&mut self, now: Time, id: FlowId, mut bytes: Vec<u8>) {
        let Some(flow) = self.table.get(id) else { return };
        let (key, Kind::Lookup(lookup)) = (flow.key, &flow.kind) else { return };
        if !lookup.query.is_answered_by(lookup.id, &bytes) {
            return;
        }
        bytes[..2].copy_from_slice(&lookup.query.id.to_be_bytes());
        let (query, question) = (lookup.query.clone(), lookup.message.clone());
        match self.withheld(now, key.guest, &query, &bytes) {
            Some(code) => bytes = dns::error(&question, code),
            None => self.cache.keep(now, &query, &question, &bytes),
        }
        self.end(id, false, false);
        self.send_datagram(key.remote, key.guest, bytes);
    }

    /// How the guest is told that it is not told, if it is not to know an answer. Addresses of
    /// others are bound to their name.
    fn withheld(&mut self, now: Time, guest: SocketAddr, query: &Query, bytes: &[u8]) -> Option<Code> {
        let Some(answer) = dns::Answer::parse(&query.name, bytes) else {
            // What is not understood may lead anywhere.
            return self.policy.is_about_names().then_some(Code::Failed);
        };
        let reason = self.policy.answered(now, &answer).err()?;
        self.counters.refused += 1;
        self.named(now, guest, query, Naming::Refused(reason));
        Some(Code::Refused)
    }

    /// A resolver did not answer in time.
    pub(super) fn lookup_due(&mut self, now: Time, id: FlowId) {
        if self.table.get(id).is_some_and(|flow| matches!(&flow.kind, Kind::Lookup(l) if l.deadline > now)) {
            self.arm(id);
        } else {
            self.lookup_failed(now, id);
        }
    }

    /// The next resolver is asked.
    pub(super) fn lookup_failed(&mut self, now: Time, id: FlowId) {
        let Some(flow) = self.table.remove(id) else { return };
        self.actions.push_back(Action::Close { flow: id, abort: false });
        self.upstreams.failed(flow.to);
        if let Kind::Lookup(lookup) = flow.kind {
            self.ask(now, flow.key, lookup.query, lookup.message, lookup.tries + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_answer_is_asked_last() {
        let [a, b]: [SocketAddr; 2] = ["1.1.1.1:53".parse().unwrap(), "2.2.2.2:53".parse().unwrap()];
        let mut all = Upstreams::new(vec![a, b]);
        all.failed(b);
        assert_eq!(all.first(), Some(a));
        all.failed(a);
        assert_eq!(all.first(), Some(b));
        assert!(!all.set(vec![b, a]));
        assert_eq!(all.first(), Some(b));
        assert!(all.set(vec![a]));
        assert_eq!(all.first(), Some(a));
    }
}
