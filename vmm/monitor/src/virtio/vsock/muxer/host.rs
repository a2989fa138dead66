//! The host's side: descriptors that are ready, clients at the door, requests of the handle.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::Muxer;
use super::slot::{Caller, Host, Ringing, Slot, window};
use crate::sys::Interest;
use crate::sys::unix;
use crate::virtio::vsock::connection::{Connection, Key};
use crate::virtio::vsock::control::{CONNECT_TIMEOUT, HostRequest, Joined, PREFIX_MOST, Reply};
use crate::virtio::vsock::door::{GREETINGS_MAX, Greeting, Line};
use crate::virtio::vsock::table::Handle;

/// How long a client may take for its line, and the guest for its answer to that client.
pub(super) const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
/// Clients accepted before others have their turn.
const ACCEPTS_AT_ONCE: usize = 64;

impl Muxer {
    /// The descriptor behind `handle` is ready.
    pub(in crate::virtio::vsock) fn ready(&mut self, handle: Handle, ready: Interest) {
        let Some(slot) = self.table.get_mut(handle) else { return };
        match (&slot.host, slot.registered) {
            (Host::Greeting(_), _) => self.read_line(handle),
            (Host::Stream(_), Some(Interest::NONE)) => slot.hang_up(),
            (Host::Stream(_), Some(watched)) => {
                if watched.writable && ready.writable {
                    slot.flush();
                }
                slot.readable |= watched.readable && ready.readable;
            }
            _ => {}
        }
        self.touch(handle);
    }

    /// A listener's channel is ready.
    pub(in crate::virtio::vsock) fn channel_ready(&mut self, key: u32) {
        self.listeners.ready(key);
    }

    /// Clients wait at the door.
    pub(in crate::virtio::vsock) fn accept(&mut self) {
        for _ in 0..ACCEPTS_AT_ONCE {
            let Some(door) = &mut self.door else { return };
            if self.greetings >= GREETINGS_MAX || self.table.is_full() {
                door.closed = true;
                return;
            }
            let stream = match door.accept() {
                Ok(stream) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    // Out of descriptors or memory (or the client is gone): the next tick or the
                    // next close opens the door again.
                    door.closed = true;
                    return;
                }
            };
            let greeting = Greeting::new(stream, Instant::now() + CLIENT_TIMEOUT);
            let protocol = Connection::dial(window(self.table.len()));
            let slot = Slot::new(None, protocol, Host::Greeting(Box::new(greeting)));
            if let Ok(handle) = self.table.insert(slot) {
                self.greetings += 1;
                // Most clients write their line at once.
                self.read_line(handle);
                self.touch(handle);
            }
        }
    }

    fn read_line(&mut self, handle: Handle) {
        let Some(slot) = self.table.get_mut(handle) else { return };
        let Host::Greeting(greeting) = &mut slot.host else { return };
        match greeting.read() {
            Line::Partial => {}
            Line::Bad => self.remove(handle),
            Line::Connect(guest) => {
                let Host::Greeting(greeting) = std::mem::replace(&mut slot.host, Host::Gone) else { return };
                let caller = Caller::Client(greeting.stream);
                slot.host = Host::Ringing(Box::new(Ringing::new(caller, CLIENT_TIMEOUT, Instant::now())));
                self.greetings -= 1;
                if let Some(door) = &mut self.door {
                    door.closed = false;
                }
                self.bind(handle, guest);
            }
        }
    }

    fn bind(&mut self, handle: Handle, guest: u32) {
        let key = Key { guest, host: self.table.host_port(guest) };
        self.table.bind(key, handle);
        if let Some(slot) = self.table.get_mut(handle) {
            slot.key = Some(key);
        }
        self.touch(handle);
    }

    /// Does what was asked for by the handle.
    pub(in crate::virtio::vsock) fn requests(&mut self) {
        while let Some(request) = self.inbox.next() {
            match request {
                HostRequest::Connect { port, timeout, reply } => self.dial(port, timeout, reply),
                HostRequest::Join { port, prefix, stream, reply } => self.join(port, prefix, stream, reply),
                HostRequest::Listen { port, channel } => self.listeners.open(port, channel),
                HostRequest::Unlisten { port } => self.listeners.close(port),
            }
        }
    }

    fn dial(&mut self, port: u32, timeout: Duration, reply: Reply) {
        if self.table.is_full() {
            return reply.send(Err(io::ErrorKind::QuotaExceeded.into()));
        }
        let ringing = Ringing::new(Caller::Handle(reply), timeout, Instant::now());
        let protocol = Connection::dial(window(self.table.len()));
        let slot = Slot::new(None, protocol, Host::Ringing(Box::new(ringing)));
        if let Ok(handle) = self.table.insert(slot) {
            self.bind(handle, port);
        }
    }

    fn join(&mut self, port: u32, prefix: Vec<u8>, stream: UnixStream, reply: Joined) {
        let (all, joined) = (self.table.len(), self.joined);
        let is_full = self.table.is_full();
        if is_full || joined >= self.joined_max {
            let (count, what) =
                if is_full { (all, "connections") } else { (joined, "connections of relays") };
            let text = format!("the machine has {count} {what}, the most that it may have");
            return reply.send(Err(io::Error::new(io::ErrorKind::QuotaExceeded, text)));
        }
        if prefix.len() > PREFIX_MOST {
            return reply.send(Err(io::ErrorKind::InvalidInput.into()));
        }
        if let Err(error) = unix::prepare(&stream) {
            return reply.send(Err(error));
        }
        let ringing = Ringing::new(Caller::Joins(stream, reply), CONNECT_TIMEOUT, Instant::now());
        let protocol = Connection::dial(window(self.table.len()));
        let host = Host::Ringing(Box::new(ringing));
        let slot = Slot { joined: true, prefix, ..Slot::new(None, protocol, host) };
        if let Ok(handle) = self.table.insert(slot) {
            self.joined += 1;
            self.bind(handle, port);
        }
    }
}
