//! Where images come from: layouts and archives, seen as named files, and what all of them can fail
//! with.

mod archive;
mod blobs;
mod document;
mod layout;
mod manifest;

use std::io;

use oci_spec::image::ImageConfiguration;
use thiserror::Error;

use crate::blob::{Blob, LayerBlob};
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::health::RawConfig;
use crate::limits::Limits;
use crate::num::to_u64;
use crate::tar::TarError;

pub(crate) use archive::{Archive, FILES_MAX, NAMES_MAX, SpoolError};
pub(crate) use blobs::{image_blobs, open_blob};
pub use document::Document;
pub(crate) use layout::{LayoutDir, open_regular};
pub(crate) use manifest::host_architecture;
use manifest::{DocumentKind, Index, Manifest};

/// Indexes inside indexes that are followed.
const NESTED: usize = 4;

/// Why an image's files cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SourceError {
    /// A system call on one of the image's files failed.
    #[error("cannot read {name}")]
    Io {
        /// The file.
        name: String,
        /// The system's word.
        source: io::Error,
    },
    /// Something is not the kind of file that is needed.
    #[error("{name} is not {wanted}")]
    NotA {
        /// The file.
        name: String,
        /// As in "is not a directory".
        wanted: &'static str,
    },
    /// A file that the image needs is not there.
    #[error("{name} does not exist{}", foreign.as_deref().map(foreign_note).unwrap_or_default())]
    Missing {
        /// The file.
        name: String,
        /// The media type, if it is one whose data images leave out.
        foreign: Option<String>,
    },
    /// An archive that is damaged, or no archive.
    #[error("{name} is not a usable tar archive")]
    Archive {
        /// The file.
        name: String,
        /// What is wrong with it.
        source: TarError,
    },
    /// Not the JSON that it should be.
    #[error("{name} is not valid JSON of the expected form")]
    Json {
        /// Which part of the image.
        name: String,
        /// Where and why.
        source: serde_json::Error,
    },
    /// The parts of the image do not fit together: sizes, digests, numbers of layers.
    #[error("{name} {why}")]
    Corrupt {
        /// Which part of the image.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// A form of images, or a compression, that is not supported.
    #[error("{name} {what}")]
    Unsupported {
        /// Which part of the image.
        name: String,
        /// What it is, and what is supported.
        what: String,
    },
    /// More than a limit allows; if it is one of [`Limits`], the message names it.
    #[error("{name} has {found}, over the limit of {limit}")]
    TooLarge {
        /// Which part of the image.
        name: String,
        /// How much of what.
        found: String,
        /// How much is allowed.
        limit: String,
    },
    /// The tag is not there.
    #[error("there is no tag `{wanted}`; the tags are: {tags}")]
    NoSuchTag {
        /// What was asked for.
        wanted: String,
        /// What there is, separated by commas.
        tags: String,
    },
    /// Several images and no tag to choose by.
    #[error("there are several images; choose one by its tag: {tags}")]
    Ambiguous {
        /// What there is, separated by commas.
        tags: String,
    },
    /// The image is for other platforms.
    #[error("there is no image for {wanted}, {}; the platforms are: {platforms}", beside_host(wanted))]
    Platform {
        /// The platform that was asked for; the host's if none was.
        wanted: String,
        /// What there is, separated by commas.
        platforms: String,
    },
    /// The caller gave up.
    #[error("cancelled")]
    Cancelled,
}

fn foreign_note(media_type: &str) -> String {
    format!(
        "; it is a layer of type `{media_type}`, whose data is not part of this image: \
         copy the image with its foreign layers"
    )
}

/// How a platform is related to that of this host, which runs no other.
fn beside_host(wanted: &str) -> String {
    let host = format!("linux/{}", manifest::host_architecture());
    if wanted == host {
        "the platform of this host".to_owned()
    } else {
        format!("which was asked for (this host runs {host})")
    }
}

impl SourceError {
    fn corrupt(name: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Corrupt { name: name.into(), why: why.into() }
    }

    fn unsupported(name: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Unsupported { name: name.into(), what: what.into() }
    }

    fn missing(name: impl Into<String>) -> Self {
        Self::Missing { name: name.into(), foreign: None }
    }

    fn wrong_size(name: &str, wanted: u64, found: u64) -> Self {
        let why = format!("has {found} bytes, but the image lists {wanted}: it is truncated or corrupt");
        Self::corrupt(name, why)
    }

    fn wrong_digest(name: &str, wanted: &Digest) -> Self {
        Self::corrupt(name, format!("is corrupt: its contents do not match the digest {wanted}"))
    }

    fn too_many_layers(found: usize, limit: usize) -> Self {
        let found = format!("{found} layers");
        Self::TooLarge { name: "the image".to_owned(), found, limit: format!("{limit} (limit `layers`)") }
    }
}

/// The files of an image, by name.
pub(crate) trait ImageFiles {
    /// The file at `path`, relative, with forward slashes.
    fn open(&self, path: &str) -> Result<Blob, SourceError>;

    /// Its size in bytes.
    fn size(&self, path: &str) -> Result<u64, SourceError>;
}

/// An image whose manifest and configuration were read and verified. Layers are not read yet.
#[derive(Debug)]
pub(crate) struct LoadedImage {
    pub(crate) digest: Digest,
    /// The digest of its configuration.
    pub(crate) config_digest: Digest,
    pub(crate) config: ImageConfiguration,
    /// The bytes that it was read from.
    pub(crate) raw_config: RawConfig,
    pub(crate) layers: Vec<LayerRef>,
}

/// A layer, not opened yet.
#[derive(Clone, Debug)]
pub(crate) struct LayerRef {
    pub(crate) digest: Option<Digest>,
    pub(crate) diff_id: Digest,
    /// Stored bytes; for a docker archive known when it is opened.
    pub(crate) size: u64,
    /// Name among the image's files.
    path: String,
    /// The media type, if it is one whose data images may leave out.
    foreign: Option<String>,
}

impl LayerRef {
    /// Checks that the layer is there with its size, which finds most damage before anything is
    /// read.
    pub(crate) fn check(&self, files: &dyn ImageFiles) -> Result<(), SourceError> {
        let found = match files.size(&self.path) {
            Err(SourceError::Missing { name, .. }) => {
                return Err(SourceError::Missing { name, foreign: self.foreign.clone() });
            }
            other => other?,
        };
        if found == self.size { Ok(()) } else { Err(SourceError::wrong_size(&self.path, self.size, found)) }
    }

    /// Opens the layer.
    pub(crate) fn open(&self, files: &dyn ImageFiles) -> Result<LayerBlob, SourceError> {
        self.check(files)?;
        let blob = files.open(&self.path)?;
        Ok(LayerBlob { blob, digest: self.digest, diff_id: self.diff_id })
    }
}

fn json_too_large(name: String, size: u64, limit: u64) -> SourceError {
    let limit = format!("{limit} (limit `json_bytes`)");
    SourceError::TooLarge { name, found: format!("{size} bytes"), limit }
}

pub(crate) fn read_json(files: &dyn ImageFiles, path: &str, limits: &Limits) -> Result<Vec<u8>, SourceError> {
    let blob = files.open(path)?;
    let (size, limit) = (blob.size(), limits.json_bytes);
    if size > limit {
        return Err(json_too_large(blob.name, size, limit));
    }
    match blob.read_all() {
        Ok(data) if data.is_empty() => Err(SourceError::corrupt(blob.name, "is empty")),
        Ok(data) => Ok(data),
        Err(source) => Err(SourceError::Io { name: blob.name, source }),
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

/// Reads the JSON blob that `descriptor` points to and verifies it.
fn read_verified(
    files: &dyn ImageFiles,
    descriptor: &Descriptor,
    limits: &Limits,
) -> Result<Vec<u8>, SourceError> {
    let digest = &descriptor.digest;
    let path = blob_path(digest);
    let data = read_json(files, &path, limits)?;
    let found = to_u64(data.len());
    if found != descriptor.size {
        return Err(SourceError::wrong_size(&path, descriptor.size, found));
    }
    if !digest.matches(&data) {
        return Err(SourceError::wrong_digest(&path, digest));
    }
    Ok(data)
}

/// Checks the version of a layout.
fn check_marker(files: &dyn ImageFiles, limits: &Limits) -> Result<(), SourceError> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Marker {
        image_layout_version: String,
    }
    let marker: Marker = manifest::parse(&read_json(files, "oci-layout", limits)?, "oci-layout")?;
    if marker.image_layout_version != "1.0.0" {
        let version: String = marker.image_layout_version.chars().take(40).collect();
        let what = format!("has the layout version `{version}`; only 1.0.0 is supported");
        return Err(SourceError::unsupported("oci-layout", what));
    }
    Ok(())
}

fn read_index(files: &dyn ImageFiles, limits: &Limits) -> Result<Index, SourceError> {
    manifest::parse(&read_json(files, "index.json", limits)?, "index.json")
}

/// The images of a layout, each with the word that may be its name.
pub(crate) fn layout_images(
    files: &dyn ImageFiles,
    limits: &Limits,
) -> Result<Vec<(Descriptor, Option<String>)>, SourceError> {
    check_marker(files, limits)?;
    let index = read_index(files, limits)?;
    index.manifests.iter().map(|one| Ok((one.checked()?, one.full_name().map(str::to_owned)))).collect()
}

/// Reads an OCI layout: `oci-layout`, `index.json`, and from there to the configuration.
pub(crate) fn load_layout(
    files: &dyn ImageFiles,
    tag: Option<&str>,
    architecture: &str,
    limits: &Limits,
) -> Result<LoadedImage, SourceError> {
    check_marker(files, limits)?;
    let index = read_index(files, limits)?;
    load_descriptor(files, &index.pick(tag, architecture)?.checked()?, architecture, limits)
}

/// Reads the image that `descriptor` points to: from its index or manifest to its configuration.
pub(crate) fn load_descriptor(
    files: &dyn ImageFiles,
    descriptor: &Descriptor,
    architecture: &str,
    limits: &Limits,
) -> Result<LoadedImage, SourceError> {
    let mut descriptor = descriptor.clone();
    for _ in 0..NESTED {
        let target = manifest::target(&descriptor.media_type)?;
        let data = read_verified(files, &descriptor, limits)?;
        if target == DocumentKind::Manifest {
            return load_manifest(files, descriptor.digest, &data, architecture, limits);
        }
        let index: Index = manifest::parse(&data, &blob_path(&descriptor.digest))?;
        descriptor = index.pick(None, architecture)?.checked()?;
    }
    let found = format!("indexes nested more than {NESTED} deep");
    Err(SourceError::TooLarge { name: "index.json".to_owned(), found, limit: NESTED.to_string() })
}

/// A configuration alone, and the digests of its uncompressed layers.
pub(crate) fn load_config(raw: &[u8]) -> Result<(ImageConfiguration, Vec<Digest>), SourceError> {
    let config: ImageConfiguration = manifest::parse(raw, "configuration")?;
    manifest::config(raw, config.rootfs().diff_ids().len(), host_architecture())
}

fn load_manifest(
    files: &dyn ImageFiles,
    digest: Digest,
    data: &[u8],
    architecture: &str,
    limits: &Limits,
) -> Result<LoadedImage, SourceError> {
    let manifest: Manifest = manifest::parse(data, &blob_path(&digest))?;
    manifest.check(limits.layers)?;
    let config = manifest.config.checked()?;
    let config_digest = config.digest;
    let raw = read_verified(files, &config, limits)?;
    let (config, diff_ids) = manifest::config(&raw, manifest.layers.len(), architecture)?;
    let mut layers = Vec::with_capacity(diff_ids.len());
    for (layer, diff_id) in manifest.layers.iter().zip(diff_ids) {
        let digest = layer.digest()?;
        let foreign = manifest::foreign(&layer.media_type);
        let path = blob_path(&digest);
        layers.push(LayerRef { digest: Some(digest), diff_id, size: layer.size, path, foreign });
    }
    Ok(LoadedImage { digest, config_digest, config, raw_config: RawConfig::new(raw), layers })
}

/// Reads what `docker save` wrote: `manifest.json`, and from there to the configuration.
pub(crate) fn load_docker(
    files: &dyn ImageFiles,
    tag: Option<&str>,
    architecture: &str,
    limits: &Limits,
) -> Result<LoadedImage, SourceError> {
    let items = docker_items(files, limits)?;
    let tags_of = |item: &DockerItem| item.tags();
    let all_tags = || manifest::list(items.iter().flat_map(tags_of));
    // `app:1.2` is meant by itself, by `1.2`, and `app:latest` by `app`. Archives carry the whole
    // name, people write the familiar one: `docker.io/library/app:1` is `app:1`.
    let familiar = |name: &str| {
        let name = name.strip_prefix("docker.io/").unwrap_or(name);
        name.strip_prefix("library/").unwrap_or(name).to_owned()
    };
    let means = |tag: &str, wanted: &str| {
        let (tag, wanted) = (familiar(tag), familiar(wanted));
        tag == wanted
            || tag.strip_suffix(":latest") == Some(&wanted)
            || tag.rsplit(':').next() == Some(&wanted)
    };
    let meant =
        |item: &&DockerItem| tag.is_none_or(|wanted| tags_of(item).iter().any(|tag| means(tag, wanted)));
    let found: Vec<&DockerItem> = items.iter().filter(meant).collect();
    let item = match (&found[..], tag) {
        ([one], _) => *one,
        ([], wanted) => {
            let wanted = wanted.unwrap_or_default().to_owned();
            return Err(SourceError::NoSuchTag { wanted, tags: all_tags() });
        }
        _ => return Err(SourceError::Ambiguous { tags: all_tags() }),
    };
    Ok(load_docker_item(files, item, architecture, limits)?.0)
}

/// An image of a docker archive.
#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct DockerItem {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl DockerItem {
    /// Its names.
    pub(crate) fn tags(&self) -> Vec<String> {
        self.repo_tags.clone().unwrap_or_default()
    }
}

/// The images of a docker archive, at least one.
pub(crate) fn docker_items(files: &dyn ImageFiles, limits: &Limits) -> Result<Vec<DockerItem>, SourceError> {
    let items: Vec<DockerItem> =
        manifest::parse(&read_json(files, "manifest.json", limits)?, "manifest.json")?;
    if items.is_empty() {
        return Err(SourceError::corrupt("manifest.json", "lists no image"));
    }
    Ok(items)
}

/// Reads an image of a docker archive, and the bytes of its configuration.
pub(crate) fn load_docker_item(
    files: &dyn ImageFiles,
    item: &DockerItem,
    architecture: &str,
    limits: &Limits,
) -> Result<(LoadedImage, Vec<u8>), SourceError> {
    let data = read_json(files, &item.config, limits)?;
    let digest = Digest::sha256(&data);
    // The configuration's name is its digest, in both the old and the new form of these archives.
    let name = item.config.rsplit('/').next().unwrap_or_default();
    let stem = name.strip_suffix(".json").unwrap_or(name);
    if let Ok(wanted) = format!("sha256:{stem}").parse::<Digest>()
        && wanted != digest
    {
        return Err(SourceError::wrong_digest(&item.config, &wanted));
    }
    let paths = item.layers.clone().unwrap_or_default();
    if paths.len() > limits.layers {
        return Err(SourceError::too_many_layers(paths.len(), limits.layers));
    }
    let (config, diff_ids) = manifest::config(&data, paths.len(), architecture)?;
    let mut layers = Vec::with_capacity(paths.len());
    for (path, diff_id) in paths.into_iter().zip(diff_ids) {
        let size = files.size(&path)?;
        layers.push(LayerRef { digest: None, diff_id, size, path, foreign: None });
    }
    let raw_config = RawConfig::new(data.clone());
    Ok((LoadedImage { digest, config_digest: digest, config, raw_config, layers }, data))
}
