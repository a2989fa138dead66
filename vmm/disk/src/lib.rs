//! What stands behind block devices and loaders: files and formats, read and written in place.
//!
//! Bytes move between a file and memory that its owner describes by [`ReadBuffer`] or
//! [`WriteBuffer`]: a slice of the host, or pieces of a guest's memory, which the system then fills
//! without a copy in between. This crate never sees an address of either, so it needs no `unsafe`,
//! and it maps no file: one that is cut short while it is in use is an error of a call and no
//! signal.
//!
//! Everything that can be read is [`ReadAt`]; what can be written, too, is a [`Disk`].

mod buffer;
mod concat;
mod file;
pub mod number;
mod raw;
mod read_only;
pub mod sys;
#[cfg(test)]
mod testing;
mod traits;

pub use buffer::{ReadBuffer, Within, WriteBuffer};
pub use concat::{Concat, ConcatBuilder, ConcatError};
pub use file::{FileReader, OpenError};
pub use raw::{DiskError, RawDisk};
pub use read_only::ReadOnly;
pub use traits::{BYTES_MAX, Disk, Mappable, ReadAt, SECTOR};
