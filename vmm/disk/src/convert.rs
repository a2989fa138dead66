//! Copying a disk into another one, without its zeroes.

use std::io;

use crate::buffer::wide;
use crate::number::at_most;
use crate::traits::{Disk, ExtentKind, ReadAt};

/// Bytes that are read at once.
const CHUNK: usize = 1 << 20;
/// Zeroes are looked for in blocks of this size.
const BLOCK: usize = 4096;

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Converted {
    /// Bytes of the disk.
    pub bytes: u64,
    /// Those of them that were written: the others are zeroes.
    pub data_bytes: u64,
}

/// Copies all of `from` to the beginning of `to`, a new disk that reads as zeroes and is not
/// smaller, and flushes it. `progress` is told how many bytes of how many are done.
///
/// # Errors
/// Those of the two disks.
pub fn convert(
    from: &dyn ReadAt,
    to: &dyn Disk,
    progress: &mut dyn FnMut(u64, u64),
) -> io::Result<Converted> {
    let total = from.len();
    let mut converted = Converted { bytes: total, data_bytes: 0 };
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while at < total {
        progress(at, total);
        let extent = from.extent(at, total - at)?;
        if extent.kind != ExtentKind::Zero {
            let mut left = extent.len;
            let mut from_at = at;
            while left > 0 {
                progress(from_at, total);
                let some = at_most(left, CHUNK);
                from.read_exact_at(&mut &mut buffer[..some], from_at)?;
                converted.data_bytes += write_data(to, &buffer[..some], from_at)?;
                (left, from_at) = (left - wide(some), from_at + wide(some));
            }
        }
        at += extent.len;
    }
    to.flush()?;
    progress(total, total);
    Ok(converted)
}

/// Writes the blocks that are not zero, neighbours together.
fn write_data(to: &dyn Disk, bytes: &[u8], offset: u64) -> io::Result<u64> {
    let blocks: Vec<&[u8]> = bytes.chunks(BLOCK).collect();
    let (mut at, mut written) = (0, 0);
    for run in blocks.chunk_by(|a, b| is_zero(a) == is_zero(b)) {
        let len: usize = run.iter().map(|block| block.len()).sum();
        if !is_zero(run[0]) {
            let mut done = 0;
            while done < len {
                let from = &bytes[at + done..at + len];
                match to.write_at(&from, offset + wide(at + done))? {
                    0 => return Err(io::ErrorKind::WriteZero.into()),
                    some => done += some,
                }
            }
            written += wide(len);
        }
        at += len;
    }
    Ok(written)
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}
