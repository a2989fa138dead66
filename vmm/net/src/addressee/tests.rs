use proptest::prelude::*;

use super::*;

fn lengthed(size: usize, bytes: &[u8]) -> Vec<u8> {
    let len = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    [&len[4 - size..], bytes].concat()
}

fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
    [kind.to_be_bytes().to_vec(), lengthed(2, body)].concat()
}

fn server_name(name: &str) -> Vec<u8> {
    extension(0, &lengthed(2, &[vec![0], lengthed(2, name.as_bytes())].concat()))
}

/// The message of a hello.
fn message(extensions: &[Vec<u8>]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend(lengthed(1, &[9; 32]));
    body.extend(lengthed(2, &[0x13, 1, 0x13, 2]));
    body.extend(lengthed(1, &[0]));
    body.extend(lengthed(2, &extensions.concat()));
    [vec![1], lengthed(3, &body)].concat()
}

/// It, in records of at most `size` bytes.
fn records(message: &[u8], size: usize) -> Vec<u8> {
    message.chunks(size).flat_map(|part| [vec![22, 3, 1], lengthed(2, part)].concat()).collect()
}

fn hello(name: &str) -> Vec<u8> {
    let extensions = [extension(43, &[2, 3, 4]), server_name(name), extension(21, &[0; 300])];
    records(&message(&extensions), 16 << 10)
}

fn named(name: &str) -> Claim {
    Claim::Name(name.to_owned())
}

#[test]
fn a_hello_names_its_server_however_it_is_cut() {
    let whole = hello("WWW.Example.org");
    for cut in 0..whole.len() {
        assert_eq!(Speaks::Tls.claim(&whole[..cut]), Claim::More, "{cut}");
    }
    assert_eq!(Speaks::Tls.claim(&whole), named("www.example.org"));
    let more = [&whole[..], b"and more"].concat();
    assert_eq!(Speaks::Tls.claim(&more), named("www.example.org"));
    let message = message(&[server_name("a.example")]);
    for size in [1, 2, 3, 5, 50] {
        assert_eq!(Speaks::Tls.claim(&records(&message, size)), named("a.example"), "{size}");
    }
}

#[test]
fn what_names_nobody_that_could_be_relied_on_says_why() {
    let tls = |extensions: &[Vec<u8>]| records(&message(extensions), 16 << 10);
    let two =
        extension(0, &lengthed(2, &[&[0][..], &lengthed(2, b"a.b"), &[0], &lengthed(2, b"c.d")].concat()));
    for (bytes, why) in [
        (tls(&[]), "no SNI"),
        (tls(&[extension(0xfe0d, &[0; 40]), server_name("a.example")]), "ECH"),
        (tls(&[server_name("a.example"), extension(0xfe0d, &[0; 40])]), "ECH"),
        (tls(&[two]), "more than one"),
        (tls(&[server_name("a.example"), server_name("b.example")]), "more than one"),
        (tls(&[server_name("192.0.2.1")]), "malformed"),
        (tls(&[server_name("")]), "malformed"),
        (tls(&[server_name("a b")]), "malformed"),
        (tls(&[extension(0, &[9, 9, 0])]), "malformed"),
        (b"GET / HTTP/1.1\r\n".to_vec(), "does not begin"),
        (b"SSH-2.0-x\r\n".to_vec(), "does not begin"),
        (vec![22, 2, 1, 0, 5], "does not begin"),
        (vec![22, 3, 1, 0, 0], "malformed"),
        (vec![22, 3, 1, 0x40, 1], "malformed"),
        (vec![22, 3, 1, 0, 4, 2, 0, 0, 0], "does not begin"),
        (vec![22, 3, 1, 0, 4, 1, 1, 0, 0], "too long"),
    ] {
        match Speaks::Tls.claim(&bytes) {
            Claim::None(said) => assert!(said.contains(why), "{said}, not {why}"),
            other => panic!("{other:?}, not {why}"),
        }
    }
}

#[test]
fn a_request_names_its_host_however_it_is_cut() {
    for text in [
        "GET / HTTP/1.1\r\nHost: www.example.org\r\n\r\n",
        "POST /x?y HTTP/1.1\r\nAccept: */*\r\nhOST:WWW.example.ORG:80 \r\nX: a:b\r\n\r\nbody",
        "GET http://www.example.org/x HTTP/1.1\r\nHost: www.example.org.\r\n\r\n",
        "OPTIONS * HTTP/1.0\r\nHost: www.example.org\r\n\r\n",
    ] {
        let end = text.find("\r\n\r\n").unwrap() + 4;
        for cut in 0..end {
            assert_eq!(Speaks::Http.claim(&text.as_bytes()[..cut]), Claim::More, "{text:?} {cut}");
        }
        assert_eq!(Speaks::Http.claim(text.as_bytes()), named("www.example.org"), "{text}");
    }
}

#[test]
fn a_request_that_could_be_read_in_two_ways_is_none() {
    for (text, why) in [
        ("GET / HTTP/1.1\r\n\r\n", "names no host"),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", "names no host"),
        ("GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n", "names no host"),
        ("GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n", "names no host"),
        ("GET / HTTP/1.1\r\nHost: a.b@c.d\r\n\r\n", "names no host"),
        ("GET / HTTP/1.1\r\nHost: a.b:x\r\n\r\n", "names no host"),
        ("GET / HTTP/1.1\r\nHost: a.b\r\nHost: c.d\r\n\r\n", "more than one"),
        ("GET / HTTP/1.1\r\nHost: a.b\r\n c.d\r\n\r\n", "malformed"),
        ("GET / HTTP/1.1\r\nHost : a.b\r\n\r\n", "malformed"),
        ("GET / HTTP/1.1\r\nHost: a.b\r\n\x0bHost: c.d\r\n\r\n", "malformed"),
        ("GET / HTTP/1.1\r\nHost: a.b\r\nHost\0: c.d\r\n\r\n", "malformed"),
        ("GET / HTTP/1.1\r\nHost: a.b\r\n: c.d\r\n\r\n", "malformed"),
        ("GET / HTTP/1.1\nHost: c.d\n\nGET / HTTP/1.1\r\nHost: a.b\r\n\r\n", "malformed"),
        ("GET / HTTP/1.1\r\nHost: a.b\rHost: c.d\r\n\r\n", "malformed"),
        ("GET http://c.d/ HTTP/1.1\r\nHost: a.b\r\n\r\n", "two hosts"),
        ("GET http://a.b@c.d/ HTTP/1.1\r\nHost: a.b\r\n\r\n", "does not begin"),
        ("CONNECT c.d:443 HTTP/1.1\r\nHost: a.b\r\n\r\n", "does not begin"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "does not begin"),
        ("GET / HTTP/1.1 x\r\nHost: a.b\r\n\r\n", "does not begin"),
        ("\x16\x03\x01", "does not begin"),
        (" GET /", "does not begin"),
    ] {
        match Speaks::Http.claim(text.as_bytes()) {
            Claim::None(said) => assert!(said.contains(why), "{text:?}: {said}"),
            other => panic!("{text:?}: {other:?}"),
        }
    }
}

#[test]
fn whoever_never_says_it_is_not_listened_to_for_ever() {
    let endless = [b"GET / HTTP/1.1\r\nX: ".to_vec(), vec![b'x'; MOST]].concat();
    assert!(matches!(Speaks::Http.claim(&endless), Claim::None(_)));
    assert_eq!(
        (Speaks::at(443), Speaks::at(80), Speaks::at(22)),
        (Some(Speaks::Tls), Some(Speaks::Http), None)
    );
}

proptest! {
    #[test]
    fn no_bytes_are_a_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..600), at in 0_usize..500, seed in 0_u8..3) {
        if seed < 2 {
            let sound = if seed == 0 { hello("www.example.org") } else { b"GET / HTTP/1.1\r\nHost: a.b\r\n\r\n".to_vec() };
            let at = at % sound.len();
            bytes.truncate(4);
            bytes = [&sound[..at], &bytes, &sound[at..]].concat();
        }
        for speaks in [Speaks::Tls, Speaks::Http] {
            let _ = speaks.claim(&bytes);
        }
    }
}
