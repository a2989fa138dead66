//! The store: resolves references to images, using the cache.

use std::fs::File;
use std::path::{Path, PathBuf};

use oci_spec::image::{Config, ImageConfiguration};

use crate::cache::{Cache, CacheError, Cached, Lock, Scratch, Workshop};
use crate::changes;
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::erofs::{Budget, Contents, WriteError, write_metadata};
use crate::error::{ImageError, source_error};
use crate::layer;
use crate::limits::Limits;
use crate::local::LocalStore;
use crate::merge::{Group, ImageLayers, ReplayError, cache_key, group_keys, groups, replay, verified_mark};
use crate::name::ImageName;
use crate::progress::{ImageStage, Progress, Watch};
use crate::reference::Reference;
use crate::rootfs::{self, RootfsError};
use crate::source::{
    Archive, ImageFiles, LayoutDir, LoadedImage, SpoolError, host_architecture, load_descriptor, load_docker,
    load_layout,
};
use crate::tar::TarReader;
use crate::tree::Tree;
use crate::trusted::io_error;

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
}

impl StoreOptions {
    /// Options with the default limits, no local store and no built-in image.
    #[must_use]
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self { cache_dir: cache_dir.into(), local_dir: None, builtin: None, limits: Limits::default() }
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

/// A UUID (version 8: made by a rule of one's own) from a digest.
fn uuid(key: &Digest) -> [u8; 16] {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&key.bytes()[..16]);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
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
            return Ok(ImagePlan {
                digest,
                config,
                layers: Vec::new(),
                disk_paths: Vec::new(),
                cached: false,
            });
        }
        let (opened, loaded) = self.load(reference, &mut || false)?;
        let key = cache_key(&loaded.layers);
        let layer_keys = group_keys(&groups(&loaded.layers));
        let mark = verified_mark(&loaded.digest, &loaded.layers);
        let cache_error = |source| self.cache_error(source);
        let cached = self.cache.find(&key, &layer_keys).map_err(cache_error)?.is_some();
        if !cached || !self.cache.has_verified(&mark).map_err(cache_error)? {
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
            Reference::Named(name) => {
                let (local, descriptor) = self.stored(name)?;
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

    /// What a name means in the local store.
    fn stored(&self, name: &ImageName) -> Result<(LocalStore, Descriptor), ImageError> {
        let not_there = || ImageError::NotStored(Box::new(name.clone()));
        let dir = self.options.local_dir.as_ref().ok_or_else(not_there)?;
        let failed = |source| ImageError::Local { dir: dir.clone(), source };
        let local = LocalStore::open(dir).map_err(failed)?;
        let descriptor = local.find(name).map_err(failed)?.ok_or_else(not_there)?;
        Ok((local, descriptor))
    }

    fn resolve_layers(
        &self,
        reference: &Reference,
        progress: &mut dyn Progress,
    ) -> Result<Image, ImageError> {
        let (mut opened, loaded) = self.load(reference, &mut || progress.cancelled())?;
        let key = cache_key(&loaded.layers);
        let groups = groups(&loaded.layers);
        let layer_keys = group_keys(&groups);
        let mark = verified_mark(&loaded.digest, &loaded.layers);
        let cache_error = |source| self.cache_error(source);
        let image = |cached: Cached, found| Image {
            digest: loaded.digest,
            config: loaded.config.clone(),
            disk: cached.files,
            disk_bytes: cached.bytes,
            disk_paths: cached.paths,
            cached: found,
        };
        if self.cache.has_verified(&mark).map_err(cache_error)?
            && let Some(cached) = self.cache.find(&key, &layer_keys).map_err(cache_error)?
        {
            return Ok(image(cached, true));
        }
        // Truncated and missing layers are found before anything is written.
        for layer in &loaded.layers {
            layer.check(opened.files()).map_err(|source| source_error(reference, source))?;
        }
        let workshop = self.cache.prepare().map_err(cache_error)?;
        let lock = self.lock(&workshop, &key, progress)?;
        let mut found = workshop.find(&key, &layer_keys).map_err(cache_error)?;
        let verified = workshop.has_verified(&mark).map_err(cache_error)?;
        if verified && let Some(cached) = found.take() {
            return Ok(image(cached, true));
        }
        if let Opened::Archive(archive) = &mut opened
            && archive.needs_spool()
        {
            self.spool(reference, archive, &workshop, progress)?;
        }
        let layers = ImageLayers { reference, files: opened.files(), all: &loaded.layers, verified };
        let image = if let Some(cached) = found {
            // Who names the layers of a cached image does not have them yet.
            let mut budget = self.options.limits.unpacked_bytes;
            layers.pass(&groups, &mut budget, &self.options.limits, progress)?;
            image(cached, true)
        } else {
            image(self.build(&layers, &groups, (&key, &lock), &workshop, progress)?, false)
        };
        workshop.remember(&mark).map_err(cache_error)?;
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

    /// Builds and publishes what the cache lacks of the layers, and the metadata of all of them
    /// merged. If the image turns out to be unusable, the layers that were published for it are
    /// removed again; if the caller cancels, they stay and need not be read the next time.
    fn build(
        &self,
        layers: &ImageLayers<'_>,
        groups: &[Group<'_>],
        (key, lock): (&Digest, &Lock<'_>),
        workshop: &Workshop,
        progress: &mut dyn Progress,
    ) -> Result<Cached, ImageError> {
        let cache_error = |source| self.cache_error(source);
        let layer_keys = group_keys(groups);
        // Each attempt but the last finds one more layer of the cache damaged, or removed by
        // another process.
        for _ in 0..=groups.len() {
            let mut tree = Tree::new(&self.options.limits);
            let mut published = Vec::new();
            let merged = self.merge(layers, groups, &mut tree, workshop, progress, &mut published);
            if let Err(error) = &merged
                && !error.is_cancellation()
            {
                for layer in &published {
                    // What cannot be removed is a good layer, at least.
                    if let Ok(Some(lock)) = workshop.lock(layer, &mut || false) {
                        let _ = workshop.remove_layer(&lock, layer);
                    }
                }
            }
            let Some(parts) = merged? else { continue };
            let scratch = workshop.scratch(&key.hex()).map_err(cache_error)?;
            self.metadata(layers.reference, &scratch, &tree, &parts, uuid(key), progress)?;
            progress.update(ImageStage::Sync, 0, None);
            if let Some(cached) = workshop.publish(lock, key, &layer_keys, scratch).map_err(cache_error)? {
                return Ok(cached);
            }
        }
        let path = self.cache.path();
        let source = std::io::Error::from(std::io::ErrorKind::InvalidData);
        Err(self.cache_error(io_error("read back the image in", path, source).into()))
    }

    /// Merges all layers into `tree`, those that the cache lacks being read and published, with
    /// their keys added to `published`. Returns the bytes of each data file, or `None` if a layer
    /// of the cache was damaged, and has been removed.
    fn merge(
        &self,
        layers: &ImageLayers<'_>,
        groups: &[Group<'_>],
        tree: &mut Tree,
        workshop: &Workshop,
        progress: &mut dyn Progress,
        published: &mut Vec<Digest>,
    ) -> Result<Option<Vec<u64>>, ImageError> {
        let cache_error = |source| self.cache_error(source);
        let io_error = |source| self.write_error(layers.reference, WriteError::Io(source));
        let limits = &self.options.limits;
        let mut budget = limits.unpacked_bytes;
        // Of the image as a whole, however many layers it has.
        let mut room = self.room(workshop)?;
        let mut parts: Vec<u64> = Vec::with_capacity(groups.len());
        for (group, part) in groups.iter().zip(0..) {
            let lock = self.lock(workshop, &group.key, progress)?;
            let group_alone = std::slice::from_ref(group);
            if let Some(found) = workshop.find_layer(&group.key).map_err(cache_error)? {
                if !layers.verified {
                    layers.pass(group_alone, &mut budget, limits, progress)?;
                }
                let merged = changes::Reader::new(found.changes, part)
                    .map_err(|_damage| ReplayError::Damaged)
                    .and_then(|changes| replay(changes, found.data_bytes, tree, progress));
                match merged {
                    Ok(()) => parts.push(found.data_bytes),
                    Err(ReplayError::Damaged) => {
                        workshop.remove_layer(&lock, &group.key).map_err(cache_error)?;
                        return Ok(None);
                    }
                    Err(ReplayError::Layer(nth, error)) => return Err(layers.error(group.first + nth, error)),
                }
                continue;
            }
            let budget_of_part = Budget { limit: limits.disk_bytes, used: parts.iter().sum(), room };
            let (data, kept) = (self.scratch(workshop, &group.key)?, self.scratch(workshop, &group.key)?);
            let mut contents = Contents::new(data.file.try_clone().map_err(io_error)?, part, budget_of_part);
            let mut writer =
                changes::Writer::new(kept.file.try_clone().map_err(io_error)?).map_err(io_error)?;
            layers.read(group_alone, &mut budget, limits, progress, &mut |stream, tick| {
                let mut keep = |change: &_| writer.put(change);
                layer::apply(&mut TarReader::new(stream), tree, &mut contents, &mut keep, tick)
            })?;
            let written = contents.complete().map_err(|source| self.write_error(layers.reference, source))?;
            let changes_bytes = writer.complete(written.bytes).map_err(io_error)?;
            room = room.saturating_sub(written.taken).saturating_sub(changes_bytes);
            progress.update(ImageStage::Sync, 0, None);
            workshop.publish_layer(&lock, &group.key, data, kept).map_err(cache_error)?;
            published.push(group.key);
            parts.push(written.bytes);
        }
        Ok(Some(parts))
    }

    /// Waits for the lock of an image or layer as long as the caller wants it.
    fn lock<'a>(
        &self,
        workshop: &'a Workshop,
        key: &Digest,
        progress: &mut dyn Progress,
    ) -> Result<Lock<'a>, ImageError> {
        let mut told = false;
        let mut give_up = || {
            if !std::mem::replace(&mut told, true) {
                progress.update(ImageStage::Waiting, 0, None);
            }
            progress.cancelled()
        };
        let lock = workshop.lock(key, &mut give_up).map_err(|source| self.cache_error(source))?;
        lock.ok_or(ImageError::Cancelled)
    }

    fn scratch<'a>(&self, workshop: &'a Workshop, key: &Digest) -> Result<Scratch<'a>, ImageError> {
        workshop.scratch(&key.hex()).map_err(|source| self.cache_error(source))
    }

    /// Writes the metadata of an image; returns the bytes of the whole.
    fn metadata(
        &self,
        reference: &Reference,
        scratch: &Scratch<'_>,
        tree: &Tree,
        parts: &[u64],
        uuid: [u8; 16],
        progress: &mut dyn Progress,
    ) -> Result<u64, ImageError> {
        let write_error = |source| self.write_error(reference, source);
        let file = scratch.file.try_clone().map_err(|source| write_error(WriteError::Io(source)))?;
        let mut watch = Watch::begin(progress, ImageStage::Metadata, None);
        let written =
            write_metadata(file, tree, parts, uuid, self.options.limits.disk_bytes, &mut |done, total| {
                watch.total = Some(total);
                watch.tick(done)
            });
        let bytes = written.map_err(write_error)?;
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
        let write_error = |source| self.write_error(reference, source);
        let root = rootfs::open(dir).map_err(failed)?;
        let workshop = self.cache.prepare().map_err(cache_error)?;
        let data = workshop.scratch("rootfs").map_err(cache_error)?;
        let budget = Budget { limit: self.options.limits.disk_bytes, used: 0, room: self.room(&workshop)? };
        let file = data.file.try_clone().map_err(|source| write_error(WriteError::Io(source)))?;
        let mut contents = Contents::new(file, 0, budget);
        let mut tree = Tree::new(&self.options.limits);
        let mut watch = Watch::begin(progress, ImageStage::Rootfs, None);
        rootfs::read(&root, dir, &mut tree, &mut contents, &mut |done| watch.tick(done)).map_err(failed)?;
        watch.end();
        let data_bytes = contents.complete().map_err(write_error)?.bytes;
        let metadata = workshop.scratch("rootfs").map_err(cache_error)?;
        let (digest, config) = rootfs_config();
        let disk_bytes =
            self.metadata(reference, &metadata, &tree, &[data_bytes], uuid(&digest), progress)?;
        let mut disk = vec![metadata.read_only().map_err(cache_error)?];
        if data_bytes > 0 {
            disk.push(data.read_only().map_err(cache_error)?);
        }
        Ok(Image { digest, config, disk, disk_bytes, disk_paths: Vec::new(), cached: false })
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
