//! One connection: its protocol, its end on the host, and what is under way between them.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::memory::Memory;
use crate::sys::{Interest, fits, unix};
use crate::virtio::queue::{Chain, QueueFault};
use crate::virtio::vsock::backlog::Backlog;
use crate::virtio::vsock::connection::{Connection, Key};
use crate::virtio::vsock::control::{Joined, Reply};
use crate::virtio::vsock::door::Greeting;
use crate::virtio::vsock::packet::Op;

/// [`HEADER_LEN`] as chains count.
pub(super) const HEADER_SIZE: u32 = 44;
/// Most payload of one packet to the guest (and of one from a Linux guest), in bytes.
const PAYLOAD_MAX: u32 = 64 << 10;

/// What the guest may have under way on each of `connections`: generous for a few, so that the sum
/// stays bounded.
pub(super) fn window(connections: usize) -> u32 {
    match connections {
        0..64 => 256 << 10,
        64..512 => 64 << 10,
        512..4096 => 16 << 10,
        _ => 4 << 10,
    }
}

/// Who waits for the guest's answer.
pub(super) enum Caller {
    Client(UnixStream),
    Handle(Reply),
    /// The stream is the holder's own.
    Joins(UnixStream, Joined),
}

/// A connection that the guest has not answered.
pub(super) struct Ringing {
    pub(super) caller: Caller,
    pub(super) timeout: Duration,
    pub(super) deadline: Instant,
}

impl Ringing {
    pub(super) fn new(caller: Caller, timeout: Duration, now: Instant) -> Self {
        // A limit beyond the clock's range is none that anybody sees the end of.
        let deadline = now.checked_add(timeout).unwrap_or(now + Duration::from_secs(1 << 30));
        Self { caller, timeout, deadline }
    }

    pub(super) fn fail(self, why: io::ErrorKind) {
        match self.caller {
            Caller::Client(stream) => drop(stream),
            Caller::Handle(reply) => reply.send(Err(why.into())),
            Caller::Joins(stream, reply) => {
                // Its other end hears of it first.
                drop(stream);
                reply.send(Err(why.into()));
            }
        }
    }
}

/// The host's end of a connection.
pub(super) enum Host {
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
pub(super) struct Slot {
    /// `None` before there is a connection, and after it while bytes are still to be delivered.
    pub(super) key: Option<Key>,
    pub(super) protocol: Connection,
    pub(super) backlog: Backlog,
    pub(super) host: Host,
    /// What the poller watches.
    pub(super) registered: Option<Interest>,
    /// The stream has, as far as is known, something to read.
    pub(super) readable: bool,
    /// It stands in `turns`.
    pub(super) queued: bool,
    /// It stands in `touched`.
    pub(super) touched: bool,
    /// The guest dialled.
    pub(super) dialled: bool,
    /// The stream is one that the holder gave.
    pub(super) joined: bool,
    /// Bytes for the guest before those of the stream.
    pub(super) prefix: Vec<u8>,
    /// Ticks since something was said on it, where they count.
    pub(super) silent: u8,
}

impl Slot {
    pub(super) fn new(key: Option<Key>, protocol: Connection, host: Host) -> Self {
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
            joined: false,
            prefix: Vec::new(),
            silent: 0,
        }
    }

    /// What to wait for. `Interest::NONE` waits for a hang-up.
    pub(super) fn wanted(&self) -> Option<Interest> {
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
    pub(super) fn due(&self) -> bool {
        let data = self.readable || !self.prefix.is_empty();
        self.key.is_some() && (self.protocol.has_word() || data && self.protocol.may_send() > 0)
    }

    pub(super) fn stream(&self) -> Option<&UnixStream> {
        match &self.host {
            Host::Greeting(greeting) => Some(&greeting.stream),
            Host::Stream(stream) => Some(stream),
            Host::Ringing(ringing) => match &ringing.caller {
                Caller::Client(stream) | Caller::Joins(stream, _) => Some(stream),
                Caller::Handle(_) => None,
            },
            Host::Power | Host::Gone => None,
        }
    }

    /// The host reads no more: what was to be delivered is for nobody.
    pub(super) fn refuse(&mut self) {
        self.backlog = Backlog::default();
        self.protocol.host_refuses();
    }

    pub(super) fn hang_up(&mut self) {
        self.readable = false;
        self.protocol.host_ended();
        self.refuse();
    }

    /// Sends what the backlog holds as far as the stream takes it.
    pub(super) fn flush(&mut self) {
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
    pub(super) fn pass_on_end(&mut self) {
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
pub(in crate::virtio::vsock) const SLOT_BYTES: usize = size_of::<Slot>();

/// Puts one packet of `slot` into `chain`, whose payload has `room`; `None` if there was nothing to
/// say after all.
pub(super) fn say(
    slot: &mut Slot,
    cid: u64,
    chain: &Chain,
    room: u32,
    memory: &Memory,
) -> Result<Option<u32>, QueueFault> {
    let Some(key) = slot.key else { return Ok(None) };
    let most = room.min(PAYLOAD_MAX).min(slot.protocol.may_send());
    if !slot.prefix.is_empty() && most > 0 && !slot.protocol.is_urgent() {
        return say_prefix(slot, (cid, key), chain, most, memory).map(Some);
    }
    if slot.readable
        && most > 0
        && !slot.protocol.is_urgent()
        && let Host::Stream(stream) = &slot.host
    {
        let mut writer = chain.writer(memory);
        writer.skip(HEADER_SIZE);
        match writer.read_from(stream.as_fd(), most)? {
            Ok(0) => {
                slot.readable = false;
                slot.protocol.host_ended();
            }
            Ok(count) => {
                let count = u32::try_from(count).expect("at most what was asked for");
                slot.silent = 0;
                // A short read emptied the stream.
                slot.readable = count == most;
                slot.protocol.sent(count);
                let header = slot.protocol.header(cid, key, Op::Rw, 0, count);
                chain.writer(memory).write_all(&header.encode())?;
                return Ok(Some(HEADER_SIZE + count));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => slot.readable = false,
            // The other end closed with bytes unread.
            Err(_) => slot.hang_up(),
        }
    }
    let Some((op, flags)) = slot.protocol.next() else { return Ok(None) };
    let header = slot.protocol.header(cid, key, op, flags, 0);
    chain.writer(memory).write_all(&header.encode())?;
    Ok(Some(HEADER_SIZE))
}

/// Sends up to `most` bytes of what comes before the stream's own.
fn say_prefix(
    slot: &mut Slot,
    (cid, key): (u64, Key),
    chain: &Chain,
    most: u32,
    memory: &Memory,
) -> Result<u32, QueueFault> {
    let count = slot.prefix.len().min(fits(most, "usize has at least 32 bits on every host of Nelly"));
    let first: Vec<u8> = slot.prefix.drain(..count).collect();
    let count = u32::try_from(count).expect("at most what was asked for");
    slot.protocol.sent(count);
    let header = slot.protocol.header(cid, key, Op::Rw, 0, count);
    let mut writer = chain.writer(memory);
    writer.write_all(&header.encode())?;
    writer.write_all(&first)?;
    Ok(HEADER_SIZE + count)
}
