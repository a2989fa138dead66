//! Questions to the resolver in streams: this network is the peer, and no socket of the host is.

use std::net::SocketAddr;

use super::Net;
use super::out::Action;
use super::table::{FlowId, Key, Kind, Time};
use super::tcp::Tcp;
use crate::config::Protocol;
use crate::number::{be16, len32};
use crate::wire::tcp::Segment;

/// A message's header, in bytes (RFC 1035, section 4.1.1).
const HEADER: usize = 12;
/// No longer question is heard, in bytes.
const MOST: usize = 4096;
/// Answers that guests have not taken yet, of all streams, in bytes.
const MOST_UNREAD: usize = 4 << 20;

/// The same of one stream. No answer is longer than a quarter of it.
const MOST_UNREAD_OF_ONE: usize = 256 << 10;

/// A stream of questions.
#[derive(Debug, Default)]
pub(crate) struct Talk {
    /// The beginning of a question.
    bytes: Vec<u8>,
    /// Questions that are being asked.
    waiting: u32,
    /// The guest asks no more.
    ended: bool,
    /// Bytes of answers that it has not taken.
    pub(super) unread: usize,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker {
    pub(super) guest: SocketAddr,
    pub(super) resolver: SocketAddr,
    /// It asks in a stream, and is answered there.
    pub(super) in_stream: bool,
}

impl Asker {
    /// Of the flow of a question.
    pub(super) fn of(key: &Key) -> Self {
        Self { guest: key.guest, resolver: key.remote, in_stream: key.protocol == Protocol::Tcp }
    }

    /// The key of the flow of a question.
    pub(super) fn key(self, number: u16) -> Key {
        let protocol = if self.in_stream { Protocol::Tcp } else { Protocol::Udp };
        Key { protocol, guest: self.guest, remote: self.resolver, query: Some(number) }
    }
}

impl Net {
    /// The guest begins to ask in a stream.
    pub(super) fn begin_talk(&mut self, now: Time, key: Key, syn: &Segment) {
        self.make_room(now);
        self.counters.connections += 1;
        let tcp = Tcp::dialing(now, self.number(), syn, self.mss(key.remote));
        let id = self.table.insert(now, key, key.remote, Kind::Tcp(tcp));
        if let Some(flow) = self.table.get(id) {
            flow.talk = Some(Box::default());
        }
        self.begins(id);
        self.actions.push_back(Action::Local { flow: id });
        self.connected(now, id);
    }

    /// Bytes of such a stream, and perhaps its end. `false`: the stream is no more.
    pub(super) fn listen(&mut self, now: Time, id: FlowId, bytes: &[u8], fin: bool) -> bool {
        let Some(flow) = self.table.get(id) else { return false };
        let (key, Some(talk)) = (flow.key, &mut flow.talk) else { return true };
        talk.bytes.extend(bytes);
        let mut bytes = std::mem::take(&mut talk.bytes);
        let mut at = 0;
        let asker = Asker { guest: key.guest, resolver: key.remote, in_stream: true };
        loop {
            let Some(talk) = self.table.get(id).and_then(|flow| flow.talk.as_mut()) else { return false };
            let Some(len) = be16(&bytes, at).map(usize::from) else { break };
            // Too long, or too short to be one.
            if !(HEADER..=MOST).contains(&len) {
                self.end(id, true, true);
                return false;
            }
            let Some(question) = bytes.get(at + 2..at + 2 + len) else { break };
            at += 2 + len;
            talk.waiting += 1;
            self.query(now, asker, question);
        }
        bytes.drain(..at);
        if let Some(talk) = self.table.get(id).and_then(|flow| flow.talk.as_mut()) {
            // Whatever was asked before the end counts.
            (talk.bytes, talk.ended) = (bytes, talk.ended || fin);
        }
        self.ends_talk(now, id);
        true
    }

    /// Answers whoever asked. `None`: there is nothing to be said.
    pub(super) fn answer(&mut self, now: Time, asker: Asker, answer: Option<Vec<u8>>) {
        if !asker.in_stream {
            if let Some(answer) = answer {
                self.send_datagram(asker.resolver, asker.guest, answer);
            }
            return;
        }
        let Some(id) = self.table.find(&Self::key(Protocol::Tcp, asker.guest, asker.resolver)) else {
            return;
        };
        let Some(flow) = self.table.get(id) else { return };
        let (Some(talk), Kind::Tcp(tcp)) = (&mut flow.talk, &mut flow.kind) else { return };
        talk.waiting = talk.waiting.saturating_sub(1);
        if let Some(answer) = answer
            && let Ok(len) = u16::try_from(answer.len())
        {
            let bytes = [&len.to_be_bytes()[..], &answer].concat();
            if talk.unread + bytes.len() > MOST_UNREAD_OF_ONE || self.unread + bytes.len() > MOST_UNREAD {
                self.end(id, true, true);
                return;
            }
            talk.unread += bytes.len();
            self.unread += bytes.len();
            tcp.received(now, len32(bytes.len()));
            self.actions.push_back(Action::Feed { flow: id, bytes });
        }
        self.ends_talk(now, id);
        self.settle(id);
    }

    /// A stream in which nothing more is asked ends when everything is answered.
    fn ends_talk(&mut self, now: Time, id: FlowId) {
        let flow = self.table.get(id);
        if flow.is_some_and(|flow| flow.talk.as_ref().is_some_and(|talk| talk.ended && talk.waiting == 0)) {
            self.ended(now, id);
        }
    }

    /// The guest has bytes of answers.
    pub(super) fn has_read(&mut self, id: FlowId, len: usize) {
        if let Some(talk) = self.table.get(id).and_then(|flow| flow.talk.as_mut()) {
            talk.unread -= len.min(talk.unread);
            self.unread -= len.min(self.unread);
        }
    }
}
