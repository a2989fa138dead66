//! Guests, hosts and callers that lie.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use crate::stage::{NAME, Stage, VALUE, bytes, head, placeholder, rest};

/// Each is answered, and the host hears nothing of it, nor of what follows.
#[test]
fn a_request_that_lies_is_answered_and_not_passed_on() {
    let mut stage = Stage::new();
    let key = placeholder("KEY");
    let good = format!("GET / HTTP/1.1\r\nHost: {NAME}\r\nX: {key}\r\n\r\n");
    for (text, status) in [
        (format!("GET / HTTP/1.1\r\nHost: evil.example\r\nX: {key}\r\n\r\n{good}"), 421),
        (format!("GET https://evil.example/ HTTP/1.1\r\nHost: {NAME}\r\nX: {key}\r\n\r\n{good}"), 400),
        (format!("GET / HTTP/1.1\nHost: {NAME}\nX: {key}\n\n\r\n\r\n{good}"), 400),
        (format!("GET / HTTP/1.1\r\nHost: {NAME}\r\nX: {key}\r\n folded\r\n\r\n{good}"), 400),
        (
            format!(
                "POST / HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 1\r\nContent-Length: 9\r\n\r\n{good}"
            ),
            400,
        ),
        (
            format!(
                "POST / HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n{good}"
            ),
            400,
        ),
        (format!("TRACE / HTTP/1.1\r\nHost: {NAME}\r\nX: {key}\r\n\r\n"), 405),
        (format!("CONNECT {NAME}:443 HTTP/1.1\r\nHost: {NAME}\r\n\r\n"), 405),
        (format!("GET / HTTP/1.1\r\nHost: {NAME}\r\nX: {}", "x".repeat(70_000)), 431),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), 505),
        ("\x16\x03\x01 not even text \0\r\n\r\n".to_owned(), 400),
    ] {
        let (mut guest, told) = stage.both(rest);
        // It may stop listening before all of it is said.
        let _gone = guest.write_all(text.as_bytes());
        let _gone = guest.flush();
        let said = head(&mut guest);
        assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{text:?}: {said}");
        let (body, whole) = rest(&mut guest);
        assert!(body.starts_with("nelly: api.example: ") && whole, "{body}");
        drop(guest);
        assert_eq!(told.recv().unwrap().0, "", "{text:?}");
    }
    let log = stage.log();
    assert!(log.matches("a request is refused").count() == 11 && !log.contains(VALUE), "{log}");
}

#[test]
fn a_body_without_an_end_ends_the_connection() {
    let mut stage = Stage::new();
    for lie in ["4\nwiki\r\n0\r\n\r\n", "-1\r\n", "4\r\nwikiX"] {
        let (mut guest, told) = stage.both(rest);
        let text = format!("POST / HTTP/1.1\r\nHost: {NAME}\r\nTransfer-Encoding: chunked\r\n\r\n{lie}");
        guest.write_all(text.as_bytes()).unwrap();
        assert_eq!(rest(&mut guest).0, "");
        let (said, whole) = told.recv().unwrap();
        assert!(!whole && said.starts_with("POST / "), "{said}");
    }
}

/// What a host answers that cannot be relied on ends the connection, and the guest can tell.
#[test]
fn an_answer_that_lies_ends_the_connection() {
    let mut stage = Stage::new();
    for answer in [
        "SSH-2.0-x\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxy",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nless",
    ] {
        let (mut guest, told) = stage.both(move |host| {
            head(host);
            host.write_all(answer.as_bytes()).unwrap();
            host.flush().unwrap();
        });
        write!(guest, "GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n").unwrap();
        let (_, whole) = rest(&mut guest);
        assert!(!whole, "{answer:?} is taken for whole");
        told.recv().unwrap();
    }
}

/// A host without the right certificate gets nothing, and the guest is told why.
#[test]
fn a_host_is_told_nothing_before_its_certificate_is_checked() {
    let stage = Stage::new();
    // One of another name, one that nobody vouches for, and one that speaks no TLS.
    let mut other = Stage::new();
    for which in 0..3 {
        let (guest, host) = stage.raw(NAME);
        let heard = match which {
            0 => {
                let mut host = stage.other_host(host);
                std::thread::spawn(move || rest(&mut host))
            }
            1 => {
                let mut host = other.host(host, NAME);
                std::thread::spawn(move || rest(&mut host))
            }
            _ => std::thread::spawn(move || {
                let mut host = host;
                host.write_all(b"220 a server of mail\r\n").unwrap();
                let mut all = Vec::new();
                let _reset = host.read_to_end(&mut all);
                (String::from_utf8_lossy(&all).into_owned(), true)
            }),
        };
        let mut guest = stage.guest(guest, NAME);
        let key = placeholder("KEY");
        write!(guest, "GET / HTTP/1.1\r\nHost: {NAME}\r\nX: {key}\r\n\r\n").unwrap();
        let said = head(&mut guest);
        assert!(said.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{said}");
        let why = rest(&mut guest).0;
        assert!(why.contains("nothing was sent to the host: "), "{why}");
        assert!(which == 2 || why.contains("invalid peer certificate"), "{which}: {why}");
        drop(guest);
        let (heard, _) = heard.join().unwrap();
        assert!(!heard.contains(VALUE) && !heard.contains("GET"), "{heard}");
    }
}

#[test]
fn a_guest_whose_hello_names_another_host_gets_no_connection() {
    let mut stage = Stage::new();
    for hello in ["other.example", "x.other.example"] {
        let (guest, host) = stage.raw(NAME);
        let mut host = stage.host(host, NAME);
        let heard = std::thread::spawn(move || rest(&mut host));
        let mut guest = stage.guest(guest, hello);
        let said = write!(guest, "GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n");
        assert!(said.is_err(), "{hello}");
        drop(guest);
        assert_eq!(heard.join().unwrap().0, "");
    }
    // A connection to a host that has no secret is none.
    let (mut guest, _host) = stage.raw("elsewhere.example");
    assert!(matches!(guest.read(&mut [0]), Ok(0) | Err(_)));
    assert!(stage.log().contains("no secret is for this host"));
}

#[test]
fn messages_that_hand_nothing_over_are_nothing() {
    let mut stage = Stage::new();
    let file = || -> OwnedFd { std::fs::File::open("/dev/null").unwrap().into() };
    stage.tell(b"", &[]);
    let _ended = stage.child.wait().unwrap();
    let mut stage = Stage::new();
    stage.tell(b"{}", &[]);
    stage.tell(b"not JSON", &[file(), file()]);
    stage.tell(b"{\"name\":\"api.example\",\"port\":443,\"from\":\"\",\"to\":\"\"}", &[file()]);
    stage.tell(b"{\"name\":\"api.example\",\"port\":443,\"from\":\"\",\"to\":\"\"}", &[file(), file()]);
    stage.tell(&[b'x'; 3000], &[file(), file()]);
    let (mut guest, told) = stage.both(|host| {
        let said = head(host);
        write!(host, "HTTP/1.1 204 No Content\r\n\r\n").unwrap();
        said
    });
    write!(guest, "GET / HTTP/1.1\r\nHost: {NAME}\r\nX: {}\r\n\r\n", placeholder("KEY")).unwrap();
    assert!(head(&mut guest).starts_with("HTTP/1.1 204 "));
    assert!(told.recv().unwrap().contains(VALUE));
}

/// So many connections that nobody speaks on are held, and the next one is refused; their end gives
/// the room back.
#[test]
fn connections_are_bounded() {
    let mut stage = Stage::new();
    let mut silent: Vec<_> = (0..nelly_secrets::serve::MOST).map(|_| stage.raw(NAME)).collect();
    let (mut guest, _host) = stage.raw(NAME);
    assert!(matches!(guest.read(&mut [0]), Ok(0) | Err(_)), "one more is served");
    assert!(stage.log().contains("too many connections"));
    silent.clear();
    // Their ends are heard before what comes after them is taken.
    for _ in 0..100 {
        let (mut guest, told) = stage.both(|host| {
            head(host);
            write!(host, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
        });
        if write!(guest, "GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n").is_ok() {
            head(&mut guest);
            assert_eq!(bytes(&mut guest, 2), b"ok");
            told.recv().unwrap();
            return;
        }
    }
    panic!("no room is given back");
}

/// Its death breaks what it serves, and nothing waits for it.
#[test]
fn its_death_ends_its_connections() {
    let mut stage = Stage::new();
    let (mut guest, told) = stage.both(rest);
    write!(guest, "POST / HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 9\r\n\r\n").unwrap();
    guest.flush().unwrap();
    stage.child.kill().unwrap();
    assert!(!rest(&mut guest).1);
    assert!(told.recv().unwrap().0.len() < 100);
}

/// Neither the memory nor the environment of the process can be read by others of the user, and the
/// value stands in none of what the system shows of it.
#[test]
#[cfg(target_os = "linux")]
fn the_process_shows_nothing() {
    let stage = Stage::new();
    let of = |what: &str| std::fs::read(format!("/proc/{}/{what}", stage.child.id())).unwrap_or_default();
    for what in ["cmdline", "environ"] {
        let text = String::from_utf8_lossy(&of(what)).into_owned();
        assert!(!text.contains(VALUE) && !text.contains("SECRET_OF_CALLER=in"), "{what}: {text}");
    }
    let status = String::from_utf8_lossy(&of("status")).into_owned();
    for line in ["Seccomp:\t2", "NoNewPrivs:\t1", "CapEff:\t0000000000000000"] {
        assert!(status.contains(line), "{line}: {status}");
    }
}
