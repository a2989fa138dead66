//! All connections of a device: packets of the guest go in ([`Muxer::hear`]), packets for it come out ([`Muxer::serve`]), host
//! descriptors are in between. Knows no queue: a packet is a chain.

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};

use super::backlog::Backlog;
use super::connection::{Connection, Heard, Key};
use super::control::{Inbox, Reply, Request};
use super::door::{Door, GREETINGS_MAX, Greeting, Line};
use super::listeners::Listeners;
use super::packet::{HEADER_LEN, HOST_CID, Header, Op, TYPE_STREAM};
use super::table::{Handle, Table};
use super::{PowerSink, PowerWord};
use crate::memory::Memory;
use crate::sys::{Interest, Notifier, Timer, at_most, fits, unix};
use crate::virtio::queue::{Chain, QueueFault, Reader};

/// Most connections at once.
pub(super) const CONNECTIONS_MAX: usize = 16_384;
/// Most of them that the guest dialled: the host's own find a place whatever the guest does.
const DIALLED_MAX: usize = CONNECTIONS_MAX / 2;
/// With half of these taken, a connection that the guest dialled and on which nothing was said for so many ticks is reset: silence
/// keeps nobody else out. With fewer, it may be silent for ever.
pub(super) const SILENT_TICKS: u8 = if cfg!(test) { 2 } else { 30 };
/// [`HEADER_LEN`] as chains count.
const HEADER_SIZE: u32 = 44;
/// Most payload of one packet to the guest (and of one from a Linux guest), in bytes.
const PAYLOAD_MAX: u32 = 64 << 10;
/// RSTs that may wait for room in the guest before its packets wait too (virtio 1.2, 5.10.6.1.2).
const RESETS_MAX: usize = 1024;
/// How long a client may take for its line, and the guest for its answer to that client.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time limits are kept to this.
const TICK: Duration = Duration::from_secs(1);
/// Clients accepted before others have their turn.
const ACCEPTS_AT_ONCE: usize = 64;

/// What the guest may have under way on each of `connections`: generous for a few, so that the sum stays bounded.
fn window(connections: usize) -> u32 {
    match connections {
        0..64 => 256 << 10,
        64..512 => 64 << 10,
        512..4096 => 16 << 10,
        _ => 4 << 10,
    }
}

/// Descriptors that this process may have: each connection to somebody on the host costs it at least one.
fn descriptors() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| at_most(limit, usize::MAX))
}

/// Who waits for the guest's answer.
enum Caller {
    Client(UnixStream),
    Handle(Reply),
}

/// A connection that the guest has not answered.
struct Ringing {
    caller: Caller,
    timeout: Duration,
    deadline: Instant,
}

impl Ringing {
    fn new(caller: Caller, timeout: Duration, now: Instant) -> Self {
        // A limit beyond the clock's range is none that anybody sees the end of.
        let deadline = now.checked_add(timeout).unwrap_or(now + Duration::from_secs(1 << 30));
        Self { caller, timeout, deadline }
    }

    fn fail(self, why: io::ErrorKind) {
        match self.caller {
            Caller::Client(stream) => drop(stream),
            Caller::Handle(reply) => reply.send(Err(why.into())),
        }
    }
}

/// The host's end of a connection.
enum Host {
    /// A client that has not finished its line; not yet a connection.
    Greeting(Box<Greeting>),
    Ringing(Box<Ringing>),
    Stream(UnixStream),
    /// The monitor itself answers, see [`PowerWord`].
    Power,
    /// Closed; the guest has not said that it is, too.
    Gone,
}

/// A connection and what belongs to it.
struct Slot {
    /// `None` before there is a connection, and after it while bytes are still to be delivered.
    key: Option<Key>,
    protocol: Connection,
    backlog: Backlog,
    host: Host,
    /// What the poller watches.
    registered: Option<Interest>,
    /// The stream has, as far as is known, something to read.
    readable: bool,
    /// It stands in `turns`.
    queued: bool,
    /// It stands in `touched`.
    touched: bool,
    /// The guest dialled.
    dialled: bool,
    /// Ticks since something was said on it, where they count.
    silent: u8,
}

impl Slot {
    fn new(key: Option<Key>, protocol: Connection, host: Host) -> Self {
        Self {
            key,
            protocol,
            backlog: Backlog::default(),
            host,
            registered: None,
            readable: false,
            queued: false,
            touched: false,
            dialled: false,
            silent: 0,
        }
    }

    /// What to wait for. `Interest::NONE` waits for a hang-up.
    fn wanted(&self) -> Option<Interest> {
        match &self.host {
            Host::Greeting(_) => Some(Interest::READ),
            Host::Ringing(_) | Host::Power | Host::Gone => None,
            Host::Stream(_) => {
                let live = self.key.is_some();
                let readable = live && !self.readable && self.protocol.may_send() > 0;
                let writable = !self.backlog.is_empty();
                let over = self.protocol.ended() || self.protocol.guest_refuses();
                (readable || writable || live && over).then_some(Interest { readable, writable })
            }
        }
    }

    /// There is something to say to the guest.
    fn due(&self) -> bool {
        self.key.is_some() && (self.protocol.has_word() || self.readable && self.protocol.may_send() > 0)
    }

    fn stream(&self) -> Option<&UnixStream> {
        match &self.host {
            Host::Greeting(greeting) => Some(&greeting.stream),
            Host::Stream(stream) => Some(stream),
            Host::Ringing(ringing) => match &ringing.caller {
                Caller::Client(stream) => Some(stream),
                Caller::Handle(_) => None,
            },
            Host::Power | Host::Gone => None,
        }
    }

    /// The host reads no more: what was to be delivered is for nobody.
    fn refuse(&mut self) {
        self.backlog = Backlog::default();
        self.protocol.host_refuses();
    }

    fn hang_up(&mut self) {
        self.readable = false;
        self.protocol.host_ended();
        self.refuse();
    }

    /// Sends what the backlog holds as far as the stream takes it.
    fn flush(&mut self) {
        let Host::Stream(stream) = &self.host else { return };
        while !self.backlog.is_empty() {
            match unix::send_vectored(stream.as_fd(), &self.backlog.front()) {
                Ok(count) => {
                    self.backlog.consume(count);
                    self.protocol.forwarded(fits(count, "a backlog is at most the credit of its connection"));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => return self.refuse(),
            }
        }
        self.pass_on_end();
    }

    /// The guest's end of stream reaches the host behind its last byte.
    fn pass_on_end(&mut self) {
        if let Host::Stream(stream) = &self.host
            && self.backlog.is_empty()
            && self.protocol.guest_ended()
        {
            // A peer that is gone already cannot be told, and need not be.
            let _ = stream.shutdown(Shutdown::Write);
        }
    }
}

#[cfg(all(test, feature = "figures"))]
pub(super) const SLOT_BYTES: usize = size_of::<Slot>();

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

    // ---- from the guest ----

    /// Takes in one packet. The error is that of guest memory; everything else a guest can do wrong is answered in the protocol.
    pub(super) fn hear(&mut self, chain: &Chain, memory: &Memory) -> Result<(), QueueFault> {
        let mut reader = chain.reader(memory);
        let mut bytes = [0u8; HEADER_LEN];
        if reader.read(&mut bytes)? < HEADER_LEN {
            self.fault();
            return Ok(());
        }
        let header = Header::decode(&bytes);
        if header.src_cid != self.cid {
            // It claims to be somebody else; there is nobody to answer.
            self.fault();
            return Ok(());
        }
        if header.dst_cid != HOST_CID || header.kind != TYPE_STREAM {
            self.answer_reset(&header);
            return Ok(());
        }
        let key = Key { guest: header.src_port, host: header.dst_port };
        let short = header.op == Op::Rw.raw() && header.len > reader.left();
        match self.table.find(key) {
            None if header.op == Op::Request.raw() => self.dialled(key, &header),
            None => self.answer_reset(&header),
            Some(handle) if short => {
                self.fault();
                self.abort(handle, &header);
            }
            Some(handle) => self.hear_known(handle, &header, &mut reader)?,
        }
        Ok(())
    }

    fn hear_known(
        &mut self,
        handle: Handle,
        header: &Header,
        reader: &mut Reader<'_>,
    ) -> Result<(), QueueFault> {
        let Some(slot) = self.table.get_mut(handle) else { return Ok(()) };
        match slot.protocol.hear(header) {
            Heard::Nothing | Heard::Discard => {}
            Heard::Opened => self.opened(handle, header),
            Heard::Data(len) => self.deliver(handle, header, reader, len)?,
            Heard::HalfClosed => {
                if slot.protocol.guest_refuses()
                    && let Host::Stream(stream) = &slot.host
                {
                    slot.readable = false;
                    let _ = stream.shutdown(Shutdown::Read);
                }
                slot.pass_on_end();
            }
            Heard::Finished => self.abort(handle, header),
            Heard::Reset => self.retire(handle, io::ErrorKind::ConnectionRefused),
            Heard::Fault(_) => {
                self.fault();
                self.abort(handle, header);
            }
        }
        self.touch(handle);
        Ok(())
    }

    fn deliver(
        &mut self,
        handle: Handle,
        header: &Header,
        reader: &mut Reader<'_>,
        len: u32,
    ) -> Result<(), QueueFault> {
        let Some(slot) = self.table.get_mut(handle) else { return Ok(()) };
        slot.silent = 0;
        if let Host::Power = slot.host {
            slot.protocol.forwarded(len);
            return self.power_word(handle, header, reader, len);
        }
        let mut left = len;
        if let Host::Stream(stream) = &slot.host
            && slot.backlog.is_empty()
            && len > 0
        {
            match reader.send_to(stream.as_fd(), len)? {
                Ok(count) => {
                    let count = u32::try_from(count).expect("at most what was to be sent");
                    slot.protocol.forwarded(count);
                    left -= count;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => {
                    slot.refuse();
                    return Ok(());
                }
            }
        }
        slot.backlog.append(fits(left, "usize has at least 32 bits on every host of Nelly"), |piece| {
            reader.read_exact(piece)
        })
    }

    fn power_word(
        &mut self,
        handle: Handle,
        header: &Header,
        reader: &mut Reader<'_>,
        len: u32,
    ) -> Result<(), QueueFault> {
        if len == 0 {
            return Ok(());
        }
        let mut byte = [0u8; 1];
        reader.read_exact(&mut byte)?;
        let word = match byte[0] {
            b'o' => PowerWord::Off,
            b'r' => PowerWord::Reboot,
            b'p' => PowerWord::Panic,
            _ => {
                self.fault();
                self.abort(handle, header);
                return Ok(());
            }
        };
        // The connection stays: the guest waits for its close in vain while the machine ends.
        if let Some(power) = &self.power {
            (power.sink)(word);
        }
        Ok(())
    }

    /// The guest asks for a connection.
    fn dialled(&mut self, key: Key, header: &Header) {
        // A listener asked for before the guest was told of the port may still be in the inbox.
        self.requests();
        let full = self.table.is_full() || self.dialled >= self.dialled_max;
        let host = if full { None } else { self.answer_dial(key) };
        let Some(host) = host else { return self.answer_reset(header) };
        let protocol = Connection::accept(window(self.table.len()), header);
        let slot = Slot { dialled: true, ..Slot::new(Some(key), protocol, host) };
        match self.table.insert(slot) {
            Ok(handle) => {
                self.dialled += 1;
                self.table.bind(key, handle);
                self.touch(handle);
            }
            Err(_) => self.answer_reset(header),
        }
    }

    fn answer_dial(&mut self, key: Key) -> Option<Host> {
        if let Some(power) = self.power.as_mut().filter(|power| power.port == key.host) {
            return (!std::mem::replace(&mut power.taken, true)).then_some(Host::Power);
        }
        if self.listeners.contains(key.host) {
            return self.listeners.hand_over(key).map(Host::Stream);
        }
        self.door.as_ref()?.dial(key.host).ok().map(Host::Stream)
    }

    /// The guest accepted what the host dialled.
    fn opened(&mut self, handle: Handle, header: &Header) {
        let Some(slot) = self.table.get_mut(handle) else { return };
        let Host::Ringing(ringing) = std::mem::replace(&mut slot.host, Host::Gone) else { return };
        match ringing.caller {
            Caller::Client(stream) => {
                let line = format!("OK {}\n", header.dst_port);
                // Nothing was sent on this stream before, so it has room for a line. A client that closed its reading half gets none,
                // and may still have something to say.
                match unix::send_vectored(stream.as_fd(), &[io::IoSlice::new(line.as_bytes())]) {
                    Ok(count) if count == line.len() => {}
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => slot.refuse(),
                    _ => return self.abort(handle, header),
                }
                slot.host = Host::Stream(stream);
            }
            Caller::Handle(reply) => match super::control::pair() {
                Ok((near, far)) => {
                    slot.host = Host::Stream(near);
                    reply.send(Ok(far));
                }
                Err(error) => {
                    reply.send(Err(error));
                    self.abort(handle, header);
                }
            },
        }
    }

    /// Answers RST to a packet, unless it is one.
    fn answer_reset(&mut self, header: &Header) {
        if header.op != Op::Rst.raw() {
            self.resets.push_back(header.reset());
        }
    }

    /// Answers RST and forgets the connection.
    fn abort(&mut self, handle: Handle, header: &Header) {
        self.answer_reset(header);
        self.retire(handle, io::ErrorKind::ConnectionRefused);
    }

    /// The protocol is done with a connection; what was received from the guest is still delivered.
    fn retire(&mut self, handle: Handle, why: io::ErrorKind) {
        let Some(slot) = self.table.get_mut(handle) else { return };
        if let Some(key) = slot.key.take() {
            self.table.unbind(key);
        }
        let Some(slot) = self.table.get_mut(handle) else { return };
        if matches!(slot.host, Host::Stream(_)) && !slot.backlog.is_empty() {
            return self.touch(handle);
        }
        if matches!(slot.host, Host::Ringing(_))
            && let Host::Ringing(ringing) = std::mem::replace(&mut slot.host, Host::Gone)
        {
            ringing.fail(why);
        }
        self.remove(handle);
    }

    /// Forgets an entry and closes what it holds.
    fn remove(&mut self, handle: Handle) {
        let Some(slot) = self.table.remove(handle) else { return };
        if let Some(key) = slot.key {
            self.table.unbind(key);
        }
        self.dialled -= usize::from(slot.dialled);
        self.bury(slot.host, slot.registered);
    }

    fn bury(&mut self, host: Host, registered: Option<Interest>) {
        let stream = match host {
            Host::Greeting(greeting) => {
                self.greetings -= 1;
                Some(greeting.stream)
            }
            Host::Stream(stream) => Some(stream),
            Host::Ringing(_) | Host::Power | Host::Gone => None,
        };
        if registered.is_some() {
            self.buried.extend(stream);
        }
        // A descriptor or a place is free: whoever waits for one may come.
        if let Some(door) = &mut self.door {
            door.closed = false;
        }
    }
}

#[path = "outbound.rs"]
mod outbound;
