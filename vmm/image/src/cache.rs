//! The cache directory: its version, locks, and atomic publication of finished images.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// What the `version` file of a cache directory holds.
pub(crate) const VERSION: &str = "nelly-cache 1\n";

/// Why the cache directory cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CacheError {
    /// A system call on a file of the cache failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as in "cannot open".
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The `version` file is of another program version.
    #[error(
        "{} says {found:?}, and this program knows only {:?}; remove the directory or name another",
        path.display(),
        VERSION.trim_end()
    )]
    Version {
        /// The `version` file.
        path: PathBuf,
        /// Its first bytes.
        found: String,
    },
}
