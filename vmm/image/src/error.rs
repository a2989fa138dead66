//! What a resolve fails with.

use std::error::Error as _;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::cache::CacheError;
use crate::erofs::WriteError;
use crate::layer::LayerError;
use crate::local::LocalError;
use crate::name::ImageName;
use crate::reference::Reference;
use crate::rootfs::RootfsError;
use crate::source::SourceError;

/// Why an image could not be resolved. The chain of sources names the file, digest, layer and entry
/// concerned.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The image's index, manifest, configuration or archive cannot be used.
    #[error("cannot read the image {reference}{advice}")]
    Source {
        /// The image.
        reference: Box<Reference>,
        /// What the reference itself may have wrong; else empty.
        advice: String,
        /// Why.
        source: SourceError,
    },
    /// A layer cannot be used.
    #[error("cannot unpack layer {number} of {count} ({name}) of {reference}")]
    Layer {
        /// The image.
        reference: Box<Reference>,
        /// 1 for the lowest layer.
        number: usize,
        /// How many there are.
        count: usize,
        /// Its digest.
        name: String,
        /// Why.
        source: LayerError,
    },
    /// The directory of `rootfs:` cannot be used.
    #[error("cannot create a file system image of {reference}")]
    Rootfs {
        /// The image.
        reference: Box<Reference>,
        /// Why.
        source: RootfsError,
    },
    /// The file system image could not be written.
    #[error("cannot prepare the file system image of {reference} in {}", dir.display())]
    Write {
        /// The image.
        reference: Box<Reference>,
        /// The cache directory.
        dir: PathBuf,
        /// Why.
        source: WriteError,
    },
    /// The cache directory cannot be used.
    #[error("cannot use the image cache {}", dir.display())]
    Cache {
        /// The cache directory.
        dir: PathBuf,
        /// What failed.
        source: CacheError,
    },
    /// The disk of the cache directory is full, or its quota reached, or would be. Nothing was left
    /// behind.
    #[error(
        "the file system of {} has too little space for the image; free some space, or choose another directory with NELLY_HOME",
        dir.display()
    )]
    DiskFull {
        /// The cache directory.
        dir: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// `builtin:busybox` was asked for, and the caller gave no layout for it.
    #[error("the built-in image is not installed")]
    NoBuiltin,
    /// The local store has no image of this name.
    #[error("`{0}` is not in the local store")]
    NotStored(Box<ImageName>),
    /// The local store cannot be used.
    #[error("cannot use the local store {}", dir.display())]
    Local {
        /// Its directory.
        dir: PathBuf,
        /// Why.
        source: LocalError,
    },
    /// [`crate::Progress::cancelled`] said so. Nothing was left behind.
    #[error("preparing the image was cancelled")]
    Cancelled,
}

impl ImageError {
    /// A stable word for programs, `snake_case`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Source { .. } => "image_unusable",
            Self::Layer { .. } => "image_layer_unusable",
            Self::Rootfs { .. } => "image_rootfs_unusable",
            Self::Write { .. } => "image_write_failed",
            Self::Cache { .. } => "image_cache_unusable",
            Self::DiskFull { .. } => "disk_full",
            Self::NoBuiltin => "image_no_builtin",
            Self::NotStored(_) => "image_not_stored",
            Self::Local { .. } => "image_store_unusable",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether the caller cancelled, however deep that was noticed.
    pub(crate) fn is_cancellation(&self) -> bool {
        matches!(
            self,
            Self::Cancelled
                | Self::Source { source: SourceError::Cancelled, .. }
                | Self::Layer { source: LayerError::Cancelled, .. }
                | Self::Rootfs { source: RootfsError::Cancelled, .. }
                | Self::Write { source: WriteError::Cancelled, .. }
        )
    }

    /// Full disks and cancellations by their own names, however deep they were met.
    pub(crate) fn sorted(self, dir: PathBuf) -> Self {
        if self.is_cancellation() {
            return Self::Cancelled;
        }
        let mut cause = self.source();
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<io::Error>()
                && matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            {
                let source = io::Error::new(error.kind(), error.to_string());
                return Self::DiskFull { dir, source };
            }
            cause = error.source();
        }
        self
    }
}

/// The error of an image whose files cannot be used.
pub(crate) fn source_error(reference: &Reference, source: SourceError) -> ImageError {
    ImageError::Source { reference: Box::new(reference.clone()), advice: reference.colon_advice(), source }
}
