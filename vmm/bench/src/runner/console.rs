//! What a process says: searched for the marker, its end kept for an error.

use std::io::{self, Read};

use crate::sys;

/// Most bytes of what it said that an error carries.
const TAIL: usize = 600;

/// Finds a marker in a stream of chunks, also across their borders.
pub(super) struct Finder<'a> {
    marker: &'a [u8],
    kept: Vec<u8>,
}

impl<'a> Finder<'a> {
    pub(super) fn new(marker: &'a str) -> Self {
        Self { marker: marker.as_bytes(), kept: Vec::new() }
    }

    /// Whether the marker's last byte is in `chunk`.
    fn feed(&mut self, chunk: &[u8]) -> bool {
        self.kept.extend_from_slice(chunk);
        let found = self.kept.windows(self.marker.len()).any(|window| window == self.marker);
        // Enough for a marker that goes on in the next chunk, and for a person who asks what was said last.
        let surplus = self.kept.len().saturating_sub(TAIL.max(self.marker.len()));
        self.kept.drain(..surplus);
        found
    }

    /// The end of what was said, without control characters: a guest writes it.
    pub(super) fn tail(&self, errors: &Self) -> String {
        let mut said = String::from_utf8_lossy(&errors.kept).into_owned();
        said.push_str(&String::from_utf8_lossy(&self.kept));
        let said: String = said.chars().filter(|c| *c == '\n' || !c.is_control()).collect();
        match said.trim() {
            "" => "; it said nothing".to_owned(),
            said => format!("; it said last:\n{said}"),
        }
    }
}

/// Reads what is there; the time of the read that completed the marker. A stream at its end is closed.
pub(super) fn drain(stream: &mut Option<impl Read>, finder: &mut Finder<'_>) -> Option<u64> {
    let mut found = None;
    let mut chunk = [0; 4096];
    while let Some(open) = stream {
        match open.read(&mut chunk) {
            Ok(0) => *stream = None,
            Ok(count) => {
                let at = sys::now_ns();
                if finder.feed(&chunk[..count]) && found.is_none() {
                    found = Some(at);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(_) => *stream = None,
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_found_across_chunks() {
        let mut finder = Finder::new("MARK");
        assert!(!finder.feed(b"xxMA"));
        assert!(!finder.feed(b""));
        assert!(finder.feed(b"RKyy"));
        let mut finder = Finder::new("MARK");
        assert!(!finder.feed(&[b'x'; 5000]) && finder.kept.len() == TAIL);
        assert!(finder.feed(b"MARK"));
    }
}
