//! One thread around the switch: it owns the sockets, and waits for them alone. A port that takes
//! its frames too slowly loses frames of its own, and holds up nobody.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FlockOperation};
use rustix::io::Errno;
use rustix::net::{self, RecvFlags, SendFlags};

use super::{PortId, Switch};
use crate::link::{HEADER_LEN, MAX_MESSAGE};
use crate::peers::{Answer, MAX_PORTS, MAX_REQUEST, Request};
use crate::sys::{Poller, QUIET, Ready, accept, identity, peer_user};

/// The listener among those that are waited for.
const LISTENER: u64 = 0;
/// Sockets at once: ports, and some that ask or are about to join.
const MOST: usize = MAX_PORTS + 64;
/// How long somebody who has connected may take to say what for.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a switch waits for its first port.
const FIRST: Duration = Duration::from_secs(30);
/// How often it tries to end while somebody else holds the lock.
const AGAIN: Duration = Duration::from_millis(50);
/// Messages of one socket before others have their turn, or frames that come of them.
const TURN: usize = 64;
/// What a switch says when it serves.
pub const READY: &[u8] = b"ready\n";
/// What waits for one socket, in bytes, and in messages.
const QUEUE: (usize, usize) = (1 << 20, 1024);

/// Why a switch ends before its time.
#[derive(Debug, thiserror::Error)]
#[error("cannot {0}")]
pub struct Error(&'static str, #[source] io::Error);

/// Where the socket of a switch is, so that it can be taken away at the end.
#[derive(Debug)]
pub struct Place {
    /// The directory that holds `directory`.
    pub parent: OwnedFd,
    /// The directory of the socket.
    pub directory: String,
    /// The socket's name in it.
    pub name: String,
    /// The lock that whoever joins holds: under it nobody is about to.
    pub lock: OwnedFd,
}

impl Place {
    fn path(&self) -> String {
        format!("{}/{}", self.directory, self.name)
    }

    /// What is there now, by its device and its inode.
    fn socket(&self) -> Option<(u64, u64)> {
        let found = rustix::fs::statat(&self.parent, self.path(), AtFlags::SYMLINK_NOFOLLOW).ok()?;
        Some(identity(&found))
    }
}

/// Somebody who has connected.
#[derive(Debug)]
struct Client {
    file: OwnedFd,
    kind: Kind,
    /// There may be something to read.
    readable: bool,
    /// There may be room to write.
    open: bool,
    /// It has gone.
    ended: bool,
    /// The latest names, if it does not have them.
    names: Option<Rc<Vec<u8>>>,
    queue: VecDeque<Vec<u8>>,
    queued: usize,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// It has not said what it wants, since then.
    New(Duration),
    /// A port.
    Port(PortId),
    /// It is told who is there, and goes; since then.
    Asks(Duration),
}

impl Client {
    /// Sends a message, or keeps it. `false`: it is lost.
    fn send(&mut self, parts: [&[u8]; 2]) -> bool {
        if self.open && self.queue.is_empty() {
            let slices = parts.map(IoSlice::new);
            match send(&self.file, &slices) {
                Ok(()) => return true,
                Err(Errno::AGAIN) => self.open = false,
                // The host has no memory: as on any path.
                Err(Errno::NOBUFS | Errno::NOMEM | Errno::INTR) => return false,
                Err(_) => {
                    self.ended = true;
                    return false;
                }
            }
        }
        let len = parts[0].len() + parts[1].len();
        let asks = matches!(self.kind, Kind::Asks(_));
        if !asks && (self.queued + len > QUEUE.0 || self.queue.len() >= QUEUE.1) {
            return false;
        }
        self.queued += len;
        self.queue.push_back(parts.concat());
        true
    }

    /// Sends what waits, as far as there is room: names first.
    fn flush(&mut self) {
        while self.open && !self.ended {
            let sent = match (&self.names, self.queue.front()) {
                (Some(names), _) => send(&self.file, &[IoSlice::new(names)]),
                (None, Some(message)) => send(&self.file, &[IoSlice::new(message)]),
                (None, None) => return,
            };
            match sent {
                Ok(()) if self.names.take().is_some() => {}
                Ok(()) => self.queued -= self.queue.pop_front().map_or(0, |message| message.len()),
                Err(Errno::INTR) => {}
                // Where nothing tells that there is memory again, the next round tries.
                Err(Errno::NOBUFS | Errno::NOMEM) => return,
                Err(Errno::AGAIN) => self.open = false,
                Err(_) => self.ended = true,
            }
        }
    }

    fn is_told(&self) -> bool {
        matches!(self.kind, Kind::Asks(_)) && self.queue.is_empty()
    }
}

fn send(file: &OwnedFd, parts: &[IoSlice<'_>]) -> Result<(), Errno> {
    let flags = QUIET | SendFlags::DONTWAIT;
    net::sendmsg(file, parts, &mut net::SendAncillaryBuffer::default(), flags).map(drop)
}

/// The shell of a switch.
struct Serving {
    switch: Switch,
    start: Instant,
    poller: Poller,
    listener: OwnedFd,
    clients: BTreeMap<u64, Client>,
    ports: HashMap<PortId, u64>,
    next: u64,
    buffer: Box<[u8]>,
    /// Somebody may have connected.
    calls: bool,
    /// The names have changed.
    renamed: bool,
    /// Somebody has joined.
    begun: bool,
    /// The device and the inode of its socket: another one at the same place is another switch's.
    socket: Option<(u64, u64)>,
}

/// Serves the network called `network` on `listener`, a message socket that does not block, until
/// the last port has gone, and removes the socket then. `ready` is called when everything is open
/// that is needed, before anybody is heard.
///
/// # Errors
/// The system can wait for nothing any more, or `ready` fails.
pub fn serve(
    network: String,
    listener: OwnedFd,
    place: &Place,
    ready: impl FnOnce() -> io::Result<()>,
) -> Result<(), Error> {
    let poller = Poller::new().map_err(|e| Error("wait for sockets", e))?;
    poller.add(&listener, LISTENER).map_err(|e| Error("wait for who joins", e))?;
    let mut serving = Serving {
        switch: Switch::new(network),
        start: Instant::now(),
        poller,
        listener,
        clients: BTreeMap::new(),
        ports: HashMap::new(),
        next: LISTENER + 1,
        buffer: vec![0; MAX_MESSAGE.max(MAX_REQUEST + 1)].into_boxed_slice(),
        calls: true,
        renamed: false,
        begun: false,
        socket: place.socket(),
    };
    ready().map_err(|e| Error("give up rights", e))?;
    let mut became_ready = Vec::new();
    loop {
        serving.round(&became_ready)?;
        let mut timeout = serving.deadline();
        if serving.may_end() {
            if serving.ends(place) {
                return Ok(());
            }
            timeout = Some(timeout.map_or(AGAIN, |other| other.min(AGAIN)));
        }
        serving.poller.wait(timeout).map_err(|e| Error("wait for sockets", e))?;
        became_ready = serving.poller.ready().collect();
    }
}

impl Serving {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn round(&mut self, ready: &[Ready]) -> Result<(), Error> {
        for ready in ready {
            match self.clients.get_mut(&ready.token) {
                Some(client) => {
                    client.readable |= ready.readable;
                    client.open |= ready.writable;
                }
                None => self.calls |= ready.token == LISTENER,
            }
        }
        if std::mem::take(&mut self.calls) {
            self.accept()?;
        }
        let tokens: Vec<u64> = self.clients.iter().filter(|(_, c)| c.readable).map(|(t, _)| *t).collect();
        for token in tokens {
            self.read(token);
        }
        self.sweep();
        if std::mem::take(&mut self.renamed) {
            let names = Rc::new(self.switch.names().to_bytes());
            let ports = self.clients.values_mut().filter(|client| matches!(client.kind, Kind::Port(_)));
            ports.for_each(|client| client.names = Some(Rc::clone(&names)));
        }
        self.clients.values_mut().for_each(Client::flush);
        self.sweep();
        Ok(())
    }

    /// How long to wait though nothing becomes ready.
    fn deadline(&self) -> Option<Duration> {
        let waits = |client: &Client| client.open && (client.names.is_some() || !client.queue.is_empty());
        if self.clients.values().any(|client| client.readable) {
            return Some(Duration::ZERO);
        }
        if self.calls || self.clients.values().any(waits) {
            return Some(AGAIN);
        }
        let short = self.clients.values().any(|client| !matches!(client.kind, Kind::Port(_)));
        (short || !self.begun).then_some(PATIENCE)
    }

    fn accept(&mut self) -> Result<(), Error> {
        loop {
            match accept(&self.listener) {
                Ok(file) => self.take(file),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::AGAIN) => return Ok(()),
                // What the host cannot give now it may give later.
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    self.calls = true;
                    return Ok(());
                }
                Err(error) => return Err(Error("hear who joins", error.into())),
            }
        }
    }

    fn take(&mut self, file: OwnedFd) {
        let own = rustix::process::geteuid().as_raw();
        let may = peer_user(&file).is_ok_and(|user| user == own || user == 0);
        if !may || self.clients.len() >= MOST || self.poller.add(&file, self.next).is_err() {
            return;
        }
        let client = Client {
            file,
            kind: Kind::New(self.now()),
            readable: true,
            open: true,
            ended: false,
            names: None,
            queue: VecDeque::new(),
            queued: 0,
        };
        self.clients.insert(self.next, client);
        self.next += 1;
    }

    /// Reads some messages of a socket.
    fn read(&mut self, token: u64) {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut left = TURN;
        while left > 0 {
            let Some(client) = self.clients.get_mut(&token).filter(|client| !client.ended) else { break };
            let mut work = 1;
            match net::recv(&client.file, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((0, _)) => client.ended = true,
                // Longer than any message may be.
                Ok((len, _)) if len == buffer.len() => {}
                Ok((len, _)) => {
                    let kind = client.kind;
                    work = self.message(token, kind, &buffer[..len]);
                }
                Err(Errno::AGAIN) => {
                    client.readable = false;
                    break;
                }
                Err(Errno::INTR) => {}
                Err(_) => client.ended = true,
            }
            left = left.saturating_sub(work);
        }
        self.buffer = buffer;
    }

    /// Takes a message, and gives how much work it was, in messages.
    fn message(&mut self, token: u64, kind: Kind, message: &[u8]) -> usize {
        match kind {
            Kind::New(_) => {
                self.request(token, message);
                1
            }
            Kind::Port(port) => {
                let now = self.now();
                let (clients, ports) = (&mut self.clients, &self.ports);
                let mut lost = Vec::new();
                let mut out = |to: PortId, head: &[u8; HEADER_LEN], frame: &[u8]| {
                    let client = ports.get(&to).and_then(|token| clients.get_mut(token));
                    if !client.is_some_and(|client| client.send([head, frame])) {
                        lost.push(to);
                    }
                };
                let work = self.switch.message(now, port, message, &mut out);
                lost.into_iter().for_each(|port| self.switch.lost(port));
                work
            }
            // Who asks has nothing more to say.
            Kind::Asks(_) => 1,
        }
    }

    fn request(&mut self, token: u64, message: &[u8]) {
        let now = self.now();
        let request = serde_json::from_slice::<Request>(message).map_err(|error| error.to_string());
        let (kind, answers) = match request.and_then(|request| match request {
            Request::Join(join) => self.switch.join(now, join).map(Some),
            Request::Show => Ok(None),
        }) {
            Ok(Some(joined)) => {
                if let Some(old) = joined.instead_of.and_then(|old| self.ports.remove(&old))
                    && let Some(old) = self.clients.get_mut(&old)
                {
                    // Its port is gone already.
                    (old.kind, old.ended) = (Kind::Asks(now), true);
                }
                self.ports.insert(joined.port, token);
                (self.renamed, self.begun) = (true, true);
                (Kind::Port(joined.port), vec![serde_json::to_vec(&Answer::Joined)])
            }
            Ok(None) => {
                (Kind::Asks(now), self.switch.shown().map(|shown| serde_json::to_vec(&shown)).collect())
            }
            Err(why) => (Kind::Asks(now), vec![serde_json::to_vec(&Answer::Refused(why))]),
        };
        let Some(client) = self.clients.get_mut(&token) else { return };
        client.kind = kind;
        for answer in answers.into_iter().flatten() {
            client.send([&answer, &[]]);
        }
    }

    /// Forgets who has gone.
    fn sweep(&mut self) {
        let now = self.now();
        let gone = |client: &Client| {
            let late = matches!(client.kind, Kind::New(since) | Kind::Asks(since) if since + PATIENCE <= now);
            client.ended || late || client.is_told()
        };
        let tokens: Vec<u64> = self.clients.iter().filter(|(_, c)| gone(c)).map(|(t, _)| *t).collect();
        for token in tokens {
            if let Some(Client { kind: Kind::Port(port), .. }) = self.clients.remove(&token) {
                self.ports.remove(&port);
                self.switch.leave(port);
                self.renamed = true;
            }
        }
    }

    fn may_end(&self) -> bool {
        self.switch.is_empty() && (self.begun || self.now() > FIRST)
    }

    /// Ends, unless somebody is about to join. Whether it did.
    fn ends(&mut self, place: &Place) -> bool {
        if rustix::fs::flock(&place.lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return false;
        }
        let before = self.clients.len();
        let accepted = self.accept();
        if accepted.is_ok() && self.clients.len() > before {
            let _unlocked = rustix::fs::flock(&place.lock, FlockOperation::Unlock);
            return false;
        }
        // What somebody else has removed already is as good, and another's is let be.
        if self.socket.is_some() && self.socket == place.socket() {
            let _ = rustix::fs::unlinkat(&place.parent, place.path(), AtFlags::empty());
            let _ = rustix::fs::unlinkat(&place.parent, &place.directory, AtFlags::REMOVEDIR);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::link::{Hello, Offloads};
    use crate::switch::tests::{join, segment};

    fn serving() -> Serving {
        let (listener, _other) = UnixStream::pair().unwrap();
        Serving {
            switch: Switch::new("dev".to_owned()),
            start: Instant::now(),
            poller: Poller::new().unwrap(),
            listener: listener.into(),
            clients: BTreeMap::new(),
            ports: HashMap::new(),
            next: LISTENER + 1,
            buffer: vec![0; MAX_MESSAGE].into_boxed_slice(),
            calls: false,
            renamed: false,
            begun: true,
            socket: None,
        }
    }

    #[test]
    fn who_asks_and_does_not_listen_has_its_place_for_a_while_only() {
        let mut serving = serving();
        let mut ends = Vec::new();
        for kind in [Kind::New(Duration::ZERO), Kind::Asks(Duration::ZERO)] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let token = serving.next;
            serving.take(ours.into());
            let client = serving.clients.get_mut(&token).unwrap();
            (client.kind, client.open) = (kind, false);
            client.send([b"a part of the answer", &[]]);
            ends.push(theirs);
        }
        serving.sweep();
        assert_eq!((serving.clients.len(), serving.deadline()), (2, Some(Duration::ZERO)));
        serving.clients.values_mut().for_each(|client| client.readable = false);
        assert_eq!(serving.deadline(), Some(PATIENCE), "the end of it is not waited for");
        serving.start -= PATIENCE;
        serving.sweep();
        assert!(serving.clients.is_empty());
    }

    #[test]
    fn what_is_cut_into_many_is_a_turn_of_its_own() {
        let mut serving = serving();
        let mut ends = Vec::new();
        for n in [1, 2] {
            let flags = net::SocketFlags::CLOEXEC | net::SocketFlags::NONBLOCK;
            let seqpacket = net::SocketType::SEQPACKET;
            let (ours, theirs) = net::socketpair(net::AddressFamily::UNIX, seqpacket, flags, None).unwrap();
            let token = serving.next;
            serving.take(ours);
            let port = serving.switch.join(Duration::ZERO, join(n)).unwrap().port;
            serving.ports.insert(port, token);
            serving.clients.get_mut(&token).unwrap().kind = Kind::Port(port);
            // It takes neither long frames nor unfinished checksums.
            let hello = Hello { offloads: Offloads::default(), mtu: 1500 }.to_bytes();
            serving.message(token, Kind::Port(port), &hello);
            ends.push(theirs);
        }
        let first = LISTENER + 1;
        let mut long = segment(1, 2, true, 2 * TURN, 1);
        for _ in 0..3 {
            net::send(&ends[0], &long, SendFlags::empty()).unwrap();
        }
        serving.read(first);
        // One was read and cut, and two wait for their turns.
        let mut waiting = 0;
        while net::recv(&serving.clients[&first].file, &mut *long, RecvFlags::DONTWAIT).is_ok() {
            waiting += 1;
        }
        assert_eq!((waiting, serving.clients[&first].readable), (2, true));
    }
}
