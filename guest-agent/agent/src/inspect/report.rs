//! The stream of frames to the host.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::OwnedFd;

use nelly_protocol::inspect::{Kind, PAYLOAD_MOST, header};
use nelly_protocol::{Message, messages as m};

/// Sentences about what was left out; more are only counted.
const NOTES_MOST: usize = 16;

/// Bytes of a sentence.
const SENTENCE_MOST: usize = 4096;

/// Writes frames. Its errors are those of the stream: nobody listens any more.
pub(super) struct Report {
    stream: BufWriter<File>,
    notes: usize,
}

impl Report {
    pub(super) fn new(stream: OwnedFd) -> Self {
        Self { stream: BufWriter::with_capacity(32 << 10, File::from(stream)), notes: 0 }
    }

    fn frame(&mut self, kind: Kind, payload: &[u8]) -> io::Result<()> {
        self.stream.write_all(&header(kind, payload.len()))?;
        self.stream.write_all(payload)
    }

    pub(super) fn record(&mut self, record: &impl Message) -> io::Result<()> {
        let payload = record.write_to_bytes().map_err(io::Error::other)?;
        if payload.len() > PAYLOAD_MOST {
            return Err(io::Error::other(format!("a record of {} bytes is too long", payload.len())));
        }
        self.frame(Kind::Record, &payload)
    }

    /// Says that something was left out.
    pub(super) fn note(&mut self, sentence: &str) -> io::Result<()> {
        self.notes += 1;
        if self.notes > NOTES_MOST {
            return Ok(());
        }
        self.frame(Kind::Note, cut(sentence).as_bytes())
    }

    /// The last frame.
    pub(super) fn finish(mut self, done: io::Result<()>) -> io::Result<()> {
        if self.notes > NOTES_MOST {
            let more = format!("{} more were left out", self.notes - NOTES_MOST);
            self.frame(Kind::Note, more.as_bytes())?;
        }
        let mut result = m::InspectResult::new();
        if let Err(error) = done {
            (result.code, result.message) = (1, cut(&error.to_string()).to_owned());
        }
        let payload = result.write_to_bytes().map_err(io::Error::other)?;
        self.frame(Kind::Result, &payload)?;
        self.stream.flush()
    }
}

/// Sentences that are told at the end.
#[derive(Default)]
pub(super) struct Notes {
    first: Vec<String>,
    more: usize,
}

impl Notes {
    pub(super) fn add(&mut self, sentence: &str) {
        if self.first.len() < NOTES_MOST {
            self.first.push(cut(sentence).to_owned());
        } else {
            self.more += 1;
        }
    }

    pub(super) fn all(mut self) -> Vec<String> {
        if self.more > 0 {
            self.first.push(format!("{} more were left out", self.more));
        }
        self.first
    }
}

pub(super) fn cut(sentence: &str) -> &str {
    &sentence[..sentence.floor_char_boundary(SENTENCE_MOST)]
}
