//! Indexes and manifests as a registry gives them: what they lead to, and what is to be fetched.

use super::SourceError;
use super::manifest::{self, DocumentKind, Index, Manifest, host_architecture};
use crate::descriptor::Descriptor;
use crate::limits::Limits;
use crate::num::to_u64;

/// An index or a manifest that was read and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Document {
    /// An index; the manifest or further index in it for the platform.
    Index(Descriptor),
    /// The manifest of an image: what it consists of.
    Image {
        /// The configuration.
        config: Descriptor,
        /// The layers, the lowest first; none of them is foreign.
        layers: Vec<Descriptor>,
    },
}

impl Document {
    /// Reads the bytes of an index or a manifest of this media type. `architecture` is that of the
    /// platform as images name it (`amd64`); `None` is the host's.
    ///
    /// # Errors
    /// [`SourceError`]: it is no valid index or manifest, has nothing for the platform, has a layer
    /// whose data is not in registries, or exceeds a limit.
    pub fn read(
        media_type: &str,
        bytes: &[u8],
        architecture: Option<&str>,
        limits: &Limits,
    ) -> Result<Self, SourceError> {
        if to_u64(bytes.len()) > limits.json_bytes {
            let found = to_u64(bytes.len());
            return Err(super::json_too_large("the manifest".to_owned(), found, limits.json_bytes));
        }
        if manifest::target(media_type)? == DocumentKind::Index {
            let index: Index = manifest::parse(bytes, "the index")?;
            return Ok(Self::Index(
                index.pick(None, architecture.unwrap_or(host_architecture()))?.checked()?,
            ));
        }
        let manifest: Manifest = manifest::parse(bytes, "the manifest")?;
        manifest.check(limits.layers)?;
        let config = manifest.config.checked()?;
        if config.size > limits.json_bytes {
            return Err(super::json_too_large(
                "the configuration".to_owned(),
                config.size,
                limits.json_bytes,
            ));
        }
        let mut layers = Vec::with_capacity(manifest.layers.len());
        let mut left = limits.unpacked_bytes;
        for layer in &manifest.layers {
            if let Some(media_type) = manifest::foreign(&layer.media_type) {
                let what = format!(
                    "is of the type `{media_type}`, whose data is not in registries; such images are not supported"
                );
                return Err(SourceError::unsupported(format!("the layer {}", layer.digest()?), what));
            }
            let Some(rest) = left.checked_sub(layer.size) else {
                let (found, limit) = ("more bytes".to_owned(), limits.unpacked_bytes);
                let limit = format!("{limit} (limit `unpacked_bytes`)");
                return Err(SourceError::TooLarge { name: "all layers together".to_owned(), found, limit });
            };
            left = rest;
            layers.push(layer.checked()?);
        }
        Ok(Self::Image { config, layers })
    }

    /// Checks that the bytes of a configuration are those of an image with so many layers for the
    /// platform.
    ///
    /// # Errors
    /// [`SourceError`]: they are none, or of one for another platform.
    pub fn check_config(bytes: &[u8], layers: usize, architecture: Option<&str>) -> Result<(), SourceError> {
        manifest::config(bytes, layers, architecture.unwrap_or(host_architecture())).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

    fn item(media_type: &str, text: &str, size: u64) -> String {
        let digest = Digest::sha256(text.as_bytes());
        format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{size}"#)
    }

    fn manifest(layers: &[String]) -> String {
        let config = item("application/vnd.oci.image.config.v1+json", "c", 2);
        let layers: Vec<String> = layers.iter().map(|layer| format!("{layer}}}")).collect();
        format!(r#"{{"schemaVersion":2,"config":{config}}},"layers":[{}]}}"#, layers.join(","))
    }

    fn read(media_type: &str, text: &str) -> Result<Document, SourceError> {
        Document::read(media_type, text.as_bytes(), Some("amd64"), &Limits::default())
    }

    #[test]
    fn an_index_leads_to_the_platform_s_manifest() {
        let arm = item(MANIFEST, "arm", 1) + r#","platform":{"os":"linux","architecture":"arm64"}}"#;
        let amd = item(MANIFEST, "amd", 1) + r#","platform":{"os":"linux","architecture":"amd64"}}"#;
        let attestation =
            item(MANIFEST, "x", 1) + r#","platform":{"os":"unknown","architecture":"unknown"}}"#;
        let index = |items: &[&str]| format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, items.join(","));
        let Document::Index(found) = read(INDEX, &index(&[&arm, &amd, &attestation])).unwrap() else {
            panic!()
        };
        assert_eq!(found.digest, Digest::sha256(b"amd"));
        let error = read(INDEX, &index(&[&arm, &attestation])).unwrap_err().to_string();
        assert!(error.contains("linux/amd64") && error.contains("linux/arm64"), "{error}");
        // A platform that was asked for is not called that of this host.
        let bytes = index(&[&arm, &amd]);
        let error = Document::read(INDEX, bytes.as_bytes(), Some("riscv64"), &Limits::default());
        let error = error.unwrap_err().to_string();
        let host = crate::source::host_architecture();
        for needle in ["linux/riscv64", "linux/amd64, linux/arm64", &format!("this host runs linux/{host}")] {
            assert!(error.contains(needle), "{needle}: {error}");
        }
    }

    #[test]
    fn a_manifest_says_what_is_to_be_fetched() {
        let layers = [item(LAYER, "a", 10), item(LAYER, "b", 20)];
        let Document::Image { config, layers } = read(MANIFEST, &manifest(&layers)).unwrap() else {
            panic!()
        };
        assert_eq!((config.digest, layers[1].size, layers.len()), (Digest::sha256(b"c"), 20, 2));
    }

    #[test]
    fn what_cannot_be_fetched_is_refused() {
        let foreign = item("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "a", 1);
        let huge = [item(LAYER, "a", u64::MAX), item(LAYER, "b", 1)];
        let many = vec![item(LAYER, "a", 1); 10_000];
        let other = item("application/x-thing", "a", 1);
        for (media_type, text, needle) in [
            (MANIFEST, manifest(&[foreign]), "not in registries"),
            (MANIFEST, manifest(&huge), "unpacked_bytes"),
            (MANIFEST, manifest(&many), "limit `layers`"),
            (MANIFEST, manifest(&[other]), "media type `application/x-thing`"),
            (MANIFEST, "[]".to_owned(), "not valid JSON"),
            (MANIFEST, " ".repeat((4 << 20) + 1), "limit `json_bytes`"),
            ("application/vnd.docker.distribution.manifest.v1+prettyjws", "{}".to_owned(), "v1+prettyjws"),
            ("text/html", "{}".to_owned(), "text/html"),
        ] {
            let error = read(media_type, &text).unwrap_err().to_string();
            assert!(error.contains(needle), "{needle}: {error}");
        }
    }
}
