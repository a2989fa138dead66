//! What a resolve fails with.

use std::path::PathBuf;

use thiserror::Error;

use crate::cache::CacheError;

/// Why an image could not be resolved. The chain of sources names the file, digest, layer and entry concerned.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The cache directory cannot be used.
    #[error("cannot use the image cache {}", dir.display())]
    Cache {
        /// The cache directory.
        dir: PathBuf,
        /// What failed.
        source: CacheError,
    },
    /// The disk of the cache directory is full, or its quota reached. Nothing was left behind.
    #[error("the disk that holds {} is full; nothing was left behind", dir.display())]
    DiskFull {
        /// The cache directory.
        dir: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// `builtin:busybox` was asked for, and the caller gave no layout for it.
    #[error("the built-in image is not installed")]
    NoBuiltin,
    /// [`crate::Progress::cancelled`] said so. Nothing was left behind.
    #[error("preparing the image was cancelled")]
    Cancelled,
}

impl ImageError {
    /// A stable word for programs, `snake_case`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Cache { .. } => "image_cache",
            Self::DiskFull { .. } => "disk_full",
            Self::NoBuiltin => "image_no_builtin",
            Self::Cancelled => "cancelled",
        }
    }
}
