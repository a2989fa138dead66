//! The store: from a reference to an image, through the cache.

use std::fs::File;
use std::path::PathBuf;

use oci_spec::image::ImageConfiguration;

use crate::digest::Digest;
use crate::error::ImageError;
use crate::limits::Limits;
use crate::progress::Progress;
use crate::reference::Reference;

/// How to open a [`Store`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StoreOptions {
    /// The cache directory, by contract `$XDG_CACHE_HOME/nelly`. Made when the first image is cached.
    pub cache_dir: PathBuf,
    /// The OCI layout directory behind `builtin:busybox`, if it is installed.
    pub builtin: Option<PathBuf>,
    /// Bounds on what an image may cost.
    pub limits: Limits,
}

impl StoreOptions {
    /// Options with the default limits and no built-in image.
    #[must_use]
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self { cache_dir: cache_dir.into(), builtin: None, limits: Limits::default() }
    }
}

/// Turns references into images.
#[derive(Debug)]
pub struct Store {
    options: StoreOptions,
}

/// A resolved image.
#[derive(Debug)]
#[non_exhaustive]
pub struct Image {
    /// What identifies the image: of its manifest (OCI layouts and archives), of its configuration (docker
    /// archives), or of the configuration made for a `rootfs:` directory.
    pub digest: Digest,
    /// Entrypoint, command, environment, user, working directory, stop signal, volumes, labels.
    pub config: ImageConfiguration,
    /// The merged layers as an EROFS file system, opened read-only. Nobody changes or truncates the file.
    pub disk: File,
    /// Bytes of `disk`, a multiple of 4096.
    pub disk_bytes: u64,
    /// Where `disk` lies when it is cached; `None` when it has no name (`rootfs:`) and ends with its descriptor.
    pub disk_path: Option<PathBuf>,
    /// Whether `disk` was found in the cache rather than built by this call.
    pub cached: bool,
}

/// What a resolve would do, found out without writing anything.
#[derive(Debug)]
#[non_exhaustive]
pub struct Plan {
    /// As in [`Image::digest`].
    pub digest: Digest,
    /// As in [`Image::config`].
    pub config: ImageConfiguration,
    /// The layers, lowest first; empty for `rootfs:`.
    pub layers: Vec<PlannedLayer>,
    /// Where the file system image lies or would be put; `None` for `rootfs:`, which is not cached.
    pub disk_path: Option<PathBuf>,
    /// Whether it lies there already.
    pub cached: bool,
}

/// A layer of a [`Plan`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlannedLayer {
    /// The digest of the layer as it is stored; `None` in a docker archive, whose layers are known by `diff_id`.
    pub digest: Option<Digest>,
    /// The digest of the layer's uncompressed tar stream.
    pub diff_id: Digest,
    /// Bytes of the layer as it is stored.
    pub size: u64,
}

impl Store {
    /// Opens the store. Nothing is written, and a cache directory that does not exist is no error.
    ///
    /// # Errors
    /// [`ImageError::Cache`] if the cache directory is of an unknown version or cannot be read.
    pub fn open(options: StoreOptions) -> Result<Self, ImageError> {
        Ok(Self { options })
    }

    /// Finds the image, builds and caches its file system if that was not done before, and opens it.
    ///
    /// # Errors
    /// [`ImageError`]; nothing new stays in the cache directory then.
    pub fn resolve(&self, reference: &Reference, progress: &mut dyn Progress) -> Result<Image, ImageError> {
        let _ = (reference, progress, &self.options);
        Err(ImageError::NoBuiltin)
    }

    /// What [`Store::resolve`] would do: reads the manifest and the configuration, verifies them, looks into the
    /// cache, and writes nothing.
    ///
    /// # Errors
    /// As [`Store::resolve`], except for what only shows when layers are read.
    pub fn plan(&self, reference: &Reference) -> Result<Plan, ImageError> {
        let _ = (reference, &self.options);
        Err(ImageError::NoBuiltin)
    }
}
