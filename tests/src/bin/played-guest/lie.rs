//! What a guest says in the place of an answer. The client's own tests have the same table, of one
//! call each (`vmm/sandbox/src/agent/lies.rs`).

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::message::{RESPONSE, answer, bytes, frame, number, refusal};

/// Most bytes of an answer that a client takes.
const ANSWER_MOST: u32 = 256 << 10;

/// What a guest does once it was called.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Lie {
    /// It hears, and says nothing.
    Silent,
    /// So many bytes of a sound answer, and the end.
    Cut(usize),
    /// The same, and silence.
    Half(usize),
    /// A byte each second, of an answer that is long but not too long.
    Drip,
    /// An answer said to have so many bytes, and silence.
    Length(u32),
    /// The same, with bytes that never end.
    Endless(u32),
    /// An answer to this stream.
    Stream(u32),
    /// A frame of this kind.
    Kind(u8),
    /// Bytes that are no frame, without an end.
    Noise(u8),
    /// Answers to nobody, without an end.
    Flood,
    /// No message in a sound frame.
    Garbage,
    /// No response in a sound frame.
    GarbageResponse,
    /// A refusal that is as long as an answer can be.
    Refusal,
    /// Very many empty records, of this field.
    Records(u8),
    /// One string as long as an answer can be, of this field.
    String(u8),
    /// The largest number, of this field.
    Number(u8),
    /// The machine ends.
    End,
}

impl Lie {
    /// `CALL LIE [NUMBER]`: the call at which it is told, and which one. `Ready` is no call, but
    /// the word that the agent is ready, and `Connect` every connection to the guest.
    pub(crate) fn parse(text: &str) -> Option<(String, Self)> {
        let mut words = text.split_whitespace();
        let (at, word) = (words.next()?, words.next()?);
        let number: u32 = words.next().unwrap_or("0").parse().ok()?;
        let (small, size) = (u8::try_from(number).ok(), usize::try_from(number).ok()?);
        let lie = match word {
            "silent" => Self::Silent,
            "cut" => Self::Cut(size),
            "half" => Self::Half(size),
            "drip" => Self::Drip,
            "length" => Self::Length(number),
            "endless" => Self::Endless(number),
            "stream" => Self::Stream(number),
            "kind" => Self::Kind(small?),
            "noise" => Self::Noise(small?),
            "flood" => Self::Flood,
            "garbage" => Self::Garbage,
            "garbage-response" => Self::GarbageResponse,
            "refusal" => Self::Refusal,
            "records" => Self::Records(small?),
            "string" => Self::String(small?),
            "number" => Self::Number(small?),
            "end" => Self::End,
            _ => return None,
        };
        Some((at.to_owned(), lie))
    }

    /// The bytes that it begins with, in the place of `truth`, the payload of an answer.
    fn bytes(self, stream: u32, truth: &[u8]) -> Vec<u8> {
        // What a response, its payload and their lengths take is less than this.
        let room = usize::try_from(ANSWER_MOST).expect("usize has at least 32 bits") - 64;
        let sound = answer(stream, truth);
        match self {
            Self::Silent | Self::Flood | Self::End => Vec::new(),
            Self::Cut(count) | Self::Half(count) => sound[..count.min(sound.len())].to_vec(),
            Self::Drip => frame(RESPONSE, stream, ANSWER_MOST, &[]),
            Self::Length(length) | Self::Endless(length) => frame(RESPONSE, stream, length, &[]),
            Self::Stream(other) => answer(other, truth),
            Self::Kind(kind) => frame(kind, stream, 0, &[]),
            Self::Noise(byte) => vec![byte; 4096],
            Self::Garbage => answer(stream, &[0xff; 64]),
            Self::GarbageResponse => frame(RESPONSE, stream, 64, &[0xff; 64]),
            Self::Refusal => refusal(stream, 13, &"\u{1b}\u{e4}".repeat(room / 3)),
            Self::Records(field) => answer(stream, &[field << 3 | 2, 0].repeat(room / 2)),
            Self::String(field) => answer(stream, &bytes(field.into(), &vec![b'x'; room])),
            Self::Number(field) => answer(stream, &number(field.into(), u64::MAX)),
        }
    }

    /// Tells it. Whether the guest goes on, honestly, afterwards: what it said may be an answer.
    pub(crate) fn tell(self, mut stream: &UnixStream, asked: u32, truth: &[u8]) -> bool {
        if self == Self::End {
            std::process::exit(9);
        }
        let mut said = stream.write_all(&self.bytes(asked, truth)).is_ok();
        match self {
            Self::Cut(_) => {
                let _gone = stream.shutdown(std::net::Shutdown::Both);
                return false;
            }
            Self::Endless(_) | Self::Noise(_) => {
                while said {
                    said = stream.write_all(&[0xff; 4096]).is_ok();
                }
            }
            Self::Flood => {
                for nobody in (1 << 31..=u32::MAX).rev().cycle() {
                    if stream.write_all(&frame(RESPONSE, nobody, 0, &[])).is_err() {
                        break;
                    }
                }
            }
            Self::Drip => {
                while said {
                    std::thread::sleep(Duration::from_secs(1));
                    said = stream.write_all(&[0x0a]).is_ok();
                }
            }
            _ => {}
        }
        matches!(self, Self::Garbage | Self::Refusal | Self::Records(_) | Self::String(_) | Self::Number(_))
    }
}
