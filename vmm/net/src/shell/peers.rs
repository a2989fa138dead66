//! The second link: the port on the switch of a network of machines.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::OwnedFd;

use rustix::io::Errno;

use super::Shell;
use super::socket::{receive, send_parts};
use crate::core::Time;
use crate::link::{Hello, MAX_MESSAGE};
use crate::peers::Names;

/// Messages of the switch that are passed on before others have their turn.
const TURN: usize = 64;
/// What waits for the switch, in bytes and in frames. It is quick, unless it was stopped.
const QUEUE: (usize, usize) = (1 << 20, 256);

/// The port.
#[derive(Debug)]
pub(super) struct Peers {
    file: OwnedFd,
    /// There may be something to read.
    pub(super) readable: bool,
    open: bool,
    queue: VecDeque<Vec<u8>>,
    queued: usize,
    /// What the driver can receive, once it has begun.
    hello: Option<Hello>,
    /// The hello has to be said before anything else.
    greets: bool,
    ended: bool,
}

impl Peers {
    pub(super) fn new(file: OwnedFd, hello: Option<Hello>) -> Self {
        Self {
            file,
            readable: true,
            open: true,
            queue: VecDeque::new(),
            queued: 0,
            greets: hello.is_some(),
            hello,
            ended: false,
        }
    }

    /// The switch may take messages again.
    pub(super) fn opens(&mut self) {
        self.open = true;
    }

    /// Says a frame. One for which there is no room is lost, as on any network.
    fn say(&mut self, message: &[u8]) {
        self.flush();
        if self.queue.is_empty() && self.open && !self.greets {
            match send_parts(&self.file, &[IoSlice::new(message)]) {
                Err(Errno::AGAIN) => self.open = false,
                Err(Errno::NOBUFS | Errno::NOMEM | Errno::INTR) | Ok(_) => return,
                Err(_) => {
                    self.ended = true;
                    return;
                }
            }
        }
        if self.queued + message.len() <= QUEUE.0 && self.queue.len() < QUEUE.1 {
            self.queued += message.len();
            self.queue.push_back(message.to_vec());
        }
    }

    fn flush(&mut self) {
        while self.open && !self.ended {
            let hello = self.hello.filter(|_| self.greets).map(Hello::to_bytes);
            let next = hello.as_ref().map(|hello| &hello[..]).or(self.queue.front().map(Vec::as_slice));
            let Some(next) = next else { return };
            match send_parts(&self.file, &[IoSlice::new(next)]) {
                Ok(_) if hello.is_some() => self.greets = false,
                Ok(_) => self.queued -= self.queue.pop_front().map_or(0, |sent| sent.len()),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.open = false,
                Err(Errno::NOBUFS | Errno::NOMEM) => return,
                Err(_) => self.ended = true,
            }
        }
    }
}

impl Shell {
    /// The message in hand is for another machine, or for all of them.
    pub(super) fn tell_peers(&mut self, message: &[u8]) {
        if let Some(peers) = &mut self.peers {
            peers.say(message);
        }
    }

    /// The guest's driver has begun.
    pub(super) fn greet_peers(&mut self, hello: Hello) {
        if let Some(peers) = &mut self.peers {
            (peers.hello, peers.greets) = (Some(hello), true);
            peers.flush();
        }
    }

    /// Passes on what other machines say, as far as the guest takes it.
    pub(super) fn take_from_peers(&mut self, now: Time) {
        let Some(mut peers) = self.peers.take() else { return };
        peers.flush();
        let mut buffer = std::mem::take(&mut self.buffer);
        for _ in 0..TURN {
            // What the guest does not take now waits in the switch, which loses what is too much.
            if !peers.readable || peers.ended || !self.link_gate.is_open() || self.pending.is_some() {
                break;
            }
            match receive(&peers.file, &mut buffer) {
                Ok(0) => peers.ended = true,
                Ok(MAX_MESSAGE) | Err(Errno::INTR) => {}
                Ok(len) => self.peer_said(now, &buffer[..len]),
                Err(Errno::AGAIN) => peers.readable = false,
                Err(_) => peers.ended = true,
            }
        }
        self.buffer = buffer;
        if peers.ended {
            // The machine goes on; the others are out of its reach until it starts again.
            self.net.set_names(Names::default());
        } else {
            self.peers = Some(peers);
        }
    }

    /// A message of the switch.
    fn peer_said(&mut self, now: Time, message: &[u8]) {
        if Names::is_meant(message) {
            if let Some(names) = Names::parse(message) {
                self.net.set_names(names);
            }
            return;
        }
        if self.net.is_from_peer(message)
            && let Err(error) = send_parts(&self.link, &[IoSlice::new(message)])
        {
            self.not_taken(now, error, message.to_vec());
        }
    }

    /// Whether something of the switch can be passed on at once.
    pub(super) fn has_peer_work(&self) -> bool {
        self.peers.as_ref().is_some_and(|peers| peers.readable)
            && self.link_gate.is_open()
            && self.pending.is_none()
    }
}
