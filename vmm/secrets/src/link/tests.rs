//! A connection in time that is made up: what it does when one of its ends goes, or never stops.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use rustls::Connection;

use super::*;
use crate::authority::Authority;
use crate::swap::tests::secret;
use crate::trust;

const NAME: &str = "api.example";

/// A guest, or a host, that does not wait either.
struct End {
    tls: Connection,
    stream: UnixStream,
    /// What it says, in TLS, and its socket has not taken.
    unsent: Vec<u8>,
    heard: Vec<u8>,
    /// It was told that what it heard is all.
    told_all: bool,
    /// It hears nothing before it has said all.
    says_first: bool,
}

impl End {
    fn new(tls: Connection, stream: UnixStream) -> Self {
        Self { tls, stream, unsent: Vec::new(), heard: Vec::new(), told_all: false, says_first: false }
    }

    fn say(&mut self, bytes: &[u8]) {
        self.tls.writer().write_all(bytes).unwrap();
        self.write();
    }

    /// As many records as bytes.
    fn trickle(&mut self, len: usize) {
        for _ in 0..len {
            self.tls.writer().write_all(b"x").unwrap();
            while self.tls.wants_write() {
                self.tls.write_tls(&mut self.unsent).unwrap();
            }
        }
        self.write();
    }

    fn write(&mut self) {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.unsent).unwrap();
        }
        while !self.unsent.is_empty() {
            let Ok(len) = self.stream.write(&self.unsent) else { return };
            self.unsent.drain(..len);
        }
    }

    /// Hears what there is.
    fn hear(&mut self) {
        self.write();
        if self.says_first && !self.unsent.is_empty() {
            return;
        }
        while matches!(self.tls.read_tls(&mut self.stream), Ok(1..)) {
            let _lie = self.tls.process_new_packets();
            self.take();
        }
        self.take();
        self.write();
    }

    fn take(&mut self) {
        let mut part = [0; 16 << 10];
        while let Ok(len) = self.tls.reader().read(&mut part) {
            self.heard.extend(&part[..len]);
            self.told_all |= len == 0;
            if len == 0 {
                return;
            }
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.heard).into_owned()
    }

    /// Says that it says no more.
    fn end(&mut self) {
        self.tls.send_close_notify();
        self.write();
        self.stream.shutdown(std::net::Shutdown::Write).unwrap();
    }
}

struct Scene {
    link: Link,
    guest: Option<End>,
    host: Option<End>,
    now: Instant,
}

fn sockets() -> (UnixStream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    for end in [&ours, &theirs] {
        end.set_nonblocking(true).unwrap();
        rustix::net::sockopt::set_socket_send_buffer_size(end, 400 << 10).unwrap();
        rustix::net::sockopt::set_socket_recv_buffer_size(end, 400 << 10).unwrap();
    }
    (ours, theirs)
}

impl Scene {
    /// Both handshakes are over.
    fn new() -> Self {
        let mut here = Authority::new([NAME]).unwrap();
        let mut there = Authority::new([NAME]).unwrap();
        let name = ServerName::try_from(NAME).unwrap();
        let to_host = trust::client(b"", &[there.pem()]).unwrap();
        let of_guest = trust::client(b"", &[here.pem()]).unwrap();
        let ((guest, for_guest), (host, for_host)) = (sockets(), sockets());
        rustix::net::sockopt::set_socket_send_buffer_size(&for_guest, 32 << 10).unwrap();
        let about = Handover { name: NAME.into(), port: 443, from: String::new(), to: String::new() };
        let secrets = Arc::from([secret("KEY", "hush", NAME, '1')]);
        let ends = (for_guest.into(), for_host.into());
        let now = Instant::now();
        let link = Link::new(about, ends, secrets, (here.server(NAME).unwrap(), to_host), now);
        let of_guest = ClientConnection::new(of_guest, name).unwrap();
        let of_host = ServerConnection::new(there.server(NAME).unwrap()).unwrap();
        let (guest, host) = (End::new(of_guest.into(), guest), End::new(of_host.into(), host));
        let mut scene = Self {
            link: link.unwrap_or_else(|why| panic!("{why}")),
            guest: Some(guest),
            host: Some(host),
            now,
        };
        assert_eq!(scene.settle(), Turn::Waits);
        assert!(!scene.guest().tls.is_handshaking() && !scene.host().tls.is_handshaking());
        scene
    }

    fn guest(&mut self) -> &mut End {
        self.guest.as_mut().unwrap()
    }

    fn host(&mut self) -> &mut End {
        self.host.as_mut().unwrap()
    }

    /// Gives everybody turns, until there is nothing to do for anybody.
    fn settle(&mut self) -> Turn {
        let mut last = Turn::Busy;
        for _ in 0..50 {
            self.guest.iter_mut().chain(&mut self.host).for_each(End::hear);
            last = self.link.turn(self.now);
            if last == Turn::Over {
                break;
            }
        }
        self.guest.iter_mut().for_each(End::hear);
        last
    }

    /// Gives turns for as long as bytes come to somebody.
    fn settle_all(&mut self) {
        let settled = (0..200).find(|_| self.settle() != Turn::Busy);
        assert!(settled.is_some() && self.settle() == Turn::Waits, "it is over, or never still");
    }

    fn at(&mut self, seconds: u64, since: Instant) -> Turn {
        self.now = since + Duration::from_secs(seconds);
        self.link.turn(self.now)
    }

    fn asks(&mut self, fields: &str) {
        let text = format!("POST / HTTP/1.1\r\nHost: {NAME}\r\n{fields}\r\n");
        self.guest().say(text.as_bytes());
        assert_eq!(self.settle(), Turn::Waits);
        assert!(self.host().text().starts_with("POST / "));
    }

    fn notes(&mut self) -> String {
        self.link.notes().iter().map(ToString::to_string).collect()
    }
}

/// More of a body than everybody on the way holds.
const MUCH: usize = 4 << 20;

#[test]
fn an_early_answer_comes_to_a_guest_that_says_all_first() {
    // The long one has no room on the way: the host's end comes behind it, when the guest hears.
    for (host_says_its_end, len) in [(true, 5), (false, 5), (true, 400 << 10)] {
        let mut scene = Scene::new();
        scene.asks(&format!("Content-Length: {MUCH}\r\n"));
        let mut host = scene.host.take().unwrap();
        scene.guest().says_first = true;
        scene.guest().tls.set_buffer_limit(None);
        scene.guest().say(&vec![0; MUCH]);
        scene.settle_all();
        assert!(!scene.guest().unsent.is_empty(), "all of the body is held somewhere");
        host.tls.set_buffer_limit(None);
        let body = "x".repeat(len);
        let answer = format!("HTTP/1.1 413 Too Large\r\nContent-Length: {len}\r\n\r\n{body}");
        host.say(answer.as_bytes());
        if host_says_its_end {
            host.tls.send_close_notify();
        }
        for _ in 0..50 {
            host.write();
            scene.settle();
        }
        assert!(host.unsent.is_empty());
        // There is something that it has not read, so its end is a reset.
        drop(host);
        scene.settle_all();
        let guest = scene.guest();
        assert!(guest.text() == answer && guest.told_all, "{}", guest.heard.len());
        assert!(guest.unsent.is_empty(), "the guest cannot say all");
        let (told, since) = (scene.notes(), scene.now);
        assert_eq!(told, "");
        if host_says_its_end {
            // The guest goes, and with it the connection.
            scene.guest = None;
            assert_eq!(scene.settle(), Turn::Over);
        } else {
            assert_eq!((scene.at(9, since), scene.at(10, since)), (Turn::Waits, Turn::Over));
        }
    }
}

#[test]
fn a_host_that_is_gone_ends_an_exchange() {
    // Before it was asked, before its answer, within its answer, and while it is told a body.
    for which in 0..4 {
        let mut scene = Scene::new();
        let length = if which == 3 { MUCH } else { 0 };
        if which > 0 {
            scene.asks(&format!("Content-Length: {length}\r\n"));
        }
        if which == 2 {
            scene.host().say(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nless");
            scene.settle();
        }
        let host = scene.host.take().unwrap();
        if which == 3 {
            scene.guest().tls.set_buffer_limit(None);
            scene.guest().say(&vec![0; MUCH]);
            scene.settle_all();
        }
        drop(host);
        if which == 0 {
            scene.guest().say(format!("GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n").as_bytes());
        }
        let turn = scene.settle();
        let text = scene.guest().text();
        if which == 2 {
            assert!(turn == Turn::Over && !scene.guest().told_all && text.ends_with("less"), "{text}");
        } else {
            assert!(text.starts_with("HTTP/1.1 502 Bad Gateway\r\n") && scene.guest().told_all, "{text}");
            assert!(text.contains("it ended the connection"), "{text}");
            scene.guest().end();
            assert_eq!(scene.settle(), Turn::Over);
        }
        let told = scene.notes();
        assert!(told.matches("\"denied\"").count() == 1 && told.contains("it ended the conn"), "{told}");
    }
}

#[test]
fn a_host_that_goes_before_it_is_asked_ends_the_connection() {
    let mut scene = Scene::new();
    scene.host = None;
    assert_eq!(scene.settle(), Turn::Over);
    assert!(scene.guest().told_all && scene.guest().heard.is_empty());
    assert_eq!(scene.notes(), "");
}

#[test]
fn a_request_on_a_connection_that_its_host_has_left_may_be_sent_again() {
    let mut scene = Scene::new();
    scene.asks("");
    scene.host().say(b"HTTP/1.1 204 No Content\r\n\r\n");
    scene.settle();
    // Both at once: the host goes, and the guest asks.
    let request = format!("GET /again HTTP/1.1\r\nHost: {NAME}\r\n\r\n");
    scene.guest().say(request.as_bytes());
    scene.link.turn(scene.now);
    scene.host = None;
    assert_eq!(scene.settle(), Turn::Over);
    assert_eq!(scene.guest().text(), "HTTP/1.1 204 No Content\r\n\r\n");
    assert!(!scene.guest().told_all);
}

#[test]
fn a_host_that_is_gone_ends_another_protocol() {
    let mut scene = Scene::new();
    scene.asks("Connection: Upgrade\r\nUpgrade: websocket\r\n");
    scene.host().say(b"HTTP/1.1 101 Switching Protocols\r\n\r\nfirst");
    assert_eq!(scene.settle(), Turn::Waits);
    let host = scene.host.take().unwrap();
    scene.guest().tls.set_buffer_limit(None);
    scene.guest().say(&vec![0; MUCH]);
    scene.settle_all();
    drop(host);
    assert_eq!(scene.settle(), Turn::Over);
    assert!(scene.guest().text().ends_with("first") && !scene.guest().told_all);
}

#[test]
fn a_guest_that_is_gone_ends_what_waits_for_its_host() {
    for fields in ["", "Connection: Upgrade\r\nUpgrade: websocket\r\n"] {
        let mut scene = Scene::new();
        scene.asks(fields);
        if !fields.is_empty() {
            scene.host().say(b"HTTP/1.1 101 Switching Protocols\r\n\r\n");
            scene.settle();
        }
        scene.guest = None;
        assert_eq!(scene.settle(), Turn::Over, "{fields}");
    }
}

#[test]
fn a_guest_that_has_ended_gets_its_answer_within_a_minute_of_silence() {
    let mut scene = Scene::new();
    scene.asks("");
    let since = scene.now;
    // Nobody has ended: a long time is none.
    assert_eq!((scene.at(100_000, since), scene.settle()), (Turn::Waits, Turn::Waits));
    let since = scene.now;
    scene.guest().end();
    assert_eq!(scene.settle(), Turn::Waits);
    assert_eq!(scene.at(59, since), Turn::Waits);
    scene.host().say(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha");
    assert_eq!(scene.settle(), Turn::Waits);
    // Something came, so there is another minute.
    assert_eq!(scene.at(118, since), Turn::Waits);
    scene.host().say(b"lf");
    assert_eq!(scene.settle(), Turn::Over);
    assert!(scene.guest().text().ends_with("half") && scene.guest().told_all);

    let mut scene = Scene::new();
    scene.asks("");
    let since = scene.now;
    scene.guest().end();
    assert_eq!(scene.settle(), Turn::Waits);
    assert_eq!((scene.at(59, since), scene.at(60, since)), (Turn::Waits, Turn::Over));
}

#[test]
fn a_guest_that_never_stops_is_refused_once_and_in_time() {
    let mut scene = Scene::new();
    scene.guest().say(b"GET / HTTP/1.1\r\nX: ");
    assert_eq!(scene.settle(), Turn::Waits);
    let since = scene.now;
    for seconds in [0, 29, 30, 31, 35, 39] {
        scene.guest().trickle(5000);
        assert_eq!(scene.at(seconds, since), Turn::Busy, "{seconds}");
    }
    scene.guest().trickle(5000);
    assert_eq!(scene.at(40, since), Turn::Over);
    scene.guest().hear();
    let text = scene.guest().text();
    assert_eq!(text.matches("HTTP/1.1 408 ").count(), 1, "{text}");
    assert_eq!(scene.notes().matches("denied").count(), 1);
}

#[test]
fn an_upload_that_never_stops_has_its_time() {
    let mut scene = Scene::new();
    const PART: usize = 300 << 10;
    let since = scene.now;
    let text = format!("POST / HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: {}\r\n\r\n", 6 * PART);
    scene.guest().tls.set_buffer_limit(None);
    scene.guest().say(text.as_bytes());
    for seconds in [0, 19, 21, 31, 121, 1000] {
        scene.guest().say(&[b'x'; PART]);
        assert_eq!(scene.at(seconds, since), Turn::Busy, "{seconds}");
        scene.host().hear();
    }
    assert_eq!(scene.settle(), Turn::Waits);
    assert_eq!(scene.host().heard.len(), text.len() + 6 * PART);
    scene.host().say(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    scene.settle();
    assert!(scene.guest().text().ends_with("ok"));
}

#[test]
fn what_waits_to_be_written_is_bounded() {
    let mut scene = Scene::new();
    for _ in 0..3 {
        scene.link.guest.say(&vec![0; 200 << 10]);
    }
    assert!(scene.link.guest.is_deaf() && !scene.link.guest.has_unsent());
    assert_eq!(scene.settle(), Turn::Over);
}
