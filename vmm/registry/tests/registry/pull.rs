//! Pulls into a store and pushes out of one.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nelly_image::{Digest, ImageName, LocalStore, Reference, Silent, Store, StoreOptions};
use nelly_registry::{Cancel, Client, RegistryError, TransferError, Unwatched, pull, push};

use crate::common::{RealOptions, RealRegistry, Server, bytes, client, options, reply};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// An image in an index for two platforms, of which one is there.
#[derive(Clone, Default)]
struct Image {
    index: Vec<u8>,
    manifest: Vec<u8>,
    blobs: BTreeMap<String, Vec<u8>>,
}

fn add(blobs: &mut BTreeMap<String, Vec<u8>>, media_type: &str, bytes: Vec<u8>) -> String {
    let digest = Digest::sha256(&bytes).to_string();
    let item = format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{}"#, bytes.len());
    blobs.insert(digest, bytes);
    item
}

/// Layers with a file each, of so many bytes.
fn image(sizes: &[usize]) -> Image {
    let directory = tempfile::tempdir().unwrap();
    let (mut blobs, mut layers, mut ids) = (BTreeMap::new(), Vec::new(), Vec::new());
    for (number, size) in sizes.iter().enumerate() {
        let name = format!("file{number}");
        std::fs::write(directory.path().join(&name), bytes(*size)).unwrap();
        let tar = Command::new("tar").arg("-cC").arg(directory.path()).arg(&name).output().unwrap();
        assert!(tar.status.success());
        ids.push(format!("\"{}\"", Digest::sha256(&tar.stdout)));
        layers.push(add(&mut blobs, LAYER, tar.stdout) + "}");
    }
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        _ => "arm64",
    };
    let config = format!(
        r#"{{"os":"linux","architecture":"{arch}","config":{{"Cmd":["true"]}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        ids.join(",")
    );
    let config = add(&mut blobs, CONFIG, config.into_bytes());
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{config}}},"layers":[{}]}}"#,
        layers.join(",")
    );
    let own = format!(
        r#"{{"mediaType":"{MANIFEST}","digest":"{}","size":{},"platform":{{"os":"linux","architecture":"{arch}"}}}}"#,
        Digest::sha256(manifest.as_bytes()),
        manifest.len()
    );
    let other = format!(
        r#"{{"mediaType":"{MANIFEST}","digest":"{}","size":1,"platform":{{"os":"linux","architecture":"s390x"}}}}"#,
        Digest::sha256(b"other")
    );
    let index = format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{other},{own}]}}"#);
    Image { index: index.into_bytes(), manifest: manifest.into_bytes(), blobs }
}

/// Serves the image as `test/app:1.0`; of each blob at most so many bytes a request while `cut`.
fn serve(image: Image, cut: Arc<AtomicBool>, most: usize) -> Server {
    Server::start(move |got, stream| {
        let last = got.path.rsplit('/').next().unwrap_or_default().to_owned();
        let typed = |media_type: &str| format!("Content-Type: {media_type}\r\n");
        if got.path.contains("/manifests/") {
            let manifest = Digest::sha256(&image.manifest).to_string();
            let (media_type, body) =
                if last == manifest { (MANIFEST, &image.manifest) } else { (INDEX, &image.index) };
            return reply(stream, "200 OK", &typed(media_type), body);
        }
        let Some(blob) = image.blobs.get(&last) else { return reply(stream, "404 Not Found", "", b"") };
        let range = got.header("range").map_or(0, |range| range[6..].trim_end_matches('-').parse().unwrap());
        let status = match range {
            0 => "200 OK".to_owned(),
            from => format!(
                "206 Partial Content\r\nContent-Range: bytes {from}-{}/{}",
                blob.len() - 1,
                blob.len()
            ),
        };
        let rest: &[u8] = &blob[range..];
        let head =
            format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", rest.len());
        let _ = stream.write_all(head.as_bytes());
        let most = if cut.load(Ordering::Relaxed) { most } else { rest.len() };
        let _ = stream.write_all(&rest[..most.min(rest.len())]);
    })
}

fn whole(image: Image) -> Server {
    serve(image, Arc::default(), 0)
}

fn name(host: &str) -> ImageName {
    format!("{host}/test/app:1.0").parse().unwrap()
}

fn store(directory: &Path) -> LocalStore {
    LocalStore::open(directory.join("images")).unwrap()
}

/// The files below a directory of the store.
fn files(directory: &Path, below: &str) -> Vec<u64> {
    let Ok(entries) = directory.join("images").join(below).read_dir() else { return Vec::new() };
    let mut sizes: Vec<u64> = entries.map(|entry| entry.unwrap().metadata().unwrap().len()).collect();
    sizes.sort_unstable();
    sizes
}

/// Whether the image can be made ready to run from the store alone.
fn resolves(directory: &Path, name: &ImageName) -> bool {
    let mut options = StoreOptions::new(directory.join("cache"));
    options.local_dir = Some(directory.join("images"));
    let store = Store::open(options).unwrap();
    store.resolve(&Reference::Named(name.clone()), &mut Silent).is_ok()
}

fn skopeo(words: &[&str]) -> String {
    let output = Command::new("skopeo").args(words).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn an_image_of_a_real_registry_is_pulled_runs_without_it_and_is_pushed() {
    let mut registry = RealRegistry::start(&RealOptions::default());
    let home = tempfile::tempdir().unwrap();
    let client = client(options());
    // The image gets there by another tool.
    let layout = home.path().join("layout");
    std::fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let image = image(&[100, 2_000_000, 300_000]);
    for (digest, blob) in image.blobs.iter() {
        std::fs::write(layout.join("blobs").join(digest.replace(':', "/")), blob).unwrap();
    }
    let digest = Digest::sha256(&image.manifest);
    std::fs::write(layout.join("blobs/sha256").join(digest.hex()), &image.manifest).unwrap();
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{MANIFEST}","digest":"{digest}","size":{},"annotations":{{"org.opencontainers.image.ref.name":"1.0"}}}}]}}"#,
        image.manifest.len()
    );
    std::fs::write(layout.join("index.json"), index).unwrap();
    let source = format!("oci:{}:1.0", layout.display());
    let target = format!("docker://{}/test/app:1.0", registry.host);
    skopeo(&["copy", "--quiet", "--dest-tls-verify=false", &source, &target]);

    let (store, name) = (store(home.path()), name(&registry.host));
    let pulled = pull(&client, &store, &name, None, &mut Unwatched).unwrap();
    // The other tool compressed the layers.
    let digest = pulled.manifest.digest;
    assert!(skopeo(&["inspect", "--tls-verify=false", &target]).contains(&digest.to_string()));
    assert_eq!(pulled.layers, 3);
    assert_eq!(pulled.transferred_bytes, pulled.size_bytes);
    let again = pull(&client, &store, &name, None, &mut Unwatched).unwrap();
    assert_eq!((again.transferred_bytes, again.size_bytes), (0, pulled.size_bytes));

    let foreign = pull(&client, &store, &name, Some("riscv64"), &mut Unwatched).unwrap_err();
    assert!(matches!(foreign, TransferError::Image { .. }), "{foreign:?}");

    // The other way, by our own means, and looked at by the other tool.
    let store = self::store(home.path());
    let moved: ImageName = format!("{}/other/app:2", registry.host).parse().unwrap();
    let pushed = push(&client, &store, &name, &moved, &mut Unwatched).unwrap();
    assert_eq!((pushed.manifest.digest, pushed.transferred_bytes > 0), (digest, true));
    let pushed = push(&client, &store, &name, &moved, &mut Unwatched).unwrap();
    assert_eq!(pushed.transferred_bytes, 0);
    let target = format!("docker://{}/other/app:2", registry.host);
    assert!(skopeo(&["inspect", "--tls-verify=false", &target]).contains(&digest.to_string()));
    let missing: ImageName = "none".parse().unwrap();
    assert!(matches!(
        push(&client, &store, &missing, &moved, &mut Unwatched),
        Err(TransferError::NotStored { .. })
    ));

    registry.stop();
    assert!(resolves(home.path(), &name));
    assert!(resolves(home.path(), &name.with_digest(digest)));
    // The store is a layout like any other.
    let layout = format!("oci:{}:{}", home.path().join("images").display(), name.canonical());
    assert!(skopeo(&["inspect", &layout]).contains(&digest.to_string()));
    assert!(matches!(
        pull(&client, &store, &name, None, &mut Unwatched),
        Err(TransferError::Registry(RegistryError::Connect { .. }))
    ));
}

#[test]
fn an_index_leads_to_the_platform_and_keeps_its_digest() {
    let image = image(&[1000]);
    let server = whole(image.clone());
    let home = tempfile::tempdir().unwrap();
    let (store, name, client) = (store(home.path()), name(&server.host), client(options()));
    let pulled = pull(&client, &store, &name, None, &mut Unwatched).unwrap();
    assert_eq!(pulled.descriptor.digest, Digest::sha256(&image.index));
    assert_eq!(pulled.manifest.digest, Digest::sha256(&image.manifest));
    assert!(resolves(home.path(), &name));
    assert!(resolves(home.path(), &name.with_digest(pulled.descriptor.digest)));
    for (architecture, needle) in [("riscv64", "linux/riscv64"), ("s390x", "do not have the digest")] {
        let error = pull(&client, &store, &name, Some(architecture), &mut Unwatched).unwrap_err();
        let error = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source())
            .map(ToString::to_string)
            .collect::<String>();
        assert!(error.contains(needle), "{error}");
    }
    assert!(resolves(home.path(), &name));
}

#[test]
fn two_pulls_of_one_image_share_each_blob() {
    let server = whole(image(&[3_000_000, 2_000_000, 1_000_000]));
    let home = tempfile::tempdir().unwrap();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let store = store(home.path());
                pull(&client(options()), &store, &name(&server.host), None, &mut Unwatched).unwrap();
            });
        }
    });
    assert_eq!(server.count("/blobs/"), 4);
    assert!(files(home.path(), "partial").is_empty());
    assert!(resolves(home.path(), &name(&server.host)));
}

#[test]
fn a_pull_that_was_cut_is_resumed_by_the_next() {
    let image = image(&[2_000_000]);
    let cut = Arc::new(AtomicBool::new(true));
    let server = serve(image.clone(), Arc::clone(&cut), 100_000);
    let home = tempfile::tempdir().unwrap();
    let (store, name) = (store(home.path()), name(&server.host));
    let error = pull(&client(options()), &store, &name, None, &mut Unwatched).unwrap_err();
    assert!(matches!(error, TransferError::Registry(RegistryError::Cut { .. })), "{error:?}");
    assert_eq!(self::store(home.path()).find(&name).unwrap(), None);
    // Four attempts of 100,000 bytes each.
    assert_eq!(files(home.path(), "partial"), [400_000]);
    cut.store(false, Ordering::Relaxed);
    pull(&client(options()), &store, &name, None, &mut Unwatched).unwrap();
    let got = server.got.lock().unwrap();
    assert!(got.iter().any(|got| got.header("range") == Some("bytes=400000-")));
    assert!(files(home.path(), "partial").is_empty());
    assert!(resolves(home.path(), &name));
}

#[test]
fn wrong_bytes_leave_nothing_and_name_nothing() {
    let mut image = image(&[1_000_000]);
    let layer = image.blobs.values_mut().find(|blob| blob.len() > 1000).unwrap();
    layer[500_000] ^= 1;
    let server = whole(image);
    let home = tempfile::tempdir().unwrap();
    let (store, name) = (store(home.path()), name(&server.host));
    let error = pull(&client(options()), &store, &name, None, &mut Unwatched).unwrap_err();
    assert!(matches!(error, TransferError::Registry(RegistryError::Mismatch { .. })), "{error:?}");
    assert_eq!(self::store(home.path()).find(&name).unwrap(), None);
    assert!(files(home.path(), "partial").is_empty());
}

#[test]
fn what_is_damaged_on_the_disk_is_fetched_anew() {
    let image = image(&[1_000_000]);
    let cut = Arc::new(AtomicBool::new(true));
    let server = serve(image, Arc::clone(&cut), 100_000);
    let home = tempfile::tempdir().unwrap();
    let (store, name) = (store(home.path()), name(&server.host));
    pull(&client(options()), &store, &name, None, &mut Unwatched).unwrap_err();
    let partial = home.path().join("images/partial").read_dir().unwrap().next().unwrap().unwrap().path();
    let mut damaged = std::fs::read(&partial).unwrap();
    damaged[1000] ^= 1;
    std::fs::write(&partial, damaged).unwrap();
    cut.store(false, Ordering::Relaxed);
    pull(&client(options()), &store, &name, None, &mut Unwatched).unwrap();
    assert!(resolves(home.path(), &name));
}

#[test]
fn a_pull_that_is_cancelled_leaves_what_it_has_and_no_name() {
    let cancel = Cancel::new();
    let client = Client::new(options(), cancel.clone());
    let image = image(&[500_000]);
    let inner = cancel.clone();
    let (index, manifest) = (image.index.clone(), image.manifest.clone());
    let server = Server::start(move |got, stream| {
        let typed = |media_type: &str| format!("Content-Type: {media_type}\r\n");
        if got.path.ends_with("/1.0") {
            return reply(stream, "200 OK", &typed(INDEX), &index);
        }
        if got.path.contains("/manifests/") {
            return reply(stream, "200 OK", &typed(MANIFEST), &manifest);
        }
        let Some(blob) = image.blobs.get(got.path.rsplit('/').next().unwrap()) else { return };
        let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", blob.len());
        let _ = stream.write_all(&blob[..blob.len() / 2]);
        inner.cancel();
        let _ = std::io::Read::read(stream, &mut [0]);
    });
    let home = tempfile::tempdir().unwrap();
    let (store, name) = (store(home.path()), name(&server.host));
    let error = pull(&client, &store, &name, None, &mut Unwatched).unwrap_err();
    assert!(matches!(error, TransferError::Registry(RegistryError::Cancelled)), "{error:?}");
    assert_eq!(self::store(home.path()).find(&name).unwrap(), None);
    // A waiting lock of the same blob is free again.
    assert!(files(home.path(), "partial").len() <= 2);
}
