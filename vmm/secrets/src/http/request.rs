//! The head of a request.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::{Framing, MOST_FIELDS, has_plain_lines, number, once};
use crate::swap::{Form, Found, Swaps, TooLong, may_have_placeholder, put};

/// The longest head with its values, in bytes.
const MOST_SWAPPED: usize = 256 << 10;

/// Why a request is not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status of the answer.
    pub status: u16,
    /// Why, in words.
    pub why: &'static str,
}

impl Refusal {
    /// A request that two readers could understand in two ways, or that is none.
    const fn bad(why: &'static str) -> Self {
        Self { status: 400, why }
    }

    /// What the status is called.
    #[must_use]
    pub fn phrase(&self) -> &'static str {
        match self.status {
            405 => "Method Not Allowed",
            408 => "Request Timeout",
            421 => "Misdirected Request",
            431 => "Request Header Fields Too Large",
            501 => "Not Implemented",
            502 => "Bad Gateway",
            505 => "HTTP Version Not Supported",
            _ => "Bad Request",
        }
    }
}

/// A request whose head was looked at.
#[derive(Debug)]
pub struct Request {
    /// The head with its values.
    pub head: Zeroizing<Vec<u8>>,
    /// How its body ends.
    pub framing: Framing,
    /// Its answer has no body, whatever it says.
    pub is_head: bool,
    /// It asks for another protocol, which may follow its answer.
    pub upgrades: bool,
    /// Which secrets.
    pub found: Found,
}

/// Looks at the whole head of a request on a connection that was made for `name` at `port`, and
/// puts the values into it.
///
/// # Errors
/// It is refused, and nothing of it may be passed on.
pub fn request(head: &[u8], name: &str, port: u16, swaps: &Swaps<'_>) -> Result<Request, Refusal> {
    if !has_plain_lines(head) {
        return Err(Refusal::bad("its lines do not end with CR LF, or one goes on in the next"));
    }
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let mut parsed = httparse::Request::new(&mut fields);
    match parsed.parse(head) {
        Ok(httparse::Status::Complete(len)) if len == head.len() => {}
        Err(httparse::Error::TooManyHeaders) => {
            return Err(Refusal { status: 431, why: "it has more than 128 fields" });
        }
        Err(httparse::Error::Version) => {
            return Err(Refusal { status: 505, why: "it is neither HTTP/1.1 nor HTTP/1.0" });
        }
        _ => return Err(Refusal::bad("it is no request of HTTP/1")),
    }
    let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(Refusal::bad("it is no request of HTTP/1"));
    };
    // Some servers take methods in small letters, too.
    let asks = |name: &str| method.eq_ignore_ascii_case(name);
    if asks("CONNECT") {
        return Err(Refusal { status: 405, why: "CONNECT asks for a way to another host" });
    }
    // It is answered with what was sent, the values among it.
    if asks("TRACE") || asks("TRACK") {
        return Err(Refusal { status: 405, why: "TRACE would tell the values" });
    }
    if !(target.starts_with('/') || target == "*" && method == "OPTIONS") {
        return Err(Refusal::bad("its target is no path"));
    }
    let fields = &*parsed.headers;
    host(fields, name, port)?;
    let framing = framing(fields, version)?;
    let (head, found) = swapped(method, target, version, fields, swaps)
        .map_err(|TooLong| Refusal { status: 431, why: "it is too long with its values" })?;
    let upgrades = fields.iter().any(|field| field.name.eq_ignore_ascii_case("Upgrade"));
    Ok(Request { head, framing, is_head: method == "HEAD", upgrades, found })
}

/// Refuses a request for another host than that of the connection.
fn host(fields: &[httparse::Header<'_>], name: &str, port: u16) -> Result<(), Refusal> {
    let said = once(fields, "Host").map_err(|()| Refusal::bad("it names a host twice"))?;
    let said = said.and_then(|said| std::str::from_utf8(said).ok());
    let said = said.ok_or(Refusal::bad("it names no host"))?.to_ascii_lowercase();
    let (host, at) = match said.rsplit_once(':') {
        Some((host, at)) => (host, number(at.as_bytes())),
        None => (&*said, Some(443)),
    };
    let at = at.and_then(|at| u16::try_from(at).ok());
    // A client may leave the port out.
    let right_port = at == Some(port) || !said.contains(':');
    if host.strip_suffix('.').unwrap_or(host) != name || !right_port {
        return Err(Refusal { status: 421, why: "it is for another host than the connection" });
    }
    Ok(())
}

fn framing(fields: &[httparse::Header<'_>], version: u8) -> Result<Framing, Refusal> {
    let length = once(fields, "Content-Length").map_err(|()| Refusal::bad("it tells its length twice"))?;
    let coding = once(fields, "Transfer-Encoding").map_err(|()| Refusal::bad("it tells its coding twice"))?;
    match (length, coding) {
        (None, None) => Ok(Framing::Length(0)),
        (Some(length), None) => {
            number(length).map(Framing::Length).ok_or(Refusal::bad("its length is no number"))
        }
        (Some(_), Some(_)) => Err(Refusal::bad("it tells a length and a coding")),
        (None, Some(_)) if version == 0 => Err(Refusal::bad("HTTP/1.0 has no codings")),
        (None, Some(coding)) if coding.eq_ignore_ascii_case(b"chunked") => Ok(Framing::Chunked),
        (None, Some(_)) => Err(Refusal { status: 501, why: "its coding is not chunked alone" }),
    }
}

/// Fields that say where a request ends and whom it is for, and those that servers repeat in their
/// answers or in pages about errors: no value is put into them.
const LEFT: [&str; 39] = [
    "Host",
    "Content-Length",
    "Transfer-Encoding",
    "Connection",
    "Upgrade",
    "TE",
    "Trailer",
    "Expect",
    "Keep-Alive",
    "Origin",
    "Referer",
    "Forwarded",
    "Via",
    "X-Real-IP",
    "X-Original-Host",
    "X-Original-URL",
    "X-Rewrite-URL",
    "Request-Id",
    "Correlation-Id",
    "Trace-Id",
    "X-Request-Id",
    "X-Correlation-Id",
    "X-Trace-Id",
    "X-Client-Request-Id",
    "X-Ms-Client-Request-Id",
    "X-Request-Start",
    "X-Amzn-Trace-Id",
    "X-Amzn-RequestId",
    "X-Cloud-Trace-Context",
    "X-Transaction-Id",
    "Idempotency-Key",
    "Traceparent",
    "Tracestate",
    "Baggage",
    "B3",
    "Sec-WebSocket-Protocol",
    "Sec-WebSocket-Extensions",
    "Sec-WebSocket-Key",
    "Sec-WebSocket-Version",
];
/// The same, for fields whose names begin so.
const LEFT_BEGINNINGS: [&str; 3] = ["X-Forwarded-", "Access-Control-Request-", "X-B3-"];

fn is_left(name: &str) -> bool {
    LEFT.iter().any(|left| name.eq_ignore_ascii_case(left))
        || LEFT_BEGINNINGS.iter().any(|beginning| {
            name.get(..beginning.len()).is_some_and(|part| part.eq_ignore_ascii_case(beginning))
        })
}

/// The head with its values.
fn swapped(
    method: &str,
    target: &str,
    version: u8,
    fields: &[httparse::Header<'_>],
    swaps: &Swaps<'_>,
) -> Result<(Zeroizing<Vec<u8>>, Found), TooLong> {
    let mut found = Found::default();
    // Room at once: what grows leaves copies behind.
    let mut head = Zeroizing::new(Vec::with_capacity(MOST_SWAPPED));
    put(&mut head, method.as_bytes())?;
    put(&mut head, b" ")?;
    swaps.swap(target.as_bytes(), Form::Url, &mut found, &mut head)?;
    put(&mut head, format!(" HTTP/1.{version}\r\n").as_bytes())?;
    for field in fields {
        put(&mut head, field.name.as_bytes())?;
        put(&mut head, b": ")?;
        if is_left(field.name) {
            put(&mut head, field.value)?;
        } else if let Some(plain) = basic(field) {
            let mut out = Zeroizing::new(Vec::with_capacity(MOST_SWAPPED / 4 * 3));
            swaps.swap(&plain, Form::Plain, &mut found, &mut out)?;
            put(&mut head, b"Basic ")?;
            put(&mut head, Zeroizing::new(STANDARD.encode(&*out)).as_bytes())?;
        } else {
            swaps.swap(field.value, Form::Plain, &mut found, &mut head)?;
        }
        put(&mut head, b"\r\n")?;
    }
    put(&mut head, b"\r\n")?;
    Ok((head, found))
}

/// Name and password of `Authorization: Basic`, if there may be a placeholder in them.
fn basic(field: &httparse::Header<'_>) -> Option<Vec<u8>> {
    if !field.name.eq_ignore_ascii_case("Authorization") {
        return None;
    }
    let (scheme, credentials) = field.value.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"Basic ") {
        return None;
    }
    let plain = STANDARD.decode(credentials.trim_ascii()).ok()?;
    may_have_placeholder(&plain).then_some(plain)
}
