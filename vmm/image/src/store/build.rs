//! Building what the cache lacks of an image.

use super::{Image, Opened, Store};
use crate::cache::{CacheError, Cached, Lock, Scratch, Workshop};
use crate::changes;
use crate::digest::Digest;
use crate::erofs::{Budget, Contents, WriteError, write_metadata};
use crate::error::{ImageError, source_error};
use crate::layer;
use crate::merge::{
    Group, ImageLayers, ReplayError, cache_key, group_keys, groups, layer_mark, replay, verified_mark,
};
use crate::progress::{ImageStage, Progress, Watch};
use crate::reference::Reference;
use crate::source::{Archive, LayerRef, LoadedImage, SpoolError};
use crate::tar::TarReader;
use crate::tree::Tree;
use crate::trusted::io_error;

/// A UUID (version 8: made by a rule of one's own) from a digest.
pub(super) fn uuid(key: &Digest) -> [u8; 16] {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&key.bytes()[..16]);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

/// An image with its files.
fn image_of(loaded: &LoadedImage, files: Cached, cached: bool) -> Image {
    Image {
        digest: loaded.digest,
        config: loaded.config.clone(),
        raw_config: loaded.raw_config.clone(),
        disk: files.files,
        disk_bytes: files.bytes,
        disk_paths: files.paths,
        cached,
    }
}

impl Store {
    /// The image, if it was in the cache when that was opened, and its layers had their digests.
    pub(super) fn cached(&self, loaded: &LoadedImage) -> Result<Option<Image>, ImageError> {
        let layers = &loaded.layers;
        let cache_error = |source| self.cache_error(source);
        if !self.cache.has_verified(&verified_mark(&loaded.digest, layers)).map_err(cache_error)? {
            return Ok(None);
        }
        let found = self.cache.find(&cache_key(layers), &group_keys(&groups(layers)));
        Ok(found.map_err(cache_error)?.map(|files| image_of(loaded, files, true)))
    }

    pub(super) fn resolve_layers(
        &self,
        reference: &Reference,
        progress: &mut dyn Progress,
    ) -> Result<Image, ImageError> {
        let (mut opened, loaded) = self.load(reference, &mut || progress.cancelled())?;
        if let Some(image) = self.cached(&loaded)? {
            return Ok(image);
        }
        let key = cache_key(&loaded.layers);
        let groups = groups(&loaded.layers);
        let layer_keys = group_keys(&groups);
        let mark = verified_mark(&loaded.digest, &loaded.layers);
        let cache_error = |source| self.cache_error(source);
        let image = |cached, found| image_of(&loaded, cached, found);
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
        let stored = matches!(opened, Opened::Local(_));
        let layers = ImageLayers { reference, files: opened.files(), all: &loaded.layers, verified, stored };
        let image = if let Some(cached) = found {
            // Who names the layers of a cached image does not have them yet.
            let mut budget = self.options.limits.unpacked_bytes;
            self.pass(&layers, &groups, &mut budget, &workshop, progress)?;
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
    pub(super) fn room(&self, workshop: &Workshop) -> Result<u64, ImageError> {
        workshop.room().map(|room| room.bytes).map_err(|source| self.cache_error(source))
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
                    self.pass(layers, group_alone, &mut budget, workshop, progress)?;
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
            remember(group_alone, workshop).map_err(cache_error)?;
            published.push(group.key);
            parts.push(written.bytes);
        }
        Ok(Some(parts))
    }

    /// Makes sure that the image has layers that the cache has, and marks them.
    fn pass(
        &self,
        layers: &ImageLayers<'_>,
        groups: &[Group<'_>],
        budget: &mut u64,
        workshop: &Workshop,
        progress: &mut dyn Progress,
    ) -> Result<(), ImageError> {
        let mut known = |layer: &LayerRef| {
            let mark = layer_mark(layer);
            let known = mark.map_or(Ok(false), |mark| workshop.has_verified(&mark));
            known.map_err(|source| self.cache_error(source))
        };
        layers.pass(groups, budget, &self.options.limits, progress, &mut known)?;
        remember(groups, workshop).map_err(|source| self.cache_error(source))
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
    pub(super) fn metadata(
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
}

/// Marks layers that were read and had their digests.
fn remember(groups: &[Group<'_>], workshop: &Workshop) -> Result<(), CacheError> {
    let mut marks = ImageLayers::of(groups).filter_map(layer_mark);
    marks.try_for_each(|mark| workshop.remember(&mark))
}
