//! The store: resolves references to images, using the cache.

use std::fs::File;
use std::path::{Path, PathBuf};

use oci_spec::image::{Config, ImageConfiguration};

use crate::blob::LayerStream;
use crate::cache::{Cache, CacheError, Cached, Scratch, Workshop};
use crate::digest::Digest;
use crate::erofs::{Contents, WRITER_VERSION, WriteError};
use crate::error::ImageError;
use crate::layer::{self, LayerError};
use crate::limits::Limits;
use crate::progress::{ImageStage, Progress};
use crate::reference::Reference;
use crate::rootfs::{self, RootfsError};
use crate::source::{
    Archive, ImageFiles, LayerRef, LayoutDir, LoadedImage, SourceError, SpoolError, host_architecture,
    load_docker, load_layout,
};
use crate::tar::TarReader;
use crate::tree::Tree;

/// How to open a [`Store`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StoreOptions {
    /// The cache directory, normally `$XDG_CACHE_HOME/nelly`. It is created when the first image is
    /// cached. It and its parents must belong to the caller or root and must not be writable by
    /// others ([`crate::trusted`]).
    pub cache_dir: PathBuf,
    /// The OCI layout directory of `builtin:busybox`, if it is installed.
    pub builtin: Option<PathBuf>,
    /// Limits on the resources that an image may use.
    pub limits: Limits,
}

impl StoreOptions {
    /// Options with the default limits and no built-in image.
    #[must_use]
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self { cache_dir: cache_dir.into(), builtin: None, limits: Limits::default() }
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
    /// The merged layers as an EROFS file system, opened read-only. The file is never changed or
    /// truncated.
    pub disk: File,
    /// Size of `disk` in bytes, a multiple of 4096.
    pub disk_bytes: u64,
    /// The path of `disk` if it is cached; `None` if the file has no name (`rootfs:`).
    pub disk_path: Option<PathBuf>,
    /// Whether `disk` was found in the cache instead of being built by this call.
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
    /// The layers, lowest first; empty for `rootfs:`.
    pub layers: Vec<PlannedLayer>,
    /// The path of the file system image; `None` for `rootfs:`, which is not cached.
    pub disk_path: Option<PathBuf>,
    /// Whether the file exists.
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

/// Processes the stream of a layer; calls the function regularly to check for cancellation.
type ApplyLayer<'a> =
    dyn FnMut(&mut LayerStream<'_>, &mut dyn FnMut() -> bool) -> Result<(), LayerError> + 'a;

/// The opened files of an image.
enum Opened {
    Layout(LayoutDir),
    Archive(Archive),
}

impl Opened {
    fn files(&self) -> &dyn ImageFiles {
        match self {
            Self::Layout(layout) => layout,
            Self::Archive(archive) => archive,
        }
    }
}

/// The key of the cache: a hash of everything that determines the bytes of the disk.
fn cache_key(layers: &[LayerRef]) -> Digest {
    let mut text = format!("nelly-erofs {WRITER_VERSION}\n");
    for layer in layers {
        text.push_str(&layer.diff_id.to_string());
        text.push('\n');
    }
    Digest::sha256(text.as_bytes())
}

/// A UUID (version 8, custom) derived from a digest.
fn uuid(key: &Digest) -> [u8; 16] {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&key.bytes()[..16]);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

/// Progress of one stage. Workers report often, but the observer is called about once for each
/// mebibyte.
struct Watch<'a> {
    progress: &'a mut dyn Progress,
    stage: ImageStage,
    total: Option<u64>,
    told: u64,
    done: u64,
}

impl<'a> Watch<'a> {
    fn begin(progress: &'a mut dyn Progress, stage: ImageStage, total: Option<u64>) -> Self {
        progress.update(stage, 0, total);
        Self { progress, stage, total, told: 0, done: 0 }
    }

    /// Whether to continue.
    fn tick(&mut self, done: u64) -> bool {
        self.done = done;
        if done - self.told >= 1 << 20 {
            self.told = done;
            self.progress.update(self.stage, done, self.total);
        }
        !self.progress.cancelled()
    }

    fn end(self) {
        self.progress.update(self.stage, self.total.unwrap_or(self.done), self.total);
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
    /// [`ImageError`]; then nothing new is left in the cache directory.
    pub fn resolve(&self, reference: &Reference, progress: &mut dyn Progress) -> Result<Image, ImageError> {
        let resolved = match reference {
            Reference::Rootfs { dir } => self.resolve_rootfs(reference, dir, progress),
            _ => self.resolve_layers(reference, progress),
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
            return Ok(ImagePlan { digest, config, layers: Vec::new(), disk_path: None, cached: false });
        }
        let (opened, loaded) = self.load(reference, &mut || false)?;
        let key = cache_key(&loaded.layers);
        let cache_error = |source| self.cache_error(source);
        let cached = self.cache.find(&key).map_err(cache_error)?.is_some();
        if !cached || !self.cache.has_verified(&loaded.digest).map_err(cache_error)? {
            // Errors that are certain to occur later are found here.
            for layer in &loaded.layers {
                layer.check(opened.files()).map_err(|source| source_error(reference, source))?;
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
            layers: layers.collect(),
            disk_path: Some(self.cache.image_path(&key)),
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
            Reference::BuiltinBusybox | Reference::Rootfs { .. } => {
                let dir = self.options.builtin.as_ref().ok_or(ImageError::NoBuiltin)?;
                let layout = LayoutDir::open(dir).map_err(|source| source_error(reference, source))?;
                let loaded = load_layout(&layout, None, arch, limits);
                (Opened::Layout(layout), loaded)
            }
        };
        Ok((opened, loaded.map_err(|source| source_error(reference, source))?))
    }

    fn resolve_layers(
        &self,
        reference: &Reference,
        progress: &mut dyn Progress,
    ) -> Result<Image, ImageError> {
        let (mut opened, loaded) = self.load(reference, &mut || progress.cancelled())?;
        let key = cache_key(&loaded.layers);
        let cache_error = |source| self.cache_error(source);
        let image = |cached: Cached, found| Image {
            digest: loaded.digest,
            config: loaded.config.clone(),
            disk: cached.file,
            disk_bytes: cached.bytes,
            disk_path: Some(cached.path),
            cached: found,
        };
        if self.cache.has_verified(&loaded.digest).map_err(cache_error)?
            && let Some(cached) = self.cache.find(&key).map_err(cache_error)?
        {
            return Ok(image(cached, true));
        }
        // Truncated and missing layers are found before anything is written.
        for layer in &loaded.layers {
            layer.check(opened.files()).map_err(|source| source_error(reference, source))?;
        }
        let workshop = self.cache.prepare().map_err(cache_error)?;
        let mut waiting = || progress.update(ImageStage::Waiting, 0, None);
        let lock = workshop.lock(&key, &mut waiting).map_err(cache_error)?;
        let mut found = workshop.find(&key).map_err(cache_error)?;
        if workshop.has_verified(&loaded.digest).map_err(cache_error)?
            && let Some(cached) = found.take()
        {
            return Ok(image(cached, true));
        }
        if let Opened::Archive(archive) = &mut opened
            && archive.needs_spool()
        {
            self.spool(reference, archive, &workshop, progress)?;
        }
        let image = if let Some(cached) = found {
            // Listing the layers of a cached image does not prove that the caller has them.
            self.verify(reference, &opened, &loaded, progress)?;
            image(cached, true)
        } else {
            let scratch = self.build(reference, &opened, &loaded, &key, &workshop, progress)?;
            progress.update(ImageStage::Sync, 0, None);
            image(workshop.publish(&lock, &key, scratch).map_err(cache_error)?, false)
        };
        workshop.remember(&loaded.digest).map_err(cache_error)?;
        Ok(image)
    }

    /// Decompresses an archive that is compressed as a whole.
    fn spool(
        &self,
        reference: &Reference,
        archive: &mut Archive,
        workshop: &Workshop,
        progress: &mut dyn Progress,
    ) -> Result<(), ImageError> {
        let file = workshop.spool().map_err(|source| self.cache_error(source))?;
        let room = self.room(workshop)?;
        let mut watch = Watch::begin(progress, ImageStage::Archive, None);
        let spooled = archive.spool(file, room, &mut |done, total| {
            watch.total = Some(total);
            watch.tick(done)
        });
        match spooled {
            Ok(true) => {
                watch.end();
                Ok(())
            }
            Ok(false) => Err(ImageError::Cancelled),
            Err(SpoolError::Source(source)) => Err(source_error(reference, source)),
            Err(SpoolError::Write(source)) => Err(self.write_error(reference, WriteError::Io(source))),
        }
    }

    /// The space that an image may use: all but a sixteenth of the free space.
    fn room(&self, workshop: &Workshop) -> Result<u64, ImageError> {
        let free = workshop.free_bytes().map_err(|source| self.cache_error(source))?;
        Ok(free.map_or(u64::MAX, |free| free - free / 16))
    }

    /// Merges the layers into a new file system image.
    fn build<'a>(
        &self,
        reference: &Reference,
        opened: &Opened,
        loaded: &LoadedImage,
        key: &Digest,
        workshop: &'a Workshop,
        progress: &mut dyn Progress,
    ) -> Result<Scratch<'a>, ImageError> {
        let (scratch, mut contents) = self.contents(reference, &key.hex(), workshop)?;
        let mut tree = Tree::new(&self.options.limits);
        self.read_layers(reference, opened, loaded, progress, &mut |stream, tick| {
            layer::apply(&mut TarReader::new(stream), &mut tree, &mut contents, tick)
        })?;
        self.complete(reference, contents, &tree, uuid(key), progress)?;
        Ok(scratch)
    }

    /// Reads the layers only to verify their digests.
    fn verify(
        &self,
        reference: &Reference,
        opened: &Opened,
        loaded: &LoadedImage,
        progress: &mut dyn Progress,
    ) -> Result<(), ImageError> {
        self.read_layers(reference, opened, loaded, progress, &mut |stream, tick| layer::pass(stream, tick))
    }

    /// Reads and verifies the layers, and passes each to `apply`, with a function that checks for
    /// cancellation.
    fn read_layers(
        &self,
        reference: &Reference,
        opened: &Opened,
        loaded: &LoadedImage,
        progress: &mut dyn Progress,
        apply: &mut ApplyLayer<'_>,
    ) -> Result<(), ImageError> {
        let most = self.options.limits.unpacked_bytes;
        let mut budget = most;
        let count = loaded.layers.len();
        for (layer, number) in loaded.layers.iter().zip(1..) {
            let blob = layer.open(opened.files()).map_err(|source| source_error(reference, source))?;
            let mut watch =
                Watch::begin(progress, ImageStage::Layer { number, count }, Some(blob.blob.size()));
            let read = blob.read(&mut budget, most, |stream| {
                let done = stream.counter();
                apply(stream, &mut || watch.tick(done.get()))
            });
            read.map_err(|source| {
                let name = layer.digest.unwrap_or(layer.diff_id).to_string();
                ImageError::Layer { reference: Box::new(reference.clone()), number, count, name, source }
            })?;
            watch.end();
        }
        Ok(())
    }

    fn contents<'a>(
        &self,
        reference: &Reference,
        prefix: &str,
        workshop: &'a Workshop,
    ) -> Result<(Scratch<'a>, Contents), ImageError> {
        let cache_error = |source| self.cache_error(source);
        let room = self.room(workshop)?;
        let scratch = workshop.scratch(prefix).map_err(cache_error)?;
        let write_error = |source| self.write_error(reference, source);
        let file = scratch.file.try_clone().map_err(|source| write_error(WriteError::Io(source)))?;
        let spool = workshop.spool().map_err(cache_error)?;
        let contents =
            Contents::new(file, spool, self.options.limits.disk_bytes, room).map_err(write_error)?;
        Ok((scratch, contents))
    }

    fn complete(
        &self,
        reference: &Reference,
        contents: Contents,
        tree: &Tree,
        uuid: [u8; 16],
        progress: &mut dyn Progress,
    ) -> Result<u64, ImageError> {
        let mut watch = Watch::begin(progress, ImageStage::Metadata, None);
        let completed = contents.complete(tree, uuid, &mut |done, total| {
            watch.total = Some(total);
            watch.tick(done)
        });
        let bytes = completed.map_err(|source| self.write_error(reference, source))?;
        watch.end();
        Ok(bytes)
    }

    fn resolve_rootfs(
        &self,
        reference: &Reference,
        dir: &Path,
        progress: &mut dyn Progress,
    ) -> Result<Image, ImageError> {
        let failed = |source| rootfs_error(reference, source);
        let cache_error = |source| self.cache_error(source);
        let root = rootfs::open(dir).map_err(failed)?;
        let workshop = self.cache.prepare().map_err(cache_error)?;
        let (scratch, mut contents) = self.contents(reference, "rootfs", &workshop)?;
        let mut tree = Tree::new(&self.options.limits);
        let mut watch = Watch::begin(progress, ImageStage::Rootfs, None);
        rootfs::read(&root, dir, &mut tree, &mut contents, &mut |done| watch.tick(done)).map_err(failed)?;
        watch.end();
        let (digest, config) = rootfs_config();
        let disk_bytes = self.complete(reference, contents, &tree, uuid(&digest), progress)?;
        let disk = scratch.read_only().map_err(cache_error)?;
        Ok(Image { digest, config, disk, disk_bytes, disk_path: None, cached: false })
    }
}

fn source_error(reference: &Reference, source: SourceError) -> ImageError {
    ImageError::Source { reference: Box::new(reference.clone()), advice: reference.colon_advice(), source }
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
