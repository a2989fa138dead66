//! The output of a sandbox's container: a ring of files with a bounded size.
//!
//! Every file, a segment, holds records in the form of the Kubernetes CRI, one a line:
//!
//! ```text
//! 2026-01-31T12:00:00.000000000Z stdout F a whole line, or the end of one
//! 2026-01-31T12:00:00.000000000Z stderr P the beginning or the middle of one
//! ```
//!
//! A chunk of output that does not end with a newline is recorded at once, as partial. At the end
//! of a stream an open line gets an empty `F` record. Segments are numbered; when the newest is
//! full, the oldest gives way. Only the holder of the sandbox's lock writes; anybody reads, without
//! a lock.

mod follow;
mod reader;
mod record;
mod writer;

pub use follow::follow;
pub use reader::{LogReader, ReadReport};
pub use record::{Record, Stream};
pub use writer::LogWriter;

use nelly_image::trusted::TrustedDir;

use super::StateError;
use super::error::io_error;

/// How large the log of a sandbox becomes, in bytes, unless it is set.
pub const DEFAULT_CAP_BYTES: u64 = 64 << 20;
/// The smallest cap that can be set, in bytes.
pub const MIN_CAP_BYTES: u64 = 1 << 20;
/// How many segments a full ring has.
const SEGMENTS: u64 = 16;
/// The most that one record holds, in bytes, as in the runtimes of Kubernetes.
const MAX_CONTENT: usize = 16 << 10;

/// The name of a segment.
fn segment_name(number: u64) -> String {
    format!("{number:010}.log")
}

/// The numbers of the segments in `dir`, ascending.
fn segments(dir: &TrustedDir) -> Result<Vec<u64>, StateError> {
    let names = dir.names().map_err(|source| io_error("list", dir.path(), source))?;
    let number = |name: &std::ffi::OsString| {
        let number = name.to_str()?.strip_suffix(".log")?.parse().ok()?;
        (*name == *segment_name(number)).then_some(number)
    };
    let mut numbers: Vec<u64> = names.iter().filter_map(number).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

#[cfg(test)]
mod tests;
