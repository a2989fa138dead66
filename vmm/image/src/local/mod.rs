//! The local store: the images that were pulled, loaded or named here, as an OCI image layout.
//!
//! ```text
//! version             the form of this directory
//! oci-layout          as in every layout, so that other programs can read it
//! index.json          the images, named by their canonical names; replaced as a whole
//! blobs/ALG/HEX       manifests, configurations and layers as they came, never changed
//! partial/HEX         blobs that are being written, locked by who writes them; the rest is resumed
//! lock                locked while index.json is changed
//! adding              shared by all who add images or make sandboxes of them, so that
//!                     nobody removes what they found meanwhile
//! ```
//!
//! A blob has its name when all of its bytes are there and have its digest, and an image has its
//! name when all of its blobs have theirs. Nothing else is needed after a process was killed.

mod adding;
mod collect;
mod index;
mod remove;
mod removing;

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use thiserror::Error;

pub use self::adding::{Adding, Begun, Ingest};
use self::index::{IndexEntry, StoreIndex};
pub use self::remove::{Found, InUse, Removal};
pub use self::removing::{Hold, Removing};
use crate::blob::{Blob, Bytes};
use crate::descriptor::Descriptor;
use crate::digest::{Digest, DigestError};
use crate::name::ImageName;
use crate::source::{ImageFiles, SourceError};
use crate::trusted::{TrustError, TrustedDir, io_error};
use crate::version;

/// The contents of the `version` file.
const VERSION: &str = "nelly-images 1\n";
/// Most bytes of `index.json`: more than ten thousand names.
const INDEX_MAX: u64 = 4 << 20;
const INDEX: &str = "index.json";

/// Why the local store cannot be used, or does not take a blob.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LocalError {
    /// A file of the store cannot be used or is not trusted.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The `version` file is from another version of the program.
    #[error(
        "{} contains {found:?}, but this program supports only {:?}; use the program that wrote it, or choose \
         another directory with NELLY_HOME",
        path.display(),
        VERSION.trim_end()
    )]
    Version {
        /// The `version` file.
        path: PathBuf,
        /// Its first bytes.
        found: String,
    },
    /// The list of images is damaged.
    #[error("{} is damaged; remove it to forget all images, whose files `nelly image prune` then removes", path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// An image in the list has a digest that is none.
    #[error("{} is damaged: it lists an image with a malformed digest", path.display())]
    ListedDigest {
        /// The file.
        path: PathBuf,
        /// Which.
        source: DigestError,
    },
    /// The list of images is too long.
    #[error("{} would be longer than {INDEX_MAX} bytes: there are too many images", path.display())]
    IndexTooLong {
        /// The file.
        path: PathBuf,
    },
    /// The bytes of a blob do not have its digest. They were removed.
    #[error("the bytes of {wanted} have another digest, {found}: they are corrupt")]
    WrongDigest {
        /// The blob.
        wanted: Box<Digest>,
        /// What the bytes have.
        found: Box<Digest>,
    },
    /// A blob has more or fewer bytes than announced. Those that came are kept, if they are fewer.
    #[error("{digest} has {wanted} bytes, but {found} came")]
    WrongSize {
        /// The blob.
        digest: Box<Digest>,
        /// The announced size in bytes.
        wanted: u64,
        /// Bytes that came.
        found: u64,
    },
    /// No image has this name or id.
    #[error("there is no image `{0}` in the local store")]
    NoImage(String),
    /// The beginning of several ids.
    #[error("several images have an id that begins with `{0}`; give more of it")]
    SeveralImages(String),
    /// An image was to be removed by its id, and has several names.
    #[error("the image `{0}` has several names; remove them by name, or all of them with --force")]
    SeveralNames(String),
    /// An image was to be removed that a sandbox uses.
    #[error("the image `{0}` is used by a sandbox; remove that first")]
    InUse(String),
    /// An image was to be named whose manifest is not in the store.
    #[error("{0} is not in the local store")]
    NoBlob(Box<Digest>),
}

/// An image of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredImage {
    /// Its name; `None` if it has none, or lost it to another image.
    pub name: Option<ImageName>,
    /// Its manifest, or an index of manifests for several platforms.
    pub descriptor: Descriptor,
}

/// The local store, whose directory may not exist yet.
#[derive(Debug)]
pub struct LocalStore {
    path: PathBuf,
    /// The directory, if it was there when the store was opened.
    dir: Option<TrustedDir>,
    /// `blobs/sha256`, when it was needed.
    blobs: OnceLock<TrustedDir>,
}

/// Checks the version of `dir`. False if it has no version file.
fn check_version(dir: &TrustedDir) -> Result<bool, LocalError> {
    match version::read(dir)? {
        None => Ok(false),
        Some(found) if found == VERSION.as_bytes() => Ok(true),
        Some(found) => {
            Err(LocalError::Version { path: dir.path().join(version::NAME), found: version::shown(&found) })
        }
    }
}

fn read_index(dir: &TrustedDir) -> Result<StoreIndex, LocalError> {
    let path = dir.path().join(INDEX);
    let Some(file) = dir.read(INDEX)? else { return Ok(StoreIndex::default()) };
    // Room for the index of most stores, so that it is read at once.
    let mut text = Vec::with_capacity(64 << 10);
    file.take(INDEX_MAX + 1).read_to_end(&mut text).map_err(|source| io_error("read", &path, source))?;
    if crate::num::to_u64(text.len()) > INDEX_MAX {
        return Err(LocalError::IndexTooLong { path });
    }
    serde_json::from_slice(&text).map_err(|source| LocalError::Index { path, source })
}

impl LocalStore {
    /// Opens the store in the directory `path`. Nothing is written, and the directory need not
    /// exist.
    ///
    /// # Errors
    /// [`LocalError`]: it has an unknown version, cannot be read, or could have been written by
    /// another user.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, LocalError> {
        let path = path.into();
        let dir = TrustedDir::open(&path)?;
        if let Some(dir) = &dir {
            check_version(dir)?;
        }
        Ok(Self { path, dir, blobs: OnceLock::new() })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn index(&self) -> Result<StoreIndex, LocalError> {
        self.dir.as_ref().map_or_else(|| Ok(StoreIndex::default()), read_index)
    }

    fn entry(&self, entry: &IndexEntry) -> Result<StoredImage, LocalError> {
        let path = || self.path.join(INDEX);
        let bad = |source| LocalError::ListedDigest { path: path(), source };
        Ok(StoredImage { name: entry.name(), descriptor: entry.descriptor().map_err(bad)? })
    }

    /// All images, those named last at the end. One with several names is there several times.
    ///
    /// # Errors
    /// [`LocalError`]: the list cannot be read.
    pub fn list(&self) -> Result<Vec<StoredImage>, LocalError> {
        self.index()?.manifests.iter().map(|entry| self.entry(entry)).collect()
    }

    /// What `name` means here; `None` if it means nothing. A name with a digest means an image of
    /// its repository that has it, whatever its tag.
    ///
    /// # Errors
    /// [`LocalError`]: the list cannot be read.
    pub fn find(&self, name: &ImageName) -> Result<Option<Descriptor>, LocalError> {
        let index = self.index()?;
        index.find(name).map(|entry| Ok(self.entry(entry)?.descriptor)).transpose()
    }

    /// Opens a blob for reading; with its size in bytes. `None` if it is not there. Its bytes are
    /// not verified.
    ///
    /// # Errors
    /// [`LocalError`]: its file cannot be read, or is not trusted.
    pub fn blob(&self, digest: &Digest) -> Result<Option<(File, u64)>, LocalError> {
        let Some(file) = self.open_blob(digest)? else { return Ok(None) };
        let size = file.metadata().map_err(|source| io_error("look at", &self.blob_path(digest), source))?;
        Ok(Some((file, size.len())))
    }

    /// A pointer to the manifest with this digest, whether or not it is in the list; `None` if no
    /// blob has it.
    pub(crate) fn unlisted(&self, digest: &Digest) -> Result<Option<Descriptor>, LocalError> {
        let found = self.blob(digest)?;
        // Its own words say what it is.
        Ok(found.map(|(_, size)| Descriptor { media_type: String::new(), digest: *digest, size }))
    }

    /// A small blob as a whole: a manifest or a configuration. `None` if it is not there.
    ///
    /// # Errors
    /// [`LocalError`]: it cannot be read, has more than `most` bytes, or does not have its digest.
    pub fn read_blob(&self, digest: &Digest, most: u64) -> Result<Option<Vec<u8>>, LocalError> {
        let Some((file, size)) = self.blob(digest)? else { return Ok(None) };
        if size > most {
            let digest = Box::new(*digest);
            return Err(LocalError::WrongSize { digest, wanted: most, found: size });
        }
        let mut bytes = vec![0; crate::num::fits(size, "a small blob fits into memory")];
        file.read_exact_at(&mut bytes, 0)
            .map_err(|source| io_error("read", &self.blob_path(digest), source))?;
        let mut hasher = digest.hasher();
        hasher.update(&bytes);
        let found = hasher.finish();
        if found != *digest {
            return Err(LocalError::WrongDigest { wanted: Box::new(*digest), found: Box::new(found) });
        }
        Ok(Some(bytes))
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.path.join("blobs").join(digest.algorithm()).join(digest.hex())
    }

    fn open_blob(&self, digest: &Digest) -> Result<Option<File>, TrustError> {
        let Some(dir) = &self.dir else { return Ok(None) };
        let open = || match dir.subdirectory("blobs")? {
            Some(blobs) => blobs.subdirectory(digest.algorithm()),
            None => Ok(None),
        };
        if matches!(digest, Digest::Sha512(_)) {
            return open()?.map_or(Ok(None), |blobs| blobs.read(digest.hex()));
        }
        if self.blobs.get().is_none() {
            let Some(blobs) = open()? else { return Ok(None) };
            // Another thread may have been faster.
            let _ = self.blobs.set(blobs);
        }
        self.blobs.get().map_or(Ok(None), |blobs| blobs.read(digest.hex()))
    }

    /// Begins to add images. The directory is created if it does not exist. While the result lives,
    /// nobody removes blobs of the store.
    ///
    /// # Errors
    /// [`LocalError`]: the directory cannot be used or written.
    pub fn add(&self) -> Result<Adding, LocalError> {
        Adding::begin(&self.path)
    }
}

/// The blobs of the store as files of an image.
impl ImageFiles for LocalStore {
    fn open(&self, path: &str) -> Result<Blob, SourceError> {
        let name = self.path.join(path).display().to_string();
        let missing = || SourceError::Missing { name: name.clone(), foreign: None };
        let mut parts = path.strip_prefix("blobs/").unwrap_or_default().split('/');
        let word = format!("{}:{}", parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let digest: Digest = word.parse().map_err(|_no_digest| missing())?;
        let file = self.open_blob(&digest).map_err(|error| match error {
            TrustError::Kind { wanted, .. } => SourceError::NotA { name: name.clone(), wanted },
            TrustError::Io { source, .. } => SourceError::Io { name: name.clone(), source },
            other => {
                let source = io::Error::new(io::ErrorKind::PermissionDenied, other);
                SourceError::Io { name: name.clone(), source }
            }
        })?;
        let file = file.ok_or_else(missing)?;
        let metadata = file.metadata().map_err(|source| SourceError::Io { name: name.clone(), source })?;
        let bytes = Bytes::File { file: Arc::new(file), offset: 0, size: metadata.len() };
        Ok(Blob { name, bytes })
    }

    fn size(&self, path: &str) -> Result<u64, SourceError> {
        Ok(self.open(path)?.size())
    }
}
