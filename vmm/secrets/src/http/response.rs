//! The head of a response, of which only the end of its body matters here: it is passed on as it
//! is.

use super::{Framing, MOST_FIELDS, number};

/// What a response is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response {
    /// Another one follows.
    Interim,
    /// From here on, both ends speak another protocol.
    Switches,
    /// It is the answer, and its body ends so.
    Final(Framing),
}

/// Looks at the whole head of a response. `is_head`: it answers HEAD.
///
/// # Errors
/// It is none, or none whose end can be told.
pub fn response(head: &[u8], is_head: bool) -> Result<Response, &'static str> {
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let mut parsed = httparse::Response::new(&mut fields);
    match parsed.parse(head) {
        Ok(httparse::Status::Complete(len)) if len == head.len() => {}
        _ => return Err("the host's answer is no response of HTTP/1"),
    }
    let code = parsed.code.unwrap_or_default();
    match code {
        101 => return Ok(Response::Switches),
        100..200 => return Ok(Response::Interim),
        _ => {}
    }
    if is_head || matches!(code, 204 | 304) {
        return Ok(Response::Final(Framing::Length(0)));
    }
    let all = |name: &'static str| {
        let fields = parsed.headers.iter();
        fields.filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    };
    let codings: Vec<&[u8]> = all("Transfer-Encoding").collect();
    match codings[..] {
        [] => {}
        [coding] if coding.eq_ignore_ascii_case(b"chunked") => return Ok(Response::Final(Framing::Chunked)),
        // Chunked or not, nobody can tell where the next response begins.
        _ => return Ok(Response::Final(Framing::ToTheEnd)),
    }
    let mut lengths = all("Content-Length").map(number);
    match lengths.next() {
        None => Ok(Response::Final(Framing::ToTheEnd)),
        Some(Some(first)) if lengths.all(|other| other == Some(first)) => {
            Ok(Response::Final(Framing::Length(first)))
        }
        Some(_) => Err("the host's answer tells its length in two ways"),
    }
}
