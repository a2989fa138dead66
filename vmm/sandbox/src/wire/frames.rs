//! The frames of an attachment, as `sandbox.proto` documents them.

/// Bytes before a frame's payload.
pub const HEADER: usize = 8;

/// Longest payload that is taken; a keeper sends much shorter ones.
pub const PAYLOAD_MOST: usize = 1 << 20;

/// Which stream of the container bytes came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Standard output, or the terminal.
    Output,
    /// Standard error.
    Error,
}

/// A part of an attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Output.
    Bytes(Source, Vec<u8>),
    /// So many bytes were lost here, because the reader was too slow.
    Lost(u64),
}

/// A stream that is no sequence of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the attachment is damaged: a frame of kind {kind} and {length} bytes")]
pub struct FrameError {
    kind: u8,
    length: u32,
}

/// The header of a frame with output of `length` bytes.
///
/// # Panics
/// `length` is above [`PAYLOAD_MOST`].
#[must_use]
pub fn header(source: Source, length: usize) -> [u8; HEADER] {
    let kind = match source {
        Source::Output => 1,
        Source::Error => 2,
    };
    assert!(length <= PAYLOAD_MOST, "a frame of {length} bytes is too long");
    with_length(kind, u32::try_from(length).expect("a payload is at most 1 MiB"))
}

fn with_length(kind: u8, length: u32) -> [u8; HEADER] {
    let [a, b, c, d] = length.to_be_bytes();
    [kind, 0, 0, 0, a, b, c, d]
}

/// The frame that says how many bytes were lost.
#[must_use]
pub fn lost(count: u64) -> [u8; HEADER + 8] {
    let mut frame = [0; HEADER + 8];
    frame[..HEADER].copy_from_slice(&with_length(3, 8));
    frame[HEADER..].copy_from_slice(&count.to_be_bytes());
    frame
}

/// Takes frames out of bytes as they come.
#[derive(Debug, Default)]
pub struct Decoder {
    pending: Vec<u8>,
}

impl Decoder {
    /// Adds what was received.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The next frame, if it is there as a whole.
    ///
    /// # Errors
    /// What was received is no frame. What follows is none either.
    pub fn take(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some((&[kind, _, _, _, a, b, c, d], rest)) = self.pending.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([a, b, c, d]);
        let bad = FrameError { kind, length };
        let count = usize::try_from(length).ok().filter(|count| *count <= PAYLOAD_MOST).ok_or(bad)?;
        if !(1..=3).contains(&kind) || (kind == 3 && count != 8) {
            return Err(bad);
        }
        let Some(payload) = rest.get(..count) else { return Ok(None) };
        let frame = match kind {
            1 => Frame::Bytes(Source::Output, payload.to_vec()),
            2 => Frame::Bytes(Source::Error, payload.to_vec()),
            _ => Frame::Lost(u64::from_be_bytes(payload.try_into().map_err(|_| bad)?)),
        };
        self.pending.drain(..HEADER + count);
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(frame: &Frame) -> Vec<u8> {
        match frame {
            Frame::Bytes(source, bytes) => [&header(*source, bytes.len())[..], bytes].concat(),
            Frame::Lost(count) => lost(*count).to_vec(),
        }
    }

    fn frame() -> impl Strategy<Value = Frame> {
        let bytes = proptest::collection::vec(any::<u8>(), 0..100);
        prop_oneof![
            bytes.clone().prop_map(|bytes| Frame::Bytes(Source::Output, bytes)),
            bytes.prop_map(|bytes| Frame::Bytes(Source::Error, bytes)),
            any::<u64>().prop_map(Frame::Lost),
        ]
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_however_they_are_cut(
            frames in proptest::collection::vec(frame(), 0..20), step in 1_usize..50,
        ) {
            let sent: Vec<u8> = frames.iter().flat_map(encoded).collect();
            let (mut decoder, mut came) = (Decoder::default(), Vec::new());
            for part in sent.chunks(step) {
                decoder.push(part);
                while let Some(frame) = decoder.take().unwrap() {
                    came.push(frame);
                }
            }
            prop_assert_eq!(came, frames);
        }

        #[test]
        fn anything_else_is_refused_and_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.take() {}
        }
    }

    #[test]
    fn frames_that_are_none_are_refused() {
        for bytes in [
            [0, 0, 0, 0, 0, 0, 0, 1],
            [4, 0, 0, 0, 0, 0, 0, 0],
            [1, 0, 0, 0, 255, 0, 0, 0],
            [3, 0, 0, 0, 0, 0, 0, 7],
        ] {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            assert!(decoder.take().is_err(), "{bytes:?}");
        }
    }
}
