//! Whom the first bytes of a stream say that they are for: the name in a TLS client's hello, or the
//! host of an HTTP request. Pure, and bounded: it is asked again with more bytes as they come.

mod http;
mod tls;

/// No more bytes are looked at: a hello of TLS is one record of 16 KiB at most, or some that are
/// not much longer.
pub const MOST: usize = 18 << 10;

/// What the first bytes say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Nothing yet: there are too few of them.
    More,
    /// This name, in small letters and without a dot at its end.
    Name(String),
    /// No name that could be relied on.
    None(&'static str),
}

/// What a stream is expected to begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// A TLS client's hello.
    Tls,
    /// An HTTP/1 request.
    Http,
}

impl Speaks {
    /// What clients say first at this port. `None`: that is not known.
    #[must_use]
    pub fn at(port: u16) -> Option<Self> {
        match port {
            443 => Some(Self::Tls),
            80 => Some(Self::Http),
            _ => None,
        }
    }

    /// Whom a stream that begins with `bytes` is for.
    #[must_use]
    pub fn claim(self, bytes: &[u8]) -> Claim {
        let claim = match self {
            Self::Tls => tls::claim(bytes),
            Self::Http => http::claim(bytes),
        };
        match claim {
            Claim::More if bytes.len() >= MOST => Claim::None("its first bytes are too long"),
            claim => claim,
        }
    }
}

/// A name as it is compared; `None`: it is no name of a host, but perhaps an address.
fn name(text: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(text).ok()?;
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let number = |label: &str| label.bytes().all(|c| c.is_ascii_digit());
    (crate::dns::is_name(&name) && !name.rsplit('.').next().is_none_or(number)).then_some(name)
}

#[cfg(test)]
mod tests;
