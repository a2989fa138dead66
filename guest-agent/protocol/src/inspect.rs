//! The frames of the agent's `Processes`, `Changes`, `CopyOut` and `CopyIn`, as `agent.proto`
//! documents them.

/// Bytes before a frame's payload.
pub const HEADER: usize = 8;

/// Longest payload, in bytes.
pub const PAYLOAD_MOST: usize = 64 << 10;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An encoded record, or bytes of an archive.
    Record,
    /// A sentence about something that was left out.
    Note,
    /// The encoded result.
    Result,
}

/// A header that no frame has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadHeader;

/// The header of a frame.
///
/// # Panics
/// `length` is above [`PAYLOAD_MOST`].
#[must_use]
pub fn header(kind: Kind, length: usize) -> [u8; HEADER] {
    assert!(length <= PAYLOAD_MOST, "a frame of {length} bytes is too long");
    let kind = match kind {
        Kind::Record => 1,
        Kind::Note => 2,
        Kind::Result => 3,
    };
    let [.., a, b, c, d] = length.to_be_bytes();
    [kind, 0, 0, 0, a, b, c, d]
}

/// The kind and the payload's length that a header tells.
///
/// # Errors
/// It is none, or the payload is above [`PAYLOAD_MOST`].
pub fn parse(header: [u8; HEADER]) -> Result<(Kind, usize), BadHeader> {
    let [kind, 0, 0, 0, a, b, c, d] = header else { return Err(BadHeader) };
    let kind = match kind {
        1 => Kind::Record,
        2 => Kind::Note,
        3 => Kind::Result,
        _ => return Err(BadHeader),
    };
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).map_err(|_| BadHeader)?;
    if length <= PAYLOAD_MOST { Ok((kind, length)) } else { Err(BadHeader) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_out_as_they_went_in_and_nothing_else_does() {
        for kind in [Kind::Record, Kind::Note, Kind::Result] {
            for length in [0, 1, 255, 256, PAYLOAD_MOST] {
                assert_eq!(parse(header(kind, length)), Ok((kind, length)));
            }
        }
        for bad in [
            [0, 0, 0, 0, 0, 0, 0, 1],
            [4, 0, 0, 0, 0, 0, 0, 1],
            [1, 1, 0, 0, 0, 0, 0, 1],
            [1, 0, 0, 0, 0, 1, 0, 1],
            [1, 0, 0, 0, 255, 255, 255, 255],
        ] {
            assert_eq!(parse(bad), Err(BadHeader), "{bad:?}");
        }
    }
}
