//! The pure core: messages of the link, readiness of sockets and time go in; messages for the
//! guest and [`Action`]s for the host come out. It does no I/O and reads no clock.
//!
//! Whoever drives it gives it one message or event at a time, then does all that
//! [`Net::take_action`] gives, in order, and then sends what [`Net::next_frame`] gives for as long
//! as the link takes it. What the link does not take is not made: a flow's next segment is made
//! when there is room for it.

mod cache;
mod frag;
mod gateway;
mod hold;
mod host;
mod icmp;
mod life;
mod log;
mod out;
mod peers;
mod resolver;
mod stream;
mod table;
mod talk;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use crate::config::{ConfigError, Protocol, UsernetConfig};
use crate::link::{Hello, NetHeader};
use crate::policy::Policy;
use crate::wire::ip::{Packet, protocol};
use crate::wire::{Frame, Mac, kind};

pub use host::Failure;
pub use log::Counters;
pub use out::{Action, Data, Outgoing};
pub use table::{FlowId, Time};

use log::Log;
use out::Maker;
use table::{Key, Kind, Table};
use tcp::Limits;

/// This network's own address on the link: locally administered.
pub const OWN_MAC: Mac = Mac(*b"\x02nelly");
/// Messages that wait for the link beside the streams: answers, datagrams. What comes then is lost,
/// as datagrams may be.
const WAITING: usize = 256;

/// The network.
pub struct Net {
    config: UsernetConfig,
    limits: Limits,
    policy: Policy,
    random: Box<dyn FnMut() -> u64 + Send>,
    hello: Option<Hello>,
    guest: Option<Mac>,
    table: Table,
    actions: VecDeque<Action>,
    /// Whole messages.
    waiting: VecDeque<Outgoing>,
    /// Flows that have something for the guest.
    ready: VecDeque<FlowId>,
    /// Whose turn it is: that of a whole message.
    whole_first: bool,
    fragments: frag::Reassembly,
    upstreams: resolver::Upstreams,
    cache: cache::Cache,
    /// The names of the network that the guest is on with others.
    names: crate::peers::Names,
    next_advertisement: Option<Time>,
    /// The host has a way to the IPv6 Internet.
    has_v6: bool,
    /// Connections that are not open yet, by age; some of them are no more.
    calls: VecDeque<FlowId>,
    /// How many connections are not open yet.
    opening: usize,
    /// The bytes of all streams that host sockets did not take yet.
    unwritten: u64,
    /// The bytes of answers in streams that guests did not take yet.
    unread: usize,
    log: Log,
    counters: Counters,
}

impl Net {
    /// A network as `config` has it. `random` gives numbers that nobody guesses.
    ///
    /// # Errors
    /// What is wrong with the configuration.
    pub fn new(
        config: UsernetConfig,
        random: impl FnMut() -> u64 + Send + 'static,
    ) -> Result<Self, ConfigError> {
        config.check()?;
        let seconds = |seconds: u32| Time::from_secs(seconds.into());
        Ok(Self {
            limits: Limits {
                idle: seconds(config.tcp_idle),
                half_closed: seconds(config.tcp_half_closed_idle),
            },
            policy: Policy::new(&config),
            random: Box::new(random),
            hello: None,
            guest: config.guest_mac,
            table: Table::default(),
            actions: VecDeque::new(),
            waiting: VecDeque::new(),
            ready: VecDeque::new(),
            whole_first: true,
            fragments: frag::Reassembly::default(),
            upstreams: resolver::Upstreams::new(config.dns_servers.iter().map(|server| server.0).collect()),
            cache: cache::Cache::default(),
            names: crate::peers::Names::default(),
            next_advertisement: None,
            has_v6: false,
            calls: VecDeque::new(),
            opening: 0,
            unwritten: 0,
            unread: 0,
            log: Log::new(config.log_fd.is_some()),
            counters: Counters::default(),
            config,
        })
    }

    /// What was counted so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// How many flows there are.
    #[must_use]
    pub fn flows(&self) -> usize {
        self.table.len()
    }

    /// The addresses of the host's interfaces have become these.
    pub fn set_own_addresses(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.policy.set_own(addresses);
    }

    /// The resolvers of the host have become these. Not heard where the configuration names some.
    pub fn set_upstreams(&mut self, servers: Vec<SocketAddr>) {
        if self.config.dns_servers.is_empty() && self.upstreams.set(servers) {
            self.cache.clear();
        }
    }

    /// Whether the host has a way to the IPv6 Internet: a guest without one is not told of any.
    pub fn set_has_v6(&mut self, now: Time, has: bool) {
        if std::mem::replace(&mut self.has_v6, has) != has && self.hello.is_some() {
            self.next_advertisement = Some(now);
        }
    }

    /// Whether a guest is there that published ports can lead to.
    #[must_use]
    pub fn has_guest(&self) -> bool {
        self.maker().is_some()
    }

    /// The next thing to do for the host.
    pub fn take_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Self::tick`] is to be called next.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        [self.table.deadline(), self.next_advertisement, self.fragments.deadline(), self.log.deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Time) {
        while let Some(id) = self.table.due(now) {
            self.flow_due(now, id);
        }
        if self.next_advertisement.is_some_and(|time| time <= now) {
            self.advertise(now);
        }
        self.fragments.expire(now);
        if let Some(line) = self.log.due(now) {
            self.actions.push_back(Action::Log(line));
        }
    }

    /// A message of the link.
    pub fn message(&mut self, now: Time, message: &[u8]) {
        if let Some(hello) = Hello::parse(message) {
            self.begin(now, hello);
            return;
        }
        self.counters.from_guest += 1;
        if self.hello.is_none() || self.frame(now, message).is_none() {
            self.counters.malformed += 1;
        }
    }

    /// The guest's driver begins, perhaps anew.
    fn begin(&mut self, now: Time, hello: Hello) {
        if self.hello.is_some() {
            // Nobody in a guest that starts anew knows of the flows; those of a driver that does
            // are found again.
            self.waiting.clear();
        }
        self.hello = Some(hello);
        self.next_advertisement = Some(now);
        for id in self.table.ids() {
            self.wake(id);
        }
    }

    /// `None`: the frame lies about itself, or is not the guest's to send.
    fn frame(&mut self, now: Time, message: &[u8]) -> Option<()> {
        let (header, bytes) = NetHeader::parse(message)?;
        let frame = Frame::parse(bytes)?;
        if !frame.src.is_unicast() || frame.src == OWN_MAC {
            return None;
        }
        if frame.dst != OWN_MAC && frame.dst.is_unicast() {
            // For somebody who is not here.
            self.pass_on(&frame);
            return Some(());
        }
        self.guest = Some(frame.src);
        self.pass_on(&frame);
        let packet = match frame.kind {
            kind::ARP => return self.arp(frame.payload),
            kind::IPV4 => Packet::parse_v4(frame.payload)?,
            kind::IPV6 => Packet::parse_v6(frame.payload)?,
            // Others are nothing of ours.
            _ => return Some(()),
        };
        let known = header.flags & (NetHeader::NEEDS_CSUM | NetHeader::DATA_VALID) != 0;
        let input = Input { message, header, sum_is_known: known };
        if packet.fragment.is_none() {
            return self.packet(now, &packet, input);
        }
        self.counters.fragments += 1;
        let whole = self.fragments.add(now, &packet)?;
        let Some(payload) = whole else { return Some(()) };
        self.counters.reassembled += 1;
        // Streams are written from the message in hand, where this is not.
        if packet.protocol == protocol::TCP {
            return None;
        }
        let whole = Packet { fragment: None, payload: &payload, ..packet };
        self.packet(now, &whole, Input { header: NetHeader::default(), sum_is_known: false, ..input })
    }

    fn packet(&mut self, now: Time, packet: &Packet<'_>, input: Input<'_>) -> Option<()> {
        if !self.is_guests(packet) {
            self.counters.forged += 1;
            return None;
        }
        match packet.protocol {
            protocol::TCP => self.tcp_from_guest(now, packet, input),
            protocol::UDP => self.udp_from_guest(now, packet, input),
            protocol::ICMP if packet.src.is_ipv4() => self.icmp_from_guest(now, packet),
            protocol::ICMPV6 if packet.src.is_ipv6() => self.icmp_from_guest(now, packet),
            _ => Some(()),
        }
    }

    /// Whether the guest may send with this source: its own address, or none yet.
    fn is_guests(&self, packet: &Packet<'_>) -> bool {
        let config = &self.config;
        match packet.src {
            IpAddr::V4(src) => {
                src == config.guest4 || src.is_unspecified() && packet.protocol == protocol::UDP
            }
            IpAddr::V6(src) => {
                src.is_unspecified() && packet.protocol == protocol::ICMPV6
                    || src.is_unicast_link_local()
                    || config.prefix6.contains(src) && src != config.gateway6 && src != config.dns6
            }
        }
    }

    /// The way of frames to the guest, once both are known.
    fn maker(&self) -> Option<Maker> {
        let hello = self.hello?;
        Some(Maker { hello, guest: self.guest?, own: OWN_MAC, mtu: self.mtu().into() })
    }

    /// The link's MTU in bytes: what the configuration says, or the device if that is less.
    fn mtu(&self) -> u16 {
        let device = self.hello.map_or(0, |hello| hello.mtu);
        let device = if device == 0 { u32::MAX } else { device.max(crate::config::MIN_MTU.into()) };
        self.config.mtu.min(crate::number::at_most16(device))
    }

    fn number(&mut self) -> u32 {
        (self.random)().to_le_bytes().first_chunk().map_or(0, |four| u32::from_le_bytes(*four))
    }

    /// Queues whole messages, or loses them.
    fn queue(&mut self, messages: Vec<Outgoing>) {
        if self.waiting.len() + messages.len() > WAITING {
            self.counters.lost += 1;
        } else {
            self.waiting.extend(messages);
        }
    }

    /// Whether datagrams of the host would be queued. If not, they wait in their sockets.
    #[must_use]
    pub fn has_room(&self) -> bool {
        // The largest datagram has 54 fragments at the smallest MTU.
        self.waiting.len() + 64 <= WAITING && self.maker().is_some()
    }

    /// A flow may have something for the guest.
    fn wake(&mut self, id: FlowId) {
        if let Some(flow) = self.table.get(id)
            && !flow.queued
            && matches!(flow.kind, Kind::Tcp(_))
        {
            flow.queued = true;
            self.ready.push_back(id);
        }
        // While the link takes nothing, flows that are no more would pile up.
        if self.ready.len() > 2 * self.table.len() + WAITING {
            let table = &mut self.table;
            self.ready.retain(|id| table.get(*id).is_some());
        }
    }

    /// The next message for the link, to be sent as it is: it is not made again.
    pub fn next_frame(&mut self, now: Time) -> Option<Outgoing> {
        let maker = self.maker()?;
        // Neither keeps the other from the link.
        self.whole_first = !self.whole_first;
        if self.whole_first
            && let Some(message) = self.waiting.pop_front()
        {
            self.counters.to_guest += 1;
            return Some(message);
        }
        while let Some(id) = self.ready.pop_front() {
            if let Some(message) = self.stream_frame(now, id, &maker) {
                self.ready.push_back(id);
                self.counters.to_guest += 1;
                return Some(message);
            }
            if let Some(flow) = self.table.get(id) {
                flow.queued = false;
            }
        }
        let message = self.waiting.pop_front()?;
        self.counters.to_guest += 1;
        Some(message)
    }

    /// The key of a flow that is no question to the resolver.
    fn key(protocol: Protocol, guest: SocketAddr, remote: SocketAddr) -> Key {
        Key { protocol, guest, remote, query: None }
    }
}

/// What is known of the message in hand.
#[derive(Clone, Copy)]
struct Input<'a> {
    message: &'a [u8],
    header: NetHeader,
    /// Checksums need not be looked at.
    sum_is_known: bool,
}

impl Input<'_> {
    /// Where `part` lies in the message.
    fn range_of(&self, part: &[u8]) -> Option<std::ops::Range<usize>> {
        let start = part.as_ptr().addr().checked_sub(self.message.as_ptr().addr())?;
        let range = start..start + part.len();
        (range.end <= self.message.len()).then_some(range)
    }
}

/// Whether an end is where resolvers listen.
fn dns_port(end: SocketAddr) -> bool {
    end.port() == crate::dns::PORT
}
