//! A maker of OCI layouts, and the way from layers to a tree.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use nelly_image::{
    Descriptor, Digest, Image, ImageError, Limits, LocalStore, Reference, Silent, Store, StoreOptions,
};

use super::erofs::{ErofsReader, Item};

/// The host's architecture as images name it.
pub static ARCH: LazyLock<&str> = LazyLock::new(|| match std::env::consts::ARCH {
    "aarch64" => "arm64",
    _ => "amd64",
});

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pack {
    Plain,
    Gzip,
    Zstd,
}

pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// An OCI layout in the making.
pub struct Layout {
    pub dir: PathBuf,
}

impl Layout {
    pub fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self { dir: dir.to_owned() }
    }

    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    pub fn blob(&self, data: &[u8]) -> Digest {
        let digest = Digest::sha256(data);
        fs::write(self.blob_path(&digest), data).unwrap();
        digest
    }

    pub fn descriptor(&self, media_type: &str, data: &[u8], more: &str) -> String {
        let digest = self.blob(data);
        format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{}{more}}}"#, data.len())
    }

    pub fn config(diff_ids: &[Digest], config: &str) -> String {
        let ids: Vec<String> = diff_ids.iter().map(|id| format!("\"{id}\"")).collect();
        let arch = *ARCH;
        format!(
            r#"{{"architecture":"{arch}","os":"linux","config":{config},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
            ids.join(",")
        )
    }

    /// A manifest over plain layers, as text.
    pub fn manifest(&self, layers: &[(Vec<u8>, Pack)], config: &str) -> String {
        let mut ids = Vec::new();
        let mut descriptors = Vec::new();
        for (tar, pack) in layers {
            ids.push(Digest::sha256(tar));
            let (suffix, data) = match pack {
                Pack::Plain => ("", tar.clone()),
                Pack::Gzip => ("+gzip", gzip(tar)),
                Pack::Zstd => ("+zstd", zstd::encode_all(&tar[..], 1).unwrap()),
            };
            let media_type = format!("application/vnd.oci.image.layer.v1.tar{suffix}");
            descriptors.push(self.descriptor(&media_type, &data, ""));
        }
        let config = Self::config(&ids, config);
        let config = self.descriptor("application/vnd.oci.image.config.v1+json", config.as_bytes(), "");
        format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{}]}}"#, descriptors.join(","))
    }

    pub fn index(&self, manifests: &[String]) {
        let text = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, manifests.join(","));
        fs::write(self.dir.join("index.json"), text).unwrap();
    }

    /// A layout with one image.
    pub fn with(dir: &Path, layers: &[(Vec<u8>, Pack)], config: &str) -> Self {
        let layout = Self::new(dir);
        let manifest = layout.manifest(layers, config);
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let more = r#","annotations":{"org.opencontainers.image.ref.name":"latest"}"#;
        layout.index(&[layout.descriptor(media_type, manifest.as_bytes(), more)]);
        layout
    }

    pub fn reference(&self) -> Reference {
        Reference::OciLayout { dir: self.dir.clone(), tag: None }
    }
}

/// A temporary folder with a cache in it.
pub struct TestDir {
    pub dir: tempfile::TempDir,
    pub limits: Limits,
}

impl Default for TestDir {
    fn default() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), limits: Limits::default() }
    }
}

impl TestDir {
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn cache(&self) -> PathBuf {
        self.path("cache")
    }

    pub fn local(&self) -> PathBuf {
        self.path("data/images")
    }

    /// Adds the image of a layout, as a pull does; its name's descriptor.
    pub fn add(&self, layout: &Layout, name: &str) -> Descriptor {
        let adding = LocalStore::open(self.local()).unwrap().add().unwrap();
        for entry in fs::read_dir(layout.dir.join("blobs/sha256")).unwrap() {
            let bytes = fs::read(entry.unwrap().path()).unwrap();
            adding.put_blob(&Digest::sha256(&bytes), &bytes).unwrap();
        }
        let index = fs::read(layout.dir.join("index.json")).unwrap();
        let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
        let first = &index["manifests"][0];
        let descriptor = Descriptor {
            media_type: first["mediaType"].as_str().unwrap().to_owned(),
            digest: first["digest"].as_str().unwrap().parse().unwrap(),
            size: first["size"].as_u64().unwrap(),
        };
        adding.set_name(Some(&name.parse().unwrap()), &descriptor).unwrap();
        descriptor
    }

    pub fn store(&self) -> Store {
        let mut options = StoreOptions::new(self.cache());
        options.limits = self.limits;
        options.local_dir = Some(self.local());
        Store::open(options).unwrap()
    }

    pub fn resolve(&self, reference: &Reference) -> Result<Image, ImageError> {
        self.store().resolve(reference, &mut Silent)
    }

    pub fn layout(&self, layers: &[Vec<u8>]) -> Layout {
        let layers: Vec<(Vec<u8>, Pack)> = layers.iter().map(|tar| (tar.clone(), Pack::Plain)).collect();
        Layout::with(&self.path("layout"), &layers, "{}")
    }

    /// Files below the cache directory that are neither directories, nor the version file, nor say
    /// what was verified, nor are the two of a whole layer.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut todo = vec![self.cache()];
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(dir).into_iter().flatten() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_dir() {
                    todo.push(entry.path());
                    continue;
                }
                let path = entry.path();
                let parent = path.parent().unwrap();
                let whole_layer =
                    ["data", "changes"].iter().all(|suffix| path.with_extension(suffix).exists());
                if entry.file_name() != "version"
                    && !parent.ends_with("verified")
                    && !(parent.ends_with("layers") && whole_layer)
                {
                    found.push(path);
                }
            }
        }
        found
    }
}

/// All files of an image's disk, one after the other, as a machine sees them.
pub struct Whole(pub tempfile::NamedTempFile);

impl Whole {
    pub fn of(image: &Image) -> Self {
        let mut whole = tempfile::NamedTempFile::new().unwrap();
        for file in &image.disk {
            // From its beginning, whoever read it before.
            std::io::copy(&mut fs::File::open(fd_path(file)).unwrap(), &mut whole).unwrap();
        }
        assert_eq!(whole.as_file().metadata().unwrap().len(), image.disk_bytes);
        Self(whole)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn bytes(&self) -> Vec<u8> {
        fs::read(self.path()).unwrap()
    }

    pub fn reader(&self) -> ErofsReader {
        ErofsReader::new(fs::File::open(self.path()).unwrap())
    }
}

fn fd_path(file: &fs::File) -> String {
    format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file))
}

/// What is in an image.
pub fn contents_of(image: &Image) -> BTreeMap<Vec<u8>, Item> {
    Whole::of(image).reader().tree()
}

/// The tree that the layers make; erofs-utils must agree that the image is sound.
pub fn tree_of(layers: &[Vec<u8>]) -> BTreeMap<Vec<u8>, Item> {
    let place = TestDir::default();
    let image = place.resolve(&place.layout(layers).reference()).unwrap();
    let whole = Whole::of(&image);
    super::fsck(whole.path());
    whole.reader().tree()
}

/// What the layers are refused with: the whole chain of messages. Nothing may stay in the cache.
pub fn refusal_of(layers: &[Vec<u8>]) -> String {
    refusal(&TestDir::default(), layers)
}

pub fn refusal(place: &TestDir, layers: &[Vec<u8>]) -> String {
    let error = place.resolve(&place.layout(layers).reference()).unwrap_err();
    assert_eq!(place.leftovers(), [] as [PathBuf; 0]);
    chain(&error)
}

pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text += &format!(": {error}");
        next = error.source();
    }
    text
}
