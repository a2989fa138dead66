//! Content digests (OCI image specification, descriptor, "Digests").

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::str::FromStr;

use sha2::{Digest as _, Sha256, Sha512};
use thiserror::Error;

/// The digest of a content: algorithm and hash, spelled `sha256:hex`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Digest {
    /// SHA-256, what practically every image uses.
    Sha256([u8; 32]),
    /// SHA-512.
    Sha512([u8; 64]),
}

/// A word that is no digest.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "`{word}` is not a digest: `sha256:` and 64, or `sha512:` and 128, lower-case hexadecimal digits are needed"
)]
pub struct DigestError {
    word: String,
}

impl Digest {
    /// The SHA-256 digest of `data`.
    #[must_use]
    pub fn sha256(data: &[u8]) -> Self {
        Self::Sha256(Sha256::digest(data).into())
    }

    /// The hash in lower-case hexadecimal, without the algorithm.
    #[must_use]
    pub fn hex(&self) -> String {
        hex(self.bytes())
    }

    /// The algorithm's name: also the name of its folder under `blobs/` in a layout.
    #[must_use]
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "sha256",
            Self::Sha512(_) => "sha512",
        }
    }

    /// The hash itself: 32 or 64 bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Sha256(bytes) => bytes,
            Self::Sha512(bytes) => bytes,
        }
    }

    /// A hasher of the same algorithm.
    pub(crate) fn hasher(&self) -> Hasher {
        match self {
            Self::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Self::Sha512(_) => Hasher::Sha512(Box::new(Sha512::new())),
        }
    }

    /// Whether `data` has this digest.
    #[must_use]
    pub fn matches(&self, data: &[u8]) -> bool {
        let mut hasher = self.hasher();
        hasher.update(data);
        hasher.finish() == *self
    }

    /// Whether it is that of all bytes of a file, from where it is read next.
    pub(crate) fn is_of(&self, mut file: &File) -> io::Result<bool> {
        let (mut hasher, mut buffer) = (self.hasher(), vec![0; 256 << 10]);
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(hasher.finish() == *self),
                Ok(got) => hasher.update(&buffer[..got]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let text = text.as_bytes();
    if text.len() != N * 2 {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        let parsed = match word.split_once(':') {
            Some(("sha256", hex)) => unhex(hex).map(Self::Sha256),
            Some(("sha512", hex)) => unhex(hex).map(Self::Sha512),
            _ => None,
        };
        // A hostile manifest does not get to fill the terminal.
        parsed.ok_or_else(|| DigestError { word: word.chars().take(160).collect() })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A running digest.
#[derive(Clone, Debug)]
pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha512(Box<Sha512>),
}

impl Hasher {
    pub(crate) fn update(&mut self, data: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(data),
            Self::Sha512(hasher) => hasher.update(data),
        }
    }

    pub(crate) fn finish(self) -> Digest {
        match self {
            Self::Sha256(hasher) => Digest::Sha256(hasher.finalize().into()),
            Self::Sha512(hasher) => Digest::Sha512(hasher.finalize().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_known_value() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let digest: Digest = empty.parse().unwrap();
        assert_eq!(digest, Digest::sha256(b""));
        assert_eq!(digest.to_string(), empty);
        assert!(digest.matches(b""));
        assert!(!digest.matches(b"x"));
        let long = format!("sha512:{}", "0f".repeat(64));
        assert_eq!(long.parse::<Digest>().unwrap().to_string(), long);
    }

    #[test]
    fn refused_words() {
        let upper = format!("sha256:{}", "AB".repeat(32));
        let short = format!("sha256:{}", "ab".repeat(31));
        let path = format!("sha256:{}/..", "ab".repeat(31));
        for word in ["", "sha256:", "md5:00", "abc", &upper, &short, &path, "sha512:00"] {
            assert!(word.parse::<Digest>().is_err(), "{word}");
        }
    }
}
