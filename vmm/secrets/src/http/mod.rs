//! HTTP/1 between a guest that is not trusted and a host that has a secret: what two readers could
//! understand in two ways is refused. Pure.

mod body;
mod request;
mod response;
#[cfg(test)]
mod tests;

pub use body::{Body, Framing};
pub use request::{Refusal, Request, request};
pub use response::{Response, response};

/// The longest head, in bytes.
pub const MOST_HEAD: usize = 64 << 10;
/// The most fields of a head.
pub const MOST_FIELDS: usize = 128;

/// How many bytes the head at the beginning has, with the empty line at its end. `searched` is how
/// many of the bytes were looked at before: 0 at first.
#[must_use]
pub fn head_len(bytes: &[u8], searched: &mut usize) -> Option<usize> {
    let from = (*searched).min(bytes.len());
    let found = bytes[from..].windows(4).position(|end| end == b"\r\n\r\n");
    *searched = found.map_or(bytes.len().saturating_sub(3), |at| from + at);
    found.map(|at| from + at + 4)
}

/// Whether each line of a head ends with CR LF and has neither of them elsewhere, and none begins
/// with a blank, as one that goes on with the line before.
fn has_plain_lines(head: &[u8]) -> bool {
    let mut before = 0;
    let breaks = head.iter().enumerate().all(|(at, byte)| {
        let good = match byte {
            b'\n' => before == b'\r',
            b'\r' => head.get(at + 1) == Some(&b'\n'),
            0 => false,
            b' ' | b'\t' => before != b'\n' && at != 0,
            _ => true,
        };
        before = *byte;
        good
    });
    breaks && !head.starts_with(b"\r\n")
}

/// The value of a field that may stand there once: `Err` if it stands there more often.
fn once<'a>(fields: &'a [httparse::Header<'_>], name: &str) -> Result<Option<&'a [u8]>, ()> {
    let mut all = fields.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
    let first = all.next().map(|field| field.value);
    if all.next().is_some() { Err(()) } else { Ok(first) }
}

/// A number of bytes in digits alone.
fn number(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse::<u64>().ok().filter(|number| *number <= u64::MAX / 2)
}
