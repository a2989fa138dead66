//! A process that lies, dies, floods or does not end.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::digest::Digest;
use crate::local::LocalStore;
use crate::progress::Silent;
use crate::transfer::Input;
use crate::unpacker::words as words_of;

/// A store and a process that is this script of a shell, in a directory of theirs.
struct Place(tempfile::TempDir);

impl Place {
    fn new(script: &str) -> (Self, Unpacker) {
        let place = Self(tempfile::tempdir().unwrap());
        let program = place.0.path().join("nelly-unpack");
        // By a name of its own, so that no other test's child has it open for writing.
        std::fs::write(program.with_extension("new"), format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(program.with_extension("new"), PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::rename(program.with_extension("new"), &program).unwrap();
        (place, Unpacker::at(vec![program]))
    }

    fn local(&self) -> LocalStore {
        LocalStore::open(self.0.path().join("images")).unwrap()
    }

    fn files(&self, under: &str) -> usize {
        let names = std::fs::read_dir(self.0.path().join("images").join(under));
        names.into_iter().flatten().count()
    }
}

/// What the process knows of an archive: documents, one after the other.
struct Written {
    bytes: Vec<u8>,
    lines: Vec<String>,
}

impl Written {
    fn new() -> Self {
        Self { bytes: Vec::new(), lines: Vec::new() }
    }

    fn line(&mut self, name: &str, offset: u64, size: u64) {
        self.lines
            .push(serde_json::json!({"File": {"name": name, "offset": offset, "size": size}}).to_string());
    }

    fn add(&mut self, name: &str, bytes: &[u8]) -> &mut Self {
        let (offset, size) = (self.bytes.len() as u64, bytes.len() as u64);
        self.bytes.extend_from_slice(bytes);
        self.line(name, offset, size);
        self
    }

    /// A script that says all of it.
    fn script(&self) -> String {
        let mut script = "cat >&2 <<'END'\n".to_owned();
        for line in &self.lines {
            script.push_str(line);
            script.push('\n');
        }
        script + &format!("{{\"Files\":{}}}\nEND", self.lines.len())
    }
}

/// What becomes of an archive of these bytes.
fn load(script: &str, bytes: &[u8]) -> Result<usize, TransferError> {
    let (place, unpacker) = Place::new(script);
    let path = place.0.path().join("archive");
    std::fs::write(&path, bytes).unwrap();
    let loaded =
        place.local().load(Input::File(&path), None, &Limits::default(), Some(&unpacker), &mut Silent);
    if loaded.is_err() {
        assert_eq!((place.files("blobs/sha256"), place.files("partial")), (0, 0), "something is left");
        assert!(place.local().list().unwrap().is_empty());
    }
    loaded.map(|images| images.len())
}

/// The error and its causes.
#[track_caller]
fn failure(script: &str, bytes: &[u8]) -> String {
    let error = load(script, bytes).unwrap_err();
    let words = words_of(&error).join(": ");
    assert!(!words.contains(char::is_control) && words.len() < 20_000, "{words:?}");
    words
}

/// An image of a layer of this text, whose documents are true of `claimed`.
fn image(text: &[u8], claimed: &[u8]) -> Written {
    let mut written = Written::new();
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::sha256(bytes).hex());
    let config = serde_json::json!({
        "architecture": crate::source::host_architecture(), "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": [Digest::sha256(claimed).to_string()] },
    });
    let config = config.to_string().into_bytes();
    let points = |media_type: &str, bytes: &[u8]| {
        serde_json::json!({ "mediaType": media_type,
        "digest": Digest::sha256(bytes).to_string(), "size": bytes.len() })
    };
    let manifest = serde_json::json!({ "schemaVersion": 2,
        "config": points("application/vnd.oci.image.config.v1+json", &config),
        "layers": [points("application/vnd.oci.image.layer.v1.tar", claimed)] });
    let manifest = manifest.to_string().into_bytes();
    let index = serde_json::json!({ "schemaVersion": 2,
        "manifests": [points("application/vnd.oci.image.manifest.v1+json", &manifest)] });
    written.add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    written.add("index.json", index.to_string().as_bytes());
    written.add(&blob(&manifest), &manifest).add(&blob(&config), &config);
    written.add(&blob(claimed), text);
    written
}

#[test]
fn what_it_finds_is_loaded_and_the_order_arrived() {
    let true_one = image(b"layer", b"layer");
    assert_eq!(load(&true_one.script(), &true_one.bytes).unwrap(), 1);
    let (place, unpacker) = Place::new("printf '%s\\n' \"$@\" >\"$(dirname \"$0\")/order\"; exit 1");
    let path = place.0.path().join("archive");
    std::fs::write(&path, "x").unwrap();
    let local = place.local();
    assert!(local.load(Input::File(&path), None, &Limits::default(), Some(&unpacker), &mut Silent).is_err());
    let order = std::fs::read_to_string(place.0.path().join("order")).unwrap();
    let (verb, word) = order.split_once('\n').unwrap();
    assert_eq!(verb, ARCHIVE);
    let order = ArchiveOrder::read(word).unwrap();
    assert_eq!((order.name, order.stream), (path.display().to_string(), false));
    for nonsense in ["", "{}", "7", &word.replace("\"version\":1", "\"version\":2")] {
        assert!(ArchiveOrder::read(nonsense).is_err(), "{nonsense}");
    }
}

#[test]
fn one_that_lies_is_found_out() {
    // Another layer than that of the digest, of the same length and of another.
    for text in [&b"liars"[..], b"lie"] {
        let lie = image(text, b"layer");
        let words = failure(&lie.script(), &lie.bytes);
        assert!(words.contains("corrupt"), "{words}");
    }
    // Documents that are others.
    let mut lie = image(b"layer", b"layer");
    let manifest = lie.bytes.windows(7).position(|part| part == b"\"layers").unwrap();
    lie.bytes[manifest + 1] = b'L';
    assert!(failure(&lie.script(), &lie.bytes).contains("corrupt"));
    // Files that are not in the archive.
    for (offset, size) in [(0, u64::MAX), (u64::MAX, 1), (u64::MAX, u64::MAX), (100_000, 1), (0, 100_000)] {
        let mut lie = image(b"layer", b"layer");
        lie.line("blobs/sha256/x", offset, size);
        let words = failure(&lie.script(), &lie.bytes);
        assert!(words.contains("beyond its end"), "{words}");
    }
    // Names that lead elsewhere lead nowhere.
    let mut lie = Written::new();
    lie.add("manifest.json", br#"[{"Config":"../../etc/passwd","RepoTags":[],"Layers":[]}]"#);
    lie.line("../../etc/passwd", 0, 5);
    assert!(failure(&lie.script(), &lie.bytes).contains("does not exist"));
    // More or fewer than it says, or not all of it.
    let whole = image(b"layer", b"layer");
    for number in ["0", "4", "6", "18446744073709551615"] {
        let script = whole.script().replace("{\"Files\":5}", &format!("{{\"Files\":{number}}}"));
        assert!(failure(&script, &whole.bytes).contains("before it was done"));
    }
    let script = whole.script().replace("{\"Files\":5}", "");
    assert!(failure(&script, &whole.bytes).contains("before it was done"));
    // Said, and not meant.
    assert!(failure(&format!("{}\nexit 3", whole.script()), &whole.bytes).contains("exit status: 3"));
    // What is said of images.
    let done = r#"{"Done":{"digest":"d","config":"c","cached":false}}"#;
    assert!(failure(&format!("echo '{done}' >&2"), b"x").contains("before it was done"));
}

#[test]
fn one_that_dies_floods_or_does_not_end_is_an_error_that_says_so() {
    assert!(failure("exit 0", b"x").contains("before it was done"));
    let words = failure("printf 'thread x panicked\\033[2J\\nat y' >&2; kill -9 $$", b"x");
    assert!(words.contains("signal: 9") && words.contains("thread x panicked"), "{words}");
    // As the handler of a denied system call says it.
    let denied = "nelly-unpack: ended: the system call openat (257), with these arguments, is not one that it may make";
    let words = failure(&format!("echo '{denied}' >&2; exit 159"), b"x");
    assert!(words.contains("exit status: 159") && words.contains(denied), "{words}");
    // Files without an end, and no line's end.
    let line = r#"{"File":{"name":"a","offset":0,"size":0}}"#;
    assert!(failure(&format!("exec yes '{line}' >&2"), b"x").contains("too many files"));
    let long = format!(r#"{{"File":{{"name":"{}","offset":0,"size":0}}}}"#, "n".repeat(4000));
    assert!(failure(&format!("exec yes '{long}' >&2"), b"x").contains("too many files"));
    assert!(failure("head -c 3000000 /dev/zero | tr '\\0' x >&2; exit 1", b"x").contains("exit status: 1"));
    // It says all, and stays.
    let whole = image(b"layer", b"layer");
    let stays = format!("{}\nexec >/dev/null 2>&1; exec sleep 600", whole.script());
    assert!(failure(&stays, &whole.bytes).contains("signal: 9"));
    // Words that a terminal would obey, codes that there are not.
    let told = r#"{"Failed":{"code":"image_unusable","words":"an archive\u001b[1m\nit is cut"}}"#;
    let error = load(&format!("printf '%s\\n' '{told}' >&2; exit 1"), b"x").unwrap_err();
    assert_eq!(
        (error.code(), words_of(&error)),
        ("image_unusable", vec!["an archive [1m".into(), "it is cut".into()])
    );
    let full = r#"{"Failed":{"code":"disk_full","words":"there is too little\nno space left"}}"#;
    let error = load(&format!("printf '%s\\n' '{full}' >&2; exit 1"), b"x").unwrap_err();
    assert!(matches!(&error, TransferError::Spool(error) if error.kind() == io::ErrorKind::StorageFull));
    let told = r#"{"Failed":{"code":"nonsense","words":""}}"#;
    assert_eq!(load(&format!("echo '{told}' >&2"), b"x").unwrap_err().code(), "image_unpacker_failed");
}

#[test]
fn one_that_reads_nothing_more_keeps_nobody() {
    let (place, unpacker) =
        Place::new("echo '{\"Failed\":{\"code\":\"image_unusable\",\"words\":\"no\"}}' >&2; exit 1");
    // More than a pipe holds.
    let bytes = vec![b'x'; 1 << 20];
    let input = Input::Stream(&mut &bytes[..]);
    let error =
        place.local().load(input, None, &Limits::default(), Some(&unpacker), &mut Silent).unwrap_err();
    assert_eq!(words_of(&error), ["no"]);
    // One that floods, and reads nothing.
    let (place, unpacker) = Place::new("exec yes '{\"File\":{\"name\":\"a\",\"offset\":0,\"size\":0}}' >&2");
    let input = Input::Stream(&mut &bytes[..]);
    let error =
        place.local().load(input, None, &Limits::default(), Some(&unpacker), &mut Silent).unwrap_err();
    assert!(words_of(&error).join(" ").contains("too many files"));
    // A writer of the archive that comes in no hurry is not waited for by one that has ended.
    assert_eq!(place.files("blobs/sha256") + place.files("partial"), 0);
}
