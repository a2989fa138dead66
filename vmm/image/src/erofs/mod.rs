//! A writer of EROFS, the kernel's read-only file system, uncompressed (kernel:
//! Documentation/filesystems/erofs.rst).
//!
//! The image is written in one pass. File contents go to their final place as they arrive, each
//! file at a block boundary; the bytes after a file's last whole block wait in a spool. When the
//! tree is complete, inodes, directories and attributes follow, each file's tail directly after its
//! inode where both fit into one block:
//!
//! ```text
//! | superblock | contents | big directories, long links | shared attributes | inodes with tails |
//! ```
//!
//! The bytes depend on the tree, the order in which it was made, and the UUID; on nothing else.

mod data;
mod dir;
mod format;
mod meta;
mod xattr;

use std::io;

use thiserror::Error;

pub(crate) use data::{Contents, DataSink, NullSink, no_room};
pub(crate) use format::{BLOCK_SIZE, check_superblock};
pub(crate) use xattr::{keeps as keeps_xattr, most_bytes as xattr_bytes};

/// Version of what this writer makes of a tree. Part of the cache's key: raise it with every change
/// of the bytes.
pub(crate) const WRITER_VERSION: u32 = 1;

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
