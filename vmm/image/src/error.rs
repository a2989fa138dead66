//! What a resolve fails with.

use std::error::Error as _;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::cache::CacheError;
use crate::erofs::WriteError;
use crate::layer::LayerError;
use crate::local::LocalError;
use crate::name::ImageName;
use crate::reference::Reference;
use crate::rootfs::RootfsError;
use crate::source::SourceError;

/// The word for what the caller did not want any more.
pub(crate) const CANCELLED: &str = "cancelled";

/// The word for a full disk.
pub(crate) const DISK_FULL: &str = "disk_full";

/// Words of [`ImageError::code`] that an unpacker may say.
const TOLD: [&str; 9] = [
    "image_unusable",
    "image_layer_unusable",
    "image_write_failed",
    "image_cache_unusable",
    DISK_FULL,
    "image_no_builtin",
    "image_not_stored",
    "image_store_unusable",
    CANCELLED,
];

/// Longest text of one error that an unpacker told, in characters.
const WORDS_MAX: usize = 4000;

/// Text of a process that a hostile image may have taken over, as one line for a terminal.
pub(crate) fn shown(text: &str) -> String {
    let harmless = |character: char| if character.is_control() { ' ' } else { character };
    text.trim().chars().map(harmless).take(WORDS_MAX).collect()
}

/// An error of the process that unpacks images, with its causes.
#[derive(Debug, Error)]
#[error("{words}")]
pub struct Told {
    code: &'static str,
    words: String,
    source: Option<Box<Told>>,
}

impl Told {
    /// The words of an error and its causes, of which there is at least one.
    pub(crate) fn new(code: &str, words: &str) -> Self {
        let code = TOLD.into_iter().find(|known| *known == code).unwrap_or("image_unpacker_failed");
        let mut told = None;
        let lines: Vec<&str> = words.lines().take(16).collect();
        for words in lines.into_iter().rev() {
            told = Some(Box::new(Self { code, words: shown(words), source: told }));
        }
        let silent = || Self { code, words: "nelly-unpack gave no reason".to_owned(), source: None };
        told.map_or_else(silent, |told| *told)
    }

    /// As the error of a store that unpacks by itself, where others look at more than its words.
    pub(crate) fn error(self, cache: &Path) -> ImageError {
        if self.code == CANCELLED {
            return ImageError::Cancelled;
        }
        match self.full_disk() {
            Some(source) => ImageError::DiskFull { dir: cache.to_owned(), source },
            None => self.into(),
        }
    }

    /// The system's error, if a disk is full.
    pub(crate) fn full_disk(&self) -> Option<io::Error> {
        let mut last = self;
        while let Some(cause) = &last.source {
            last = cause;
        }
        (self.code == DISK_FULL).then(|| io::Error::new(io::ErrorKind::StorageFull, last.words.clone()))
    }

    /// A stable word, one of those of [`ImageError::code`].
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.code
    }
}

/// Why an unpacker did not say how it went.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum UnpackerError {
    /// It is nowhere.
    #[error("the nelly-unpack program was not found; looked for {}", listed(.tried))]
    Missing {
        /// Where it was looked for.
        tried: Vec<PathBuf>,
    },
    /// It could not be started.
    #[error("cannot start {}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The pipes to it failed.
    #[error("cannot talk to {}", program.display())]
    Talk {
        /// The program.
        program: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// It ended before it was done.
    #[error("{} ended with {how} before it was done{}{words}", program.display(), if words.is_empty() { "" } else { ": " })]
    Ended {
        /// The program.
        program: PathBuf,
        /// Its exit code or its signal.
        how: String,
        /// What it said last, without what a terminal would obey.
        words: String,
    },
    /// It said that it was done, and the cache does not have the image, or it said nonsense.
    #[error("nelly-unpack said that the image is ready, but {0}")]
    Lied(&'static str),
}

fn listed(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    paths.join(", ")
}

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
    /// What the process that unpacks images said.
    #[error(transparent)]
    Told(#[from] Told),
    /// The process that unpacks images did not say how it went.
    #[error("cannot unpack {reference} in a process of its own")]
    Unpacker {
        /// The image.
        reference: Box<Reference>,
        /// Why.
        source: UnpackerError,
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
            Self::DiskFull { .. } => DISK_FULL,
            Self::NoBuiltin => "image_no_builtin",
            Self::NotStored(_) => "image_not_stored",
            Self::Local { .. } => "image_store_unusable",
            Self::Told(told) => told.code(),
            Self::Unpacker { .. } => "image_unpacker_failed",
            Self::Cancelled => CANCELLED,
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
