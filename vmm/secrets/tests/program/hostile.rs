//! Guests, hosts and callers that lie.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::stage::{Host, NAME, Stage, VALUE, bytes, head, placeholder, rest};

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

/// What a host answers that cannot be relied on ends the connection: the guest is told why, or,
/// where it had something of an answer, can tell that there is more.
#[test]
fn an_answer_that_lies_ends_the_connection() {
    let mut stage = Stage::new();
    for (answer, why, told_why) in [
        ("SSH-2.0-x\r\n\r\n", "is no response of HTTP/1", true),
        ("HTTP/1.1 101 Switching Protocols\r\n\r\n", "it was not asked for", true),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxy",
            "tells its length in two ways",
            true,
        ),
        ("HTTP/1.1 200 OK\r\nContent-Le", "it ended the connection before its answer", true),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", "no number", false),
        ("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nless", "within its answer", false),
    ] {
        let (mut guest, told) = stage.both(move |host| {
            head(host);
            host.write_all(answer.as_bytes()).unwrap();
            host.flush().unwrap();
        });
        write!(guest, "GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n").unwrap();
        let (text, whole) = rest(&mut guest);
        assert_eq!(whole, told_why, "{answer:?}: {text}");
        let refused = text.starts_with("HTTP/1.1 502 Bad Gateway\r\n") && text.contains(why);
        assert_eq!(refused, told_why, "{answer:?}: {text}");
        told.recv().unwrap();
        let log = stage.whole_log();
        let last = log.lines().last().unwrap_or_default();
        assert!(last.contains("\"denied\"") && last.contains(why), "{answer:?}: {last}");
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
    let (_guest, host) = stage.raw(NAME);
    assert!(!is_served(&host), "one more is served");
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

/// Whether somebody says something to the host of a connection, which is so at once; who is refused
/// hears that it ends.
fn is_served(host: &TcpStream) -> bool {
    matches!(host.peek(&mut [0]), Ok(1))
}

/// All room but that of one connection is taken. Each of these has the last one, and gives it back
/// when one of its ends is gone, whatever the other one does.
#[test]
fn an_end_that_goes_gives_the_room_back() {
    let mut stage = Stage::new();
    let _silent: Vec<_> = (1..nelly_secrets::serve::MOST).map(|_| stage.raw(NAME)).collect();
    let mut begun = |asks: &str| {
        // An end is heard of a moment later.
        let found = (0..1000).map(|_| stage.raw(NAME)).find(|(_, host)| is_served(host));
        let (guest, host) = found.expect("no room is given back");
        assert!(!is_served(&stage.raw(NAME).1), "there is more room");
        let mut guest = stage.guest(guest, NAME);
        let mut host = stage.host(host, NAME);
        write!(guest, "{asks}").unwrap();
        assert!(head(&mut host).contains(" / HTTP/1.1\r\n"));
        (guest, host)
    };
    let reset = |host: Host| {
        rustix::net::sockopt::set_socket_linger(&host.sock, Some(Duration::ZERO)).unwrap();
    };
    const LEN: usize = 1 << 20;
    let upload = format!("POST / HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: {LEN}\r\n\r\n");

    // An answer in the middle of a request, and a reset: the guest says all, and then listens.
    let (mut guest, mut host) = begun(&upload);
    write!(host, "HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nlarge").unwrap();
    host.flush().unwrap();
    guest.conn.complete_io(&mut guest.sock).unwrap();
    reset(host);
    guest.write_all(&vec![b'x'; LEN]).unwrap();
    assert!(head(&mut guest).starts_with("HTTP/1.1 413 "));
    assert_eq!(rest(&mut guest), ("large".to_owned(), true));
    drop(guest);

    // A reset in the middle of a request.
    let (mut guest, host) = begun(&upload);
    reset(host);
    guest.write_all(&vec![b'x'; LEN]).unwrap();
    assert!(head(&mut guest).starts_with("HTTP/1.1 502 "));
    assert!(rest(&mut guest).1);
    drop(guest);

    // Resets of an answer and of another protocol: the guests stay.
    let get = format!("GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n");
    let (mut answered, mut host) = begun(&get);
    write!(host, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nless").unwrap();
    head(&mut answered);
    assert_eq!(bytes(&mut answered, 4), b"less");
    reset(host);
    assert!(!rest(&mut answered).1);
    let (mut switched, mut host) =
        begun(&format!("GET / HTTP/1.1\r\nHost: {NAME}\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"));
    write!(host, "HTTP/1.1 101 Switching Protocols\r\n\r\n").unwrap();
    assert!(head(&mut switched).starts_with("HTTP/1.1 101 "));
    switched.write_all(b"more").unwrap();
    reset(host);
    assert!(!rest(&mut switched).1);

    // The guest of a long poll goes: the host stays.
    let (guest, mut waits) = begun(&get);
    drop(guest);
    assert_eq!(rest(&mut waits).0, "");
    begun(&get);
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
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    // Nothing is hidden from root, so that another user looks then, at a process of its own.
    let nobody = rustix::process::geteuid().is_root().then_some(65534);
    let place = tempfile::tempdir().unwrap();
    let program = place.path().join("nelly-secrets");
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_nelly-secrets"), &program).unwrap();
    let stage = Stage::of(&program, nobody);
    let cat = || {
        let mut cat = Command::new("cat");
        cat.env("LC_ALL", "C").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(user) = nobody {
            cat.uid(user).gid(user);
        }
        cat
    };
    let look = |id: u32, what: &str| {
        let looked = cat().arg(format!("/proc/{id}/{what}")).output().unwrap();
        (looked.status.success(), String::from_utf8_lossy(&looked.stderr).into_owned())
    };
    // One that hides nothing can be looked at.
    let mut open = cat().spawn().unwrap();
    assert_eq!(look(open.id(), "environ"), (true, String::new()));
    drop(open.stdin.take());
    assert!(open.wait().unwrap().success());
    for what in ["environ", "mem"] {
        let (looked, why) = look(stage.child.id(), what);
        assert!(!looked && why.contains("Permission denied"), "{what}: {why}");
    }
    let of = |what: &str| std::fs::read(format!("/proc/{}/{what}", stage.child.id()));
    // Whoever may read it, as root may, finds nothing in it.
    match of("environ") {
        Ok(environ) => assert!(environ.iter().all(|byte| *byte == 0)),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied),
    }
    let cmdline = String::from_utf8(of("cmdline").unwrap()).unwrap();
    assert_eq!(cmdline, format!("{}\0--config\0fd:0\0--ready\0fd:0\0", program.display()));
    let status = String::from_utf8(of("status").unwrap()).unwrap();
    for line in ["Seccomp:\t2", "NoNewPrivs:\t1", "CapEff:\t0000000000000000"] {
        assert!(status.contains(line), "{line}: {status}");
    }
}
