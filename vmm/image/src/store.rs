//! The store: from a reference to an image, through the cache.

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
    /// The cache directory, by contract `$XDG_CACHE_HOME/nelly`. Made when the first image is
    /// cached. It must be the caller's or root's and not writable by others, and so must the
    /// directories on the way to it ([`crate::trusted`]).
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
    cache: Cache,
}

/// A resolved image.
#[derive(Debug)]
#[non_exhaustive]
pub struct Image {
    /// What identifies the image: of its manifest (OCI layouts and archives), of its configuration
    /// (docker archives), or of the configuration made for a `rootfs:` directory.
    pub digest: Digest,
    /// Entrypoint, command, environment, user, working directory, stop signal, volumes, labels.
    pub config: ImageConfiguration,
    /// The merged layers as an EROFS file system, opened read-only. Nobody changes or truncates the
    /// file.
    pub disk: File,
    /// Bytes of `disk`, a multiple of 4096.
    pub disk_bytes: u64,
    /// Where `disk` lies when it is cached; `None` when it has no name (`rootfs:`) and ends with
    /// its descriptor.
    pub disk_path: Option<PathBuf>,
    /// Whether `disk` was found in the cache rather than built by this call.
    pub cached: bool,
}

/// What a resolve would do, found out without writing anything.
#[derive(Debug)]
#[non_exhaustive]
pub struct ImagePlan {
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

/// A layer of a [`ImagePlan`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlannedLayer {
    /// The digest of the layer as it is stored; `None` in a docker archive, whose layers are known
    /// by `diff_id`.
    pub digest: Option<Digest>,
    /// The digest of the layer's uncompressed tar stream.
    pub diff_id: Digest,
    /// Bytes of the layer as it is stored.
    pub size: u64,
}

/// What is done with a layer's stream; it asks the function now and then whether to go on.
type ApplyLayer<'a> =
    dyn FnMut(&mut LayerStream<'_>, &mut dyn FnMut() -> bool) -> Result<(), LayerError> + 'a;

/// An image's files.
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

/// The cache's key: what the disk's bytes depend on.
fn cache_key(layers: &[LayerRef]) -> Digest {
    let mut text = format!("nelly-erofs {WRITER_VERSION}\n");
    for layer in layers {
        text.push_str(&layer.diff_id.to_string());
        text.push('\n');
    }
    Digest::sha256(text.as_bytes())
}

/// A UUID (version 8: made by a rule of one's own) from a digest.
fn uuid(key: &Digest) -> [u8; 16] {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&key.bytes()[..16]);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

/// A phase of a resolve as its workers see it: they report often, the watcher hears about once a
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

    /// Whether to go on.
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
    /// Opens the store. Nothing is written, and a cache directory that does not exist is no error.
    ///
    /// # Errors
    /// [`ImageError::Cache`] if the cache directory is of an unknown version, cannot be read, or
    /// could have been written by somebody else.
    pub fn open(options: StoreOptions) -> Result<Self, ImageError> {
        let cache = Cache::open(&options.cache_dir)
            .map_err(|source| ImageError::Cache { dir: options.cache_dir.clone(), source })?;
        Ok(Self { options, cache })
    }

    /// Finds the image, builds and caches its file system if that was not done before, and opens
    /// it.
    ///
    /// # Errors
    /// [`ImageError`]; nothing new stays in the cache directory then.
    pub fn resolve(&self, reference: &Reference, progress: &mut dyn Progress) -> Result<Image, ImageError> {
        let resolved = match reference {
            Reference::Rootfs { dir } => self.resolve_rootfs(reference, dir, progress),
            _ => self.resolve_layers(reference, progress),
        };
        resolved.map_err(|error| error.sorted(self.options.cache_dir.clone()))
    }

    /// What [`Store::resolve`] would do: reads the manifest and the configuration, verifies them,
    /// looks into the cache, and writes nothing.
    ///
    /// # Errors
    /// As [`Store::resolve`], except for what only shows when layers are read.
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
            // What is certain to fail later fails here.
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

    /// Reads manifest and configuration.
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
            // Who names the layers of a cached image does not have them yet.
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

    /// What an image may write: a sixteenth of what is free stays with everybody else.
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

    /// Reads the layers for their digests alone.
    fn verify(
        &self,
        reference: &Reference,
        opened: &Opened,
        loaded: &LoadedImage,
        progress: &mut dyn Progress,
    ) -> Result<(), ImageError> {
        self.read_layers(reference, opened, loaded, progress, &mut |stream, tick| layer::pass(stream, tick))
    }

    /// Reads the layers and verifies them, each being given to `apply` with what asks whether to go
    /// on.
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

/// A bare directory says nothing about how to run it.
fn rootfs_config() -> (Digest, ImageConfiguration) {
    let mut config = ImageConfiguration::default();
    config
        .set_architecture(host_architecture().into())
        .set_os("linux".into())
        .set_config(Some(Config::default()));
    let text = config.to_string().unwrap_or_default();
    (Digest::sha256(text.as_bytes()), config)
}
