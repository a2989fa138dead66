//! Maps of sparse files.

use super::{BLOCK, Damage};

/// Segments of one file. A map of a real file is a few kilobytes.
pub(super) const MAX_SEGMENTS: usize = 1 << 20;

/// A part of a sparse file that has bytes in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SparseSegment {
    /// Where in the file.
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) len: u64,
}

/// Checks that segments are sorted, apart, inside the file, and use up what is stored.
pub(super) fn check(segments: &[SparseSegment], real_size: u64, stored: u64) -> Result<(), Damage> {
    let mut end = 0;
    let mut sum: u64 = 0;
    for segment in segments {
        if segment.offset < end {
            return Err(Damage::Sparse);
        }
        end = segment.offset.checked_add(segment.len).ok_or(Damage::Sparse)?;
        sum = sum.checked_add(segment.len).ok_or(Damage::Sparse)?;
    }
    if end > real_size || sum != stored {
        return Err(Damage::Sparse);
    }
    Ok(())
}

/// The parser of a pax 1.0 map: a count, then offset and length of each segment, a line each.
#[derive(Default)]
pub(super) struct DataMap {
    /// Numbers expected after the count: two for each segment.
    expected: Option<u64>,
    number: Option<u64>,
    offset: Option<u64>,
    segments: Vec<SparseSegment>,
}

impl DataMap {
    /// Takes the next block; whether the map is complete.
    pub(super) fn feed(&mut self, block: &[u8; BLOCK]) -> Result<bool, Damage> {
        for &byte in block {
            match byte {
                b'0'..=b'9' => {
                    let number = self.number.unwrap_or(0).checked_mul(10).ok_or(Damage::Sparse)?;
                    let number = number.checked_add(u64::from(byte - b'0')).ok_or(Damage::Sparse)?;
                    self.number = Some(number);
                }
                b'\n' => {
                    let number = self.number.take().ok_or(Damage::Sparse)?;
                    if self.line(number)? {
                        return Ok(true);
                    }
                }
                _ => return Err(Damage::Sparse),
            }
        }
        Ok(false)
    }

    fn line(&mut self, number: u64) -> Result<bool, Damage> {
        let left = match self.expected {
            None => {
                if number > MAX_SEGMENTS as u64 {
                    return Err(Damage::Sparse);
                }
                number * 2
            }
            Some(left) => {
                match self.offset.take() {
                    None => self.offset = Some(number),
                    Some(offset) => self.segments.push(SparseSegment { offset, len: number }),
                }
                left - 1
            }
        };
        self.expected = Some(left);
        Ok(left == 0)
    }

    pub(super) fn into_segments(self) -> Vec<SparseSegment> {
        self.segments
    }
}
