//! The store: resolves references to images, using the cache.

mod build;
mod collect;
mod directory;
mod elsewhere;

use std::fs::File;
use std::path::PathBuf;

use oci_spec::image::{Config, ImageConfiguration};

use crate::cache::{Cache, CacheError};
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::erofs::WriteError;
use crate::error::{ImageError, source_error};
use crate::health::RawConfig;
use crate::limits::Limits;
use crate::local::{LocalError, LocalStore};
use crate::merge::{cache_key, group_keys, groups, verified_mark};
use crate::progress::Progress;
use crate::reference::Reference;
use crate::rootfs::{self, RootfsError};
use crate::source::{
    Archive, ImageFiles, LayoutDir, LoadedImage, host_architecture, load_descriptor, load_docker, load_layout,
};
use crate::unpacker::Unpacker;

/// How to open a [`Store`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StoreOptions {
    /// The cache directory, normally `$XDG_CACHE_HOME/nelly`. It is created when the first image is
    /// cached. It and its parents must belong to the caller or root and must not be writable by
    /// others ([`crate::trusted`]).
    pub cache_dir: PathBuf,
    /// The directory of the local store, normally `$XDG_DATA_HOME/nelly/images`, where images with
    /// names are ([`crate::LocalStore`]). Without one no name means an image. The rules for the
    /// cache directory apply to it as well.
    pub local_dir: Option<PathBuf>,
    /// The OCI layout directory of `builtin:busybox`, if it is installed.
    pub builtin: Option<PathBuf>,
    /// Limits on the resources that an image may use.
    pub limits: Limits,
    /// What reads archives and layers, in a process of its own; without one this process does.
    pub unpacker: Option<Unpacker>,
}

impl StoreOptions {
    /// Options with the default limits, no local store and no built-in image.
    #[must_use]
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self {
            cache_dir: cache_dir.into(),
            local_dir: None,
            builtin: None,
            limits: Limits::default(),
            unpacker: None,
        }
    }
}

/// Resolves references to images.
#[derive(Debug)]
pub struct Store {
    options: StoreOptions,
    cache: Cache,
}

/// A resolved image.
#[derive(Debug)]
#[non_exhaustive]
pub struct Image {
    /// The digest that identifies the image: of its manifest (OCI layouts and archives), of its
    /// configuration (docker archives), or of the configuration generated for a `rootfs:`
    /// directory.
    pub digest: Digest,
    /// Entrypoint, command, environment, user, working directory, stop signal, volumes, labels.
    pub config: ImageConfiguration,
    /// What else is in the configuration: the health check. Nothing for a `rootfs:` directory.
    pub raw_config: RawConfig,
    /// The merged layers as an EROFS file system: the bytes of these files one after the other, at
    /// most 101, each a multiple of 4096 bytes long. Metadata is first, then come the contents of
    /// layers, which other images may share. Opened read-only; nobody changes or truncates them.
    pub disk: Vec<File>,
    /// Bytes of all files of `disk`.
    pub disk_bytes: u64,
    /// Where the files of `disk` lie when they are cached; empty when they have no names
    /// (`rootfs:`) and end with their descriptors.
    pub disk_paths: Vec<PathBuf>,
    /// Whether `disk` was found in the cache rather than built by this call.
    pub cached: bool,
}

/// The result of a resolve without writing anything.
#[derive(Debug)]
#[non_exhaustive]
pub struct ImagePlan {
    /// As in [`Image::digest`].
    pub digest: Digest,
    /// As in [`Image::config`].
    pub config: ImageConfiguration,
    /// As in [`Image::raw_config`].
    pub raw_config: RawConfig,
    /// The layers, lowest first; empty for `rootfs:`.
    pub layers: Vec<PlannedLayer>,
    /// Where the files of the file system image lie or would be put; empty for `rootfs:`, which is
    /// not cached. A layer without contents has a file here and none in [`Image::disk`].
    pub disk_paths: Vec<PathBuf>,
    /// Whether it lies there already.
    pub cached: bool,
}

/// A layer of an [`ImagePlan`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlannedLayer {
    /// The digest of the stored layer; `None` in a docker archive, whose layers are identified by
    /// `diff_id`.
    pub digest: Option<Digest>,
    /// The digest of the layer's uncompressed tar stream.
    pub diff_id: Digest,
    /// Size of the stored layer in bytes.
    pub size: u64,
}

/// An image's files.
enum Opened {
    Layout(LayoutDir),
    Archive(Archive),
    Local(LocalStore),
}

impl Opened {
    fn files(&self) -> &dyn ImageFiles {
        match self {
            Self::Layout(layout) => layout,
            Self::Archive(archive) => archive,
            Self::Local(local) => local,
        }
    }
}

impl Store {
    /// Opens the store. Nothing is written, and the cache directory need not exist.
    ///
    /// # Errors
    /// [`ImageError::Cache`] if the cache directory has an unknown version, cannot be read, or
    /// could have been written by another user.
    pub fn open(options: StoreOptions) -> Result<Self, ImageError> {
        let cache = Cache::open(&options.cache_dir)
            .map_err(|source| ImageError::Cache { dir: options.cache_dir.clone(), source })?;
        Ok(Self { options, cache })
    }

    /// Finds the image, builds and caches its file system if necessary, and opens it.
    ///
    /// # Errors
    /// [`ImageError`]; then nothing new is left in the cache directory, except complete layers if
    /// the caller cancelled.
    pub fn resolve(&self, reference: &Reference, progress: &mut dyn Progress) -> Result<Image, ImageError> {
        let resolved = match reference {
            Reference::Rootfs { dir } => self.resolve_rootfs(reference, dir, progress),
            _ => match &self.options.unpacker {
                Some(unpacker) => self.resolve_elsewhere(unpacker, reference, progress),
                None => self.resolve_layers(reference, progress),
            },
        };
        resolved.map_err(|error| error.sorted(self.options.cache_dir.clone()))
    }

    /// What [`Store::resolve`] would do: reads and verifies the manifest and the configuration, and
    /// checks the cache. It writes nothing.
    ///
    /// # Errors
    /// As [`Store::resolve`], except errors that are found only by reading the layers.
    pub fn plan(&self, reference: &Reference) -> Result<ImagePlan, ImageError> {
        if let Reference::Rootfs { dir } = reference {
            rootfs::open(dir).map_err(|source| rootfs_error(reference, source))?;
            let (digest, config) = rootfs_config();
            return Ok(ImagePlan {
                digest,
                config,
                raw_config: RawConfig::default(),
                layers: Vec::new(),
                disk_paths: Vec::new(),
                cached: false,
            });
        }
        let (opened, loaded) = self.load(reference, &mut || false)?;
        self.plan_loaded(reference, opened.files(), loaded)
    }

    fn plan_loaded(
        &self,
        reference: &Reference,
        files: &dyn ImageFiles,
        loaded: LoadedImage,
    ) -> Result<ImagePlan, ImageError> {
        let key = cache_key(&loaded.layers);
        let layer_keys = group_keys(&groups(&loaded.layers));
        let mark = verified_mark(&loaded.digest, &loaded.layers);
        let cache_error = |source| self.cache_error(source);
        let cached = self.cache.find(&key, &layer_keys).map_err(cache_error)?.is_some();
        if !cached || !self.cache.has_verified(&mark).map_err(cache_error)? {
            // Errors that are certain to occur later are found here.
            for layer in &loaded.layers {
                layer.check(files).map_err(|source| source_error(reference, source))?;
            }
        }
        let layers = loaded.layers.iter().map(|layer| PlannedLayer {
            digest: layer.digest,
            diff_id: layer.diff_id,
            size: layer.size,
        });
        Ok(ImagePlan {
            digest: loaded.digest,
            config: loaded.config,
            raw_config: loaded.raw_config,
            layers: layers.collect(),
            disk_paths: self.cache.image_paths(&key, &layer_keys),
            cached,
        })
    }

    fn cache_error(&self, source: CacheError) -> ImageError {
        ImageError::Cache { dir: self.cache.path().to_owned(), source }
    }

    fn write_error(&self, reference: &Reference, source: WriteError) -> ImageError {
        ImageError::Write {
            reference: Box::new(reference.clone()),
            dir: self.cache.path().to_owned(),
            source,
        }
    }

    /// Reads the manifest and the configuration.
    fn load(
        &self,
        reference: &Reference,
        cancelled: &mut dyn FnMut() -> bool,
    ) -> Result<(Opened, LoadedImage), ImageError> {
        let limits = &self.options.limits;
        let arch = host_architecture();
        let (opened, loaded) = match reference {
            Reference::OciLayout { dir, tag } => {
                let layout = LayoutDir::open(dir).map_err(|source| source_error(reference, source))?;
                let loaded = load_layout(&layout, tag.as_deref(), arch, limits);
                (Opened::Layout(layout), loaded)
            }
            Reference::OciArchive { file, tag } => {
                let archive = Archive::open(file, limits, cancelled)
                    .map_err(|source| source_error(reference, source))?;
                let loaded = load_layout(&archive, tag.as_deref(), arch, limits);
                (Opened::Archive(archive), loaded)
            }
            Reference::DockerArchive { file, tag } => {
                let archive = Archive::open(file, limits, cancelled)
                    .map_err(|source| source_error(reference, source))?;
                let loaded = load_docker(&archive, tag.as_deref(), arch, limits);
                (Opened::Archive(archive), loaded)
            }
            Reference::Named(_) | Reference::Id(_) => {
                let (local, descriptor) = self.stored(reference)?;
                let loaded = load_descriptor(&local, &descriptor, arch, limits);
                (Opened::Local(local), loaded)
            }
            Reference::BuiltinBusybox | Reference::Rootfs { .. } => {
                let dir = self.options.builtin.as_ref().ok_or(ImageError::NoBuiltin)?;
                let layout = LayoutDir::open(dir).map_err(|source| source_error(reference, source))?;
                let loaded = load_layout(&layout, None, arch, limits);
                (Opened::Layout(layout), loaded)
            }
        };
        Ok((opened, loaded.map_err(|source| source_error(reference, source))?))
    }

    /// The local store; `None` if the options name none.
    fn local(&self) -> Result<Option<LocalStore>, ImageError> {
        let Some(dir) = &self.options.local_dir else { return Ok(None) };
        LocalStore::open(dir).map(Some).map_err(|source| self.local_error(source))
    }

    fn local_error(&self, source: LocalError) -> ImageError {
        let dir = self.options.local_dir.clone().unwrap_or_default();
        ImageError::Local { dir, source }
    }

    /// What a name or an id means in the local store.
    fn stored(&self, reference: &Reference) -> Result<(LocalStore, Descriptor), ImageError> {
        let local = self.local()?;
        let found = match (&local, reference) {
            (Some(local), Reference::Named(name)) => local.find(name),
            (Some(local), Reference::Id(digest)) => match local.look_up(&digest.to_string()) {
                // Not in the list, as the one of a platform, or one that lost its names while a
                // sandbox uses it.
                Err(LocalError::NoImage(_)) => local.unlisted(digest),
                found => found.map(|found| Some(found.image.descriptor.clone())),
            },
            _ => Ok(None),
        };
        match (local, found.map_err(|source| self.local_error(source))?, reference) {
            (Some(local), Some(descriptor), _) => Ok((local, descriptor)),
            (_, _, Reference::Named(name)) => Err(ImageError::NotStored(Box::new(name.clone()))),
            _ => Err(self.local_error(LocalError::NoImage(reference.to_string()))),
        }
    }
}

fn rootfs_error(reference: &Reference, source: RootfsError) -> ImageError {
    ImageError::Rootfs { reference: Box::new(reference.clone()), source }
}

/// The configuration of a plain directory, which has no information on how to run it.
fn rootfs_config() -> (Digest, ImageConfiguration) {
    let mut config = ImageConfiguration::default();
    config
        .set_architecture(host_architecture().into())
        .set_os("linux".into())
        .set_config(Some(Config::default()));
    let text = config.to_string().unwrap_or_default();
    (Digest::sha256(text.as_bytes()), config)
}
