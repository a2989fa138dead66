//! What a guest that means well gets.

use std::io::Write;

use crate::stage::{NAME, Stage, VALUE, bytes, head, placeholder, rest, start};

#[test]
fn the_host_gets_the_value_and_the_guest_never_has_it() {
    let mut stage = Stage::new();
    if cfg!(target_os = "linux") {
        assert_eq!(stage.confinement, ["no_new_privs", "capabilities", "limits", "undumpable", "seccomp"]);
    }
    let (mut guest, told) = stage.both(|host| {
        let mut heads = Vec::new();
        for number in 0..3 {
            let said = head(host);
            let length = if said.contains("Content-Length: 4") { 4 } else { 0 };
            heads.push((said, bytes(host, length)));
            write!(host, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{number}").unwrap();
        }
        (heads, rest(host))
    });
    let (key, other) = (placeholder("KEY"), placeholder("OTHER"));
    // Two at once: one waits for the other.
    let post = format!("POST /a?k={key} HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 4\r\n\r\nbody");
    let get =
        format!("GET / HTTP/1.1\r\nHost: {NAME}\r\nAuthorization: Bearer {key}\r\nX-Other: {other}\r\n\r\n");
    write!(guest, "{post}{get}").unwrap();
    for number in ["0", "1"] {
        assert!(head(&mut guest).ends_with("Content-Length: 1\r\n\r\n"));
        assert_eq!(bytes(&mut guest, 1), number.as_bytes());
    }
    // A body is passed on as it is.
    let body = format!("POST / HTTP/1.1\r\nHost: {NAME}\r\nTransfer-Encoding: chunked\r\n\r\n4a\r\n");
    write!(guest, "{body}{:x<74}\r\n0\r\n\r\n", key).unwrap();
    head(&mut guest);
    assert_eq!(bytes(&mut guest, 1), b"2");
    guest.conn.send_close_notify();
    guest.flush().unwrap();
    assert_eq!(rest(&mut guest), (String::new(), true));
    let (heads, left) = told.recv().unwrap();
    assert_eq!(
        heads[0].0,
        format!("POST /a?k=the%20real%20value HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 4\r\n\r\n")
    );
    assert_eq!(heads[0].1, b"body");
    assert!(heads[1].0.contains(&format!("\r\nAuthorization: Bearer {VALUE}\r\nX-Other: {other}\r\n")));
    assert!(left.0.starts_with("4a\r\n") && left.0.contains(&key), "{left:?}");
    let log = stage.log();
    let said = |words: &[&str]| log.lines().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(said(&["\"verdict\":\"swapped\"", "\"secret\":\"KEY\"", "10.0.2.15:40000"]), "{log}");
    assert!(said(&["\"verdict\":\"not swapped\"", "\"secret\":\"OTHER\""]), "{log}");
    assert!(!log.contains(VALUE) && !log.contains("never"));
    assert_eq!(stage.end(), Some(0));
}

#[test]
fn what_http_knows_beside_plain_requests_works() {
    let mut stage = Stage::new();
    // 100 Continue, an answer without a length, to HEAD, and to the end.
    let (mut guest, told) = stage.both(|host| {
        let first = head(host);
        write!(host, "HTTP/1.1 100 Continue\r\n\r\n").unwrap();
        let body = bytes(host, 2);
        write!(host, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n").unwrap();
        let second = head(host);
        write!(host, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n").unwrap();
        head(host);
        write!(host, "HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(300_000)).unwrap();
        (first, body, second)
    });
    write!(guest, "PUT / HTTP/1.1\r\nHost: {NAME}\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        .unwrap();
    assert!(head(&mut guest).contains("100 Continue"));
    guest.write_all(b"hi").unwrap();
    head(&mut guest);
    assert_eq!(bytes(&mut guest, 12), b"2\r\nok\r\n0\r\n\r\n");
    write!(guest, "HEAD / HTTP/1.1\r\nHost: {NAME}\r\n\r\n").unwrap();
    assert!(head(&mut guest).contains("Content-Length: 100"));
    write!(guest, "GET / HTTP/1.0\r\nHost: {NAME}\r\n\r\n").unwrap();
    head(&mut guest);
    let (text, whole) = rest(&mut guest);
    assert_eq!((text.len(), whole), (300_000, true));
    let (first, body, second) = told.recv().unwrap();
    assert!(first.contains("Expect: 100-continue") && second.starts_with("HEAD / "));
    assert_eq!(body, b"hi");
}

#[test]
fn another_protocol_follows_an_upgrade() {
    let mut stage = Stage::new();
    let key = placeholder("KEY");
    let (mut guest, told) = stage.both(|host| {
        let asked = head(host);
        write!(host, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\nfirst").unwrap();
        let said = rest(host).0;
        host.write_all(b"last").unwrap();
        (asked, said)
    });
    write!(guest, "GET /ws HTTP/1.1\r\nHost: {NAME}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Key: {key}\r\n\r\n")
        .unwrap();
    assert!(head(&mut guest).starts_with("HTTP/1.1 101 "));
    assert_eq!(bytes(&mut guest, 5), b"first");
    // Nothing is looked at any more.
    write!(guest, "\0{key}").unwrap();
    guest.conn.send_close_notify();
    guest.flush().unwrap();
    assert_eq!(rest(&mut guest), ("last".to_owned(), true));
    let (asked, said) = told.recv().unwrap();
    assert!(asked.contains("X-Key: the real value\r\n"));
    assert_eq!(said, format!("\0{key}"));
}

#[test]
fn large_bodies_go_both_ways() {
    let mut stage = Stage::new();
    const LEN: usize = 8 << 20;
    let (mut guest, told) = stage.both(|host| {
        head(host);
        let body = bytes(host, LEN);
        write!(host, "HTTP/1.1 200 OK\r\nContent-Length: {LEN}\r\n\r\n").unwrap();
        host.write_all(&body).unwrap();
    });
    let body: Vec<u8> = (0..LEN).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[2]).collect();
    write!(guest, "POST / HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: {LEN}\r\n\r\n").unwrap();
    guest.write_all(&body).unwrap();
    head(&mut guest);
    assert!(bytes(&mut guest, LEN) == body);
    told.recv().unwrap();
}

#[test]
fn a_wrong_configuration_is_told_without_its_values() {
    let place = placeholder("KEY");
    for (config, words) in [
        (r#"{"schema":1,"secrets":[]}"#.to_owned(), "0 secrets"),
        (r#"{"schema":1,"secrets":"hush"}"#.to_owned(), "cannot be understood"),
        (
            format!(
                r#"{{"schema":1,"secrets":[{{"name":"KEY","placeholder":"{place}","value":"hush","hosts":["a.b"]}}],"authorities":["hush"]}}"#
            ),
            "holds no certificate",
        ),
    ] {
        let (mut child, mut said, _handovers) = start(config.as_bytes(), None);
        let code = child.wait().unwrap().code();
        let text = rest(&mut said).0;
        assert!(text.contains(words) && !text.contains("hush"), "{text}");
        assert!(matches!(code, Some(2 | 125)), "{code:?}");
    }
}
