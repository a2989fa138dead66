//! One thread around the core: it owns the sockets and their buffers, waits for the link, the
//! sockets and time, and does what the core says. Nothing in it blocks but that wait.

mod actions;
mod answers;
mod bind;
mod control;
mod gate;
mod handover;
mod holder;
mod host;
mod journal;
mod listen;
mod peers;
mod reader;
mod ring;
mod socket;
mod time;

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;

use crate::config::{ConfigError, MAX_FLOWS, UsernetConfig};
use crate::core::{Counters, Data, FlowId, Net, Outgoing, Time};
use crate::link::{Hello, MAX_MESSAGE};
use crate::number::index;
use crate::sys::{Poller, Ready};

use gate::Gate;
use host::Host;
use listen::{Listener, Listeners};
use socket::{Socket, receive, send_parts};

pub use bind::{Bound, ListenError, bind};
pub use host::reaches_ipv6;
pub use journal::Journal;
pub use reader::Reader;

/// Where the host has its resolvers.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What the link is called among those that are waited for: no flow has such a place.
const LINK: u64 = u32::MAX as u64;
/// The first published port; others follow it downwards.
const LISTENER: u64 = LINK - 1;
/// What the port on a switch is called: far below the last published port, far above any flow.
const PEERS: u64 = LINK - (1 << 20);
/// And the socket of whoever holds the machine.
const CONTROL: u64 = PEERS - 1;
/// Messages of the link that are taken before the sockets have their turn.
const TURN: usize = 64;

/// Why a network cannot begin, or ends.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is wrong.
    #[error("the configuration is wrong: {0}")]
    Config(#[from] ConfigError),
    /// A port cannot be published.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The system refuses something.
    #[error("cannot {0}")]
    System(&'static str, #[source] io::Error),
}

/// A network that runs.
pub struct Shell {
    net: Net,
    start: Instant,
    poller: Poller,
    link: OwnedFd,
    link_readable: bool,
    link_gate: Gate,
    link_ended: bool,
    /// The message that the link did not take.
    pending: Option<Vec<u8>>,
    buffer: Box<[u8]>,
    sockets: Vec<Option<Socket>>,
    /// Flows with sockets that may be read.
    work: VecDeque<FlowId>,
    /// Those of them whose datagrams the link has no room for.
    stalled: VecDeque<FlowId>,
    /// Bytes of all rings, and how many they may be.
    ring_bytes: usize,
    ring_budget: usize,
    listeners: Listeners,
    host: Host,
    log: Option<Arc<Journal>>,
    /// The port on a switch.
    peers: Option<peers::Peers>,
    /// Whose turn it is on the link: that of other machines.
    peers_first: bool,
    /// Whoever holds the machine.
    control: Option<control::Control>,
    /// Who puts secrets into streams.
    secrets: Option<OwnedFd>,
}

/// What a published port is called among those that are waited for.
fn token(place: usize) -> u64 {
    LISTENER - u64::from(crate::number::len32(place))
}

impl Shell {
    /// A network on `link`, a message socket. Published ports listen when this returns, and no file
    /// is opened after it. `reader` reads [`RESOLV_CONF`] where the configuration has no resolvers.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn new(
        config: UsernetConfig,
        link: OwnedFd,
        log: Option<Arc<Journal>>,
        reader: Option<Reader>,
    ) -> Result<Self, Error> {
        let poller = Poller::new().map_err(|e| Error::System("wait for sockets", e))?;
        poller.add(&link, LINK).map_err(|e| Error::System("wait for the link", e))?;
        let mut config = config;
        let few = limit_flows(&mut config);
        let mut listeners = Listeners::default();
        for publish in &config.publish {
            // A configuration has no more ports than there are places.
            if let Some(place) = listeners.add(Listener::new(bind(*publish)?)) {
                poller
                    .add(listeners[place].file(), token(place))
                    .map_err(|e| Error::System("wait for a published port", e))?;
            }
        }
        let ring_budget = index(config.memory_mib) << 20;
        let keys = std::hash::RandomState::new();
        let mut count = 0_u64;
        let random = move || {
            count += 1;
            std::hash::BuildHasher::hash_one(&keys, count)
        };
        let mut net = Net::new(config, random)?;
        if let Some(few) = few {
            net.note(Time::ZERO, &few);
        }
        let mut host = Host::new(reader);
        host.refresh(Time::ZERO, &mut net);
        Ok(Self {
            net,
            start: Instant::now(),
            poller,
            link,
            link_readable: true,
            link_gate: Gate::new(),
            link_ended: false,
            pending: None,
            buffer: vec![0; MAX_MESSAGE].into_boxed_slice(),
            sockets: Vec::new(),
            work: VecDeque::new(),
            stalled: VecDeque::new(),
            ring_bytes: 0,
            ring_budget,
            listeners,
            host,
            log,
            peers: None,
            peers_first: false,
            control: None,
            secrets: None,
        })
    }

    /// Takes a port on the switch of a network of machines, a message socket.
    ///
    /// # Errors
    /// The system cannot wait for it.
    pub fn join(&mut self, port: OwnedFd) -> Result<(), Error> {
        self.poller.add(&port, PEERS).map_err(|e| Error::System("wait for the switch", e))?;
        self.peers = Some(peers::Peers::new(port, None));
        Ok(())
    }

    /// Where the published ports listen, in the order of the configuration, as
    /// `ADDRESS:HOST:GUEST/PROTOCOL`.
    pub fn published(&self) -> impl Iterator<Item = String> + '_ {
        self.listeners.iter().map(Listener::text)
    }

    /// Serves until the link ends. Gives what was counted.
    ///
    /// # Errors
    /// The system can wait for nothing any more.
    pub fn run(mut self) -> Result<Counters, Error> {
        while !self.link_ended {
            let busy = self.link_readable || !self.work.is_empty();
            let timeout = if busy || self.has_peer_work() || self.has_requests() {
                Some(Time::ZERO)
            } else {
                self.deadline().map(|deadline| deadline.saturating_sub(self.now()))
            };
            self.poller.wait(timeout).map_err(|e| Error::System("wait for sockets", e))?;
            let ready: Vec<Ready> = self.poller.ready().collect();
            for ready in ready {
                self.became_ready(ready);
            }
            self.take_requests();
            self.take_messages();
            if self.net.has_guest() {
                self.hear_callers(self.now());
            }
            self.read_sockets();
            let now = self.now();
            self.net.tick(now);
            self.act(now);
            self.link_gate.tick(now);
            // Neither keeps the other from the link.
            self.peers_first = !self.peers_first;
            if self.peers_first {
                self.take_from_peers(now);
                self.send_messages(now);
            } else {
                self.send_messages(now);
                self.take_from_peers(now);
            }
        }
        self.net.close_all();
        let now = self.now();
        self.act(now);
        Ok(self.net.counters())
    }

    /// When something is to be done though nothing becomes ready.
    fn deadline(&self) -> Option<Time> {
        let callers = self.listeners.iter().filter_map(Listener::due).min();
        let callers = callers.filter(|_| self.net.has_guest());
        [self.net.deadline(), self.link_gate.deadline(), callers].into_iter().flatten().min()
    }

    fn now(&self) -> Time {
        self.start.elapsed()
    }

    fn became_ready(&mut self, ready: Ready) {
        if ready.token == LINK {
            self.link_readable |= ready.readable;
            if ready.writable {
                self.link_gate.opens();
            }
            return;
        }
        if let Some(peers) = self.peers.as_mut().filter(|_| ready.token == PEERS) {
            peers.readable |= ready.readable;
            if ready.writable {
                peers.opens();
            }
            return;
        }
        if let Some(control) = self.control.as_mut().filter(|_| ready.token == CONTROL) {
            control.readable |= ready.readable;
            return;
        }
        if let Some(place) = self.called(ready.token) {
            self.listen(place);
            return;
        }
        let slot = crate::number::fits::<u64, u32>(ready.token & LINK, "it is masked");
        let generation = crate::number::fits(ready.token >> 32, "it is shifted");
        self.socket_ready(FlowId { slot, generation }, ready);
    }

    /// Takes some messages of the link.
    fn take_messages(&mut self) {
        if !self.link_readable {
            return;
        }
        let now = self.now();
        self.host.refresh(now, &mut self.net);
        for _ in 0..TURN {
            let mut buffer = std::mem::take(&mut self.buffer);
            match receive(&self.link, &mut buffer) {
                // Longer than any message may be, or the end.
                Ok(MAX_MESSAGE) | Err(Errno::INTR) => {}
                Ok(0) => self.link_ended = true,
                Ok(len) => {
                    let now = self.now();
                    if let Some(hello) = Hello::parse(&buffer[..len]) {
                        self.greet_peers(hello);
                    }
                    self.net.message(now, &buffer[..len]);
                    self.act_on(now, &buffer[..len]);
                }
                Err(Errno::AGAIN) => self.link_readable = false,
                // The monitor is gone.
                Err(_) => self.link_ended = true,
            }
            self.buffer = buffer;
            if self.link_ended || !self.link_readable {
                return;
            }
        }
    }

    /// Sends the guest what there is for it, as long as the link takes it.
    fn send_messages(&mut self, now: Time) {
        while self.link_gate.is_open() {
            if let Some(message) = self.pending.take() {
                if let Err(error) = send_parts(&self.link, &[IoSlice::new(&message)]) {
                    self.not_taken(now, error, message);
                }
                continue;
            }
            let Some(message) = self.net.next_frame(now) else { break };
            self.send_made(now, message);
        }
        if self.link_gate.is_open() && !self.stalled.is_empty() && self.net.has_room() {
            self.work.append(&mut self.stalled);
        }
    }

    fn send_made(&mut self, now: Time, mut message: Outgoing) {
        let (a, b): (&[u8], &[u8]) = match &message.data {
            Data::None => (&[], &[]),
            Data::Bytes(bytes) => (bytes, &[]),
            Data::Stream { flow, offset, len } => {
                let socket = self.sockets.get(index(flow.slot)).and_then(Option::as_ref);
                match socket.filter(|socket| socket.id == *flow) {
                    Some(socket) => socket.ring.slices(*offset, *len),
                    None => return,
                }
            }
        };
        if message.finish.is_some() {
            // The data is borrowed from elsewhere.
            let finish = message.finish.take();
            let mut head = Outgoing { head: std::mem::take(&mut message.head), data: Data::None, finish };
            head.complete(&[a, b]);
            message.head = head.head;
        }
        let parts = [IoSlice::new(&message.head), IoSlice::new(a), IoSlice::new(b)];
        if let Err(error) = send_parts(&self.link, &parts) {
            // What it refers to may be gone when the link takes it.
            let message = [&message.head, a, b].concat();
            self.not_taken(now, error, message);
        }
    }

    /// The link did not take a message.
    fn not_taken(&mut self, now: Time, error: Errno, message: Vec<u8>) {
        self.pending = Some(message);
        self.link_ended |= self.link_gate.refused(now, error).is_err();
    }

    fn write_log(&self, line: &str) {
        if let Some(log) = &self.log {
            log.write_line(line);
        }
    }
}

/// Raises the limit of open files as far as it goes, and has no more flows than fit it. If that is
/// less than was wanted, it is said how many.
fn limit_flows(config: &mut UsernetConfig) -> Option<String> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    /// Files that are no flow's: what else there is, and published ports that are added later.
    const OTHERS: u64 = 1100;
    let limit = getrlimit(Resource::Nofile);
    let wanted = u64::from(config.max_flows) + OTHERS;
    let most = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    if limit.current.is_some_and(|current| current < most) {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: limit.maximum });
    }
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let fits = flows_within(limit, OTHERS, config.publish.len());
    let few = fits < config.max_flows;
    config.max_flows = fits.min(config.max_flows);
    few.then(|| format!("the limit of open files, {limit}, has room for {fits} flows at once"))
}

/// How many flows fit a limit of open files, beside as many `others` as it has room for.
fn flows_within(limit: u64, others: u64, published: usize) -> u32 {
    /// The link, the poller, the log, the probes and whatever else is open from the start.
    const OWN: u64 = 20;
    /// Fewer are no network, even if some of them are refused for want of a file.
    const LEAST: u32 = 16;
    let own = OWN + u64::from(crate::number::len32(published));
    let left = limit.saturating_sub(others.min(limit / 4).max(own)).min(MAX_FLOWS.into());
    crate::number::fits::<_, u32>(left, "there are no more flows than that").max(LEAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_leave_room_for_what_is_open_beside_them() {
        for (limit, published, flows) in [
            (0, 0, 16),
            (36, 0, 16),
            (64, 0, 44),
            (64, 30, 16),
            (1024, 0, 768),
            (1024, 1024, 16),
            (20_000, 1024, 18_900),
            (u64::MAX, 0, MAX_FLOWS),
        ] {
            assert_eq!(flows_within(limit, 1100, published), flows, "{limit} {published}");
        }
    }
}
