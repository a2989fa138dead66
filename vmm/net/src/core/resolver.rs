//! The guest's resolver: what it does not know itself it asks the host's resolvers, the next one
//! when one does not answer. What is asked while the same is being asked waits for that answer.

use std::net::SocketAddr;

use super::Net;
use super::out::Action;
use super::table::{FlowId, Key, Kind, Time};
use super::talk::Asker;
use crate::config::Protocol;
use crate::dns::{self, Code, Query};
use crate::number::{be16, len16};
use crate::policy::{Naming, Reason};

/// How long a resolver has to answer.
const PATIENCE: Time = Time::from_secs(2);
/// How many are asked for one question.
const TRIES: u8 = 4;
/// Questions at once.
const MOST: usize = 256;
/// Questions that wait for the answer to the same one. It is given to all at once, and so many
/// find room on their way to the guest (`Net::has_room`) if each takes three datagrams. Others are
/// asked by themselves.
const MOST_WAITING: usize = 20;
/// The longest message that is compared with others, in bytes: as a resolver's plain question.
const LONGEST_SAME: usize = 512;

/// A question that a resolver of the host was asked.
#[derive(Debug)]
pub(crate) struct Lookup {
    /// When the next one is asked.
    pub(crate) deadline: Time,
    query: Query,
    message: Vec<u8>,
    /// What is equal in the same question of others, unless it is too long.
    same: Option<Vec<u8>>,
    /// The number that the resolver was asked under.
    id: u16,
    tries: u8,
    /// What a resolver has answered in a stream so far.
    got: Vec<u8>,
    /// Who asked the same since.
    others: Vec<Other>,
}

/// Somebody who asked what was being asked already.
#[derive(Debug)]
struct Other {
    key: Key,
    query: Query,
    /// The question without what comes behind it.
    message: Vec<u8>,
}

impl Lookup {
    fn new(query: Query, message: &[u8]) -> Self {
        let (message, same) = (message.to_vec(), Self::same(&query, message));
        let deadline = Time::ZERO;
        Self { deadline, query, message, same, id: 0, tries: 0, got: Vec::new(), others: Vec::new() }
    }

    fn same(query: &Query, message: &[u8]) -> Option<Vec<u8>> {
        (message.len() <= LONGEST_SAME).then(|| query.same(message))
    }

    /// What all who wait for it are answered when nobody is asked any more. `key` is that of its
    /// flow.
    pub(super) fn failures(&self, key: &Key) -> Vec<(Asker, Vec<u8>)> {
        let first = (Asker::of(key), dns::error(&self.message, Code::Failed));
        let others = self.others.iter();
        let others = others.map(|other| (Asker::of(&other.key), dns::error(&other.message, Code::Failed)));
        std::iter::once(first).chain(others).collect()
    }
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
    pub(super) fn query(&mut self, now: Time, asker: Asker, message: &[u8]) {
        let guest = asker.guest;
        self.counters.queries += 1;
        let query = match Query::parse(message) {
            Ok(query) => query,
            Err(Some(code)) => return self.answer(now, asker, Some(dns::error(message, code))),
            Err(None) => return self.answer(now, asker, None),
        };
        if query.name == dns::HOST {
            let addresses = [self.config.gateway4.into(), self.config.gateway6.into()];
            return self.answer(now, asker, Some(query.answer(message, &addresses)));
        }
        if let Some(answer) = self.peers_answer(&query, message) {
            return self.answer(now, asker, Some(answer));
        }
        if self.config.isolated {
            self.named(now, guest, &query, Naming::Refused(Reason::Isolated));
            return self.answer(now, asker, Some(dns::error(message, Code::Refused)));
        }
        let key = asker.key(query.id);
        if self.table.find(&key).is_some() {
            // It is being asked, and is answered once.
            return self.answer(now, asker, None);
        }
        let naming = self.policy.name(&query.name);
        self.named(now, guest, &query, naming);
        if let Naming::Refused(_) = naming {
            return self.answer(now, asker, Some(dns::error(message, Code::Refused)));
        }
        // Addresses that the host has no way to would only be tried in vain, and records of
        // services have addresses, and keys that hide names, where nobody looks for them.
        let useless = query.kind == dns::AAAA && !self.has_v6;
        if useless || dns::SERVICES.contains(&query.kind) && self.policy.is_about_names() {
            return self.answer(now, asker, Some(query.answer(message, &[])));
        }
        if let Some(kept) = self.cache.find(now, &query, message) {
            self.counters.cached += 1;
            let answer = match self.withheld(now, guest, &query, &kept) {
                Some(code) => dns::error(message, code),
                None => kept,
            };
            return self.answer(now, asker, Some(answer));
        }
        if self.waits(now, key, &query, message) {
            return;
        }
        let lookups = |flow: &super::table::Flow| matches!(flow.kind, Kind::Lookup(_));
        // Those that are being asked go on: who asks without end has no answers.
        if self.table.count(lookups) >= MOST {
            return self.answer(now, asker, Some(dns::error(message, Code::Failed)));
        }
        self.ask(now, key, Lookup::new(query, message));
    }

    /// Lets a question wait for the answer to the same one, if that is being asked.
    fn waits(&mut self, now: Time, key: Key, query: &Query, message: &[u8]) -> bool {
        let Some(same) = Lookup::same(query, message) else { return false };
        let (mut asked, mut waits) = (None, false);
        for flow in self.table.flows() {
            let Kind::Lookup(lookup) = &flow.kind else { continue };
            // What comes in a stream may be too long for others.
            if flow.key.protocol != key.protocol || lookup.same.as_ref() != Some(&same) {
                continue;
            }
            waits |= lookup.others.iter().any(|other| other.key == key);
            // One that has failed once has less time left than a question of its own.
            if lookup.tries == 0 && lookup.others.len() < MOST_WAITING {
                asked = Some(flow.id);
            }
        }
        if waits {
            // It is answered once.
            self.answer(now, Asker::of(&key), None);
            return true;
        }
        let Some(flow) = asked.and_then(|id| self.table.get(id)) else { return false };
        let Kind::Lookup(lookup) = &mut flow.kind else { return false };
        let message = query.without_rest(message).to_vec();
        lookup.others.push(Other { key, query: query.clone(), message });
        true
    }

    fn ask(&mut self, now: Time, key: Key, mut lookup: Lookup) {
        let Some(to) = self.upstreams.first().filter(|_| lookup.tries < TRIES) else {
            return self.answer_all(now, lookup.failures(&key));
        };
        self.make_room(now);
        lookup.id = u16::from_le_bytes([self.number().to_le_bytes()[0], self.number().to_le_bytes()[1]]);
        lookup.deadline = now + PATIENCE;
        lookup.got = Vec::new();
        let question = under(lookup.id, &lookup.message);
        let flow = self.table.insert(now, key, to, Kind::Lookup(lookup));
        self.arm(flow);
        self.actions.push_back(Action::Connect { flow, protocol: key.protocol, to, trusted: true });
        // A stream is asked when it is connected.
        if key.protocol == Protocol::Udp {
            self.actions.push_back(Action::Datagram { flow, bytes: question });
        }
    }

    /// Answers everybody who waited for something.
    pub(super) fn answer_all(&mut self, now: Time, answers: Vec<(Asker, Vec<u8>)>) {
        for (asker, answer) in answers {
            self.answer(now, asker, Some(answer));
        }
    }

    /// A resolver answered.
    pub(super) fn lookup_answered(&mut self, now: Time, id: FlowId, mut bytes: Vec<u8>) {
        let Some(flow) = self.table.get(id) else { return };
        let (key, Kind::Lookup(lookup)) = (flow.key, &mut flow.kind) else { return };
        if !lookup.query.is_answered_by(lookup.id, &bytes) {
            return;
        }
        let others = std::mem::take(&mut lookup.others);
        let answer = bytes.clone();
        bytes[..2].copy_from_slice(&lookup.query.id.to_be_bytes());
        let (query, question) = (lookup.query.clone(), lookup.message.clone());
        match self.withheld(now, key.guest, &query, &bytes) {
            Some(code) => bytes = dns::error(&question, code),
            // What came in a stream may not fit a datagram.
            None if key.protocol == Protocol::Tcp && bytes.len() > 512 => {}
            None => self.cache.keep(now, &query, &question, &bytes),
        }
        self.end(id, false, false);
        self.answer(now, Asker::of(&key), Some(bytes));
        for Other { key, query, message } in others {
            let mut bytes = answer.clone();
            match self.withheld(now, key.guest, &query, &bytes) {
                Some(code) => bytes = dns::error(&message, code),
                None => query.sign(&message, &mut bytes),
            }
            self.answer(now, Asker::of(&key), Some(bytes));
        }
    }

    /// Whether a flow is a question whose answer comes in a stream, so that [`Self::answer_part`]
    /// is to be told of what the socket gives.
    pub fn answers_in_stream(&mut self, id: FlowId) -> bool {
        let flow = self.table.get(id);
        flow.is_some_and(|flow| matches!(flow.kind, Kind::Lookup(_)) && flow.key.protocol == Protocol::Tcp)
    }

    /// The socket of a question is connected: it is asked.
    pub(super) fn lookup_connected(&mut self, id: FlowId) {
        let Some(flow) = self.table.get(id) else { return };
        if let (Kind::Lookup(lookup), Protocol::Tcp) = (&flow.kind, flow.key.protocol) {
            let question = under(lookup.id, &lookup.message);
            let bytes = [&len16(question.len()).to_be_bytes()[..], &question].concat();
            self.actions.push_back(Action::WriteHeld { flow: id, bytes });
        }
    }

    /// A resolver answers in a stream: some bytes of it.
    pub fn answer_part(&mut self, now: Time, id: FlowId, bytes: &[u8]) {
        let Some(flow) = self.table.get(id) else { return };
        let Kind::Lookup(lookup) = &mut flow.kind else { return };
        lookup.got.extend(bytes);
        let Some(len) = be16(&lookup.got, 0).map(usize::from) else { return };
        if let Some(message) = lookup.got.get(2..2 + len) {
            let message = message.to_vec();
            self.lookup_answered(now, id, message);
            // It was another answer than that to the question.
            if self.answers_in_stream(id) {
                self.lookup_failed(now, id);
            }
        }
    }

    /// The socket of a question broke, if it was one: the next resolver is asked soon.
    pub(super) fn lookup_broken(&mut self, id: FlowId) -> bool {
        let Some(Kind::Lookup(lookup)) = self.table.get(id).map(|flow| &mut flow.kind) else { return false };
        lookup.deadline = Time::ZERO;
        self.arm(id);
        true
    }

    /// How the guest is told that it is not told, if it is not to know an answer. Addresses of
    /// others are bound to their name.
    fn withheld(&mut self, now: Time, guest: SocketAddr, query: &Query, bytes: &[u8]) -> Option<Code> {
        let Some(answer) = dns::Answer::parse(&query.name, bytes) else {
            // What is not understood may lead anywhere.
            return self.policy.is_about_names().then_some(Code::Failed);
        };
        let reason = self.policy.answered(now, &answer).err()?;
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
        if let Kind::Lookup(mut lookup) = flow.kind {
            lookup.tries += 1;
            self.ask(now, flow.key, lookup);
        }
    }
}

/// A question under another number.
fn under(id: u16, message: &[u8]) -> Vec<u8> {
    let mut question = message.to_vec();
    question[..2].copy_from_slice(&id.to_be_bytes());
    question
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
