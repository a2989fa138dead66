//! Registries that refuse, lie or break, as a user meets them: the message names the image, the
//! registry, what was wrong and, where there is one, what to do; the code is 1; nothing is left.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, SystemTime};

use nelly_image::Digest;
use serde_json::{Value, json};

use super::Home;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// What is answered to a request for a path: the status, header lines and the body. A body that
/// is shorter than its Content-Length is a cut.
type Answer = (&'static str, String, Vec<u8>);

/// A registry that answers as a test says, until the test's process ends; its `HOST:PORT`.
fn played(answer: impl Fn(&str) -> Answer + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for stream in listener.incoming() {
            serve(stream.unwrap(), &answer);
        }
    });
    host
}

/// One request of a connection. A client that leaves is no failure.
fn serve(stream: TcpStream, answer: &impl Fn(&str) -> Answer) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let Some(Ok(first)) = lines.next() else { return };
    while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
    let (status, headers, body) = answer(first.split(' ').nth(1).unwrap_or_default());
    let length = match headers.contains("Content-Length") {
        true => String::new(),
        false => format!("Content-Length: {}\r\n", body.len()),
    };
    let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n{length}{headers}\r\n");
    let mut stream = stream;
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": Digest::sha256(bytes).to_string(), "size": bytes.len() })
}

/// An image whose only layer is `layer`, or that many layers of it.
struct Image {
    manifest: Vec<u8>,
    config: Vec<u8>,
}

impl Image {
    fn new(layer: &[u8], media_type: &str, layers: usize) -> Self {
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let diff_ids = vec![Digest::sha256(layer).to_string(); layers];
        let config = json!({ "architecture": architecture, "os": "linux", "config": {},
            "rootfs": { "type": "layers", "diff_ids": diff_ids } });
        let config = config.to_string().into_bytes();
        let layers = vec![descriptor(media_type, layer); layers];
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &config), "layers": layers });
        Self { manifest: manifest.to_string().into_bytes(), config }
    }

    /// As a registry serves it, its blobs but for the configuration by `blob`.
    fn serve(self, blob: impl Fn() -> Answer + Send + 'static) -> impl Fn(&str) -> Answer + Send + 'static {
        move |path| {
            if path.contains("/manifests/") {
                return typed(MANIFEST, &self.manifest);
            }
            if path.ends_with(&Digest::sha256(&self.config).to_string()) {
                return ("200 OK", String::new(), self.config.clone());
            }
            blob()
        }
    }
}

fn typed(media_type: &str, body: &[u8]) -> Answer {
    ("200 OK", format!("Content-Type: {media_type}\r\n"), body.to_vec())
}

/// The refusal of `nelly image pull`, which leaves nothing behind but what a second try would go on
/// with, and nothing at all after the `nelly image prune` of another day.
#[track_caller]
fn refused(host: &str) -> String {
    let home = Home::new();
    let name = format!("{host}/team/app:1");
    let (out, err) = home.run(&["image", "pull", "--quiet", &name], 1);
    assert!(out.is_empty() && err.contains(&format!("cannot pull {name}")), "{out}\n{err}");
    assert!(!err.contains("panicked") && err.lines().count() <= 2, "{err}");
    assert_eq!(home.json(&["image", "ls", "--json"]), json!([]), "{err}");
    let left = |name: &str| {
        let entries = fs::read_dir(home.0.path().join("nelly/data/images").join(name));
        entries.into_iter().flatten().map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
    };
    for part in left("partial") {
        let before = SystemTime::now() - Duration::from_secs(2 * 86_400);
        fs::File::options().write(true).open(part).unwrap().set_modified(before).unwrap();
    }
    home.out(&["image", "prune"]);
    assert_eq!(left("partial").len() + left("blobs/sha256").len(), 0, "{err}");
    err
}

#[test]
fn a_registry_that_refuses_is_told_with_what_to_do() {
    // Nobody listens there.
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let err = refused(&gone);
    assert!(err.contains(&format!("cannot connect to {gone}")), "{err}");
    for (status, headers, parts) in [
        ("401 Unauthorized", "", &["nelly login"][..]),
        ("401 Unauthorized", "WWW-Authenticate: Basic realm=x\r\n", &["nelly login"]),
        ("403 Forbidden", "", &["nelly login"]),
        ("404 Not Found", "", &["does not have the manifest"]),
        ("429 Too Many Requests", "Retry-After: 3600\r\n", &["3600 seconds", "log in"]),
        ("418 I'm a teapot", "", &["status 418"]),
    ] {
        let host = played(move |_| (status, headers.to_owned(), Vec::new()));
        let err = refused(&host);
        assert!(err.contains(&host) && parts.iter().all(|part| err.contains(part)), "{status}: {err}");
    }
}

#[test]
fn an_image_that_is_not_what_it_says_is_told_and_not_kept() {
    let layer = vec![7_u8; 100_000];
    let digest = Digest::sha256(&layer).to_string();
    // Cut in the middle, each time it is tried again; and others than were promised.
    let short = layer[..50_000].to_vec();
    let cut = move || ("200 OK", "Content-Length: 100000\r\n".to_owned(), short.clone());
    let err = refused(&played(Image::new(&layer, LAYER, 1).serve(cut)));
    assert!(err.contains("cut") && err.contains(&digest), "{err}");
    let other = || ("200 OK", String::new(), vec![8; 100_000]);
    let err = refused(&played(Image::new(&layer, LAYER, 1).serve(other)));
    assert!(err.contains("other bytes") && err.contains(&digest), "{err}");
    let longer = || ("200 OK", String::new(), vec![7; 100_001]);
    let err = refused(&played(Image::new(&layer, LAYER, 1).serve(longer)));
    assert!(err.contains("100000 bytes") && err.contains(&digest), "{err}");
    // Nothing of these is even asked for.
    let never = || ("500 Internal Server Error", String::new(), Vec::new());
    for (media_type, layers, parts) in [
        ("application/x-unknown", 1, &["application/x-unknown"][..]),
        (
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            1,
            &["application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "not in registries"],
        ),
        (LAYER, 10_000, &["10000 layers"]),
    ] {
        let err = refused(&played(Image::new(&layer, media_type, layers).serve(never)));
        assert!(parts.iter().all(|part| err.contains(part)), "{media_type} {layers}: {err}");
    }
}

#[test]
fn an_image_for_other_platforms_is_refused_with_their_names() {
    let mut manifests = Vec::new();
    for architecture in ["riscv64", "s390x"] {
        let mut manifest = descriptor(MANIFEST, architecture.as_bytes());
        manifest["platform"] = json!({ "os": "linux", "architecture": architecture });
        manifests.push(manifest);
    }
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
    let index = index.to_string().into_bytes();
    let err = refused(&played(move |_| typed(INDEX, &index)));
    assert!(err.contains("the platforms are: linux/riscv64, linux/s390x"), "{err}");
    let host = if cfg!(target_arch = "aarch64") { "linux/arm64" } else { "linux/amd64" };
    assert!(err.contains(&format!("no image for {host}, the platform of this host")), "{err}");
}
