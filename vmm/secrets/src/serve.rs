//! All connections, in one thread.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nelly_net::config::{Handover, Secret};
use nelly_net::shell::Journal;
use nelly_net::sys::{CLOSE_ON_EXEC, Poller};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustls::ClientConfig;
use serde_json::{Value, json};

use crate::authority::Authority;
use crate::link::{Link, Turn};

/// The most connections at once: what each may hold is bounded, and so is all of it.
pub const MOST: usize = 128;
/// The longest message about a connection, in bytes.
const MOST_MESSAGE: usize = 1024;
/// What the socket on which connections come is called among those that are waited for.
const HANDOVERS: u64 = u64::MAX;
/// Lines of the log that may come at once, and how many of them come back in a second.
const LINES: u64 = 200;
const LINES_A_SECOND: u64 = 20;

/// What is served.
pub struct Served {
    /// The secrets.
    pub secrets: Arc<[Secret]>,
    /// Who makes certificates for the guest.
    pub authority: Authority,
    /// How TLS with hosts is made.
    pub client: Arc<ClientConfig>,
    /// The message socket on which connections come.
    pub handovers: OwnedFd,
    /// The log.
    pub log: Option<Journal>,
}

/// All connections.
pub struct Server {
    served: Served,
    poller: Poller,
    links: Vec<Option<Link>>,
    busy: VecDeque<usize>,
    lines: Lines,
}

impl Server {
    /// None yet.
    ///
    /// # Errors
    /// The system cannot wait for them.
    pub fn new(served: Served) -> io::Result<Self> {
        let poller = Poller::new()?;
        poller.add(&served.handovers, HANDOVERS)?;
        let links = std::iter::repeat_with(|| None).take(MOST).collect();
        Ok(Self { served, poller, links, busy: VecDeque::new(), lines: Lines::new(Instant::now()) })
    }

    /// Serves until whoever hands connections over is gone.
    ///
    /// # Errors
    /// The system can wait for nothing any more.
    pub fn run(mut self) -> io::Result<()> {
        while self.take_handovers() {
            let deadline = self.links.iter().flatten().map(Link::deadline).min();
            let timeout = match self.busy.is_empty() {
                false => Some(Duration::ZERO),
                true => deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())),
            };
            self.poller.wait(timeout)?;
            for ready in self.poller.ready() {
                if let Ok(place) = usize::try_from(ready.token)
                    && place < MOST
                    && !self.busy.contains(&place)
                {
                    self.busy.push_back(place);
                }
            }
            let now = Instant::now();
            for (place, link) in self.links.iter().enumerate() {
                let late = link.as_ref().is_some_and(|link| link.deadline() <= now);
                if late && !self.busy.contains(&place) {
                    self.busy.push_back(place);
                }
            }
            for place in std::mem::take(&mut self.busy) {
                self.turn(place, now);
            }
        }
        Ok(())
    }

    fn turn(&mut self, place: usize, now: Instant) {
        let Some(link) = self.links.get_mut(place).and_then(Option::as_mut) else { return };
        let turn = link.turn(now);
        let notes = link.notes();
        match turn {
            Turn::Busy => self.busy.push_back(place),
            Turn::Waits => {}
            Turn::Over => self.links[place] = None,
        }
        notes.into_iter().for_each(|note| self.write(note));
    }

    /// Takes connections that come; whether others may.
    fn take_handovers(&mut self) -> bool {
        loop {
            let mut text = [0; MOST_MESSAGE];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
            let mut came = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(&mut text)];
            let flags = CLOSE_ON_EXEC | RecvFlags::DONTWAIT;
            let len = match recvmsg(&self.served.handovers, &mut parts, &mut came, flags) {
                Ok(message) => message.bytes,
                Err(Errno::AGAIN) => return true,
                Err(Errno::INTR) => continue,
                Err(_) => return false,
            };
            if len == 0 {
                return false;
            }
            let mut files = Vec::new();
            for message in came.drain() {
                if let RecvAncillaryMessage::ScmRights(all) = message {
                    files.extend(all);
                }
            }
            let about = serde_json::from_slice::<Handover>(&text[..len]);
            // Whoever hands over something else is asked by a guest; nothing is done for it.
            let (Ok(about), Ok([guest, host])) = (about, <[OwnedFd; 2]>::try_from(files)) else { continue };
            self.begin(about, guest, host);
        }
    }

    fn begin(&mut self, about: Handover, guest: OwnedFd, host: OwnedFd) {
        let told = json!({
            "from": about.from, "name": about.name, "protocol": "secret", "to": about.to, "verdict": "denied",
        });
        let refused = |why: &str| {
            let mut note = told.clone();
            note["reason"] = why.into();
            note
        };
        let known = self.served.secrets.iter().flat_map(|secret| &secret.hosts);
        if !known.clone().any(|one| one.is_about(&about.name, about.port)) {
            return self.write(refused("no secret is for this host"));
        }
        let Some(place) = self.links.iter().position(Option::is_none) else {
            return self.write(refused("there are too many connections to hosts of secrets"));
        };
        let now = Instant::now();
        let server = self.served.authority.server(&about.name).map_err(|error| error.to_string());
        let client = Arc::clone(&self.served.client);
        let secrets = Arc::clone(&self.served.secrets);
        let link = server.and_then(|server| Link::new(about, (guest, host), secrets, (server, client), now));
        let link = match link {
            Ok(link) => link,
            Err(why) => return self.write(refused(&why)),
        };
        let token = place as u64;
        if link.files().iter().all(|file| self.poller.add(file, token).is_ok()) {
            self.links[place] = Some(link);
            self.busy.push_back(place);
        }
    }

    fn write(&mut self, note: Value) {
        let Some(log) = &self.served.log else { return };
        if self.lines.has_room(Instant::now()) {
            log.write_line(&note.to_string());
        }
    }
}

/// How many lines may be written still, so that a guest does not fill the host's disk.
struct Lines {
    left: u64,
    since: Instant,
}

impl Lines {
    fn new(now: Instant) -> Self {
        Self { left: LINES, since: now }
    }

    fn has_room(&mut self, now: Instant) -> bool {
        let seconds = now.saturating_duration_since(self.since).as_secs();
        if seconds > 0 {
            let more = seconds.saturating_mul(LINES_A_SECOND);
            self.left = self.left.saturating_add(more).min(LINES);
            self.since = now;
        }
        let some = self.left > 0;
        self.left -= u64::from(some);
        some
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_bounded_and_come_back() {
        let now = Instant::now();
        let mut lines = Lines::new(now);
        let count = |lines: &mut Lines, now| (0..1000).filter(|_| lines.has_room(now)).count();
        assert_eq!(count(&mut lines, now), 200);
        assert_eq!(count(&mut lines, now + Duration::from_millis(900)), 0);
        assert_eq!(count(&mut lines, now + Duration::from_secs(2)), 40);
        assert_eq!(count(&mut lines, now + Duration::from_secs(3600)), 200);
    }
}
