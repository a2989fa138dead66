//! Streams of zstd (RFC 8878): frames one after another, skippable ones among them.

use std::io::{self, BufRead, Read};

use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// Largest window in bytes that a frame may ask for: what `zstd` itself takes without being told
/// to. So much memory is used.
const WINDOW_MAX: u64 = 128 << 20;

/// Reads what a stream holds. Checksums are verified where frames have one; dictionaries are not
/// known.
pub struct Decoder<R> {
    from: R,
    frame: FrameDecoder,
    /// Whether `frame` has something left.
    inside: bool,
}

impl<R: BufRead> Decoder<R> {
    /// Reads the stream `from`.
    pub fn new(from: R) -> Self {
        let mut frame = FrameDecoder::new();
        frame.set_max_window_size(WINDOW_MAX);
        Self { from, frame, inside: false }
    }

    /// Reads a frame's header, or the whole of one that is to be skipped.
    fn begin(&mut self) -> io::Result<()> {
        match self.frame.reset(&mut self.from) {
            Ok(()) => {
                self.inside = true;
                Ok(())
            }
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                length, ..
            })) => {
                let skipped = io::copy(&mut (&mut self.from).take(length.into()), &mut io::sink())?;
                if skipped == u64::from(length) { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
            }
            Err(error) => Err(damaged(error)),
        }
    }

    /// All of a frame was read: whether it is what was packed.
    fn end(&mut self) -> io::Result<()> {
        self.inside = false;
        match (self.frame.get_checksum_from_data(), self.frame.get_calculated_checksum()) {
            (Some(stored), Some(found)) if stored != found => Err(damaged("the checksum does not match")),
            _ => Ok(()),
        }
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while !out.is_empty() {
            if !self.inside {
                if self.from.fill_buf()?.is_empty() {
                    return Ok(0);
                }
                self.begin()?;
                continue;
            }
            let got = self.frame.read(out)?;
            if got > 0 {
                return Ok(got);
            }
            if self.frame.is_finished() {
                self.end()?;
            } else {
                // One at a time: a block is at most 128 KiB.
                self.frame
                    .decode_blocks(&mut self.from, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(damaged)?;
            }
        }
        Ok(0)
    }
}

fn damaged(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn packed(data: &[u8], level: i32) -> Vec<u8> {
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), level).unwrap();
        encoder.include_checksum(true).unwrap();
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn unpacked(stream: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Decoder::new(stream).read_to_end(&mut out)?;
        Ok(out)
    }

    /// Something with repetitions near and far.
    fn text(len: usize) -> Vec<u8> {
        (0..len).map(|n| (((n * n / 97) % 251) ^ (n / 40_000)).to_le_bytes()[0]).collect()
    }

    #[test]
    fn frames_follow_one_another_and_some_are_skipped() {
        let (one, two) = (text(3_000_000), text(10));
        let skipped = [&0x184d_2a57_u32.to_le_bytes()[..], &5_u32.to_le_bytes(), b"seeks"].concat();
        let stream =
            [&skipped[..], &packed(&one, 3), &skipped, &packed(b"", 1), &packed(&two, 19), &skipped].concat();
        assert!(unpacked(&stream).unwrap() == [one, two].concat());
        assert!(unpacked(&stream[..stream.len() - 1]).is_err(), "a skipped frame is cut");
        assert_eq!(unpacked(b"").unwrap(), b"");
        assert!(unpacked(&[&skipped[..], b"tail"].concat()).is_err());
    }

    #[test]
    fn what_is_cut_or_changed_is_an_error() {
        let data = text(300_000);
        let stream = packed(&data, 3);
        for cut in [1, 4, 5, 100, stream.len() - 5, stream.len() - 1] {
            assert!(unpacked(&stream[..cut]).is_err(), "{cut}");
        }
        let mut wrong = stream.clone();
        *wrong.last_mut().unwrap() ^= 1;
        assert!(unpacked(&wrong).unwrap_err().to_string().contains("checksum"));
    }

    #[test]
    fn a_window_beyond_the_limit_is_refused() {
        // A frame with a window descriptor: 2^(10 + 18) bytes.
        let stream = [&0xfd2f_b528_u32.to_le_bytes()[..], &[0, 18 << 3, 1, 0, 0]].concat();
        let said = unpacked(&stream).unwrap_err().to_string();
        assert!(said.contains("indow"), "{said}");
    }

    proptest! {
        #[test]
        fn nothing_panics(seed in any::<u8>(), level in 1..20_i32, at in 0..5_000_usize, bit in 0..8_u8) {
            let data: Vec<u8> = text(20_000).into_iter().map(|byte| byte ^ seed).collect();
            let mut stream = packed(&data, level);
            let at = at % stream.len();
            stream[at] ^= 1 << bit;
            // Every change of a byte is either seen or makes no difference.
            if let Ok(out) = unpacked(&stream) {
                prop_assert!(out == data);
            }
        }
    }
}
