//! What the core says is done, and what sockets say is told.

use rustix::io::Errno;
use rustix::net::{self, sockopt};

use super::Shell;
use super::socket::{Kind, Socket, failure, open, receive, reset_at_close};
use crate::config::Protocol;
use crate::core::{Action, Failure, FlowId, Time};
use crate::number::index;
use crate::sys::Ready;

/// The memory that a stream towards the guest begins with, in bytes.
const RING: usize = 64 << 10;
/// And when the network has used up what it may use.
const SMALL_RING: usize = 16 << 10;
/// The most, in bytes.
const MOST_RING: usize = 1 << 20;
/// How much is read of one socket before others have their turn, in bytes.
const TURN: usize = 256 << 10;
/// How many datagrams.
const DATAGRAMS: usize = 32;

impl Shell {
    /// Does what the core says, where there is no message in hand.
    pub(super) fn act(&mut self, now: Time) {
        self.act_on(now, &[]);
    }

    /// Does what the core says.
    pub(super) fn act_on(&mut self, now: Time, message: &[u8]) {
        while let Some(action) = self.net.take_action() {
            match action {
                Action::Connect { flow, protocol, to, trusted } => {
                    let known = !trusted && self.host.is_own(to);
                    let connected = if known {
                        Err(Failure::OwnAddress)
                    } else {
                        self.connect(flow, protocol, to, trusted)
                    };
                    if let Err(why) = connected {
                        self.net.failed(now, flow, why);
                    }
                }
                Action::Local { flow } => {
                    // Nothing is waited for that could fail.
                    let _added = self.add_socket(Socket::new(flow, None, Kind::Local, true));
                }
                Action::Feed { flow, bytes } => self.feed(flow, &bytes),
                Action::Write { flow, range } => {
                    self.written(now, flow, |socket| socket.write(&message[range]))
                }
                Action::WriteHeld { flow, bytes } => self.written(now, flow, |socket| socket.write(&bytes)),
                Action::HandOver { flow, name, from, to } => self.hand_over(flow, name, from, to),
                Action::Shutdown { flow } => self.written(now, flow, |socket| {
                    socket.shut = true;
                    if socket.left.is_empty() { socket.flush() } else { Ok(socket.left.len()) }
                }),
                Action::Datagram { flow, bytes } => self.send_datagram(now, flow, &bytes),
                Action::Free { flow, len } => self.free(flow, index(len)),
                Action::Close { flow, abort } => self.close(flow, abort),
                Action::Peers => self.tell_peers(message),
                Action::Log(line) => self.write_log(&line),
            }
        }
    }

    pub(super) fn socket(&mut self, id: FlowId) -> Option<&mut Socket> {
        self.sockets.get_mut(index(id.slot))?.as_mut().filter(|socket| socket.id == id)
    }

    pub(super) fn add_socket(&mut self, socket: Socket) -> Result<(), Failure> {
        let token = u64::from(socket.id.generation) << 32 | u64::from(socket.id.slot);
        if let Some(file) = &socket.file {
            self.poller.add(file, token).map_err(|_| Failure::Other)?;
        }
        let slot = index(socket.id.slot);
        if self.sockets.len() <= slot {
            self.sockets.resize_with(slot + 1, || None);
        }
        self.sockets[slot] = Some(socket);
        Ok(())
    }

    fn connect(
        &mut self,
        flow: FlowId,
        protocol: Protocol,
        to: std::net::SocketAddr,
        trusted: bool,
    ) -> Result<(), Failure> {
        let file = match open(protocol, to) {
            Ok(file) => file,
            Err(error) => {
                if matches!(error, Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) {
                    let line = format!("a flow is refused, the host has no more sockets for it: {error}");
                    self.net.note(self.now(), &line);
                }
                return Err(failure(error));
            }
        };
        match net::connect(&file, &to) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(failure(error)),
        }
        let kind = if protocol == Protocol::Tcp { Kind::Connecting } else { Kind::Datagrams };
        self.add_socket(Socket::new(flow, Some(file), kind, trusted))
    }

    /// Writes to a stream, and tells how much of it is left.
    fn written(&mut self, now: Time, id: FlowId, write: impl FnOnce(&mut Socket) -> Result<usize, Errno>) {
        let Some(socket) = self.socket(id) else { return };
        match write(socket) {
            Ok(left) => self.net.unwritten(now, id, left),
            Err(_) => self.net.broken(id),
        }
    }

    fn send_datagram(&mut self, now: Time, id: FlowId, bytes: &[u8]) {
        let Some(socket) = self.sockets.get(index(id.slot)).and_then(Option::as_ref) else { return };
        if socket.id != id {
            return;
        }
        let sent = match (&socket.kind, &socket.file) {
            (Kind::Peer(listener, peer), _) => self.listeners[*listener].send(bytes, *peer),
            (_, Some(file)) => net::send(file, bytes, crate::sys::QUIET | net::SendFlags::DONTWAIT),
            _ => return,
        };
        match sent {
            // What the host has no room for is lost, as on any path.
            Ok(_) | Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS | Errno::MSGSIZE) => {}
            Err(error) => self.net.failed(now, id, failure(error)),
        }
    }

    /// The guest has some bytes: there is room for others.
    fn free(&mut self, id: FlowId, len: usize) {
        let Some(socket) = self.socket(id) else { return };
        socket.ring.free_oldest(len);
        let mut given_back = 0;
        if socket.ring.is_empty() && !socket.readable {
            given_back = socket.ring.capacity();
            socket.ring = super::ring::Ring::default();
        } else if matches!(socket.kind, Kind::Local) {
            // It grows by what is asked in it, and a guest may leave a byte in each of many.
            let (capacity, held) = (socket.ring.capacity(), socket.ring.len());
            if held * 4 < capacity {
                socket.ring.resize(held.next_power_of_two());
                given_back = capacity - socket.ring.capacity();
            }
        }
        let again = socket.readable;
        self.ring_bytes -= given_back;
        if again {
            self.has_work(id);
        }
    }

    fn close(&mut self, id: FlowId, abort: bool) {
        if self.socket(id).is_none() {
            return;
        }
        let Some(socket) = self.sockets[index(id.slot)].take() else { return };
        self.ring_bytes -= socket.ring.capacity();
        match (&socket.kind, &socket.file) {
            (Kind::Peer(listener, peer), _) => self.listeners[*listener].forget(*peer),
            (Kind::Stream, Some(file)) if abort => reset_at_close(file),
            _ => {}
        }
    }

    pub(super) fn has_work(&mut self, id: FlowId) {
        if let Some(socket) = self.socket(id)
            && !std::mem::replace(&mut socket.queued, true)
        {
            self.work.push_back(id);
        }
    }

    /// A socket has something to say.
    pub(super) fn socket_ready(&mut self, id: FlowId, ready: Ready) {
        let now = self.now();
        let Some(socket) = self.socket(id) else { return };
        socket.readable |= ready.readable;
        socket.ended |= ready.ended;
        socket.urgent |= ready.urgent;
        if let (Kind::Connecting, Some(file)) = (&socket.kind, &socket.file) {
            if !ready.writable {
                return;
            }
            let outcome = match sockopt::socket_error(file) {
                Ok(Ok(())) if socket.is_own() && !socket.trusted => Err(Failure::OwnAddress),
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) | Err(error) => Err(failure(error)),
            };
            match outcome {
                Ok(()) => {
                    let kind = if self.net.answers_in_stream(id) { Kind::Answer } else { Kind::Stream };
                    if let Some(socket) = self.socket(id) {
                        socket.kind = kind;
                    }
                    self.net.connected(now, id);
                }
                Err(why) => self.net.failed(now, id, why),
            }
        } else if ready.writable && !socket.left.is_empty() {
            self.written(now, id, Socket::flush);
        }
        if ready.readable {
            self.has_work(id);
        }
        self.act(now);
    }

    /// Reads sockets that may be read, each for a turn.
    pub(super) fn read_sockets(&mut self) {
        for _ in 0..self.work.len() {
            let Some(id) = self.work.pop_front() else { return };
            let now = self.now();
            let Some(socket) = self.socket(id) else { continue };
            socket.queued = false;
            if socket.readable {
                match socket.kind {
                    Kind::Stream => self.read_stream(now, id),
                    Kind::Datagrams => self.read_datagrams(now, id),
                    Kind::Answer => self.read_answer(now, id),
                    Kind::Connecting | Kind::Peer(..) | Kind::Local => {}
                }
            }
            self.act(now);
        }
    }

    fn read_stream(&mut self, now: Time, id: FlowId) {
        let mut turn = 0;
        while turn < TURN {
            let (used, budget) = (self.ring_bytes, self.ring_budget);
            let Some(socket) = self.socket(id) else { return };
            let Some(file) = &socket.file else { return };
            let capacity = socket.ring.capacity();
            if socket.ring.room() == 0 {
                let larger = match capacity {
                    0 if used + RING > budget => SMALL_RING,
                    0 => RING,
                    _ if capacity >= MOST_RING || used + capacity > budget => return,
                    _ => capacity * 2,
                };
                socket.ring.resize(larger);
                self.ring_bytes += larger - capacity;
                continue;
            }
            let room = socket.ring.room();
            match rustix::io::readv(file, &mut socket.ring.free()) {
                Ok(0) => {
                    socket.readable = false;
                    self.net.ended(now, id);
                    return;
                }
                Ok(len) => {
                    socket.ring.fill(len);
                    // Less than there was room for: that was all, but for an end that follows, and
                    // for urgent data, before which a read stops.
                    let all = len < room && !socket.ended && !socket.urgent;
                    socket.readable = !all;
                    turn += len;
                    self.net.received(now, id, len);
                    if all {
                        return;
                    }
                }
                Err(Errno::AGAIN) => {
                    socket.readable = false;
                    if socket.ring.is_empty() {
                        socket.ring = super::ring::Ring::default();
                        self.ring_bytes -= capacity;
                    }
                    return;
                }
                Err(Errno::INTR) => {}
                Err(_) => {
                    self.net.broken(id);
                    return;
                }
            }
        }
        self.has_work(id);
    }

    fn read_datagrams(&mut self, now: Time, id: FlowId) {
        let mut buffer = std::mem::take(&mut self.buffer);
        for _ in 0..DATAGRAMS {
            let room = self.net.has_room();
            let Some(socket) = self.socket(id) else { break };
            let Some(file) = &socket.file else { break };
            if !room {
                if !std::mem::replace(&mut socket.queued, true) {
                    self.stalled.push_back(id);
                }
                // While the link takes nothing, flows that are no more would pile up.
                if self.stalled.len() > 2 * self.sockets.len() {
                    let live = |id: &FlowId| {
                        let socket = self.sockets.get(index(id.slot)).and_then(Option::as_ref);
                        socket.is_some_and(|socket| socket.id == *id)
                    };
                    self.stalled.retain(live);
                }
                break;
            }
            match receive(file, &mut buffer) {
                Ok(len) => {
                    self.net.datagram(now, id, buffer[..len].to_vec());
                    // A question's flow ends with its answer.
                    self.act(now);
                }
                Err(Errno::AGAIN) => {
                    socket.readable = false;
                    break;
                }
                Err(Errno::INTR) => {}
                Err(error) => {
                    self.net.failed(now, id, failure(error));
                    break;
                }
            }
        }
        self.buffer = buffer;
        if self.socket(id).is_some_and(|socket| socket.readable) {
            self.has_work(id);
        }
    }
}
