//! The form of one record.

use std::fmt;

/// A stream of the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output; with a terminal, all output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Stdout, Self::Stderr];

    /// Its word in a record.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }

    /// Its place in tables of both.
    pub(super) fn index(self) -> usize {
        match self {
            Self::Stdout => 0,
            Self::Stderr => 1,
        }
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The length of a time: all have the same.
const TIME_BYTES: usize = "2026-01-31T12:00:00.000000000Z".len();

/// One record as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// When the writer got it, as a [`super::super::Timestamp`] is written: texts sort as times do.
    pub time: &'a str,
    /// Where it was written.
    pub stream: Stream,
    /// It ends its line.
    pub ends_line: bool,
    /// The output, without the newline.
    pub content: &'a [u8],
}

impl<'a> Record<'a> {
    /// Reads a line, without its newline. `None` if it is no record.
    pub(super) fn parse(line: &'a [u8]) -> Option<Self> {
        let (time, rest) = line.split_at_checked(TIME_BYTES)?;
        let time = std::str::from_utf8(time).ok().filter(|time| time.ends_with('Z'))?;
        let (stream, rest) = match rest.split_at_checked(" stdout ".len())? {
            (b" stdout ", rest) => (Stream::Stdout, rest),
            (b" stderr ", rest) => (Stream::Stderr, rest),
            _ => return None,
        };
        // The form allows further tags, after colons.
        let tags = rest.iter().position(|byte| *byte == b' ')?;
        let ends_line = match rest[..tags].split(|byte| *byte == b':').next()? {
            b"F" => true,
            b"P" => false,
            _ => return None,
        };
        Some(Self { time, stream, ends_line, content: &rest[tags + 1..] })
    }

    /// Appends the record, with its newline, to `out`.
    pub(super) fn append_to(&self, out: &mut Vec<u8>) {
        let tag: &[u8] = if self.ends_line { b" F " } else { b" P " };
        for part in [self.time.as_bytes(), b" ", self.stream.word().as_bytes(), tag, self.content, b"\n"] {
            out.extend_from_slice(part);
        }
    }

    /// How many bytes it has in a file.
    pub(super) fn bytes(&self) -> usize {
        self.time.len() + " stdout F ".len() + self.content.len() + 1
    }
}
