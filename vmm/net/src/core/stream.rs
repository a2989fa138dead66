//! Connections: the guest's segments, and those for it.

use std::net::SocketAddr;

use super::out::{Action, Data, Maker, Outgoing};
use super::table::{FlowId, Held, Key, Kind, Time};
use super::tcp::{Heard, State, Tcp};
use super::{Input, Net, dns_port};
use crate::config::Protocol;
use crate::number::{index, len16, len32};
use crate::policy::Passage;
use crate::wire::checksum;
use crate::wire::ip::{self, Packet, protocol};
use crate::wire::tcp::{LEN, Segment, flag};

/// The bytes that a connection may keep when all the memory of streams is used up.
const LITTLE: usize = 16 << 10;

impl Net {
    /// A segment of the guest. `None`: it lies about itself.
    pub(super) fn tcp_from_guest(&mut self, now: Time, packet: &Packet<'_>, input: Input<'_>) -> Option<()> {
        let (segment, payload) = Segment::parse(packet.payload)?;
        if !input.sum_is_known && !checksum::is_right(packet.src, packet.dst, protocol::TCP, packet.payload) {
            return None;
        }
        let key = Self::key(
            Protocol::Tcp,
            SocketAddr::new(packet.src, segment.src),
            SocketAddr::new(packet.dst, segment.dst),
        );
        let calls = segment.flags & (flag::SYN | flag::ACK | flag::RST) == flag::SYN;
        let Some(id) = self.table.find(&key) else {
            if calls {
                self.call(now, key, &segment);
            } else if !segment.has(flag::RST) {
                self.reset_unknown(&key, &segment, payload.len());
            }
            return Some(());
        };
        let budget = u64::from(self.config.memory_mib) << 20;
        let has_memory = self.unwritten + len32_64(payload.len()) <= budget;
        let flow = self.table.get(id)?;
        let Kind::Tcp(tcp) = &mut flow.kind else { return Some(()) };
        if calls && tcp.state == State::Dialing && !tcp.began_with(&segment) {
            // The guest forgot the first call, and has another.
            self.end(id, true, false);
            self.call(now, key, &segment);
            return Some(());
        }
        // A connection that keeps nothing yet may always go on, a little at a time.
        let (mut segment, mut len) = (segment, payload.len());
        if !has_memory && len > LITTLE {
            (segment.flags, len) = (segment.flags & !flag::FIN, LITTLE);
        }
        let mut heard = tcp.segment(now, &segment, len);
        if !has_memory && tcp.unwritten > 0 {
            tcp.untake(&mut heard);
        }
        self.heard(now, id, &heard, segment.has(flag::RST), (input.message, input.range_of(payload)?));
        Some(())
    }

    /// What a segment means for the host.
    fn heard(
        &mut self,
        now: Time,
        id: FlowId,
        heard: &Heard,
        was_reset: bool,
        (message, payload): (&[u8], std::ops::Range<usize>),
    ) {
        self.opening -= usize::from(heard.opened);
        if heard.reset {
            self.end(id, true, !was_reset);
            return;
        }
        if heard.freed > 0 {
            self.has_read(id, index(heard.freed));
            self.actions.push_back(Action::Free { flow: id, len: heard.freed });
        }
        let (is_held, is_talk) =
            self.table.get(id).map_or((false, false), |flow| (flow.held.is_some(), flow.talk.is_some()));
        if (is_held || is_talk) && (heard.take.is_some() || heard.fin) {
            let bytes = heard.take.as_ref().map_or(&[][..], |take| &message[payload.clone()][take.clone()]);
            let goes_on = match is_talk {
                true => self.listen(now, id, bytes, heard.fin),
                false => self.hold(now, id, bytes, heard.fin),
            };
            if !goes_on {
                return;
            }
        } else if let Some(take) = &heard.take {
            let range = payload.start + take.start..payload.start + take.end;
            self.actions.push_back(Action::Write { flow: id, range });
            // Nothing of it is written yet; the shell says how much is left when it has tried.
            if let Some(flow) = self.table.get(id)
                && let Kind::Tcp(tcp) = &mut flow.kind
            {
                tcp.unwritten += len32(take.len());
                self.unwritten += len32_64(take.len());
            }
        }
        if heard.fin && !is_talk {
            self.actions.push_back(Action::Shutdown { flow: id });
        }
        self.settle(id);
    }

    /// Ends a connection that has come to its end; otherwise it goes on.
    pub(super) fn settle(&mut self, id: FlowId) {
        let Some(flow) = self.table.get(id) else { return };
        if let Kind::Tcp(tcp) = &flow.kind
            && tcp.is_done()
        {
            // The last word is the guest's to hear.
            if let Some(maker) = self.maker()
                && let Some(last) = self.stream_frame(Time::ZERO, id, &maker)
            {
                self.queue(vec![last]);
            }
            self.end(id, false, false);
            return;
        }
        self.wake(id);
        self.arm(id);
    }

    /// The guest begins a connection.
    fn call(&mut self, now: Time, key: Key, syn: &Segment) {
        if self.is_dns(key.remote.ip()) && dns_port(key.remote) {
            return self.begin_talk(now, key, syn);
        }
        let Passage { to, by, check } = match self.policy.decide(now, Protocol::Tcp, key.remote) {
            Ok(passage) => passage,
            Err(reason) => {
                self.refused(now, &key, reason);
                self.reset_unknown(&key, syn, 0);
                return;
            }
        };
        self.let_out(now, &key, by);
        self.make_room(now);
        self.counters.connections += 1;
        let tcp = Tcp::dialing(now, self.number(), syn, self.mss(key.remote));
        let id = self.table.insert(now, key, to, Kind::Tcp(tcp));
        if let (Some(check), Some(flow)) = (check, self.table.get(id)) {
            flow.held = Some(Box::new(Held { check, bytes: Vec::new() }));
        }
        self.begins(id);
        self.arm(id);
        self.actions.push_back(Action::Connect {
            flow: id,
            protocol: Protocol::Tcp,
            to,
            trusted: self.is_trusted(key.remote),
        });
    }

    /// The most payload of a segment between the guest and this address, in bytes.
    pub(super) fn mss(&self, remote: SocketAddr) -> u16 {
        self.mtu() - len16(ip::header_len(remote.ip()) + LEN)
    }

    /// The next message of a connection for the guest.
    pub(super) fn stream_frame(&mut self, now: Time, id: FlowId, maker: &Maker) -> Option<Outgoing> {
        let flow = self.table.get(id)?;
        let (key, Kind::Tcp(tcp)) = (flow.key, &mut flow.kind) else { return None };
        let v4 = key.remote.is_ipv4();
        let own_mss = len16(maker.mtu - ip::header_len(key.remote.ip()) - LEN);
        let mss = usize::from(tcp.mss.min(own_mss));
        let out = tcp.next_out(now, len32(maker.most(v4, mss)), own_mss);
        flow.last = flow.last.max(now);
        self.arm(id);
        let out = out?;
        let segment = Segment { src: key.remote.port(), dst: key.guest.port(), ..out.segment };
        let mut message = maker.segment((key.remote.ip(), key.guest.ip()), &segment, index(out.len), mss);
        if out.len > 0 {
            message.data = Data::Stream { flow: id, offset: index(out.offset), len: index(out.len) };
        } else {
            message.complete(&[]);
        }
        Some(message)
    }

    /// Says that there is no such connection.
    fn reset_unknown(&mut self, key: &Key, segment: &Segment, len: usize) {
        let answered = segment.has(flag::ACK);
        let len = len32(len) + u32::from(segment.has(flag::SYN)) + u32::from(segment.has(flag::FIN));
        let (seq, ack) = if answered { (segment.ack, 0) } else { (0, segment.seq.wrapping_add(len)) };
        self.reset(key, seq, ack, if answered { flag::RST } else { flag::RST | flag::ACK });
    }

    /// Says that a connection is no more.
    pub(super) fn reset_flow(&mut self, key: &Key, tcp: &Tcp) {
        let (seq, ack) = tcp.next();
        match tcp.state {
            State::Dialing => self.reset(key, 0, ack, flag::RST | flag::ACK),
            State::Calling => self.reset(key, seq, 0, flag::RST),
            State::Answering | State::Open => self.reset(key, seq, ack, flag::RST | flag::ACK),
        }
    }

    fn reset(&mut self, key: &Key, seq: u32, ack: u32, flags: u8) {
        let Some(maker) = self.maker() else { return };
        let segment =
            Segment { src: key.remote.port(), dst: key.guest.port(), seq, ack, flags, ..Segment::default() };
        let mut message = maker.segment((key.remote.ip(), key.guest.ip()), &segment, 0, usize::MAX);
        message.complete(&[]);
        self.queue(vec![message]);
    }
}

fn len32_64(len: usize) -> u64 {
    len32(len).into()
}
