//! One connection: TLS with the guest on one side, TLS with the host on the other, and one request
//! after the other between them. Nothing here waits.

mod side;
#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nelly_net::config::{Handover, Secret};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use serde_json::{Value, json};

use crate::http::{Body, MOST_HEAD, Refusal, Request, Response, head_len, request, response};
use crate::swap::{Found, Swaps};
use side::Side;

/// How often bytes are moved before others have their turn.
const ROUNDS: usize = 16;

/// What is known of a connection after its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It goes on at once.
    Busy,
    /// It waits for one of its sockets, or for its time.
    Waits,
    /// It is over.
    Over,
}

/// A request that is not answered whole.
struct Exchange {
    body: Body,
    is_head: bool,
    upgrades: bool,
    /// The body of the answer, once that has begun.
    answer: Option<Body>,
}

impl Exchange {
    fn is_over(&self) -> bool {
        self.body.is_over() && self.answer.as_ref().is_some_and(Body::is_over)
    }
}

enum Mode {
    /// Requests, one after the other: the one that is under way.
    Http(Option<Exchange>),
    /// Another protocol, whose bytes are passed on as they are.
    Switched,
    /// The guest is told why it is refused, and not heard any more.
    Refused,
    /// What is left for the guest is sent, and whether that was all is told by TLS.
    Ending {
        /// It was all.
        whole: bool,
        /// The guest has not said all of its request, and is given time to stop.
        speaks: bool,
    },
}

const BROKEN_OFF: Mode = Mode::Ending { whole: false, speaks: false };
const ALL_SENT: Mode = Mode::Ending { whole: true, speaks: false };

/// What a connection is about, each part with a limit of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Handshakes,
    Head,
    Idle,
    Exchange,
    /// One end says or hears no more, and the other one may: its silence is bounded.
    HalfOver,
    /// What is left is sent, which may be as much as TLS holds.
    Rest,
    Farewell,
}

impl Phase {
    fn limit(self) -> Duration {
        Duration::from_secs(match self {
            Self::Handshakes => 20,
            Self::Head => 30,
            Self::Idle | Self::Rest => 120,
            Self::HalfOver => 60,
            // The network has limits for the silence of a connection.
            Self::Exchange => 10 * 365 * 86_400,
            Self::Farewell => 10,
        })
    }
}

/// A connection.
pub struct Link {
    guest: Side,
    host: Side,
    about: Handover,
    secrets: Arc<[Secret]>,
    mode: Mode,
    /// Why nothing may be sent to the host.
    unfit: Option<String>,
    phase: Phase,
    deadline: Instant,
    /// How much both ends have taken.
    taken: u64,
    /// How many requests were passed on.
    requests: u64,
    told: Found,
    notes: Vec<Value>,
}

/// It is no connection any more.
struct Broken;

impl Link {
    /// One that begins now: the guest's stream, and the socket that is connected to the host.
    ///
    /// # Errors
    /// The name is none that TLS knows.
    pub fn new(
        about: Handover,
        (guest, host): (OwnedFd, OwnedFd),
        secrets: Arc<[Secret]>,
        (server, client): (Arc<ServerConfig>, Arc<ClientConfig>),
        now: Instant,
    ) -> Result<Self, String> {
        let name = ServerName::try_from(about.name.clone()).map_err(|error| error.to_string())?;
        let server = ServerConnection::new(server).map_err(|error| error.to_string())?;
        let client = ClientConnection::new(client, name).map_err(|error| error.to_string())?;
        Ok(Self {
            guest: Side::new(guest, server.into()),
            host: Side::new(host, client.into()),
            about,
            secrets,
            mode: Mode::Http(None),
            unfit: None,
            phase: Phase::Handshakes,
            deadline: now + Phase::Handshakes.limit(),
            taken: 0,
            requests: 0,
            told: Found::default(),
            notes: Vec::new(),
        })
    }

    /// The sockets of guest and host, to be waited for.
    #[must_use]
    pub fn files(&self) -> [&OwnedFd; 2] {
        [self.guest.file(), self.host.file()]
    }

    /// When it is to have a turn whatever its sockets say.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// What is to be written into the log, each an object.
    pub fn notes(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.notes)
    }

    /// Moves what can be moved.
    pub fn turn(&mut self, now: Instant) -> Turn {
        if now >= self.deadline && !self.is_refused_late() {
            return Turn::Over;
        }
        for _ in 0..ROUNDS {
            let Ok(moved) = self.round() else {
                // An alert may be left to be said.
                let _gone = (self.guest.write(), self.host.write());
                return Turn::Over;
            };
            // Each time, as a connection that always has something to move is to be in time, too.
            self.look_at_time(now);
            if self.is_over() {
                return Turn::Over;
            }
            if !moved {
                return if self.guest.is_left() { Turn::Over } else { Turn::Waits };
            }
        }
        Turn::Busy
    }

    /// Begins the time of what the connection is about now.
    fn look_at_time(&mut self, now: Instant) {
        let (phase, taken) = (self.phase(), self.guest.taken().wrapping_add(self.host.taken()));
        if phase != self.phase || phase == Phase::HalfOver && taken != self.taken {
            (self.phase, self.deadline) = (phase, now + phase.limit());
        }
        self.taken = taken;
    }

    /// Its time is over: whether the guest is told.
    fn is_refused_late(&mut self) -> bool {
        match self.phase {
            Phase::Head => {
                self.refuse(&Refusal { status: 408, why: "its head took longer than 30 seconds" });
                true
            }
            Phase::Handshakes if self.unfit.is_none() && self.host.is_handshaking() => {
                self.unfit = Some("it did not finish its TLS handshake within 20 seconds".to_owned());
                let why = self.unfit.clone().unwrap_or_default();
                self.note("denied", None, &why);
                !self.guest.is_handshaking()
            }
            _ => false,
        }
    }

    fn phase(&self) -> Phase {
        let waits_for_host = self.unfit.is_none() && self.host.is_handshaking();
        match &self.mode {
            Mode::Refused => Phase::Farewell,
            Mode::Ending { .. } => Phase::Rest,
            _ if self.guest.is_handshaking() || waits_for_host => Phase::Handshakes,
            Mode::Http(None) if self.guest.bytes.is_empty() => Phase::Idle,
            Mode::Http(None) => Phase::Head,
            Mode::Switched if self.host.has_ended().is_some() => Phase::HalfOver,
            Mode::Http(Some(_)) | Mode::Switched => {
                let half = self.guest.has_ended().is_some() || self.host.is_deaf();
                if half { Phase::HalfOver } else { Phase::Exchange }
            }
        }
    }

    fn is_over(&self) -> bool {
        match &self.mode {
            Mode::Http(_) => false,
            Mode::Switched => self.guest.is_finished() && self.host.is_finished(),
            Mode::Refused => {
                self.guest.is_finished() && (self.guest.is_gone() || self.guest.has_ended().is_some())
            }
            Mode::Ending { whole: true, speaks } => self.guest.is_finished() && !speaks,
            Mode::Ending { whole: false, .. } => !self.guest.has_unsent(),
        }
    }

    /// Moves some bytes; whether there were any.
    fn round(&mut self) -> Result<bool, Broken> {
        let mut moved = self.hear_guest()?;
        moved |= self.hear_host();
        moved |= self.up();
        moved |= self.down();
        if matches!(self.mode, Mode::Ending { whole: true, .. }) {
            moved |= self.guest.finish();
        }
        moved |= self.guest.write().map_err(|_| Broken)?;
        if matches!(self.mode, Mode::Ending { speaks: true, .. }) && self.guest.is_finished() {
            // If the connection was closed at once, what the guest says would have it reset, and
            // the guest might lose the answer.
            self.mode = Mode::Refused;
        }
        // What a host has said before it went is still heard.
        let was_deaf = self.host.is_deaf();
        moved |= self.host.write().unwrap_or(!was_deaf);
        Ok(moved)
    }

    fn hear_guest(&mut self) -> Result<bool, Broken> {
        match self.guest.read(MOST_HEAD) {
            Ok(_) if self.guest.is_gone() && self.guest.is_handshaking() => Err(Broken),
            Ok(moved) => Ok(moved),
            Err(why) => {
                self.note("denied", None, &format!("the guest's TLS: {why}"));
                Err(Broken)
            }
        }
    }

    fn hear_host(&mut self) -> bool {
        if self.unfit.is_some() {
            return false;
        }
        let was_handshaking = self.host.is_handshaking();
        let unfit = match self.host.read(MOST_HEAD) {
            Ok(_) if was_handshaking && self.host.is_handshaking() && self.host.is_gone() => {
                "it ended the connection before TLS had begun".to_owned()
            }
            Ok(moved) => return moved,
            Err(why) => why,
        };
        if was_handshaking {
            self.note("denied", None, &unfit);
        } else {
            // What it has said is not whole, and nobody knows what it would have been.
            self.fail(&unfit);
        }
        self.unfit = Some(unfit);
        true
    }

    /// Moves what the guest said towards the host.
    fn up(&mut self) -> bool {
        if self.guest.is_handshaking() {
            return false;
        }
        let ended = self.guest.has_ended().is_some();
        match &mut self.mode {
            Mode::Refused | Mode::Ending { .. } => self.guest.forget(),
            Mode::Http(None) => self.begin(ended),
            Mode::Http(Some(exchange)) => {
                if exchange.body.is_over() || self.host.has_unsent() {
                    return false;
                }
                if self.host.is_deaf() {
                    // A guest that says all before it listens is to come to the answer.
                    return self.guest.forget();
                }
                let len = match exchange.body.take(&self.guest.bytes) {
                    Ok(len) => len,
                    Err(why) => {
                        self.note("denied", None, why);
                        self.mode = BROKEN_OFF;
                        return true;
                    }
                };
                if len > 0 {
                    self.host.say(&self.guest.bytes[..len]);
                    self.guest.bytes.drain(..len);
                } else if ended {
                    self.mode = BROKEN_OFF;
                    return true;
                }
                len > 0
            }
            Mode::Switched => pass(&mut self.guest, &mut self.host),
        }
    }

    /// Looks for the head of the next request.
    fn begin(&mut self, ended: bool) -> bool {
        let Some(len) = head_len(&self.guest.bytes, &mut self.guest.searched) else {
            if self.guest.bytes.len() >= MOST_HEAD {
                self.refuse(&Refusal { status: 431, why: "its head is longer than 64 KiB" });
                return true;
            }
            if ended {
                self.mode = ALL_SENT;
            }
            return ended;
        };
        if let Some(unfit) = self.unfit.clone() {
            let why = "nothing was sent to the host";
            self.answer(&Refusal { status: 502, why }, &format!("{why}: {unfit}"));
            return true;
        }
        if self.host.is_handshaking() || self.host.has_unsent() {
            return false;
        }
        if self.host.is_deaf() || self.host.has_ended().is_some() {
            // The connection ends, or the host turns out to be unfit.
            return false;
        }
        self.guest.searched = 0;
        let head: Vec<u8> = self.guest.bytes.drain(..len).collect();
        let swaps = Swaps::new(&self.secrets, &self.about.name, self.about.port);
        match request(&head, &self.about.name, self.about.port, &swaps) {
            Ok(Request { head, framing, is_head, upgrades, found }) => {
                self.host.say(&head);
                self.requests = self.requests.wrapping_add(1);
                let exchange = Exchange { body: Body::new(framing), is_head, upgrades, answer: None };
                self.mode = Mode::Http(Some(exchange));
                self.tell(found);
            }
            Err(refusal) => self.refuse(&refusal),
        }
        true
    }

    /// Moves what the host said towards the guest.
    fn down(&mut self) -> bool {
        if self.host.is_handshaking() || self.guest.is_handshaking() || self.guest.has_unsent() {
            return false;
        }
        let ended = self.host.has_ended();
        match &mut self.mode {
            Mode::Refused | Mode::Ending { .. } => self.host.forget(),
            Mode::Switched if ended == Some(false) && self.host.bytes.is_empty() => {
                self.mode = BROKEN_OFF;
                true
            }
            Mode::Switched => pass(&mut self.host, &mut self.guest),
            Mode::Http(None) if self.unfit.is_some() => false,
            Mode::Http(None) => {
                // It says something that nobody asked for, or that it is tired of waiting.
                let over = ended.is_some() || self.host.is_deaf() || !self.host.bytes.is_empty();
                // A guest that has not begun to ask is to see that this connection is of no use.
                if over && self.requests == 0 && !self.guest.bytes.is_empty() {
                    let unfit = "it ended the connection, or answered, before it was asked";
                    self.note("denied", None, unfit);
                    self.unfit = Some(unfit.to_owned());
                } else if over {
                    self.mode = ALL_SENT;
                }
                over
            }
            Mode::Http(Some(exchange)) => {
                let Some(body) = &mut exchange.answer else { return self.answered(ended) };
                let len = match body.take(&self.host.bytes) {
                    Ok(len) => len,
                    Err(why) => {
                        self.fail(why);
                        return true;
                    }
                };
                self.guest.say(&self.host.bytes[..len]);
                self.host.bytes.drain(..len);
                let (is_over, may_end) = (body.is_over(), body.may_end());
                if exchange.is_over() {
                    self.mode = Mode::Http(None);
                    return true;
                }
                if is_over && (ended.is_some() || self.host.is_deaf()) {
                    // It does not want the rest of the request.
                    self.mode = Mode::Ending { whole: true, speaks: true };
                    return true;
                }
                if let Some(clean) = ended
                    && len == 0
                    && !is_over
                {
                    if clean && may_end {
                        let speaks = !exchange.body.is_over();
                        self.mode = Mode::Ending { whole: true, speaks };
                    } else {
                        self.fail("it ended the connection within its answer");
                    }
                    return true;
                }
                len > 0
            }
        }
    }

    /// Looks for the head of an answer.
    fn answered(&mut self, ended: Option<bool>) -> bool {
        let Mode::Http(Some(exchange)) = &mut self.mode else { return false };
        let Some(len) = head_len(&self.host.bytes, &mut self.host.searched) else {
            let why = match ended {
                _ if self.host.bytes.len() >= MOST_HEAD => "the head of its answer is longer than 64 KiB",
                Some(_) => "it ended the connection before its answer",
                None => return false,
            };
            self.fail(why);
            return true;
        };
        self.host.searched = 0;
        match response(&self.host.bytes[..len], exchange.is_head) {
            Ok(Response::Final(framing)) => exchange.answer = Some(Body::new(framing)),
            Ok(Response::Interim) => {}
            Ok(Response::Switches) if exchange.upgrades && exchange.body.is_over() => {
                self.mode = Mode::Switched;
            }
            Ok(Response::Switches) => {
                self.fail("it switches to a protocol that it was not asked for");
                return true;
            }
            Err(why) => {
                self.fail(why);
                return true;
            }
        }
        self.guest.say(&self.host.bytes[..len]);
        self.host.bytes.drain(..len);
        if matches!(&self.mode, Mode::Http(Some(exchange)) if exchange.is_over()) {
            self.mode = Mode::Http(None);
        }
        true
    }

    /// The host's answer cannot be relied on, or does not come: the log has why, and the guest, as
    /// long as it was sent nothing of an answer.
    fn fail(&mut self, why: &str) {
        if matches!(self.mode, Mode::Refused | Mode::Ending { .. }) {
            return;
        }
        self.note("denied", None, &format!("the host's answer: {why}"));
        let untold = match &self.mode {
            Mode::Http(Some(exchange)) => exchange.answer.is_none(),
            // The first request is answered when it is there.
            Mode::Http(None) if self.requests == 0 => return,
            _ => false,
        };
        // Where a connection that was used before ends without a word, clients ask again on another
        // one, and they would not if they were answered.
        let may_ask_again = self.requests > 1 && self.host.bytes.is_empty();
        if untold && !may_ask_again {
            let refusal = Refusal { status: 502, why: "the host's answer cannot be relied on" };
            self.answer(&refusal, &format!("the host's answer: {why}"));
        } else {
            self.mode = BROKEN_OFF;
        }
    }

    /// Tells the guest why it is refused, and everybody who reads the log.
    fn refuse(&mut self, refusal: &Refusal) {
        self.note("denied", None, &format!("a request is refused: {}", refusal.why));
        self.answer(refusal, refusal.why);
    }

    fn answer(&mut self, refusal: &Refusal, why: &str) {
        let text = format!("nelly: {}: {why}\n", self.about.name);
        let head = format!(
            "HTTP/1.1 {} {}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            refusal.status,
            refusal.phrase(),
            text.len()
        );
        self.guest.say(head.as_bytes());
        if !matches!(&self.mode, Mode::Http(Some(exchange)) if exchange.is_head) {
            self.guest.say(text.as_bytes());
        }
        self.guest.finish();
        self.mode = Mode::Refused;
    }

    /// Tells which secrets were used, and which not, once a connection each.
    fn tell(&mut self, found: Found) {
        for which in found.swapped {
            if !self.told.swapped.contains(&which) {
                self.told.swapped.push(which);
                self.note("swapped", Some(which), "");
            }
        }
        for which in found.left {
            if !self.told.left.contains(&which) {
                self.told.left.push(which);
                self.note("not swapped", Some(which), "the secret is for other hosts");
            }
        }
    }

    fn note(&mut self, verdict: &str, secret: Option<usize>, reason: &str) {
        let Handover { name, from, to, port: _ } = &self.about;
        let mut note =
            json!({"from": from, "name": name, "protocol": "secret", "to": to, "verdict": verdict});
        if let Some(secret) = secret.and_then(|which| self.secrets.get(which)) {
            note["secret"] = secret.name.as_str().into();
        }
        if !reason.is_empty() {
            note["reason"] = reason.into();
        }
        self.notes.push(note);
    }
}

/// Passes on what one side has said, and its end.
fn pass(from: &mut Side, to: &mut Side) -> bool {
    if to.has_unsent() {
        return false;
    }
    if to.is_deaf() {
        return from.forget();
    }
    if !from.bytes.is_empty() {
        to.say(&from.bytes);
        return from.forget();
    }
    from.has_ended().is_some() && to.finish()
}
