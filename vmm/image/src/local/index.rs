//! The `index.json` of the local store as data: names and what they lead to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::descriptor::Descriptor;
use crate::digest::{Digest, DigestError};
use crate::name::ImageName;

/// The annotation that holds an image's name, in its canonical form.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The images of the store. What it does not know is kept as it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StoreIndex {
    pub(crate) schema_version: u64,
    #[serde(default)]
    pub(crate) manifests: Vec<IndexEntry>,
    #[serde(flatten)]
    other: Map<String, Value>,
}

/// A descriptor of the index.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct IndexEntry {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    #[serde(flatten)]
    other: Map<String, Value>,
}

impl Default for StoreIndex {
    fn default() -> Self {
        let media_type = "application/vnd.oci.image.index.v1+json";
        let other = Map::from_iter([("mediaType".to_owned(), Value::from(media_type))]);
        Self { schema_version: 2, manifests: Vec::new(), other }
    }
}

impl IndexEntry {
    fn new(name: Option<&ImageName>, descriptor: &Descriptor) -> Self {
        let annotations = name.map(|name| (REF_NAME.to_owned(), name.canonical())).into_iter().collect();
        let Descriptor { media_type, digest, size } = descriptor;
        let (media_type, digest) = (media_type.clone(), digest.to_string());
        Self { media_type, digest, size: *size, annotations, other: Map::new() }
    }

    /// What it points to.
    ///
    /// # Errors
    /// Its digest is none: such a word never reaches a path.
    pub(crate) fn descriptor(&self) -> Result<Descriptor, DigestError> {
        let (media_type, size) = (self.media_type.clone(), self.size);
        Ok(Descriptor { media_type, digest: self.digest.parse()?, size })
    }

    fn canonical_name(&self) -> Option<&str> {
        self.annotations.get(REF_NAME).map(String::as_str)
    }

    /// Its name, if it has one that is valid.
    pub(crate) fn name(&self) -> Option<ImageName> {
        self.canonical_name()?.parse().ok()
    }

    fn is_for(&self, descriptor: &Descriptor) -> bool {
        self.digest == descriptor.digest.to_string()
    }
}

impl StoreIndex {
    /// The entry that `name` means: with a digest any of its repository that has it, else the one
    /// with this tag.
    pub(crate) fn find(&self, name: &ImageName) -> Option<&IndexEntry> {
        let canonical = name.canonical();
        let exact = self.manifests.iter().find(|entry| entry.canonical_name() == Some(&canonical));
        let Some(digest) = name.digest() else { return exact };
        let digest = digest.to_string();
        let repository = name.repository();
        let same = |entry: &&IndexEntry| {
            entry.digest == digest && entry.name().is_some_and(|name| name.repository() == repository)
        };
        exact.filter(|entry| entry.digest == digest).or_else(|| self.manifests.iter().find(same))
    }

    /// Lets `name` mean the image that `descriptor` points to, or adds that image without a name.
    /// An image that loses its last name stays without one, until it is pruned.
    pub(crate) fn set(&mut self, name: Option<&ImageName>, descriptor: &Descriptor) {
        if let Some(name) = name {
            self.unname(&name.canonical());
            // It has a name now.
            self.manifests.retain(|entry| !entry.is_for(descriptor) || entry.canonical_name().is_some());
        } else if self.manifests.iter().any(|entry| entry.is_for(descriptor)) {
            return;
        }
        self.manifests.push(IndexEntry::new(name, descriptor));
    }

    /// Removes the entry of this name, or with `None` all of this image. Returns their names.
    pub(crate) fn remove(&mut self, canonical: Option<&str>, digest: &Digest) -> Vec<ImageName> {
        let word = digest.to_string();
        let goes = |entry: &IndexEntry| match canonical {
            Some(name) => entry.canonical_name() == Some(name),
            None => entry.digest == word,
        };
        let (gone, kept) = std::mem::take(&mut self.manifests).into_iter().partition(goes);
        self.manifests = kept;
        let gone: Vec<IndexEntry> = gone;
        gone.iter().filter_map(IndexEntry::name).collect()
    }

    /// Whether an entry leads to this image.
    pub(crate) fn has(&self, digest: &Digest) -> bool {
        let word = digest.to_string();
        self.manifests.iter().any(|entry| entry.digest == word)
    }

    fn unname(&mut self, canonical: &str) {
        let Some(at) = self.manifests.iter().position(|entry| entry.canonical_name() == Some(canonical))
        else {
            return;
        };
        let mut entry = self.manifests.remove(at);
        if !self.manifests.iter().any(|other| other.digest == entry.digest) {
            entry.annotations.remove(REF_NAME);
            self.manifests.insert(at, entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(text: &str) -> Descriptor {
        let media_type = "application/vnd.oci.image.manifest.v1+json".to_owned();
        Descriptor { media_type, digest: Digest::sha256(text.as_bytes()), size: 3 }
    }

    fn name(word: &str) -> ImageName {
        word.parse().unwrap()
    }

    /// Names and digests in order.
    fn shown(index: &StoreIndex) -> Vec<(Option<String>, Digest)> {
        let entry = |entry: &IndexEntry| {
            (entry.name().map(|name| name.familiar()), entry.descriptor().unwrap().digest)
        };
        index.manifests.iter().map(entry).collect()
    }

    #[test]
    fn a_name_moves_and_what_it_meant_stays_without_one() {
        let (one, two) = (descriptor("one"), descriptor("two"));
        let mut index = StoreIndex::default();
        index.set(Some(&name("a")), &one);
        index.set(Some(&name("a")), &one);
        index.set(Some(&name("b:1")), &one);
        let named = |word: &str, to: &Descriptor| (Some(word.to_owned()), to.digest);
        assert_eq!(shown(&index), [named("a:latest", &one), named("b:1", &one)]);
        index.set(Some(&name("a")), &two);
        assert_eq!(shown(&index), [named("b:1", &one), named("a:latest", &two)]);
        index.set(Some(&name("b:1")), &two);
        assert_eq!(shown(&index), [(None, one.digest), named("a:latest", &two), named("b:1", &two)]);
        index.set(None, &one);
        index.set(None, &two);
        assert_eq!(shown(&index).len(), 3);
        index.set(Some(&name("c")), &one);
        assert_eq!(shown(&index), [named("a:latest", &two), named("b:1", &two), named("c:latest", &one)]);
    }

    #[test]
    fn a_digest_is_found_under_any_tag_of_its_repository() {
        let (one, two) = (descriptor("one"), descriptor("two"));
        let mut index = StoreIndex::default();
        index.set(Some(&name("a:1")), &one);
        index.set(Some(&name("b").with_digest(two.digest)), &two);
        let found = |word: String| index.find(&name(&word)).map(|entry| entry.descriptor().unwrap().digest);
        assert_eq!(found("a:1".into()), Some(one.digest));
        assert_eq!(found("docker.io/library/a:1".into()), Some(one.digest));
        assert_eq!(found(format!("a@{}", one.digest)), Some(one.digest));
        assert_eq!(found(format!("a:2@{}", one.digest)), Some(one.digest));
        assert_eq!(found(format!("b@{}", two.digest)), Some(two.digest));
        for word in ["a".to_owned(), "b".into(), format!("b@{}", one.digest), format!("c@{}", two.digest)] {
            assert_eq!(found(word.clone()), None, "{word}");
        }
    }

    #[test]
    fn what_others_wrote_into_it_is_kept() {
        let text = r#"{"schemaVersion":2,"manifests":[{"mediaType":"m","digest":"sha256:00","size":1,"platform":{"os":"linux"},"annotations":{"a":"b"}}],"annotations":{"x":"y"}}"#;
        let mut index: StoreIndex = serde_json::from_str(text).unwrap();
        assert!(index.manifests[0].descriptor().is_err() && index.manifests[0].name().is_none());
        let same: Value = serde_json::to_value(&index).unwrap();
        assert_eq!(same, serde_json::from_str::<Value>(text).unwrap());
        index.set(Some(&name("a")), &descriptor("one"));
        assert_eq!(serde_json::to_value(&index.manifests[0]).unwrap(), same["manifests"][0]);
    }
}
