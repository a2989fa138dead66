//! Pulling images into the local store.

use std::path::PathBuf;

use nelly_image::{
    Adding, Begun, Descriptor, Document, ImageName, Limits, LocalError, LocalStore, SourceError,
};
use thiserror::Error;

use crate::client::Client;
use crate::endpoint::Place;
use crate::error::RegistryError;
use crate::transfer::{self, Step, Transfer, Watch};

/// Indexes inside indexes that are followed.
const NESTED: usize = 4;

/// Why an image was not pulled or pushed. Blobs that came whole stay in the store for the next
/// time, and of others what came of them; no name was changed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TransferError {
    /// The registry, or the way to it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The image cannot be used.
    #[error("cannot use the image {name}")]
    Image {
        /// Its name.
        name: String,
        /// Why.
        source: SourceError,
    },
    /// The local store cannot be used.
    #[error("cannot use the local store {}", dir.display())]
    Store {
        /// Its directory.
        dir: PathBuf,
        /// Why.
        source: LocalError,
    },
    /// The disk has no room for the image.
    #[error(
        "the image {name} needs {wanted} bytes more in {}, and {room} are free there (but for a sixteenth): free some \
         space, for example with `nelly image prune`, or choose another directory with NELLY_HOME",
        dir.display()
    )]
    NoRoom {
        /// Its name.
        name: String,
        /// The local store's directory.
        dir: PathBuf,
        /// Bytes that have to be fetched.
        wanted: u64,
        /// Bytes that may be written.
        room: u64,
    },
    /// The image that is to be pushed is not there.
    #[error("there is no image {name} in the local store")]
    NotStored {
        /// Its name.
        name: String,
    },
    /// A blob of the image that is to be pushed is not there.
    #[error("the image {name} is not whole: {missing} is not in the local store")]
    NotWhole {
        /// Its name.
        name: String,
        /// The digest of what is missing.
        missing: String,
    },
}

impl TransferError {
    /// A stable word for programs, `snake_case`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Registry(error) => error.code(),
            Self::Image { .. } => "image_unusable",
            Self::Store { .. } => "image_store_unusable",
            Self::NoRoom { .. } => "no_room",
            Self::NotStored { .. } => "image_not_stored",
            Self::NotWhole { .. } => "image_not_whole",
        }
    }
}

/// An image that was pulled.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pulled {
    /// What its name means in the store now: a manifest, or an index that leads to it.
    pub descriptor: Descriptor,
    /// Its manifest.
    pub manifest: Descriptor,
    /// Number of layers.
    pub layers: usize,
    /// Bytes of its configuration and layers, as they are stored.
    pub size_bytes: u64,
    /// Bytes of these that were not there before.
    pub transferred_bytes: u64,
}

/// One pull.
struct Pull<'a> {
    client: &'a Client,
    place: Place,
    adding: Adding,
    dir: PathBuf,
    name: String,
}

/// Pulls the image `name` for an architecture as images name it (`arm64`), or for the host's, into
/// the store, and gives it its name there.
///
/// What is there is not fetched again, and what is there in part is resumed. Another pull of the
/// same blob, in this process or another, is waited for.
///
/// # Errors
/// [`TransferError`].
pub fn pull(
    client: &Client,
    store: &LocalStore,
    name: &ImageName,
    architecture: Option<&str>,
    watch: &mut dyn Watch,
) -> Result<Pulled, TransferError> {
    let pulled = pull_watched(client, store, name, architecture, watch);
    client.take_warnings().iter().for_each(|warning| watch.warn(warning));
    pulled
}

fn pull_watched(
    client: &Client,
    store: &LocalStore,
    name: &ImageName,
    architecture: Option<&str>,
    watch: &mut dyn Watch,
) -> Result<Pulled, TransferError> {
    let place = Place::new(name.domain(), name.path())?;
    let reference = match (name.digest(), name.tag()) {
        (Some(digest), _) => digest.to_string(),
        (None, Some(tag)) => tag.to_owned(),
        (None, None) => "latest".to_owned(),
    };
    let top = client.manifest(&place, &reference)?;
    // Not only after a long transfer.
    client.take_warnings().iter().for_each(|warning| watch.warn(warning));
    let dir = store.path().to_owned();
    let adding = store.add().map_err(|source| TransferError::Store { dir: dir.clone(), source })?;
    let pull = Pull { client, place, adding, dir, name: name.familiar() };
    let top = (descriptor(&top.media_type, &top), top.bytes);
    let (named, manifest, config, layers) = pull.documents(top, name, architecture)?;
    let config = Transfer::new(config);
    pull.fetch(&config, &|| false)?;
    pull.check_config(&config.blob, layers.len(), architecture)?;
    let mut blobs: Vec<Descriptor> = Vec::with_capacity(layers.len());
    for blob in &layers {
        if !blobs.iter().any(|known| known.digest == blob.digest) {
            blobs.push(blob.clone());
        }
    }
    let mut transfers: Vec<Transfer> = blobs.into_iter().map(Transfer::new).collect();
    pull.check_room(&transfers)?;
    transfer::all(&transfers, watch, |transfer, give_up| pull.fetch(transfer, give_up))?;
    transfers.push(config);
    pull.adding.set_name(Some(name), &named).map_err(|source| pull.store(source))?;
    let sum = |wanted: &dyn Fn(&Transfer) -> bool| {
        transfers.iter().filter(|transfer| wanted(transfer)).map(|transfer| transfer.blob.size).sum()
    };
    Ok(Pulled {
        descriptor: named,
        manifest,
        layers: layers.len(),
        size_bytes: sum(&|_| true),
        transferred_bytes: sum(&|transfer| transfer.step() == Step::Done),
    })
}

fn descriptor(media_type: &str, document: &crate::client::RawManifest) -> Descriptor {
    let (digest, size) = (document.digest, document.bytes.len() as u64);
    Descriptor { media_type: media_type.to_owned(), digest, size }
}

impl Pull<'_> {
    fn store(&self, source: LocalError) -> TransferError {
        TransferError::Store { dir: self.dir.clone(), source }
    }

    fn image(&self, source: SourceError) -> TransferError {
        TransferError::Image { name: self.name.clone(), source }
    }

    fn mismatch(&self, what: String, problem: String) -> TransferError {
        let host = self.place.domain().to_owned();
        RegistryError::Mismatch { host, what, problem }.into()
    }

    /// Follows indexes to the manifest and stores all of them. What the name is to mean, the
    /// manifest, the configuration and the layers.
    fn documents(
        &self,
        top: (Descriptor, Vec<u8>),
        name: &ImageName,
        architecture: Option<&str>,
    ) -> Result<(Descriptor, Descriptor, Descriptor, Vec<Descriptor>), TransferError> {
        let limits = Limits::default();
        let whole = top.0.clone();
        let (mut at, mut bytes) = top;
        for _ in 0..NESTED {
            let document = Document::read(&at.media_type, &bytes, architecture, &limits)
                .map_err(|source| self.image(source))?;
            self.adding.put_blob(&at.digest, &bytes).map_err(|source| self.store(source))?;
            match document {
                Document::Image { config, layers } => {
                    // An index would lead this host to another manifest, which is not there.
                    let alone = architecture.is_some() && name.digest().is_none();
                    let named = if alone { at.clone() } else { whole };
                    return Ok((named, at, config, layers));
                }
                Document::Index(next) => {
                    let found = self.client.manifest(&self.place, &next.digest.to_string())?;
                    if found.bytes.len() as u64 != next.size {
                        let problem =
                            format!("the index says {} bytes, but {} came", next.size, found.bytes.len());
                        return Err(self.mismatch(format!("the manifest {}", next.digest), problem));
                    }
                    (at, bytes) = (descriptor(&found.media_type, &found), found.bytes);
                }
                _ => unreachable!("a document is an index or an image"),
            }
        }
        let problem = format!("indexes are nested more than {NESTED} deep");
        Err(RegistryError::Protocol {
            host: self.place.domain().to_owned(),
            what: self.name.clone(),
            problem,
        }
        .into())
    }

    /// Refuses an image for another platform before its layers are fetched.
    fn check_config(
        &self,
        config: &Descriptor,
        layers: usize,
        architecture: Option<&str>,
    ) -> Result<(), TransferError> {
        let store = LocalStore::open(&self.dir).map_err(|source| self.store(source))?;
        let bytes = store.read_blob(&config.digest, config.size).map_err(|source| self.store(source))?;
        let bytes = bytes.ok_or_else(|| self.store(LocalError::NoBlob(Box::new(config.digest))))?;
        Document::check_config(&bytes, layers, architecture).map_err(|source| self.image(source))
    }

    /// Refuses what the disk has no room for before it is fetched.
    fn check_room(&self, transfers: &[Transfer]) -> Result<(), TransferError> {
        let mut wanted = 0_u64;
        for Transfer { blob, .. } in transfers {
            let missing =
                self.adding.missing(&blob.digest, blob.size).map_err(|source| self.store(source))?;
            wanted = wanted.saturating_add(missing);
        }
        let room = self.adding.room().map_err(|source| self.store(source))?;
        if wanted > room {
            let (name, dir) = (self.name.clone(), self.dir.clone());
            return Err(TransferError::NoRoom { name, dir, wanted, room });
        }
        Ok(())
    }

    /// Fetches one blob into the store.
    fn fetch(&self, transfer: &Transfer, give_up: &dyn Fn() -> bool) -> Result<(), TransferError> {
        let Descriptor { digest, size, .. } = &transfer.blob;
        let over = || give_up() || self.client.cancel().is_cancelled();
        let mut again = true;
        loop {
            let mut waits = || {
                transfer.begins(Step::Elsewhere);
                over()
            };
            let begun =
                self.adding.begin_blob(digest, *size, &mut waits).map_err(|source| self.store(source))?;
            let mut ingest = match begun {
                Begun::There => {
                    transfer.begins(Step::There);
                    return Ok(());
                }
                Begun::GaveUp => return Err(RegistryError::Cancelled.into()),
                Begun::Write(ingest) => ingest,
            };
            transfer.begins(Step::Running);
            let resumed = ingest.offset();
            transfer.at(resumed);
            let mut failed = None;
            let mut sink = |bytes: &[u8]| match ingest.write(bytes) {
                Ok(()) => {
                    transfer.at(ingest.offset());
                    !over()
                }
                Err(error) => {
                    failed = Some(error);
                    false
                }
            };
            let fetched = self.client.blob(&self.place, digest, *size, resumed, &mut sink);
            if let Some(source) = failed {
                return Err(self.store(source));
            }
            fetched?;
            match ingest.finish() {
                Ok(()) => {
                    transfer.begins(Step::Done);
                    return Ok(());
                }
                // The fault may be in what was there before: once more, from the beginning.
                Err(LocalError::WrongDigest { .. }) if resumed > 0 && again => again = false,
                Err(LocalError::WrongDigest { found, .. }) => {
                    return Err(
                        self.mismatch(format!("the blob {digest}"), format!("they have the digest {found}"))
                    );
                }
                Err(source) => return Err(self.store(source)),
            }
        }
    }
}
