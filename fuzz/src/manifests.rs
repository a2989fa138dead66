//! Indexes, manifests and configurations of images: JSON of a registry, of a layout, or of an
//! archive that `docker save` wrote. The parts of the input name each other by their digests,
//! whatever they hold.

use std::path::Path;

use nelly_image::{Digest, Document, Limits, Reference, Store, StoreOptions};

use super::place::Place;
use super::tarball::entry;
use super::{spelt, text};

/// Stand for digest and size of the configuration, of the manifest and of the layer.
const OWN: [(&str, &str); 3] = [("{C}", "{c}"), ("{M}", "{m}"), ("{L}", "{l}")];

const WORDS: &[&str] = &[
    "{C}",
    "{c}",
    "{M}",
    "{m}",
    "{L}",
    "{l}",
    "\"schemaVersion\":2",
    "\"mediaType\":\"",
    "\"manifests\":[",
    "\"digest\":\"",
    "\"size\":",
    "\"platform\":{",
    "\"architecture\":\"",
    "\"os\":\"linux\"",
    "amd64",
    "arm64",
    "\"variant\":\"v8\"",
    "\"annotations\":{",
    "\"org.opencontainers.image.ref.name\":\"",
    "\"io.containerd.image.name\":\"",
    "latest",
    "application/vnd.oci.image.index.v1+json\"",
    "application/vnd.oci.image.manifest.v1+json\"",
    "application/vnd.docker.distribution.manifest.list.v2+json\"",
    "application/vnd.docker.distribution.manifest.v2+json\"",
    "application/vnd.oci.image.config.v1+json\"",
    "application/vnd.docker.container.image.v1+json\"",
    "application/vnd.oci.image.layer.v1.tar\"",
    "application/vnd.oci.image.layer.v1.tar+gzip\"",
    "application/vnd.docker.image.rootfs.diff.tar.gzip\"",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip\"",
    "\"config\":{",
    "\"layers\":[",
    "\"rootfs\":{",
    "\"type\":\"layers\"",
    "\"diff_ids\":[\"",
    "\"history\":[",
    "\"Config\":\"",
    "\"RepoTags\":[",
    "\"Layers\":[\"",
    "\"Env\":[",
    "\"Cmd\":[",
    "\"Entrypoint\":[",
    "\"User\":\"",
    "\"WorkingDir\":\"",
    "\"ExposedPorts\":{",
    "\"Volumes\":{",
    "\"Labels\":{",
    "\"StopSignal\":\"",
    "\"Healthcheck\":{",
    "\"Test\":[",
    "\"Interval\":",
    "null",
    "sha256:",
    "sha512:",
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "{",
    "}",
    "[",
    "]",
    "\"",
    ",",
    ":",
    "18446744073709551615",
    "-1",
    "../",
    "blobs/sha256/",
    ".json",
    "layer.tar",
    "\\u0000",
    "\\n",
    "\"empty_layer\":true",
    "\"created\":\"2020-01-01T00:00:00Z\"",
    "\"urls\":[",
    "library/alpine:",
    "\"CMD\"",
];

/// The first byte chooses where the documents are; behind it come configuration, manifest and
/// index, with the byte 255 between them.
///
/// # Panics
/// When what was accepted is not what was checked.
pub fn run(data: &[u8]) {
    let _ = accepts(data);
}

/// As [`run`]; whether an image was found.
///
/// # Panics
/// As [`run`].
#[must_use]
pub fn accepts(data: &[u8]) -> bool {
    let Some((choice, rest)) = data.split_first() else { return false };
    let mut parts = rest[..rest.len().min(16 << 10)].splitn(3, |byte| *byte == 255);
    let mut part = || text(parts.next().unwrap_or_default(), WORDS);
    let (config, manifest, index) = (part(), part(), part());
    // An empty tar.
    let layer = vec![0; 1024];
    let config = named(&config, &[None, None, Some(&layer)]).into_bytes();
    // A file of an archive is named by the digits of its digest.
    let manifest = manifest.replace("{H}", &Digest::sha256(&config).hex());
    let manifest = named(&manifest, &[Some(&config), None, Some(&layer)]).into_bytes();
    let index = named(&index, &[Some(&config), Some(&manifest), Some(&layer)]).into_bytes();
    match choice % 4 {
        0 => documents(&config, &manifest, &index),
        1 | 2 => layout(&[&config, &manifest, &layer], &index),
        _ => archive(&config, &manifest, &layer),
    }
}

/// Puts digests and sizes where they are asked for.
fn named(text: &str, parts: &[Option<&Vec<u8>>; 3]) -> String {
    let mut text = text.to_owned();
    for ((digest, size), part) in OWN.iter().zip(parts) {
        let Some(part) = part else { continue };
        text = text.replace(digest, &Digest::sha256(part).to_string()).replace(size, &part.len().to_string());
        // Each naming makes it longer.
        if text.len() > 1 << 17 {
            return String::new();
        }
    }
    text
}

/// As a registry gives them.
fn documents(config: &[u8], manifest: &[u8], index: &[u8]) -> bool {
    let limits = Limits { layers: 4, unpacked_bytes: 1 << 30, ..Limits::default() };
    let read = |kind, bytes| Document::read(kind, bytes, Some("amd64"), &limits);
    let found = read("application/vnd.oci.image.index.v1+json", index);
    if let Ok(found) = &found {
        assert!(matches!(found, Document::Index(_)), "{found:?}");
    }
    let image = read("application/vnd.oci.image.manifest.v1+json", manifest);
    let mut count = 0;
    if let Ok(Document::Image { config, layers }) = &image {
        count = layers.len();
        let all = layers.iter().try_fold(0_u64, |sum, layer| sum.checked_add(layer.size));
        assert!(count <= 4 && all.is_some_and(|all| all <= 1 << 30) && config.size <= limits.json_bytes);
    }
    let config = Document::check_config(config, count, Some("amd64"));
    found.is_ok() & image.is_ok() & config.is_ok()
}

fn plan(place: &Place, reference: &Reference) -> bool {
    let store = Store::open(StoreOptions::new(place.tree().join("cache"))).expect("a store");
    let Ok(plan) = store.plan(reference) else { return false };
    assert!(!plan.cached && plan.layers.len() <= Limits::default().layers);
    assert_eq!(plan.config.rootfs().diff_ids().len(), plan.layers.len());
    true
}

fn layout(blobs: &[&[u8]], index: &[u8]) -> bool {
    let place = Place::new("manifests");
    let dir = place.tree();
    let write = |path: &Path, bytes: &[u8]| std::fs::write(path, bytes).expect("there is room");
    std::fs::create_dir_all(dir.join("blobs/sha256")).expect("there is room");
    write(&dir.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#);
    write(&dir.join("index.json"), index);
    for blob in blobs {
        write(&dir.join("blobs/sha256").join(Digest::sha256(blob).hex()), blob);
    }
    let tag = |tag: Option<&str>| Reference::OciLayout { dir: dir.clone(), tag: tag.map(str::to_owned) };
    plan(&place, &tag(None)) | plan(&place, &tag(Some("latest")))
}

/// As `docker save` writes it: the manifest's part of the input is its list of images.
fn archive(config: &[u8], list: &[u8], layer: &[u8]) -> bool {
    let place = Place::new("manifests");
    let name = format!("{}.json", Digest::sha256(config).hex());
    let files = [("manifest.json", list), (name.as_str(), config), ("layer.tar", layer)];
    let mut tar = files.map(|(name, bytes)| entry(name, b'0', "", bytes)).concat();
    tar.resize(tar.len() + 1024, 0);
    let file = place.tree().join("image.tar");
    std::fs::write(&file, tar).expect("there is room");
    plan(&place, &Reference::DockerArchive { file, tag: None })
}

/// An image of each form.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = |architecture: &str| {
        format!(
            r#"{{"architecture":"{architecture}","os":"linux","config":{{"Env":["a=b"],"Cmd":["a"],"User":"a","WorkingDir":"/"}},"rootfs":{{"type":"layers","diff_ids":["{{L}}"]}}}}"#
        )
    };
    let manifest = r#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{C}","size":{c}},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{L}","size":{l}}]}"#;
    let index = r#"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{M}","size":{m},"annotations":{"org.opencontainers.image.ref.name":"latest"}}]}"#;
    let list = r#"[{"Config":"CONFIG.json","RepoTags":["library/alpine:latest"],"Layers":["layer.tar"]}]"#;
    let all = |choice: u8, parts: [&str; 3]| {
        [&[choice][..], &parts.map(|part| spelt(part, WORDS)).join(&255)].concat()
    };
    let own = config(architecture);
    vec![
        all(0, [&config("amd64"), manifest, index]),
        all(1, [&own, manifest, index]),
        all(3, [&own, &list.replace("CONFIG", "{H}"), ""]),
    ]
}
