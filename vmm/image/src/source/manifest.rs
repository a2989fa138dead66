//! Indexes, manifests and configurations: the JSON between a name and its layers.

use std::collections::HashMap;

use oci_spec::image::ImageConfiguration;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::SourceError;
use crate::descriptor::Descriptor;
use crate::digest::{Digest, DigestError};

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
/// Layers: what their types begin with, how it goes on (how they are compressed is told by their
/// bytes), and whether images may leave their data out.
const LAYERS: [(&str, [&str; 3], bool); 4] = [
    ("application/vnd.oci.image.layer.v1.tar", ["", "+gzip", "+zstd"], false),
    ("application/vnd.oci.image.layer.nondistributable.v1.tar", ["", "+gzip", "+zstd"], true),
    ("application/vnd.docker.image.rootfs.diff.tar", ["", ".gzip", ".zstd"], false),
    ("application/vnd.docker.image.rootfs.foreign.diff.tar", ["", ".gzip", ".zstd"], true),
];
/// Annotation that carries an image's whole name, as containerd and docker write it.
const FULL_NAME: &str = "io.containerd.image.name";
/// Annotation that carries a tag.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// A pointer to a blob as it is written.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DescriptorJson {
    #[serde(default)]
    pub(crate) media_type: String,
    digest: String,
    pub(crate) size: u64,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
}

#[derive(Clone, Debug, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

/// An OCI index or a docker manifest list.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    schema_version: u64,
    pub(crate) manifests: Vec<DescriptorJson>,
}

/// An OCI or docker (schema 2) manifest.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    schema_version: u64,
    pub(crate) config: DescriptorJson,
    pub(crate) layers: Vec<DescriptorJson>,
}

/// What a descriptor in an index leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DocumentKind {
    Index,
    Manifest,
}

/// What a descriptor leads to if it leads to an image, by its media type.
pub(crate) fn target(media_type: &str) -> Result<DocumentKind, SourceError> {
    match media_type {
        OCI_INDEX | DOCKER_LIST => Ok(DocumentKind::Index),
        // Old layouts leave the type out.
        OCI_MANIFEST | DOCKER_MANIFEST | "" => Ok(DocumentKind::Manifest),
        other => Err(media_type_error("manifest", other)),
    }
}

/// Parses JSON; `name` says what it was for messages.
pub(crate) fn parse<T: DeserializeOwned>(data: &[u8], name: &str) -> Result<T, SourceError> {
    serde_json::from_slice(data).map_err(|source| SourceError::Json { name: name.to_owned(), source })
}

impl DescriptorJson {
    /// The digest, which also is the blob's name: nothing that is no digest may reach a path.
    pub(crate) fn digest(&self) -> Result<Digest, SourceError> {
        self.digest.parse().map_err(|error| bad_digest("a descriptor", &error))
    }

    pub(crate) fn checked(&self) -> Result<Descriptor, SourceError> {
        let (media_type, size) = (self.media_type.clone(), self.size);
        Ok(Descriptor { media_type, digest: self.digest()?, size })
    }

    /// The word that may be the image's whole name.
    pub(crate) fn full_name(&self) -> Option<&str> {
        let annotations = self.annotations.as_ref()?;
        // A tag alone names no repository.
        let whole = |name: &&String| name.contains([':', '/', '@']);
        annotations.get(FULL_NAME).or_else(|| annotations.get(REF_NAME).filter(whole)).map(String::as_str)
    }

    pub(crate) fn tag(&self) -> Option<&str> {
        self.annotations.as_ref()?.get(REF_NAME).map(String::as_str)
    }

    /// How well it fits the host: 2 exactly, 1 if it does not say, 0 not.
    fn fits(&self, architecture: &str) -> u8 {
        match &self.platform {
            None => 1,
            Some(platform) if platform.os == "linux" && platform.architecture == architecture => 2,
            Some(_) => 0,
        }
    }

    fn platform(&self) -> String {
        match &self.platform {
            Some(platform) => short(&format!("{}/{}", platform.os, platform.architecture)),
            None => "unnamed".to_owned(),
        }
    }
}

fn bad_digest(name: &str, error: &DigestError) -> SourceError {
    SourceError::corrupt(name, format!("holds a malformed digest: {error}"))
}

fn media_type_error(what: &str, found: &str) -> SourceError {
    SourceError::unsupported(
        format!("a {what}"),
        format!("has the unsupported media type `{}`", short(found)),
    )
}

fn schema_version(name: &str, found: u64) -> SourceError {
    SourceError::unsupported(name, format!("has schema version {found}; only 2 is supported"))
}

/// Whether `media_type` is that of a layer, and then whether images may leave its data out.
fn layer_kind(media_type: &str) -> Option<bool> {
    LAYERS.iter().find_map(|(base, ends, foreign)| {
        let end = media_type.strip_prefix(base)?;
        ends.contains(&end).then_some(*foreign)
    })
}

/// The media type of a layer whose data images may leave out.
pub(crate) fn foreign(media_type: &str) -> Option<String> {
    layer_kind(media_type)?.then(|| media_type.to_owned())
}

/// Words of a hostile file, cut so that they do not fill the terminal.
fn short(word: &str) -> String {
    word.chars().take(120).collect()
}

/// Words in order, separated by commas, for messages.
pub(crate) fn list(words: impl Iterator<Item = String>) -> String {
    const SHOWN: usize = 16;
    let mut words: Vec<String> = words.collect();
    words.sort();
    words.dedup();
    if words.len() > SHOWN {
        words.truncate(SHOWN);
        words.push("...".to_owned());
    }
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

/// Go's name of an architecture, as images use them.
pub(crate) fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Index {
    /// Picks the image: by `tag` if one is given, then by the host's platform.
    pub(crate) fn pick(&self, tag: Option<&str>, architecture: &str) -> Result<&DescriptorJson, SourceError> {
        if self.schema_version != 2 {
            return Err(schema_version("an index", self.schema_version));
        }
        if self.manifests.is_empty() {
            return Err(SourceError::corrupt("the index", "lists no image"));
        }
        let tags = || list(self.manifests.iter().filter_map(|m| m.tag()).map(short));
        let tagged: Vec<&DescriptorJson> = match tag {
            Some(wanted) => self.manifests.iter().filter(|m| m.tag() == Some(wanted)).collect(),
            None => self.manifests.iter().collect(),
        };
        if let Some(wanted) = tag
            && tagged.is_empty()
        {
            return Err(SourceError::NoSuchTag { wanted: short(wanted), tags: tags() });
        }
        let best = tagged.iter().map(|m| m.fits(architecture)).max().unwrap_or(0);
        let fitting: Vec<&DescriptorJson> =
            tagged.iter().copied().filter(|m| best > 0 && m.fits(architecture) == best).collect();
        match fitting[..] {
            [] => {
                let platforms = list(tagged.iter().map(|m| m.platform()));
                Err(SourceError::Platform { wanted: format!("linux/{architecture}"), platforms })
            }
            [one] => Ok(one),
            // The same image under several tags is no ambiguity.
            [first, ..] if fitting.iter().all(|m| m.digest == first.digest) => Ok(first),
            // Of a platform's variants (a tag was given, or there are none) the first is the
            // preferred one.
            [first, ..] if best == 2 && fitting.iter().all(|m| m.tag() == first.tag()) => Ok(first),
            _ => Err(SourceError::Ambiguous { tags: tags() }),
        }
    }
}

impl Manifest {
    /// Checks the parts that can be checked without the configuration.
    pub(crate) fn check(&self, most_layers: usize) -> Result<(), SourceError> {
        if self.schema_version != 2 {
            return Err(schema_version("a manifest", self.schema_version));
        }
        if !CONFIGS.contains(&self.config.media_type.as_str()) {
            return Err(media_type_error("configuration", &self.config.media_type));
        }
        if self.layers.len() > most_layers {
            return Err(SourceError::too_many_layers(self.layers.len(), most_layers));
        }
        for layer in &self.layers {
            if layer_kind(&layer.media_type).is_none() {
                return Err(media_type_error("layer", &layer.media_type));
            }
        }
        Ok(())
    }
}

/// Parses a configuration and checks that the host can run it and that it describes `layers`
/// layers; gives the digests of the uncompressed layers, too.
pub(crate) fn config(
    data: &[u8],
    layers: usize,
    architecture: &str,
) -> Result<(ImageConfiguration, Vec<Digest>), SourceError> {
    let config: ImageConfiguration = parse(data, "configuration")?;
    let (os, arch) = (config.os().to_string(), config.architecture().to_string());
    if os != "linux" || arch != architecture {
        return Err(SourceError::Platform {
            wanted: format!("linux/{architecture}"),
            platforms: short(&format!("{os}/{arch}")),
        });
    }
    let ids = config.rootfs().diff_ids();
    if ids.len() != layers {
        let why = format!("lists {} layers, but the manifest lists {layers}", ids.len());
        return Err(SourceError::corrupt("the configuration", why));
    }
    let parse_id = |id: &String| id.parse().map_err(|error| bad_digest("the configuration", &error));
    let ids = ids.iter().map(parse_id).collect::<Result<_, _>>()?;
    Ok((config, ids))
}
