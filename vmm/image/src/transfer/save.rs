//! Images of the local store as archives.

use std::io::{self, Read, Write};

use serde_json::{Value, json};

use super::TransferError;
use super::tarball::Tarball;
use crate::blob::{Blob, Compression, read_start};
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::layer::LayerError;
use crate::limits::Limits;
use crate::local::{LocalStore, StoredImage};
use crate::name::ImageName;
use crate::num::to_u64;
use crate::progress::{ImageStage, Progress, Watch};
use crate::source::{LayerRef, host_architecture, image_blobs, load_descriptor, open_blob};

/// The form of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveFormat {
    /// An OCI image layout in a tar file: blobs as they are in the store, with their digests.
    Oci,
    /// What `docker save` writes: layers are not compressed, and manifests are left out.
    Docker,
}

/// Asks the progress before each read.
struct Watched<'a, R> {
    reader: R,
    watch: Watch<'a>,
    done: u64,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if !self.watch.tick(self.done) {
            return Err(io::Error::other("cancelled"));
        }
        let got = self.reader.read(out)?;
        self.done += to_u64(got);
        Ok(got)
    }
}

impl LocalStore {
    /// Writes `images` as one archive to `out`.
    ///
    /// # Errors
    /// [`TransferError`]: a blob is missing or damaged, an image is for another platform (docker's
    /// format), or the archive cannot be written.
    pub fn save(
        &self,
        images: &[StoredImage],
        format: ArchiveFormat,
        out: &mut dyn Write,
        limits: &Limits,
        progress: &mut dyn Progress,
    ) -> Result<(), TransferError> {
        let tarball = Tarball::new(out);
        match format {
            ArchiveFormat::Oci => self.save_oci(images, tarball, limits, progress),
            ArchiveFormat::Docker => self.save_docker(images, tarball, limits, progress),
        }
    }

    fn save_oci(
        &self,
        images: &[StoredImage],
        mut tarball: Tarball<'_>,
        limits: &Limits,
        progress: &mut dyn Progress,
    ) -> Result<(), TransferError> {
        let (mut manifests, mut blobs) = (Vec::<Value>::new(), Vec::<Descriptor>::new());
        for image in images {
            let Descriptor { media_type, digest, size } = &image.descriptor;
            let mut entry = json!({ "mediaType": media_type, "digest": digest.to_string(), "size": size });
            if let Some(name) = image.name.as_ref().map(ImageName::canonical) {
                entry["annotations"] = json!({
                    "io.containerd.image.name": name, "org.opencontainers.image.ref.name": name,
                });
            }
            manifests.push(entry);
            blobs.extend(image_blobs(self, &image.descriptor, limits)?);
        }
        let index = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests });
        let mut written = std::collections::HashSet::new();
        tarball.bytes("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#).map_err(TransferError::Write)?;
        tarball.bytes("index.json", index.to_string().as_bytes()).map_err(TransferError::Write)?;
        for blob in blobs {
            if written.insert(blob.digest) {
                let name = format!("blobs/{}/{}", blob.digest.algorithm(), blob.digest.hex());
                put(&mut tarball, &name, &open_blob(self, &blob)?, None, progress)?;
            }
        }
        tarball.end().map_err(TransferError::Write)
    }

    fn save_docker(
        &self,
        images: &[StoredImage],
        mut tarball: Tarball<'_>,
        limits: &Limits,
        progress: &mut dyn Progress,
    ) -> Result<(), TransferError> {
        let mut items: Vec<(Digest, Value, Vec<String>)> = Vec::new();
        let mut written = std::collections::HashSet::new();
        for image in images {
            let tag = image.name.as_ref().filter(|name| name.digest().is_none()).map(ImageName::familiar);
            let loaded = load_descriptor(self, &image.descriptor, host_architecture(), limits)?;
            if let Some((_, _, tags)) =
                items.iter_mut().find(|(config, _, _)| *config == loaded.config_digest)
            {
                tags.extend(tag);
                continue;
            }
            let config = format!("{}.json", loaded.config_digest.hex());
            if written.insert(config.clone()) {
                let bytes = self.read_blob(&loaded.config_digest, limits.json_bytes)?;
                tarball.bytes(&config, &bytes.unwrap_or_default()).map_err(TransferError::Write)?;
            }
            let mut layers = Vec::new();
            for layer in &loaded.layers {
                let name = format!("{}.tar", layer.diff_id.hex());
                if written.insert(name.clone()) {
                    let blob = layer.open(self)?.blob;
                    let size = plain_size(layer, &blob, limits, progress)?;
                    put(&mut tarball, &name, &blob, Some(size), progress)?;
                }
                layers.push(name);
            }
            items.push((
                loaded.config_digest,
                json!({ "Config": config, "Layers": layers }),
                Vec::from_iter(tag),
            ));
        }
        let items: Vec<Value> = items
            .into_iter()
            .map(|(_, mut item, tags)| {
                item["RepoTags"] = json!(tags);
                item
            })
            .collect();
        let items = Value::Array(items).to_string();
        tarball.bytes("manifest.json", items.as_bytes()).map_err(TransferError::Write)?;
        tarball.end().map_err(TransferError::Write)
    }
}

/// Verifies a layer; the number of its uncompressed bytes.
fn plain_size(
    layer: &LayerRef,
    blob: &Blob,
    limits: &Limits,
    progress: &mut dyn Progress,
) -> Result<u64, TransferError> {
    let failed = |source| match source {
        LayerError::Cancelled => TransferError::Cancelled,
        source => TransferError::Layer { digest: layer.diff_id.to_string(), source },
    };
    let mut left = limits.unpacked_bytes;
    let whole = crate::blob::LayerBlob { blob: blob.clone(), digest: layer.digest, diff_id: layer.diff_id };
    let mut watch = Watch::begin(progress, ImageStage::Copying, Some(blob.size()));
    whole
        .read(&mut left, limits.unpacked_bytes, |stream| {
            let done = stream.counter();
            crate::layer::pass(stream, &mut || watch.tick(done.get()))
        })
        .map_err(failed)?;
    watch.end();
    Ok(limits.unpacked_bytes - left)
}

/// Adds a blob to the archive, decompressed to so many bytes if `plain` says so.
fn put(
    tarball: &mut Tarball<'_>,
    name: &str,
    blob: &Blob,
    plain: Option<u64>,
    progress: &mut dyn Progress,
) -> Result<(), TransferError> {
    let watch = Watch::begin(progress, ImageStage::Copying, Some(blob.size()));
    let mut reader = Watched { reader: blob.reader(), watch, done: 0 };
    let written = match plain {
        None => tarball.file(name, blob.size(), &mut reader),
        Some(size) => read_start(&mut reader).and_then(|start| {
            let compression = Compression::of(&start).map_err(io::Error::other)?;
            let mut decoder = compression.decoder(start, &mut reader)?;
            tarball.file(name, size, &mut decoder)
        }),
    };
    written.map_err(TransferError::Write)?;
    reader.watch.end();
    Ok(())
}
