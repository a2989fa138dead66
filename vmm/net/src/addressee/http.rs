//! The head of an HTTP/1 request (RFC 9112).

use super::Claim;

const NO_REQUEST: Claim = Claim::None("it does not begin with an HTTP/1 request");
const WRONG: Claim = Claim::None("the head of its HTTP request is malformed");

/// Whom the request is for. A target that names a host itself must name the same.
pub(super) fn claim(bytes: &[u8]) -> Claim {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return if begins_like_one(bytes) { Claim::More } else { NO_REQUEST };
    };
    let mut lines = bytes[..end].split(|&c| c == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let Some(target) = lines.next().and_then(target) else { return NO_REQUEST };
    let mut host = None;
    for line in lines {
        // A line that goes on with the one before is read by everybody in another way.
        let Some(colon) = line.iter().position(|&c| c == b':') else { return WRONG };
        // Nor is a name with odd bytes in it, which some servers pass over.
        if line.contains(&b'\r') || colon == 0 || !line[..colon].iter().all(is_token) {
            return WRONG;
        }
        if line[..colon].eq_ignore_ascii_case(b"host") {
            if host.is_some() {
                return Claim::None("its HTTP request has more than one host");
            }
            host = Some(line[colon + 1..].trim_ascii());
        }
    }
    let Some(host) = host.and_then(authority) else { return Claim::None("its HTTP request names no host") };
    match target {
        Target::Path => Claim::Name(host),
        Target::Host(named) if authority(named).as_ref() == Some(&host) => Claim::Name(host),
        Target::Host(_) => Claim::None("its HTTP request names two hosts"),
    }
}

/// Whether a byte may stand in a method or in the name of a field.
fn is_token(c: &u8) -> bool {
    c.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(c)
}

/// What stands behind the method.
enum Target<'a> {
    Path,
    Host(&'a [u8]),
}

/// The target of a request line.
fn target(line: &[u8]) -> Option<Target<'_>> {
    let mut words = line.split(|&c| c == b' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let fine = words.next().is_none() && !method.is_empty() && method.iter().all(is_token);
    if !fine || !matches!(version, b"HTTP/1.1" | b"HTTP/1.0") || target.iter().any(|c| !c.is_ascii_graphic())
    {
        return None;
    }
    if target.starts_with(b"/") || target == b"*" {
        return Some(Target::Path);
    }
    let behind = target.windows(3).position(|three| three == b"://")? + 3;
    let rest = &target[behind..];
    let end = rest.iter().position(|c| b"/?#".contains(c)).unwrap_or(rest.len());
    // What stands before an @ is no host, and is read in more than one way.
    (!rest[..end].contains(&b'@')).then_some(Target::Host(&rest[..end]))
}

/// The name in `NAME[:PORT]`.
fn authority(text: &[u8]) -> Option<String> {
    let (name, port) = match text.iter().position(|&c| c == b':') {
        Some(colon) => (&text[..colon], &text[colon + 1..]),
        None => (text, &[][..]),
    };
    port.iter().all(u8::is_ascii_digit).then(|| super::name(name))?
}

/// Whether more bytes could make a request of these.
fn begins_like_one(bytes: &[u8]) -> bool {
    let line = bytes.split(|&c| c == b'\n').next().unwrap_or_default();
    let printable = |c: &u8| c.is_ascii_graphic() || *c == b' ';
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    line.iter().all(printable) && line.first().is_none_or(|c| !c.is_ascii_whitespace())
}
