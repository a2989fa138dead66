//! Published ports: whoever connects to one is a flow that the host began.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{self, RecvFlags, SendFlags};

use super::Shell;
use super::bind::Bound;
use super::socket::{Kind, Socket, internet, prepare, reset_at_close};
use crate::config::{Protocol, Publish};
use crate::control::{self, Page};
use crate::core::{FlowId, Time};
use crate::number::len32;
use crate::sys::{NO_NETWORK, QUIET, accept};

/// A published port.
#[derive(Debug)]
pub(super) struct Listener {
    file: OwnedFd,
    publish: Publish,
    /// Flows of the peers of a UDP port.
    peers: HashMap<SocketAddr, FlowId>,
    /// Somebody called before there was a guest, or is still to be heard.
    waits: bool,
    /// When who waits is heard at the earliest: the host had nothing left for it.
    again: Option<Time>,
    /// Callers that were heard.
    connections: u64,
    /// Callers that were turned away.
    refused: u64,
}

/// Published ports, each at a place that it keeps.
#[derive(Debug, Default)]
pub(super) struct Listeners(Vec<Option<Listener>>);

/// How many callers are taken before others have their turn.
const TURN: usize = 64;
/// How long callers wait when the host has nothing left for them, before it is tried again.
const PAUSE: Time = Time::from_millis(100);

/// Why nobody was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Silence {
    /// There is nobody.
    Nobody,
    /// This one is gone; others may be there.
    Gone,
    /// Somebody is there, and the host has nothing left. Nothing tells when it has.
    Later,
}

fn silence(error: Errno) -> Silence {
    match error {
        Errno::AGAIN => Silence::Nobody,
        // On Linux, errors of the network that a connection already has come here, too.
        Errno::INTR
        | Errno::CONNABORTED
        | Errno::CONNREFUSED
        | Errno::CONNRESET
        | Errno::HOSTDOWN
        | Errno::HOSTUNREACH
        | Errno::NETDOWN
        | Errno::NETUNREACH
        | Errno::NOPROTOOPT
        | Errno::OPNOTSUPP
        | Errno::PERM
        | Errno::PROTO
        | Errno::TIMEDOUT => Silence::Gone,
        error if error == NO_NETWORK => Silence::Gone,
        _ => Silence::Later,
    }
}

impl Listener {
    /// A port whose socket listens.
    pub(super) fn new(Bound { file, publish }: Bound) -> Self {
        Self { file, publish, peers: HashMap::new(), waits: false, again: None, connections: 0, refused: 0 }
    }

    pub(super) fn file(&self) -> &OwnedFd {
        &self.file
    }

    pub(super) fn text(&self) -> String {
        self.publish.to_string()
    }

    /// Sends a peer of a UDP port something.
    pub(super) fn send(&self, bytes: &[u8], peer: SocketAddr) -> Result<usize, Errno> {
        net::sendto(&self.file, bytes, QUIET | SendFlags::DONTWAIT, &peer)
    }

    /// When who waits is to be heard; `None`: nobody waits.
    pub(super) fn due(&self) -> Option<Time> {
        self.waits.then(|| self.again.unwrap_or(Time::ZERO))
    }

    /// The peer's flow is no more.
    pub(super) fn forget(&mut self, peer: SocketAddr) {
        self.peers.remove(&peer);
    }

    /// The flows of its peers.
    pub(super) fn flows(&self) -> Vec<FlowId> {
        self.peers.values().copied().collect()
    }

    /// Whether it is this port of the host.
    fn is(&self, publish: &Publish) -> bool {
        (self.publish.bind, self.publish.protocol) == (publish.bind, publish.protocol)
    }
}

impl Listeners {
    /// Adds a port, at the first place that is free; `None`: there are too many.
    pub(super) fn add(&mut self, listener: Listener) -> Option<usize> {
        let place = self.0.iter().position(Option::is_none).unwrap_or(self.0.len());
        if place >= control::MAX_PORTS {
            return None;
        }
        if place == self.0.len() {
            self.0.push(None);
        }
        self.0[place] = Some(listener);
        Some(place)
    }

    /// Takes a port away.
    pub(super) fn remove(&mut self, place: usize) -> Option<Listener> {
        self.0.get_mut(place)?.take()
    }

    /// The place of this port of the host, and where it leads to.
    pub(super) fn find(&self, publish: &Publish) -> Option<(usize, Publish)> {
        let is = |one: &Option<Listener>| one.as_ref().is_some_and(|one| one.is(publish));
        let place = self.0.iter().position(is)?;
        self.0[place].as_ref().map(|one| (place, one.publish))
    }

    /// Whether there is a port at this place.
    pub(super) fn has(&self, place: usize) -> bool {
        self.0.get(place).is_some_and(Option::is_some)
    }

    /// How many places there are; some of them are free.
    pub(super) fn places(&self) -> usize {
        self.0.len()
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Listener> {
        self.0.iter().flatten()
    }

    /// The ports from a place on that one answer holds; what is counted beside them is not in it.
    pub(super) fn page(&self, from: usize) -> Page {
        let told = self.0.iter().enumerate().skip(from);
        let mut told = told.filter_map(|(place, one)| one.as_ref().map(|one| (place, one)));
        let port = |one: &Listener| control::Port {
            publish: one.publish,
            connections: one.connections,
            refused: one.refused,
        };
        let ports = told.by_ref().take(control::PAGE).map(|(_, one)| port(one)).collect();
        Page { ports, next: told.next().map(|(place, _)| len32(place)), ..Page::default() }
    }
}

impl std::ops::Index<usize> for Listeners {
    type Output = Listener;

    fn index(&self, place: usize) -> &Listener {
        self.0[place].as_ref().expect("a bug: nobody is called whose port is gone")
    }
}

impl std::ops::IndexMut<usize> for Listeners {
    fn index_mut(&mut self, place: usize) -> &mut Listener {
        self.0[place].as_mut().expect("a bug: nobody is called whose port is gone")
    }
}

impl Shell {
    /// A published port was called.
    pub(super) fn listen(&mut self, place: usize) {
        if !self.listeners.has(place) {
            // It became ready before it was removed.
            return;
        }
        let v4 = self.listeners[place].publish.bind.is_ipv4();
        let guest = self.listeners[place].publish.guest;
        // Each change is told once: all who call are answered.
        if self.listeners[place].publish.protocol == Protocol::Tcp {
            self.accept(place, v4, guest);
        } else {
            self.hear(place, v4, guest);
        }
    }

    fn accept(&mut self, place: usize, v4: bool, guest: u16) {
        // Who calls before there is a guest waits.
        self.listeners[place].waits = !self.net.has_guest();
        let paused = self.listeners[place].again.take().is_some();
        for turn in 0.. {
            if !self.net.has_guest() {
                return;
            }
            if turn == TURN {
                self.listeners[place].waits = true;
                return;
            }
            let now = self.now();
            match accept(&self.listeners[place].file) {
                Ok(file) => {
                    prepare(&file);
                    let id = self.net.accepted(now, v4, guest);
                    // The flow that went to make room is closed before its place is taken.
                    self.act(now);
                    let Some(id) = id else {
                        self.listeners[place].refused += 1;
                        reset_at_close(&file);
                        continue;
                    };
                    self.listeners[place].connections += 1;
                    if self.add_socket(Socket::new(id, Some(file), Kind::Stream, true)).is_err() {
                        self.net.broken(id);
                    }
                }
                Err(error) => match silence(error) {
                    Silence::Nobody => return,
                    Silence::Gone => {}
                    Silence::Later => return self.pause(now, place, error, paused),
                },
            }
            self.act(now);
        }
    }

    /// Callers wait for a while. `paused`: as they did before, which is told already.
    fn pause(&mut self, now: Time, place: usize, error: Errno, paused: bool) {
        let listener = &mut self.listeners[place];
        listener.waits = true;
        listener.again = Some(now + PAUSE);
        if !paused {
            let line = format!("callers of the published port {} wait: {error}", listener.publish);
            self.net.note(now, &line);
            self.act(now);
        }
    }

    fn hear(&mut self, place: usize, v4: bool, guest: u16) {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut many = 0;
        self.listeners[place].waits = false;
        let paused = self.listeners[place].again.take().is_some();
        loop {
            let now = self.now();
            let listener = &self.listeners[place];
            let flags = RecvFlags::DONTWAIT;
            match net::recvfrom(&listener.file, &mut *buffer, flags) {
                Ok((len, _, Some(peer))) => {
                    let Some(peer) = internet(peer) else { continue };
                    let known = listener.peers.get(&peer).copied();
                    let id = known.or_else(|| {
                        let id = self.net.heard_of(now, v4, guest);
                        self.act(now);
                        let Some(id) = id else {
                            self.listeners[place].refused += 1;
                            return None;
                        };
                        self.listeners[place].connections += 1;
                        self.listeners[place].peers.insert(peer, id);
                        self.add_socket(Socket::new(id, None, Kind::Peer(place, peer), true)).ok()?;
                        Some(id)
                    });
                    // What the guest has no room for is lost, as on any path.
                    if let Some(id) = id {
                        self.net.datagram(now, id, buffer[..len].to_vec());
                    }
                }
                Ok(_) => {}
                Err(error) => match silence(error) {
                    Silence::Nobody => break,
                    Silence::Gone => {}
                    Silence::Later => {
                        self.pause(now, place, error, paused);
                        break;
                    }
                },
            }
            self.act(now);
            many += 1;
            if many == TURN {
                self.listeners[place].waits = true;
                break;
            }
        }
        self.buffer = buffer;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_one_caller_is_none_of_the_others() {
        assert_eq!(silence(Errno::AGAIN), Silence::Nobody);
        for error in [Errno::CONNABORTED, Errno::NETUNREACH, Errno::HOSTUNREACH, Errno::PROTO, Errno::PERM] {
            assert_eq!(silence(error), Silence::Gone, "{error}");
        }
        for error in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM] {
            assert_eq!(silence(error), Silence::Later, "{error}");
        }
    }
}
