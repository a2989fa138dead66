//! What a process says: searched for the marker and for what our init tells behind it, its end kept
//! for an error.

use std::io::{self, Read};

use crate::sys;

/// Most bytes of what it said that an error carries.
const TAIL: usize = 600;

/// What our init says behind its marker: how long before it, in nanoseconds, the guest came to
/// where the names say.
const STAMPS: &str = "NELLY-STAMPS";
/// Their names, as in docs/timeline.md. A guest may lie: others are not taken.
const NAMES: [&str; 3] = ["kernel_entry", "init", "init_main"];

/// Finds a marker in a stream of chunks, also across their borders.
pub(super) struct Finder<'a> {
    marker: &'a [u8],
    kept: Vec<u8>,
    found: bool,
    told: Option<Told>,
}

/// The guest's last word.
struct Told {
    /// When it was read.
    at: u64,
    /// Names, and how long before the marker.
    stamps: Vec<(&'static str, u64)>,
}

impl<'a> Finder<'a> {
    pub(super) fn new(marker: &'a str) -> Self {
        Self { marker: marker.as_bytes(), kept: Vec::new(), found: false, told: None }
    }

    /// Whether the marker's last byte is in `chunk`, which was read at `at`.
    fn feed(&mut self, chunk: &[u8], at: u64) -> bool {
        self.kept.extend_from_slice(chunk);
        let found = !self.found && self.kept.windows(self.marker.len()).any(|window| window == self.marker);
        self.found |= found;
        // Now: a monitor that writes a log of its own ends with more than is kept.
        self.told = self.told.take().or_else(|| Some(Told { at, stamps: stamps_in(&self.kept)? }));
        // Enough for a marker that goes on in the next chunk, and for a person who asks what was
        // said last.
        let surplus = self.kept.len().saturating_sub(TAIL.max(self.marker.len()));
        self.kept.drain(..surplus);
        found
    }

    /// What the guest said of its own start: names, and how long before the marker, in nanoseconds.
    /// `None` until the whole line is there.
    pub(super) fn stamps(&self) -> Option<&[(&'static str, u64)]> {
        self.told.as_ref().map(|told| told.stamps.as_slice())
    }

    /// When the last byte of that was read.
    pub(super) fn told_ns(&self) -> Option<u64> {
        self.told.as_ref().map(|told| told.at)
    }

    /// The end of what was said, without control characters: a guest writes it.
    pub(super) fn tail(&self, errors: &Self) -> String {
        let mut said = String::from_utf8_lossy(&errors.kept).into_owned();
        said.push_str(&String::from_utf8_lossy(&self.kept));
        let said: String = said.chars().filter(|c| *c == '\n' || !c.is_control()).collect();
        match said.trim() {
            "" => "; there was no output".to_owned(),
            said => format!("; the last output was:\n{said}"),
        }
    }
}

/// The stamps of the last line that has them, once it is whole. Names and numbers that are none are
/// left out.
fn stamps_in(said: &[u8]) -> Option<Vec<(&'static str, u64)>> {
    let said = String::from_utf8_lossy(said);
    let line = said.rsplit_once(STAMPS)?.1.split_once('\n')?.0;
    let stamp = |word: &str| {
        let (name, age) = word.split_once('=')?;
        Some((*NAMES.iter().find(|known| **known == name)?, age.parse().ok()?))
    };
    Some(line.split_whitespace().filter_map(stamp).collect())
}

/// Reads what is there; the time of the read that completed the marker. A stream at its end is
/// closed.
pub(super) fn drain(stream: &mut Option<impl Read>, finder: &mut Finder<'_>) -> Option<u64> {
    let mut found = None;
    let mut chunk = [0; 4096];
    while let Some(open) = stream {
        match open.read(&mut chunk) {
            Ok(0) => *stream = None,
            Ok(count) => {
                let at = sys::now_ns();
                if finder.feed(&chunk[..count], at) {
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
    fn the_guest_tells_of_its_start_in_a_whole_line() {
        let mut finder = Finder::new("MARK");
        assert!(finder.feed(b"MARK\r\n[    0.1] NELLY-STAMPS kernel_entry=900 init=30 in", 1));
        assert_eq!(finder.stamps(), None);
        assert!(!finder.feed(b"it_main=29\r\n", 2));
        // What a monitor says afterwards, however much, is not the guest's word.
        assert!(!finder.feed(&[b'x'; 5000], 3));
        assert_eq!(finder.stamps().unwrap(), [("kernel_entry", 900), ("init", 30), ("init_main", 29)]);
        assert_eq!(finder.told_ns(), Some(2));
        let mut finder = Finder::new("MARK");
        finder.feed(b"NELLY-STAMPS init=x init=-1 init=99999999999999999999 root=7 init_main=5 =\n", 1);
        assert_eq!(finder.stamps().unwrap(), [("init_main", 5)]);
    }

    #[test]
    fn a_marker_is_found_across_chunks() {
        let mut finder = Finder::new("MARK");
        assert!(!finder.feed(b"xxMA", 1));
        assert!(!finder.feed(b"", 1));
        assert!(finder.feed(b"RKyy", 1));
        let mut finder = Finder::new("MARK");
        assert!(!finder.feed(&[b'x'; 5000], 1) && finder.kept.len() == TAIL);
        assert!(finder.feed(b"MARK", 1));
        assert!(!finder.feed(b"y", 1), "once");
    }
}
