//! Why it cannot be found out how an image boots.

use std::io;

use nelly_disk::fs::FsError;
use nelly_disk::partitions::PartitionError;

/// Why it cannot be found out how an image boots.
#[derive(Debug, thiserror::Error)]
pub enum CloudError {
    /// The disk has no bytes.
    #[error("the disk has no bytes")]
    Empty,
    /// The partition table is refused.
    #[error("the partition table is refused")]
    Partitions(#[from] PartitionError),
    /// A file system is refused.
    #[error("a file system is refused")]
    FileSystem(#[from] FsError),
    /// There is nothing to boot.
    #[error("no kernel was found; looked for: {}", looked_for.join("; "))]
    Nothing {
        /// What was looked for, and what was there.
        looked_for: Vec<String>,
    },
    /// There are entries, but none of them is called so.
    #[error("no entry, id or kernel is called {wanted:?}; the entries are {}", titles.join("; "))]
    NoEntry {
        /// What was asked for.
        wanted: String,
        /// The titles of all entries.
        titles: Vec<String>,
    },
    /// A file of the plan cannot be read.
    #[error("cannot read {path}: {why}")]
    File {
        /// Its path, with its partition.
        path: String,
        /// Why.
        why: String,
    },
    /// What is written to fails.
    #[error("cannot write what was read")]
    Write(#[source] io::Error),
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(": ");
        text.push_str(&error.to_string());
        next = error.source();
    }
    text
}
