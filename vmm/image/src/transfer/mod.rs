//! Images into the local store from archives, and out of it as archives.

mod confined;
mod load;
mod save;
mod tarball;

use std::io;

use thiserror::Error;

pub use self::confined::{ARCHIVE, ArchiveOrder};
pub use self::load::Input;
pub use self::save::ArchiveFormat;
use crate::error::{CANCELLED, DISK_FULL, Told, UnpackerError};
use crate::layer::LayerError;
use crate::local::LocalError;
use crate::name::NameError;
use crate::source::SourceError;

/// Why images could not be copied.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TransferError {
    /// The archive, or a blob of the store, cannot be used.
    #[error("cannot use the image")]
    Source(#[source] SourceError),
    /// The local store cannot be used.
    #[error("cannot use the local store")]
    Local(#[source] LocalError),
    /// A layer of the store cannot be read.
    #[error("cannot read the layer {digest}")]
    Layer {
        /// Its digest.
        digest: String,
        /// Why.
        source: LayerError,
    },
    /// The archive that comes through a pipe, or is compressed, could not be kept.
    #[error("cannot keep the archive in the local store meanwhile")]
    Spool(#[source] io::Error),
    /// The archive could not be read to its end.
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    /// The archive could not be written.
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
    /// The archive names an image in a way that is no name.
    #[error("the archive names an image `{word}`")]
    Name {
        /// The beginning of the name.
        word: String,
        /// Why it is none.
        source: NameError,
    },
    /// A name was given for an archive with several images.
    #[error("the archive holds {0} images, so one name for all of them means none")]
    Several(usize),
    /// What the process that reads archives said.
    #[error(transparent)]
    Told(#[from] Told),
    /// The process that reads archives did not say how it went.
    #[error("cannot read the archive in a process of its own")]
    Unpacker(#[source] UnpackerError),
    /// The caller gave up.
    #[error("cancelled")]
    Cancelled,
}

impl TransferError {
    /// A stable word, as those of [`crate::ImageError::code`].
    #[must_use]
    pub fn code(&self) -> &'static str {
        let is_full = |error: &io::Error| {
            matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        };
        match self {
            Self::Spool(error) | Self::Write(error) if is_full(error) => DISK_FULL,
            Self::Spool(_) | Self::Write(_) => "image_write_failed",
            Self::Local(_) => "image_store_unusable",
            Self::Layer { .. } => "image_layer_unusable",
            Self::Source(_) | Self::Read(_) | Self::Name { .. } | Self::Several(_) => "image_unusable",
            Self::Told(told) => told.code(),
            Self::Unpacker(_) => "image_unpacker_failed",
            Self::Cancelled => CANCELLED,
        }
    }

    /// What a process said that reads archives, as the error of one that reads them by itself where
    /// others look at more than its words.
    fn told(told: Told) -> Self {
        match told.full_disk() {
            Some(source) => Self::Spool(source),
            None => Self::Told(told),
        }
    }
}

impl From<SourceError> for TransferError {
    fn from(source: SourceError) -> Self {
        if matches!(source, SourceError::Cancelled) { Self::Cancelled } else { Self::Source(source) }
    }
}

impl From<LocalError> for TransferError {
    fn from(source: LocalError) -> Self {
        Self::Local(source)
    }
}
