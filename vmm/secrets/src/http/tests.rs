use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;

use super::*;
use crate::swap::Swaps;
use crate::swap::tests::secret;

const NAME: &str = "api.example";

/// Looks at a request for the host, with `KEY` and `OTHER` for their placeholders; its head with
/// the values, or the status of the refusal.
fn asked(text: &str) -> Result<(String, Request), u16> {
    let secrets = [secret("KEY", "hush hush", NAME, '1'), secret("OTHER", "never", "other.example", '2')];
    let text = text.replace("KEY", &secrets[0].placeholder).replace("OTHER", &secrets[1].placeholder);
    let swaps = Swaps::new(&secrets, NAME, 443);
    let request = request(text.as_bytes(), NAME, 443, &swaps).map_err(|refusal| refusal.status)?;
    let head = String::from_utf8(request.head.to_vec()).unwrap();
    Ok((head.replace(&secrets[1].placeholder, "OTHER"), request))
}

fn with(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: {NAME}\r\n{fields}\r\n")
}

#[test]
fn values_stand_where_placeholders_stood() {
    let basic = STANDARD.encode("me:hush hush");
    let secrets = [secret("KEY", "x", NAME, '1')];
    let asked_basic = STANDARD.encode(format!("me:{}", secrets[0].placeholder));
    for (text, out) in [
        (with("Authorization: Bearer KEY\r\n"), with("Authorization: Bearer hush hush\r\n")),
        (
            with("X-Key:   KEY \r\nCookie: a=KEY; b=KEY\r\n"),
            with("X-Key: hush hush\r\nCookie: a=hush hush; b=hush hush\r\n"),
        ),
        (with("X-Key: OTHER\r\n"), with("X-Key: OTHER\r\n")),
        (
            with(&format!("authorization: basic {asked_basic}\r\n")),
            with(&format!("authorization: Basic {basic}\r\n")),
        ),
        (with("Authorization: Basic bm86bm8=\r\n"), with("Authorization: Basic bm86bm8=\r\n")),
        (with("Authorization: Basic !!!\r\n"), with("Authorization: Basic !!!\r\n")),
        (
            format!("POST /botKEY/x?key=KEY HTTP/1.1\r\nHost: {NAME}:443\r\nContent-Length: 3\r\n\r\n"),
            format!(
                "POST /bothush%20hush/x?key=hush%20hush HTTP/1.1\r\nHost: {NAME}:443\r\nContent-Length: 3\r\n\r\n"
            ),
        ),
    ] {
        let (head, request) = asked(&text).unwrap();
        assert_eq!(head, out);
        let asks = text.contains("KEY") || text.contains(&asked_basic);
        assert_eq!(!request.found.swapped.is_empty(), asks);
        assert_eq!(request.found.left, if out.contains("OTHER") { vec![1] } else { vec![] });
    }
}

/// What servers repeat, and what says whom a request is for, is passed on with the placeholder.
#[test]
fn values_stand_in_no_field_that_is_repeated() {
    let place = secret("KEY", "hush hush", NAME, '1').placeholder;
    for name in [
        "Origin",
        "referer",
        "Access-Control-Request-Headers",
        "access-control-request-method",
        "X-Request-Id",
        "X-Correlation-ID",
        "X-Client-Request-Id",
        "Idempotency-Key",
        "traceparent",
        "Tracestate",
        "Baggage",
        "X-B3-TraceId",
        "Forwarded",
        "X-Forwarded-For",
        "x-forwarded-host",
        "X-Forwarded-Proto",
        "Via",
        "Sec-WebSocket-Protocol",
        "Connection",
        "TE",
    ] {
        let (head, request) = asked(&with(&format!("{name}: a KEY\r\n"))).unwrap();
        assert_eq!(head, with(&format!("{name}: a {place}\r\n")));
        assert_eq!(request.found.swapped, [0; 0], "{name}");
    }
    // It is for another host anyway.
    assert_eq!(asked("GET / HTTP/1.1\r\nHost: KEY\r\n\r\n").map(|_| ()), Err(421));
    for name in ["X-Forwarded", "X-Api-Key", "Api-Key", "X-Origin", "Authorization", "Proxy-Authorization"] {
        let (head, _) = asked(&with(&format!("{name}: a KEY\r\n"))).unwrap();
        assert_eq!(head, with(&format!("{name}: a hush hush\r\n")));
    }
}

#[test]
fn what_belongs_to_a_request_is_told() {
    let post = |fields: &str| format!("POST / HTTP/1.1\r\nHost: API.example.\r\n{fields}\r\n");
    for (text, framing, is_head, upgrades) in [
        (with(""), Framing::Length(0), false, false),
        (post("Content-Length: 12\r\n"), Framing::Length(12), false, false),
        (post("Transfer-Encoding: Chunked\r\n"), Framing::Chunked, false, false),
        (format!("HEAD / HTTP/1.0\r\nHost: {NAME}\r\n\r\n"), Framing::Length(0), true, false),
        (format!("OPTIONS * HTTP/1.1\r\nHost: {NAME}\r\n\r\n"), Framing::Length(0), false, false),
        (with("Connection: upgrade\r\nUpgrade: websocket\r\n"), Framing::Length(0), false, true),
    ] {
        let (_, request) = asked(&text).unwrap();
        assert_eq!(
            (request.framing, request.is_head, request.upgrades),
            (framing, is_head, upgrades),
            "{text}"
        );
    }
}

/// Requests that a guest could use to have a value sent where it does not belong, or to have two
/// readers disagree.
#[test]
fn lies_are_refused() {
    let many = with(&"X: KEY\r\n".repeat(200));
    let long = with(&format!("X: {}\r\n", "KEY".repeat(400)));
    for (text, status) in [
        // Whom it is for.
        ("GET / HTTP/1.1\r\nHost: other.example\r\n\r\n", 421),
        ("GET / HTTP/1.1\r\nHost: api.example:8443\r\n\r\n", 421),
        ("GET / HTTP/1.1\r\nHost: api.example:\r\n\r\n", 421),
        ("GET / HTTP/1.1\r\nHost: api.example:+443\r\n\r\n", 421),
        ("GET / HTTP/1.1\r\nHost: api.example.evil\r\n\r\n", 421),
        ("GET / HTTP/1.1\r\nHost: api.example@evil\r\n\r\n", 421),
        ("GET / HTTP/1.1\r\nHost: api.example, evil\r\n\r\n", 421),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", 421),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: api.example\r\nhost: evil.example\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: api.example\r\nHost: api.example\r\n\r\n", 400),
        ("GET https://evil.example/KEY HTTP/1.1\r\nHost: api.example\r\n\r\n", 400),
        ("GET https://api.example/ HTTP/1.1\r\nHost: api.example\r\n\r\n", 400),
        ("GET evil.example/ HTTP/1.1\r\nHost: api.example\r\n\r\n", 400),
        ("GET * HTTP/1.1\r\nHost: api.example\r\n\r\n", 400),
        ("CONNECT evil.example:443 HTTP/1.1\r\nHost: api.example\r\n\r\n", 405),
        ("TRACE / HTTP/1.1\r\nHost: api.example\r\nX: KEY\r\n\r\n", 405),
        ("trace / HTTP/1.1\r\nHost: api.example\r\nX: KEY\r\n\r\n", 405),
        ("Track / HTTP/1.1\r\nHost: api.example\r\nX: KEY\r\n\r\n", 405),
        ("connect / HTTP/1.1\r\nHost: api.example\r\nX: KEY\r\n\r\n", 405),
        // Where it ends.
        ("POST / HTTP/1.1\r\nHost: api.example\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: api.example\r\nContent-Length: 1, 1\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: api.example\r\nContent-Length: +1\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: api.example\r\nContent-Length: -1\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: api.example\r\nContent-Length: 0x1\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: api.example\r\nContent-Length: \r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: api.example\r\nContent-Length: 99999999999999999999\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: api.example\r\nContent-Length: 18446744073709551615\r\n\r\n", 400),
        (
            "POST / HTTP/1.1\r\nHost: api.example\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
        ),
        (
            "POST / HTTP/1.1\r\nHost: api.example\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
        ),
        ("POST / HTTP/1.1\r\nHost: api.example\r\nTransfer-Encoding: chunked, identity\r\n\r\n", 501),
        ("POST / HTTP/1.1\r\nHost: api.example\r\nTransfer-Encoding: xchunked\r\n\r\n", 501),
        ("POST / HTTP/1.1\r\nHost: api.example\r\nTransfer-Encoding: \u{b}chunked\r\n\r\n", 400),
        ("POST / HTTP/1.0\r\nHost: api.example\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        // How its lines end.
        ("GET / HTTP/1.1\nHost: api.example\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: api.example\nX: y\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: api.example\r\nX: y\rZ: z\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: api.example\r\nX: y\r\n z\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: api.example\r\nX: y\r\n\tz\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n Host: api.example\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: api.example\r\nX: \0\r\n\r\n", 400),
        ("\r\n\r\n", 400),
        (" GET / HTTP/1.1\r\nHost: api.example\r\n\r\n", 400),
        // What it is made of.
        ("GET / HTTP/1.1\r\nHost : api.example\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: api.example\r\nContent Length: 1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: api.example\r\n: x\r\n\r\n", 400),
        ("GET  / HTTP/1.1\r\nHost: api.example\r\n\r\n", 400),
        ("GET / HTTP/1.1 \r\nHost: api.example\r\n\r\n", 400),
        ("GET /\r\n\r\n", 400),
        ("GET / HTTP/2.0\r\nHost: api.example\r\n\r\n", 505),
        ("PRI * HTTP/2.0\r\n\r\n", 505),
        (&many, 431),
    ] {
        assert_eq!(asked(text).map(|(head, _)| head), Err(status), "{text:?}");
    }
    let huge = [secret("KEY", &"v".repeat(8000), NAME, '1')];
    let text = long.replace("KEY", &huge[0].placeholder);
    let refused = request(text.as_bytes(), NAME, 443, &Swaps::new(&huge, NAME, 443)).unwrap_err();
    assert_eq!(refused.status, 431, "a small request becomes a large one");
    let text = with(&format!("Authorization: Basic {}\r\n", STANDARD.encode(huge[0].placeholder.repeat(40))));
    let refused = request(text.as_bytes(), NAME, 443, &Swaps::new(&huge, NAME, 443)).unwrap_err();
    assert_eq!(refused.status, 431);
}

#[test]
fn another_port_is_another_host() {
    let secrets = [secret("KEY", "hush", "api.example:8443", '1')];
    let at = |host: &str| {
        let text = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        request(text.as_bytes(), NAME, 8443, &Swaps::new(&secrets, NAME, 8443))
            .map_err(|it| it.status)
            .map(drop)
    };
    assert_eq!((at("api.example:8443"), at("api.example")), (Ok(()), Ok(())));
    assert_eq!((at("api.example:443"), at("api.example:8444")), (Err(421), Err(421)));
}

/// All of a body in pieces of `step` bytes; how many belonged to it, and whether it was whole.
fn taken(framing: Framing, bytes: &[u8], step: usize) -> Result<(usize, bool), &'static str> {
    let (mut body, mut all) = (Body::new(framing), 0);
    for part in bytes.chunks(step) {
        let len = body.take(part)?;
        all += len;
        if len < part.len() {
            break;
        }
    }
    Ok((all, body.is_over()))
}

#[test]
fn a_body_ends_where_it_says() {
    let chunks = b"4\r\nwiki\r\nA;x=y\r\n0123456789\r\n0\r\nSum: 1\r\n\r\nGET /";
    for step in [1, 2, 3, 7, 1000] {
        assert_eq!(taken(Framing::Chunked, chunks, step), Ok((chunks.len() - 5, true)));
        assert_eq!(taken(Framing::Chunked, b"0\r\n\r\nX", step), Ok((5, true)));
        assert_eq!(taken(Framing::Length(3), b"abcdef", step), Ok((3, true)));
        assert_eq!(taken(Framing::Length(0), b"abc", step), Ok((0, true)));
        assert_eq!(taken(Framing::ToTheEnd, b"abc", step), Ok((3, false)));
        assert_eq!(taken(Framing::Chunked, b"4\r\nwi", step), Ok((5, false)));
        for lie in [
            &b"4\nwiki\r\n0\r\n\r\n"[..],
            b"-4\r\n",
            b"+4\r\n",
            b"0x4\r\n",
            b" 4\r\n",
            b"4 \r\n",
            b"\r\n",
            b"1111111111111111\r\n",
            b"4\r\nwiki5\r\n",
            b"4\r\nwiki\n",
            b"4;\rx\r\n",
            b"0\r\nA: b\n\r\n",
            b"0\r\nA: b\r\n c\r\n\r\n",
        ] {
            assert!(taken(Framing::Chunked, lie, step).is_err(), "{lie:?}");
        }
    }
    let endless = [b"4;".to_vec(), vec![b'x'; 5000]].concat();
    assert!(taken(Framing::Chunked, &endless, 100).is_err());
    let trailers = [b"0\r\n".to_vec(), b"A: b\r\n".repeat(4000)].concat();
    assert!(taken(Framing::Chunked, &trailers, 100).is_err());
}

#[test]
fn a_response_ends_where_it_says() {
    let told = |text: &str, is_head| response(text.as_bytes(), is_head);
    let of = |fields: &str| told(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n"), false);
    assert_eq!(told("HTTP/1.1 100 Continue\r\n\r\n", false), Ok(Response::Interim));
    assert_eq!(told("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", false), Ok(Response::Interim));
    assert_eq!(told("HTTP/1.1 101 Switching Protocols\r\n\r\n", false), Ok(Response::Switches));
    let none = Ok(Response::Final(Framing::Length(0)));
    assert_eq!(told("HTTP/1.1 204 No Content\r\n\r\n", false), none);
    assert_eq!(told("HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", false), none);
    assert_eq!(told("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", true), none);
    assert_eq!(of("Content-Length: 9\r\n"), Ok(Response::Final(Framing::Length(9))));
    assert_eq!(of("Content-Length: 9\r\nContent-Length: 9\r\n"), Ok(Response::Final(Framing::Length(9))));
    assert_eq!(of("Transfer-Encoding: chunked\r\n"), Ok(Response::Final(Framing::Chunked)));
    assert_eq!(of("Transfer-Encoding: gzip, chunked\r\n"), Ok(Response::Final(Framing::ToTheEnd)));
    assert_eq!(of(""), Ok(Response::Final(Framing::ToTheEnd)));
    assert!(of("Content-Length: 9\r\nContent-Length: 8\r\n").is_err());
    assert!(of("Content-Length: x\r\n").is_err());
    assert!(told("SSH-2.0-x\r\n\r\n", false).is_err());
}

#[test]
fn the_end_of_a_head_is_found_in_pieces() {
    let text = b"GET / HTTP/1.1\r\nHost: x\r\n\r\nrest";
    let mut searched = 0;
    let found: Vec<usize> =
        (0..text.len()).filter(|len| head_len(&text[..*len], &mut searched).is_some()).collect();
    // It is found again, as one that has to wait is looked for again.
    assert_eq!(found, (text.len() - 4..text.len()).collect::<Vec<_>>());
    assert_eq!(head_len(text, &mut searched), Some(text.len() - 4));
    assert_eq!(head_len(text, &mut 0), Some(text.len() - 4));
}

proptest! {
    /// Whatever a guest says, what is passed on is a request that is understood in the same way
    /// again, and for the same host.
    #[test]
    fn what_passes_is_understood_again(
        parts in proptest::collection::vec(
            prop_oneof![
                Just("GET / HTTP/1.1\r\n"), Just("POST /KEY HTTP/1.1\r\n"), Just("Host: api.example\r\n"),
                Just("Host: evil.example\r\n"), Just("Content-Length: 5\r\n"), Just("Transfer-Encoding: chunked\r\n"),
                Just("X: KEY\r\n"), Just(" folded\r\n"), Just("\r\n"), Just("\n"), Just("\r"), Just("\0"), Just(":"),
                Just("é"), Just("X-y\t: z\r\n"),
            ],
            0..8,
        ),
    ) {
        let text = format!("{}\r\n", parts.concat());
        if let Ok((head, first)) = asked(&text) {
            let (again, second) = asked(&head).unwrap();
            prop_assert_eq!(&head, &again);
            prop_assert_eq!(first.framing, second.framing);
            prop_assert!(!head.to_ascii_lowercase().contains("evil") && head_len(head.as_bytes(), &mut 0) == Some(head.len()));
        }
    }
}
