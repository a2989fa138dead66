//! The local store: blobs and names, several who add at once, what is damaged or planted.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use nelly_image::{Begun, Descriptor, Digest, Ingest, LocalError, LocalStore, Reference};

use crate::support::image::{Layout, Pack, TestDir, chain, contents_of};
use crate::support::run;
use crate::support::tarball::{Tar, file};

fn layer(text: &str) -> Vec<u8> {
    Tar::default().add(file("name"), text.as_bytes()).end()
}

fn layout(place: &TestDir, text: &str) -> Layout {
    Layout::with(&place.path(text), &[(layer(text), Pack::Gzip), (layer(text), Pack::Zstd)], "{}")
}

fn named(word: &str) -> Reference {
    word.parse().unwrap()
}

/// What the image's `name` says.
fn text(place: &TestDir, word: &str) -> String {
    let image = place.resolve(&named(word)).unwrap_or_else(|error| panic!("{word}: {}", chain(&error)));
    String::from_utf8(contents_of(&image)[&b"name"[..]].data.clone()).unwrap()
}

fn refusal(place: &TestDir, word: &str) -> String {
    chain(&place.resolve(&named(word)).unwrap_err())
}

fn writing(begun: Begun<'_>) -> Box<Ingest<'_>> {
    match begun {
        Begun::Write(ingest) => ingest,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_image_with_a_name_is_resolved_and_other_programs_read_the_store() {
    let place = TestDir::default();
    assert_eq!(refusal(&place, "app:1"), "`app:1` is not in the local store");
    assert!(!place.local().exists() && !place.cache().exists());
    let one = place.add(&layout(&place, "one"), "app:1");
    let two = place.add(&layout(&place, "two"), "example.org:5000/team/app");
    assert_eq!(
        (text(&place, "app:1"), text(&place, "docker.io/library/app:1")),
        ("one".into(), "one".into())
    );
    assert_eq!(text(&place, "example.org:5000/team/app:latest"), "two");
    assert_eq!(text(&place, &format!("app@{}", one.digest)), "one");
    assert!(place.resolve(&named("app:1")).unwrap().cached);
    for missing in ["app", "app:2", "team/app", &format!("app@{}", two.digest)] {
        assert_eq!(refusal(&place, missing), format!("`{missing}` is not in the local store"));
    }
    let planned = place.store().plan(&named("app:1")).unwrap();
    assert!(planned.cached && planned.digest == one.digest);
    // A name moves; the image that had it stays in the list until it is pruned.
    place.add(&layout(&place, "three"), "app:1");
    assert_eq!(text(&place, "app:1"), "three");
    let list = LocalStore::open(place.local()).unwrap().list().unwrap();
    let unnamed: Vec<_> = list.iter().filter(|image| image.name.is_none()).collect();
    assert_eq!((list.len(), unnamed.len(), unnamed[0].descriptor.digest), (3, 1, one.digest));

    let dir = place.local().display().to_string();
    run("skopeo", &["inspect", "--raw", &format!("oci:{dir}:docker.io/library/app:1")]);
    let copy = place.path("copy");
    let target = format!("oci:{}:x", copy.display());
    run("skopeo", &["copy", "-q", &format!("oci:{dir}:example.org:5000/team/app:latest"), &target]);
    let copied = Reference::OciLayout { dir: copy, tag: Some("x".into()) };
    assert_eq!(place.resolve(&copied).unwrap().digest, two.digest);
}

#[test]
fn an_index_is_resolved_for_this_platform_though_others_are_absent() {
    let place = TestDir::default();
    let layout = Layout::new(&place.path("l"));
    let manifest = layout.manifest(&[(layer("mine"), Pack::Plain)], "{}");
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let platform = |os: &str, arch: &str| format!(r#","platform":{{"os":"{os}","architecture":"{arch}"}}"#);
    let arch = *crate::support::image::ARCH;
    let mine = layout.descriptor(media_type, manifest.as_bytes(), &platform("linux", arch));
    let absent = Digest::sha256(b"absent");
    let other = format!(
        r#"{{"mediaType":"{media_type}","digest":"{absent}","size":6{}}}"#,
        platform("linux", "s390x")
    );
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{other},{mine}]}}"#);
    let list = "application/vnd.docker.distribution.manifest.list.v2+json";
    layout.index(&[layout.descriptor(list, index.as_bytes(), "")]);
    let descriptor = place.add(&layout, "multi");
    assert_eq!(text(&place, &format!("multi@{}", descriptor.digest)), "mine");
    assert_eq!(place.resolve(&named("multi")).unwrap().digest, Digest::sha256(manifest.as_bytes()));
}

#[test]
fn a_blob_is_resumed_verified_and_written_once() {
    let place = TestDir::default();
    let store = LocalStore::open(place.local()).unwrap();
    let adding = store.add().unwrap();
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let (digest, size) = (Digest::sha256(&bytes), bytes.len() as u64);
    let begin = || adding.begin_blob(&digest, size, &mut || false).unwrap();
    let partial = place.local().join("partial").join(digest.hex());

    // Cut in the middle, then continued by another.
    let mut ingest = writing(begin());
    ingest.write(&bytes[..2_000_000]).unwrap();
    let error = ingest.finish().unwrap_err();
    assert!(matches!(error, LocalError::WrongSize { found: 2_000_000, .. }), "{error}");
    let mut ingest = writing(begin());
    assert_eq!((ingest.offset(), ingest.size()), (2_000_000, size));
    ingest.write(&bytes[2_000_000..]).unwrap();
    ingest.finish().unwrap();
    assert!(matches!(begin(), Begun::There) && !partial.exists());
    let (file, found) = LocalStore::open(place.local()).unwrap().blob(&digest).unwrap().unwrap();
    assert_eq!((found, file.metadata().unwrap().permissions().mode() & 0o777), (size, 0o444));

    // What was left is not the beginning of the blob: the digest tells, and the next begins anew.
    let other = [b"x".as_slice(), &bytes].concat();
    let (digest, size) = (Digest::sha256(&other), other.len() as u64);
    let partial = partial.with_file_name(digest.hex());
    fs::write(&partial, b"wrong").unwrap();
    let begin = || adding.begin_blob(&digest, size, &mut || false).unwrap();
    let mut ingest = writing(begin());
    let rest = usize::try_from(ingest.offset()).unwrap();
    ingest.write(&other[rest..]).unwrap();
    assert!(matches!(ingest.finish(), Err(LocalError::WrongDigest { .. })) && !partial.exists());
    // More than announced, now or before.
    let mut ingest = writing(begin());
    ingest.write(&other).unwrap();
    assert!(matches!(ingest.write(b"y"), Err(LocalError::WrongSize { .. })) && !partial.exists());
    drop(ingest);
    fs::write(&partial, [other.as_slice(), b"y"].concat()).unwrap();
    assert_eq!(writing(begin()).offset(), 0);
    // The caller may refuse to continue.
    let mut ingest = writing(begin());
    ingest.write(b"something").unwrap();
    ingest.restart().unwrap();
    ingest.write(&other).unwrap();
    ingest.finish().unwrap();

    assert!(matches!(adding.put_blob(&digest, b"other bytes"), Err(LocalError::WrongDigest { .. })));
    let media_type = String::new();
    let nowhere = Descriptor { media_type, digest: Digest::sha256(b"nowhere"), size: 7 };
    assert!(matches!(adding.set_name(None, &nowhere), Err(LocalError::NoBlob(_))));
    assert_eq!(fs::read_dir(place.local().join("partial")).unwrap().count(), 0);
}

#[test]
fn two_who_add_one_blob_share_it_and_the_waiting_one_may_give_up() {
    let place = TestDir::default();
    let store = LocalStore::open(place.local()).unwrap();
    let bytes = vec![7; 100_000];
    let (digest, size) = (Digest::sha256(&bytes), bytes.len() as u64);
    let first = store.add().unwrap();
    let mut ingest = writing(first.begin_blob(&digest, size, &mut || false).unwrap());
    let second = store.add().unwrap();
    assert!(matches!(second.begin_blob(&digest, size, &mut || true).unwrap(), Begun::GaveUp));
    let waits = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let mut give_up = || {
                waits.store(true, Ordering::SeqCst);
                false
            };
            matches!(second.begin_blob(&digest, size, &mut give_up).unwrap(), Begun::There)
        });
        while !waits.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        ingest.write(&bytes).unwrap();
        ingest.finish().unwrap();
        assert!(waiting.join().unwrap());
    });
    // Many names at once: none is lost.
    let descriptor = Descriptor { media_type: String::new(), digest, size };
    std::thread::scope(|scope| {
        for n in 0..8 {
            let (place, descriptor) = (&place, &descriptor);
            scope.spawn(move || {
                let adding = LocalStore::open(place.local()).unwrap().add().unwrap();
                for m in 0..10 {
                    adding.set_name(Some(&format!("app:{n}-{m}").parse().unwrap()), descriptor).unwrap();
                }
            });
        }
    });
    assert_eq!(LocalStore::open(place.local()).unwrap().list().unwrap().len(), 80);
    assert_eq!(fs::read_dir(place.local().join("partial")).unwrap().count(), 0);
}

#[test]
fn a_store_that_is_damaged_or_planted_is_refused_by_name() {
    let place = TestDir::default();
    let descriptor = place.add(&layout(&place, "one"), "app");
    let local = place.local();
    let (index, version) = (local.join("index.json"), local.join("version"));
    let manifest = local.join("blobs/sha256").join(descriptor.digest.hex());
    let whole = fs::read(&index).unwrap();
    let says = |path: &std::path::Path, what: &str| {
        let message = refusal(&place, "app");
        assert!(message.contains(&path.display().to_string()) && message.contains(what), "{message}");
    };
    fs::write(&index, &whole[..whole.len() / 2]).unwrap();
    says(&index, "is damaged");
    let bad =
        String::from_utf8(whole.clone()).unwrap().replace(&descriptor.digest.hex(), "../../../etc/passwd");
    fs::write(&index, bad).unwrap();
    says(&index, "malformed digest");
    fs::write(&index, vec![b' '; 5 << 20]).unwrap();
    says(&index, "longer than");
    fs::write(&index, &whole).unwrap();
    fs::write(&version, "nelly-images 2\n").unwrap();
    says(&version, "supports only");
    assert!(LocalStore::open(&local).is_err());
    fs::write(&version, "nelly-images 1\n").unwrap();
    assert_eq!(text(&place, "app"), "one");

    // The manifest: other bytes of the same length, a link, nothing.
    let bytes = fs::read(&manifest).unwrap();
    let set_mode = |mode| fs::set_permissions(&manifest, Permissions::from_mode(mode)).unwrap();
    set_mode(0o644);
    fs::write(&manifest, [&bytes[..bytes.len() - 1], b" "].concat()).unwrap();
    says(&PathBuf::from(descriptor.digest.hex()), "do not match the digest");
    fs::remove_file(&manifest).unwrap();
    fs::write(place.path("elsewhere"), &bytes).unwrap();
    symlink(place.path("elsewhere"), &manifest).unwrap();
    says(&manifest, "is not a regular file");
    fs::remove_file(&manifest).unwrap();
    says(&manifest, "does not exist");
    fs::write(&manifest, &bytes).unwrap();
    set_mode(0o666);
    says(&manifest, "writable by users other than its owner");
    set_mode(0o444);
    // A directory that is a link, and one that all may write.
    let (blobs, moved) = (local.join("blobs"), place.path("moved"));
    fs::rename(&blobs, &moved).unwrap();
    symlink(&moved, &blobs).unwrap();
    says(&blobs, "is not a directory");
    let error = LocalStore::open(&local).unwrap().add().unwrap_err();
    assert!(error.to_string().contains("is not a directory"), "{error}");
    fs::remove_file(&blobs).unwrap();
    fs::rename(&moved, &blobs).unwrap();
    fs::set_permissions(&local, Permissions::from_mode(0o777)).unwrap();
    says(&local, "is writable by users");
    fs::set_permissions(&local, Permissions::from_mode(0o700)).unwrap();
    assert_eq!(text(&place, "app"), "one");
}
