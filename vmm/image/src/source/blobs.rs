//! All blobs of an image, for copying it.

use std::collections::HashSet;

use super::manifest::{self, DocumentKind, Index, Manifest};
use super::{ImageFiles, SourceError, blob_path, read_verified};
use crate::blob::Blob;
use crate::descriptor::Descriptor;
use crate::limits::Limits;

/// The manifests of an index that an image has at most.
const MANIFESTS_MAX: usize = 1000;

/// The blobs of the image that `descriptor` points to: first what is pointed to, then what points.
/// Manifests of other platforms may be absent from `files`; of those that are there all is needed.
pub(crate) fn image_blobs(
    files: &dyn ImageFiles,
    descriptor: &Descriptor,
    limits: &Limits,
) -> Result<Vec<Descriptor>, SourceError> {
    let mut seen = HashSet::new();
    let mut blobs = Vec::new();
    let mut todo = vec![descriptor.clone()];
    while let Some(descriptor) = todo.pop() {
        if !seen.insert(descriptor.digest) {
            continue;
        }
        if seen.len() > MANIFESTS_MAX {
            let found = "more manifests".to_owned();
            let (name, limit) = ("the index".to_owned(), MANIFESTS_MAX.to_string());
            return Err(SourceError::TooLarge { name, found, limit });
        }
        let data = read_verified(files, &descriptor, limits)?;
        let path = blob_path(&descriptor.digest);
        match manifest::target(&descriptor.media_type)? {
            DocumentKind::Index => {
                let index: Index = manifest::parse(&data, &path)?;
                for child in &index.manifests {
                    let child = child.checked()?;
                    match files.size(&blob_path(&child.digest)) {
                        Ok(_) => todo.push(child),
                        Err(SourceError::Missing { .. }) => {}
                        Err(error) => return Err(error),
                    }
                }
            }
            DocumentKind::Manifest => {
                let manifest: Manifest = manifest::parse(&data, &path)?;
                if manifest.layers.len() > limits.layers {
                    return Err(SourceError::too_many_layers(manifest.layers.len(), limits.layers));
                }
                blobs.push(manifest.config.checked()?);
                for layer in &manifest.layers {
                    let foreign = manifest::foreign(&layer.media_type);
                    let layer = layer.checked()?;
                    if let Err(SourceError::Missing { name, .. }) = files.size(&blob_path(&layer.digest)) {
                        return Err(SourceError::Missing { name, foreign });
                    }
                    blobs.push(layer);
                }
            }
        }
        blobs.push(descriptor);
    }
    let mut once = HashSet::new();
    blobs.retain(|blob| once.insert(blob.digest));
    Ok(blobs)
}

/// Opens the blob that `descriptor` points to, which has its size.
pub(crate) fn open_blob(files: &dyn ImageFiles, descriptor: &Descriptor) -> Result<Blob, SourceError> {
    let path = blob_path(&descriptor.digest);
    let blob = files.open(&path)?;
    if blob.size() == descriptor.size {
        return Ok(blob);
    }
    Err(SourceError::wrong_size(&path, descriptor.size, blob.size()))
}
