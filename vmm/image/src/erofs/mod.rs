//! A writer of EROFS, the kernel's read-only file system, uncompressed (kernel:
//! Documentation/filesystems/erofs.rst).
//!
//! An image is several files, which a reader sees one after the other:
//!
//! ```text
//! superblock | big directories, long links | shared attributes | inodes | contents | contents ...
//! ```
//!
//! The metadata, up to the inodes, is one file, made anew for each image. Behind it come data files
//! with nothing but the contents of files, each content at a block boundary, in the order in which
//! they came: those of a layer are the same in every image that has it. Block addresses count
//! through all parts, so that Linux, which sees one device, needs no table of devices.
//!
//! The bytes depend on the tree, the order in which it was made, and the UUID; on nothing else.

mod data;
mod dir;
mod format;
mod meta;
mod xattr;

use std::io;

use thiserror::Error;

pub(crate) use data::{Budget, Contents, DataSink, NullSink, no_room};
pub(crate) use format::{BLOCK, BLOCK_SIZE, check_superblock};
pub(crate) use meta::write_metadata;
pub(crate) use xattr::keeps as keeps_xattr;

/// Version of what this writer makes of a tree. Part of the cache's key: raise it with every change
/// of the bytes.
pub(crate) const WRITER_VERSION: u32 = 2;

/// Why the file system image could not be written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The system refused to write.
    #[error("cannot write the file system image")]
    Io(#[source] io::Error),
    /// The contents exceed [`crate::Limits::disk_bytes`].
    #[error("the image needs more than {0} bytes (limit `disk_bytes`)")]
    TooLarge(u64),
    /// The caller gave up.
    #[error("cancelled")]
    Cancelled,
}
