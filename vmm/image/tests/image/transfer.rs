//! Archives into the local store and out of it, and images removed: other programs judge.

use std::collections::HashSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use nelly_image::{
    ArchiveFormat, Digest, Image, ImageError, ImageName, InUse, Input, Limits, LocalError, LocalStore,
    Reference, Removal, Removed, Silent, Store, StoreOptions, StoredImage, TransferError,
};

use crate::support::hostile::archives;
use crate::support::image::{ARCH, Layout, Pack, TestDir, chain, contents_of, gzip};
use crate::support::run;
use crate::support::tarball::{Tar, dir, file, hard_link};

fn layer(text: &str) -> Vec<u8> {
    Tar::default().add(file("name"), text.as_bytes()).end()
}

fn named(word: &str) -> Reference {
    word.parse().unwrap()
}

fn resolve(place: &TestDir, reference: &Reference) -> Image {
    place.resolve(reference).unwrap_or_else(|error| panic!("{reference}: {}", chain(&error)))
}

/// What the image's `name` says.
fn text(place: &TestDir, reference: &Reference) -> String {
    String::from_utf8(contents_of(&resolve(place, reference))[&b"name"[..]].data.clone()).unwrap()
}

fn local(place: &TestDir) -> LocalStore {
    LocalStore::open(place.local()).unwrap()
}

fn load(place: &TestDir, input: Input<'_>, name: Option<&str>) -> Result<Vec<StoredImage>, TransferError> {
    let name: Option<ImageName> = name.map(|name| name.parse().unwrap());
    local(place).load(input, name.as_ref(), &Limits::default(), None, &mut Silent)
}

fn remove(place: &TestDir, word: &str, in_use: &InUse) -> Result<(Removal, Removed), ImageError> {
    let store = place.store();
    store.remove(word, false, &store.removing()?, in_use)
}

fn prune(place: &TestDir, all: bool, in_use: &InUse) -> Result<(Vec<Digest>, Removed), ImageError> {
    let store = place.store();
    store.prune(all, &store.removing()?, in_use)
}

fn names(images: &[StoredImage]) -> Vec<String> {
    images.iter().map(|image| image.name.as_ref().map_or_else(String::new, ImageName::familiar)).collect()
}

fn files_in(dir: &Path) -> HashSet<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
}

/// Blobs of the store, finished or not.
fn blobs(place: &TestDir) -> usize {
    ["blobs/sha256", "partial"].iter().map(|dir| files_in(&place.local().join(dir)).len()).sum()
}

fn save(place: &TestDir, words: &[&str], format: ArchiveFormat) -> Vec<u8> {
    let local = local(place);
    let images: Vec<StoredImage> = words.iter().map(|word| local.look_up(word).unwrap().image).collect();
    let mut out = Vec::new();
    local.save(&images, format, &mut out, &Limits::default(), &mut Silent).unwrap();
    out
}

/// An image of three layers, of which the first is in every one.
fn image(place: &TestDir, text: &str) -> Layout {
    let layers = [(layer("below"), Pack::Gzip), (layer(text), Pack::Zstd), (layer(text), Pack::Plain)];
    Layout::with(&place.path(&format!("layout-{text}")), &layers, r#"{"Cmd":["/bin/sh"]}"#)
}

#[test]
fn archives_of_skopeo_are_loaded_from_files_and_pipes() {
    let source = TestDir::default();
    // Without zstd, which skopeo refuses for docker's format.
    let layers = [(layer("below"), Pack::Gzip), (layer("one"), Pack::Plain)];
    let layout = Layout::with(&source.path("layout"), &layers, r#"{"Cmd":["/bin/sh"]}"#);
    let from = format!("oci:{}", layout.dir.display());
    for (kind, name, word) in [
        ("docker-archive", "example/app:1", "example/app:1"),
        ("oci-archive", "app:2", "app:2"),
        ("oci-archive", "", ""),
    ] {
        let path = source.path("archive.tar");
        let _ = fs::remove_file(&path);
        let colon = if name.is_empty() { "" } else { ":" };
        run("skopeo", &["copy", "-q", &from, &format!("{kind}:{}{colon}{name}", path.display())]);
        let plain = fs::read(&path).unwrap();
        for bytes in [plain.clone(), gzip(&plain), zstd::encode_all(&plain[..], 1).unwrap()] {
            let place = TestDir::default();
            fs::write(&path, &bytes).unwrap();
            let loaded = load(&place, Input::File(&path), None).unwrap();
            assert_eq!(names(&loaded), [word]);
            let again = load(&place, Input::Stream(&mut &bytes[..]), None).unwrap();
            assert_eq!(again, loaded);
            let reference = Reference::Id(loaded[0].descriptor.digest);
            assert_eq!(text(&place, &reference), "one");
            if !word.is_empty() {
                assert_eq!(text(&place, &named(word)), "one");
            }
            let config = resolve(&place, &reference).config;
            assert_eq!(config.config().as_ref().unwrap().cmd().as_ref().unwrap(), &["/bin/sh"]);
            assert_eq!(files_in(&place.local().join("partial")).len(), 0);
            let loaded = load(&place, Input::File(&path), Some("other.io/x:y")).unwrap();
            assert_eq!(names(&loaded), ["other.io/x:y"]);
        }
    }
}

#[test]
fn archives_we_save_are_read_by_skopeo_and_by_ourselves() {
    let place = TestDir::default();
    for name in ["one", "two"] {
        place.add(&image(&place, name), name);
    }
    local(&place)
        .add()
        .unwrap()
        .set_name(Some(&"other:x".parse().unwrap()), &place.add(&image(&place, "one"), "one"))
        .unwrap();
    let path = place.path("saved.tar");
    for (format, kind) in [(ArchiveFormat::Oci, "oci-archive"), (ArchiveFormat::Docker, "docker-archive")] {
        let saved = save(&place, &["one", "other:x", "two"], format);
        assert_eq!(saved, save(&place, &["one", "other:x", "two"], format), "the same bytes every time");
        fs::write(&path, &saved).unwrap();
        let copy = place.path("copy");
        for (name, expected) in [("one:latest", "one"), ("other:x", "one"), ("two:latest", "two")] {
            let _ = fs::remove_dir_all(&copy);
            let full =
                if kind == "oci-archive" { format!("docker.io/library/{name}") } else { name.to_owned() };
            let source = format!("{kind}:{}:{full}", path.display());
            run("skopeo", &["copy", "-q", &source, &format!("oci:{}", copy.display())]);
            assert_eq!(text(&place, &Reference::OciLayout { dir: copy.clone(), tag: None }), expected);
        }
        let fresh = TestDir::default();
        let loaded = load(&fresh, Input::Stream(&mut &saved[..]), None).unwrap();
        let mut found = names(&loaded);
        found.sort();
        assert_eq!(found, ["one:latest", "other:x", "two:latest"]);
        assert_eq!(text(&fresh, &named("other:x")), "one");
        if format == ArchiveFormat::Oci {
            assert_eq!(resolve(&fresh, &named("two")).digest, resolve(&place, &named("two")).digest);
        }
        let error = load(&fresh, Input::Stream(&mut &saved[..]), Some("x")).unwrap_err();
        assert!(matches!(error, TransferError::Several(2)), "{error}");
    }
}

#[test]
fn images_of_every_making_are_the_same_from_the_local_store() {
    let place = TestDir::default();
    let low = Tar::default()
        .empty(dir("d"))
        .add(file("d/gone"), b"gone")
        .add(file("d/kept"), b"kept")
        .empty(hard_link("d/link", "d/kept"))
        .end();
    let high = Tar::default().empty(file("d/.wh.gone")).add(file("name"), b"top").end();
    // As zstd:chunked ends: frames that decoders skip.
    let skippable = [&0x184d_2a50_u32.to_le_bytes()[..], &5_u32.to_le_bytes(), b"index"].concat();
    let layout = Layout::new(&place.path("mixed"));
    let ids = [Digest::sha256(&low), Digest::sha256(&high)];
    let chunked = [zstd::encode_all(&low[..], 1).unwrap(), skippable].concat();
    let descriptors = [
        layout.descriptor("application/vnd.oci.image.layer.v1.tar+zstd", &chunked, ""),
        layout.descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip", &gzip(&high), ""),
    ];
    let config = Layout::config(&ids, "{}");
    let config = layout.descriptor("application/vnd.oci.image.config.v1+json", config.as_bytes(), "");
    let manifest = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{}]}}"#, descriptors.join(","));
    let platform = format!(r#","platform":{{"os":"linux","architecture":"{}"}}"#, *ARCH);
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = layout.descriptor(media_type, manifest.as_bytes(), &platform);
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{manifest}]}}"#);
    layout.index(&[layout.descriptor("application/vnd.oci.image.index.v1+json", index.as_bytes(), "")]);

    let many: Vec<_> = (0..120).map(|n| (layer(&n.to_string()), Pack::Gzip)).collect();
    let many = Layout::with(&place.path("many"), &many, "{}");
    for (name, layout) in [("mixed", &layout), ("many", &many)] {
        place.add(layout, name);
        let fresh = TestDir::default();
        let saved = save(&place, &[name], ArchiveFormat::Oci);
        load(&fresh, Input::Stream(&mut &saved[..]), None).unwrap();
        let docker = TestDir::default();
        let saved = save(&place, &[name], ArchiveFormat::Docker);
        load(&docker, Input::Stream(&mut &saved[..]), None).unwrap();
        let tree = contents_of(&resolve(&TestDir::default(), &layout.reference()));
        for place in [&place, &fresh, &docker] {
            assert!(contents_of(&resolve(place, &named(name))) == tree, "{name}");
        }
    }
}

#[test]
fn hostile_and_damaged_archives_leave_nothing() {
    let place = TestDir::default();
    for (bytes, what) in archives() {
        let error = load(&place, Input::Stream(&mut &bytes[..]), None).unwrap_err();
        assert!(chain(&error).contains(what), "{what}: {}", chain(&error));
        assert_eq!((local(&place).list().unwrap().len(), blobs(&place)), (0, 0), "{what}");
    }
    // A blob of an OCI archive that is not what its digest says.
    let layout = image(&place, "one");
    let blob = files_in(&layout.dir.join("blobs/sha256"))
        .into_iter()
        .max_by_key(|path| path.metadata().unwrap().len());
    let blob = blob.unwrap();
    let mut bytes = fs::read(&blob).unwrap();
    bytes[0] ^= 1;
    fs::write(&blob, bytes).unwrap();
    let path = place.path("bad.tar");
    run("tar", &["-C", layout.dir.to_str().unwrap(), "-cf", path.to_str().unwrap(), "."]);
    let error = load(&place, Input::File(&path), None).unwrap_err();
    let name = blob.file_name().unwrap().to_str().unwrap();
    assert!(chain(&error).contains(name) && chain(&error).contains("corrupt"), "{}", chain(&error));
    assert_eq!((local(&place).list().unwrap().len(), blobs(&place)), (0, 0));
}

#[test]
fn what_is_removed_takes_what_nothing_else_needs_and_nothing_more() {
    let place = TestDir::default();
    let one = place.add(&image(&place, "one"), "one");
    let two = place.add(&image(&place, "two"), "two");
    local(&place).add().unwrap().set_name(Some(&"also".parse().unwrap()), &one).unwrap();
    let all = blobs(&place);
    let disk = |name: &str| resolve(&place, &named(name)).disk_paths;
    let (disk_of_one, disk_of_two) = (disk("one"), disk("two"));
    let nobody = InUse::default();
    let remove = |word: &str, force, in_use: &InUse| {
        let store = place.store();
        store.remove(word, force, &store.removing()?, in_use)
    };
    let local_error = |result: Result<_, ImageError>| match result.unwrap_err() {
        ImageError::Local { source, .. } => source,
        other => panic!("{}", chain(&other)),
    };
    assert!(matches!(local_error(remove("none", true, &nobody)), LocalError::NoImage(_)));
    let id = &one.digest.hex()[..12];
    assert!(matches!(local_error(remove(id, false, &nobody)), LocalError::SeveralNames(_)));
    // One name of two: nothing else goes.
    let (removal, removed) = remove("also", false, &nobody).unwrap();
    assert_eq!((removal.digest, removed.files, blobs(&place)), (None, 0, all));
    // A sandbox uses it, by whatever digest: neither name nor id nor force remove it.
    let used = InUse { digests: HashSet::from([one.digest]), ..InUse::default() };
    for (word, force) in [("one", false), ("one", true), (id, true)] {
        assert!(matches!(local_error(remove(word, force, &used)), LocalError::InUse(_)));
    }
    assert_eq!(prune(&place, true, &used).unwrap().0, [two.digest]);
    assert_eq!(text(&place, &named("one")), "one");
    assert!(disk_of_one.iter().all(|path| path.exists()));
    let only_two: Vec<_> = disk_of_two.iter().filter(|path| !disk_of_one.contains(path)).collect();
    assert!(!only_two.is_empty() && only_two.iter().all(|path| !path.exists()));
    // While somebody adds images, blobs stay, and are removed later.
    place.add(&image(&place, "two"), "two");
    resolve(&place, &named("two"));
    let adding = local(&place).add().unwrap();
    let (removal, removed) = remove("two", false, &nobody).unwrap();
    assert!(removal.digest.is_some() && removed.busy && blobs(&place) == all);
    drop(adding);
    let (digests, removed) = prune(&place, false, &nobody).unwrap();
    assert!(digests.is_empty() && removed.bytes > 0 && !removed.busy && blobs(&place) < all);
    assert_eq!(text(&place, &named("one")), "one");
    // The last one: by the disk files of a sandbox only these stay.
    let held = InUse { paths: disk_of_one.iter().cloned().collect(), ..InUse::default() };
    remove("one", false, &held).unwrap();
    assert!(blobs(&place) == 0 && disk_of_one.iter().all(|path| path.exists()));
    prune(&place, true, &nobody).unwrap();
    assert!(disk_of_one.iter().all(|path| !path.exists()));
    assert!(files_in(&place.cache().join("layers")).is_empty());
    assert!(files_in(&place.cache().join("locks")).is_empty());
}

#[test]
fn what_a_sandbox_is_being_made_of_stays() {
    let place = TestDir::default();
    place.add(&image(&place, "one"), "one");
    // A removal that goes on is waited for, and who it is is told once.
    let removing = place.store().removing().unwrap();
    assert!(removing.is_alone());
    let mut told = Vec::new();
    let mut removing = Some(removing);
    let hold = place.store().hold(&mut |pid| {
        told.push(pid);
        removing.take();
    });
    let hold = hold.unwrap();
    assert_eq!(told.len(), 1);
    // Not every file system is named in the list of locks as a file is.
    assert!(told[0].is_none_or(|pid| pid == std::process::id()), "{told:?}");
    let made_of = resolve(&place, &named("one"));
    let all = blobs(&place);
    // Nobody knows yet that it is used: the name goes, and no file.
    for everything in [true, false] {
        let (_, removed) = prune(&place, everything, &InUse::default()).unwrap();
        assert!(removed.busy && removed.files == 0, "{removed:?}");
    }
    assert!(blobs(&place) == all && made_of.disk_paths.iter().all(|path| path.exists()));
    // A removal waits for one that is made in a moment, and reads then what is used.
    let waits = std::thread::scope(|scope| {
        let removal = scope.spawn(|| place.store().removing().unwrap().is_alone());
        std::thread::sleep(Duration::from_millis(200));
        let waits = !removal.is_finished();
        drop(hold);
        assert!(removal.join().unwrap());
        waits
    });
    assert!(waits);
    let used = InUse {
        digests: HashSet::from([made_of.digest]),
        paths: made_of.disk_paths.iter().cloned().collect(),
    };
    let (_, removed) = prune(&place, true, &used).unwrap();
    assert!(!removed.busy && blobs(&place) == all, "{removed:?}");
    // An archive that cannot be loaded takes back what it brought, and nothing of others.
    let broken = Tar::default().add(file("manifest.json"), b"no").end();
    load(&place, Input::Stream(&mut &broken[..]), None).unwrap_err();
    assert_eq!(blobs(&place), all);
    // The disk is lost: it can be made again by the digest, without a name and without a network.
    for path in &used.paths {
        fs::remove_file(path).unwrap();
    }
    assert_eq!(text(&place, &Reference::Id(made_of.digest)), "one");
    let mut other = *made_of.digest.bytes().first_chunk::<32>().unwrap();
    other[0] ^= 1;
    let gone = place.resolve(&Reference::Id(Digest::Sha256(other)));
    assert!(chain(&gone.unwrap_err()).contains("no image"));
}

#[test]
fn prune_removes_what_is_old_unnamed_or_unfinished() {
    let place = TestDir::default();
    place.add(&image(&place, "one"), "app");
    let two = place.add(&image(&place, "two"), "app");
    resolve(&place, &named("app"));
    let partial = place.local().join("partial");
    let (old, new) = (partial.join("a".repeat(64)), partial.join("b".repeat(64)));
    for (path, age) in [(&old, 25), (&new, 23)] {
        let file = fs::File::create(path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_hours(age)).unwrap();
    }
    // The first writer made images that are whole in one file, as one without files is today.
    let bare = TestDir::default();
    let empty = bare.layout(&[Tar::default().empty(dir("d")).end()]);
    let whole = resolve(&bare, &empty.reference()).disk_paths;
    assert_eq!(whole.len(), 1);
    let stale = place.cache().join("images").join(format!("{}.erofs", "c".repeat(64)));
    fs::copy(&whole[0], &stale).unwrap();
    let (digests, removed) = prune(&place, false, &InUse::default()).unwrap();
    assert_eq!(digests.len(), 1);
    assert!(digests[0] != two.digest && removed.bytes > 0);
    assert!(!stale.exists() && !old.exists() && new.exists());
    assert!(resolve(&place, &named("app")).cached);
    assert_eq!(local(&place).list().unwrap().len(), 1);
}

#[test]
fn a_full_disk_under_the_store() {
    if !crate::support::is_root() {
        eprintln!("not root: no small file system to fill");
        return;
    }
    let place = TestDir::default();
    fs::create_dir_all(place.local()).unwrap();
    let store = place.local();
    run("mount", &["-t", "tmpfs", "-o", "size=4m,mode=700", "none", store.to_str().unwrap()]);
    let outcome = std::panic::catch_unwind(|| {
        let noise: Vec<u8> =
            (0..6_u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0]).collect();
        let big = Tar::default().add(file("noise"), &noise).end();
        let layers = [(layer("small"), Pack::Plain), (big, Pack::Plain)];
        let layout = Layout::with(&place.path("big"), &layers, "{}");
        let archive = place.path("big.tar");
        run("tar", &["-C", layout.dir.to_str().unwrap(), "-cf", archive.to_str().unwrap(), "."]);
        let packed = gzip(&fs::read(&archive).unwrap());
        let errors = [
            load(&place, Input::File(&archive), None).unwrap_err(),
            load(&place, Input::Stream(&mut &packed[..]), None).unwrap_err(),
        ];
        for (error, what) in errors.iter().zip(["No space left", "too little space"]) {
            let text = chain(error);
            assert!(text.contains(what) || text.contains("sixteenth"), "{text}");
        }
        assert_eq!((blobs(&place), local(&place).list().unwrap().len()), (0, 0));
        load(&place, Input::Stream(&mut &gzip(&small_archive())[..]), None).unwrap();
    });
    run("umount", &[store.to_str().unwrap()]);
    outcome.unwrap();
}

fn small_archive() -> Vec<u8> {
    let place = TestDir::default();
    place.add(&image(&place, "one"), "app");
    save(&place, &["app"], ArchiveFormat::Oci)
}

/// The other half of the test below: loads and removes until it is killed.
#[test]
fn helper_load_and_remove() {
    let Some(dir) = std::env::var_os("NELLY_STORE_TEST_DIR") else { return };
    let dir = Path::new(&dir);
    let mut options = StoreOptions::new(dir.join("cache"));
    options.local_dir = Some(dir.join("data/images"));
    let store = Store::open(options).unwrap();
    std::io::stderr().write_all(b"ready\n").unwrap();
    loop {
        let local = LocalStore::open(dir.join("data/images")).unwrap();
        let limits = Limits::default();
        local.load(Input::File(&dir.join("image.tar")), None, &limits, None, &mut Silent).unwrap();
        store.resolve(&named("app"), &mut Silent).unwrap();
        store.remove("app", false, &store.removing().unwrap(), &InUse::default()).unwrap();
    }
}

#[test]
fn killed_in_the_middle_of_load_and_rm() {
    let place = TestDir::default();
    place.add(&image(&place, "other"), "other");
    let noise: Vec<u8> =
        (0..4_u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0]).collect();
    let big = Tar::default().add(file("name"), b"big").add(file("noise"), &noise).end();
    let source = TestDir::default();
    source.add(&Layout::with(&source.path("big"), &[(big, Pack::Plain)], "{}"), "app");
    fs::write(place.path("image.tar"), save(&source, &["app"], ArchiveFormat::Oci)).unwrap();
    for round in 0..20_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["transfer::helper_load_and_remove", "--exact", "--nocapture"])
            .env("NELLY_STORE_TEST_DIR", place.dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Any moment will do; these are spread over several rounds of the child.
        std::thread::sleep(Duration::from_millis(10 + round * 13));
        child.kill().unwrap();
        child.wait().unwrap();
        // What is listed is whole.
        for image in local(&place).list().unwrap() {
            resolve(&place, &Reference::Id(image.descriptor.digest));
        }
        if round % 4 == 3 {
            load(&place, Input::File(&place.path("image.tar")), None).unwrap();
            assert_eq!(text(&place, &named("app")), "big");
            assert_eq!(text(&place, &named("other")), "other");
        }
    }
    let _ = remove(&place, "app", &InUse::default());
    for partial in files_in(&place.local().join("partial")) {
        let file = fs::File::options().write(true).open(partial).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_hours(25)).unwrap();
    }
    let other = local(&place).look_up("other").unwrap().image.descriptor.digest;
    prune(&place, true, &InUse { digests: HashSet::from([other]), ..InUse::default() }).unwrap();
    let fresh = TestDir::default();
    fresh.add(&image(&fresh, "other"), "other");
    assert_eq!(blobs(&place), blobs(&fresh));
    assert_eq!(text(&place, &named("other")), "other");
}

#[test]
fn many_load_and_remove_at_once() {
    let place = TestDir::default();
    let archives: Vec<Vec<u8>> = (0..4)
        .map(|n| {
            let source = TestDir::default();
            source.add(&image(&source, &n.to_string()), &format!("app:{n}"));
            save(&source, &[&format!("app:{n}")], ArchiveFormat::Oci)
        })
        .collect();
    std::thread::scope(|scope| {
        for (n, archive) in archives.iter().enumerate() {
            let place = &place;
            scope.spawn(move || {
                let name = format!("app:{n}");
                for round in 0..8 {
                    load(place, Input::Stream(&mut &archive[..]), None).unwrap();
                    assert_eq!(text(place, &named(&name)), n.to_string());
                    if round < 7 {
                        remove(place, &name, &InUse::default()).unwrap();
                    }
                }
            });
        }
    });
    assert_eq!(local(&place).list().unwrap().len(), 4);
    prune(&place, false, &InUse::default()).unwrap();
    let fresh = TestDir::default();
    for archive in &archives {
        load(&fresh, Input::Stream(&mut &archive[..]), None).unwrap();
    }
    assert_eq!(blobs(&place), blobs(&fresh));
}
