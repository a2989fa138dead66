//! What an image is merged of: layers in groups, each read from its archive or made again from the
//! changes that the cache kept.

use crate::blob::{LayerBlob, LayerStream};
use crate::changes::{self, Change};
use crate::digest::Digest;
use crate::erofs::WRITER_VERSION;
use crate::error::{ImageError, source_error};
use crate::layer::{self, LayerError};
use crate::limits::Limits;
use crate::progress::{ImageStage, Progress, Watch};
use crate::reference::Reference;
use crate::source::{ImageFiles, LayerRef};
use crate::tree::Tree;

/// What is done with a layer's stream; it asks the function now and then whether to go on.
pub(crate) type ApplyLayer<'a> =
    dyn FnMut(&mut LayerStream<'_>, &mut dyn FnMut() -> bool) -> Result<(), LayerError> + 'a;

/// Most data files of an image: a monitor is given all descriptors of a machine in one message.
const PARTS_MAX: usize = 100;

/// Layers whose contents lie in one data file: a single one, unless the image has more than
/// [`PARTS_MAX`].
pub(crate) struct Group<'a> {
    pub(crate) key: Digest,
    layers: &'a [LayerRef],
    /// The number of the first of them, from 1.
    pub(crate) first: usize,
}

/// How many layers are in a group of an image of so many.
fn each_of(layers: usize) -> usize {
    layers.div_ceil(PARTS_MAX).max(1)
}

pub(crate) fn groups(layers: &[LayerRef]) -> Vec<Group<'_>> {
    let each = each_of(layers.len());
    let group = |(layers, first)| Group { key: key_of("nelly-layers", layers), layers, first };
    layers.chunks(each).zip((1..).step_by(each)).map(group).collect()
}

pub(crate) fn group_keys(groups: &[Group<'_>]) -> Vec<Digest> {
    groups.iter().map(|group| group.key).collect()
}

/// The cache's key: what the bytes of an image's metadata, or of its data files, depend on.
fn key_of(kind: &str, layers: &[LayerRef]) -> Digest {
    key_of_ids(kind, layers.iter().map(|layer| &layer.diff_id))
}

fn key_of_ids<'a>(kind: &str, diff_ids: impl IntoIterator<Item = &'a Digest>) -> Digest {
    let mut text = format!("{kind} {WRITER_VERSION}\n");
    for diff_id in diff_ids {
        text.push_str(&diff_id.to_string());
        text.push('\n');
    }
    Digest::sha256(text.as_bytes())
}

/// The name of the mark that the layers of an image were read here and had their digests. It
/// depends on the layers as well: one and the same JSON text can be a manifest to one reader and a
/// configuration to another, with layers of their own.
pub(crate) fn verified_mark(image: &Digest, layers: &[LayerRef]) -> Digest {
    key_of(&format!("nelly-verified {image}"), layers)
}

/// The name of the mark that a stored layer was read here and unpacks to its uncompressed digest.
/// `None` if only the latter is known.
pub(crate) fn layer_mark(layer: &LayerRef) -> Option<Digest> {
    let digest = layer.digest?;
    Some(key_of(&format!("nelly-verified-layer {digest}"), std::slice::from_ref(layer)))
}

/// [`cache_key`] and [`group_keys`] of layers of which only the uncompressed digests are known.
pub(crate) fn keys_of(diff_ids: &[Digest]) -> (Digest, Vec<Digest>) {
    let groups = diff_ids.chunks(each_of(diff_ids.len())).map(|group| key_of_ids("nelly-layers", group));
    (key_of_ids("nelly-erofs", diff_ids), groups.collect())
}

/// The key of an image's metadata.
pub(crate) fn cache_key(layers: &[LayerRef]) -> Digest {
    key_of("nelly-erofs", layers)
}

/// The layers of an image that is resolved.
pub(crate) struct ImageLayers<'a> {
    pub(crate) reference: &'a Reference,
    pub(crate) files: &'a dyn ImageFiles,
    pub(crate) all: &'a [LayerRef],
    /// They were seen before, and had their digests.
    pub(crate) verified: bool,
    /// The digests of stored layers were verified when they were stored, as in the local store.
    pub(crate) stored: bool,
}

impl ImageLayers<'_> {
    /// Makes sure that the image has these layers, which the cache has: the bytes of its own, if
    /// `known` says what they unpack to, else what they unpack to.
    pub(crate) fn pass(
        &self,
        groups: &[Group<'_>],
        budget: &mut u64,
        limits: &Limits,
        progress: &mut dyn Progress,
        known: &mut dyn FnMut(&LayerRef) -> Result<bool, ImageError>,
    ) -> Result<(), ImageError> {
        for (layer, number) in groups.iter().flat_map(|group| group.layers.iter().zip(group.first..)) {
            if !known(layer)? {
                self.read_one(layer, number, budget, limits, progress, &mut |stream, tick| {
                    layer::pass(stream, tick)
                })?;
            } else if !self.stored {
                let blob = layer.open(self.files).map_err(|source| source_error(self.reference, source))?;
                let mut watch = self.watch(number, &blob, progress);
                blob.verify_stored(&mut |done| watch.tick(done))
                    .map_err(|source| self.error(number, source))?;
                watch.end();
            }
        }
        Ok(())
    }

    /// The layers of these groups.
    pub(crate) fn of<'b>(groups: &'b [Group<'_>]) -> impl Iterator<Item = &'b LayerRef> {
        groups.iter().flat_map(|group| group.layers)
    }

    fn watch<'w>(&self, number: usize, blob: &LayerBlob, progress: &'w mut dyn Progress) -> Watch<'w> {
        let stage = ImageStage::Layer { number, count: self.all.len() };
        Watch::begin(progress, stage, Some(blob.blob.size()))
    }

    /// Reads the layers and verifies them, each being given to `apply` with what asks whether to go
    /// on. `budget` is how many bytes they may still unpack to.
    pub(crate) fn read(
        &self,
        groups: &[Group<'_>],
        budget: &mut u64,
        limits: &Limits,
        progress: &mut dyn Progress,
        apply: &mut ApplyLayer<'_>,
    ) -> Result<(), ImageError> {
        for (layer, number) in groups.iter().flat_map(|group| group.layers.iter().zip(group.first..)) {
            self.read_one(layer, number, budget, limits, progress, apply)?;
        }
        Ok(())
    }

    fn read_one(
        &self,
        layer: &LayerRef,
        number: usize,
        budget: &mut u64,
        limits: &Limits,
        progress: &mut dyn Progress,
        apply: &mut ApplyLayer<'_>,
    ) -> Result<(), ImageError> {
        let blob = layer.open(self.files).map_err(|source| source_error(self.reference, source))?;
        let mut watch = self.watch(number, &blob, progress);
        let read = blob.read(budget, limits.unpacked_bytes, |stream| {
            let done = stream.counter();
            apply(stream, &mut || watch.tick(done.get()))
        });
        read.map_err(|source| self.error(number, source))?;
        watch.end();
        Ok(())
    }

    /// The error of the layer of this number, from 1.
    pub(crate) fn error(&self, number: usize, source: LayerError) -> ImageError {
        let name = self.all.get(number - 1).map(|layer| layer.digest.unwrap_or(layer.diff_id).to_string());
        let (reference, count, name) =
            (Box::new(self.reference.clone()), self.all.len(), name.unwrap_or_default());
        ImageError::Layer { reference, number, count, name, source }
    }
}

/// Why kept changes were not made.
pub(crate) enum ReplayError {
    /// The cache's file is not what was written.
    Damaged,
    /// The nth layer of the file, from 0, does not fit what is below it.
    Layer(usize, LayerError),
}

/// Makes the changes that a cached layer kept, whose data file has `data_bytes`.
pub(crate) fn replay(
    mut changes: changes::Reader,
    data_bytes: u64,
    tree: &mut Tree,
    progress: &mut dyn Progress,
) -> Result<(), ReplayError> {
    if changes.data_bytes != data_bytes {
        return Err(ReplayError::Damaged);
    }
    let mut begun = 0_usize;
    while let Some(change) = changes.next().map_err(|_damage| ReplayError::Damaged)? {
        if change == Change::Layer {
            begun += 1;
        }
        let nth = begun.saturating_sub(1);
        if progress.cancelled() {
            return Err(ReplayError::Layer(nth, LayerError::Cancelled));
        }
        layer::make(change, tree).map_err(|error| ReplayError::Layer(nth, error))?;
    }
    Ok(())
}
