//! What another user, a directory that changes and an image that lies try, and what comes of it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use crate::support::image::{Layout, Pack, TestDir, chain, contents_of, gzip};
use crate::support::is_root;
use crate::support::tarball::{Tar, file};
use nelly_image::{Digest, Image, ImageError, ImageStage, Progress, Reference, Silent, Store, StoreOptions};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const NOTHING: [PathBuf; 0] = [];
const MALLORY: u32 = 12345;

fn layer(text: &str) -> Vec<u8> {
    Tar::default().add(file("name"), text.as_bytes()).end()
}

/// What the image's `name` says.
fn name_in(image: Image) -> String {
    String::from_utf8(contents_of(&image)[&b"name"[..]].data.clone()).unwrap()
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Calls a function when it is asked for the `at`th time whether to go on.
struct Hook<F> {
    at: u32,
    asked: u32,
    run: F,
}

impl<F: FnMut() -> bool> Progress for Hook<F> {
    fn update(&mut self, _phase: ImageStage, _done: u64, _total: Option<u64>) {}

    fn cancelled(&mut self) -> bool {
        self.asked += 1;
        self.asked == self.at && (self.run)()
    }
}

#[test]
fn a_cache_that_others_may_write_is_not_used() {
    let place = TestDir::default();
    let layout = place.layout(&[layer("good")]);
    let image = place.resolve(&layout.reference()).unwrap().disk_paths.remove(0);
    let refusal = || {
        let error = Store::open(StoreOptions::new(place.cache()))
            .and_then(|store| store.resolve(&layout.reference(), &mut Silent))
            .unwrap_err();
        assert!(matches!(error, ImageError::Cache { .. }), "{error:?}");
        chain(&error)
    };
    for (path, bad, good) in [
        (place.cache(), 0o777, 0o700),
        (place.cache().join("images"), 0o770, 0o700),
        (place.cache().join("layers"), 0o770, 0o700),
        (place.cache().join("verified"), 0o1777, 0o700),
        (place.cache().join("version"), 0o666, 0o600),
        (image.clone(), 0o646, 0o444),
    ] {
        mode(&path, bad);
        let message = refusal();
        let whose = format!("{} is writable by users other than its owner", path.display());
        assert!(message.contains(&whose) && message.contains("chmod go-w"), "{message}");
        mode(&path, good);
        assert!(place.resolve(&layout.reference()).unwrap().cached);
    }
    // A lock is taken only to build.
    fs::remove_file(&image).unwrap();
    mode(&place.cache().join("locks"), 0o777);
    assert!(refusal().contains("locks is writable"));
    mode(&place.cache().join("locks"), 0o700);
    if !is_root() {
        eprintln!("not root: nothing can be given to another user");
        return;
    }
    for path in [place.cache(), place.cache().join("images"), place.cache().join("locks")] {
        chown(&path, Some(MALLORY), None).unwrap();
        let message = refusal();
        let whose = format!("{} belongs to user {MALLORY}, but this program runs as user 0", path.display());
        assert!(message.contains(&whose), "{message}");
        chown(&path, Some(0), None).unwrap();
    }
    // One below a directory of another user is at that user's mercy, too.
    let home = place.path("home");
    fs::create_dir_all(home.join(".cache")).unwrap();
    chown(&home, Some(MALLORY), None).unwrap();
    let store = Store::open(StoreOptions::new(home.join(".cache/nelly"))).unwrap();
    let error = store.resolve(&layout.reference(), &mut Silent).unwrap_err();
    assert!(chain(&error).contains("home belongs to user 12345"), "{}", chain(&error));
    assert!(!home.join(".cache/nelly").exists());
}

#[test]
fn a_planted_link_makes_no_file_elsewhere() {
    let place = TestDir::default();
    let layout = place.layout(&[layer("good")]);
    let image = place.resolve(&layout.reference()).unwrap().disk_paths.remove(0);
    let key = image.file_stem().unwrap().to_owned();
    let elsewhere = place.path("elsewhere");
    for name in ["locks", "images"] {
        fs::remove_file(&image).unwrap();
        let link = match name {
            "locks" => place.cache().join(name).join(&key),
            _ => image.clone(),
        };
        symlink(&elsewhere, &link).unwrap();
        let error = place.resolve(&layout.reference()).unwrap_err();
        assert!(chain(&error).contains("is not a regular file"), "{}", chain(&error));
        assert!(!elsewhere.exists());
        fs::remove_file(&link).unwrap();
        place.resolve(&layout.reference()).unwrap();
    }
    for name in ["locks", "images", "layers", "scratch", "verified"] {
        let dir = place.cache().join(name);
        fs::remove_dir_all(&dir).unwrap();
        fs::create_dir_all(&elsewhere).unwrap();
        symlink(&elsewhere, &dir).unwrap();
        let other = Layout::with(&place.path("other"), &[(layer(name), Pack::Plain)], "{}");
        let error = place.resolve(&other.reference()).unwrap_err();
        assert!(chain(&error).contains(&format!("{name} is not a directory")), "{}", chain(&error));
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
        fs::remove_file(&dir).unwrap();
    }
    assert_eq!(name_in(place.resolve(&layout.reference()).unwrap()), "good");
}

/// Reads a directory that `swap` changes when the walk asks for the `at`th time whether to go on;
/// `None` if it never does so often.
fn read_while(at: u32, swap: impl Fn(&Path, &Path)) -> Option<Result<Image, ImageError>> {
    let place = TestDir::default();
    let (root, outside) = (place.path("root"), place.path("outside"));
    for dir in [root.join("d/e"), root.join("z"), outside.join("e")] {
        fs::create_dir_all(dir).unwrap();
    }
    for name in ["a", "d/e/inside", "d/inside", "x", "z/inside"] {
        fs::write(root.join(name), "inside").unwrap();
    }
    for name in ["e/inside", "e/secret", "inside", "secret"] {
        fs::write(outside.join(name), "SECRET").unwrap();
    }
    let mut hook = Hook {
        at,
        asked: 0,
        run: || {
            swap(&root.join("d"), &outside);
            false
        },
    };
    let result = place.store().resolve(&Reference::Rootfs { dir: root.clone() }, &mut hook);
    assert_eq!(place.leftovers(), NOTHING);
    (hook.asked >= at).then_some(result)
}

/// How often the walk noticed that its directory changed; nothing of what lies outside may come in.
fn noticed(swap: impl Fn(&Path, &Path)) -> u32 {
    let mut noticed = 0;
    for at in 1.. {
        match read_while(at, &swap) {
            None => break,
            Some(Ok(image)) => {
                let tree = contents_of(&image);
                assert!(tree.values().all(|item| item.data != b"SECRET"), "swapped at question {at}");
            }
            Some(Err(error)) => {
                assert!(chain(&error).contains("was changed while it was being read"), "{}", chain(&error));
                noticed += 1;
            }
        }
    }
    noticed
}

#[test]
fn a_directory_that_becomes_a_link_lets_nothing_of_the_host_in() {
    let swap = |dir: &Path, outside: &Path| {
        fs::rename(dir, dir.with_file_name("old")).unwrap();
        symlink(outside, dir).unwrap();
    };
    // Between the look at `d` and its opening, and between the look at `d/e` and its opening.
    assert!(noticed(swap) >= 4);
}

#[test]
fn a_directory_in_place_of_another_is_noticed() {
    let swap = |dir: &Path, outside: &Path| {
        let other = dir.with_file_name("other");
        fs::create_dir_all(other.join("e")).unwrap();
        fs::write(other.join("planted"), "planted").unwrap();
        fs::rename(dir, outside.join("old")).unwrap();
        fs::rename(&other, dir).unwrap();
    };
    assert!(noticed(swap) >= 4);
}

#[test]
fn whether_to_go_on_is_asked_for_every_entry() {
    let mut tar = Tar::default();
    for i in 0..100 {
        tar.empty(file(&format!("f{i}")));
    }
    let place = TestDir::default();
    let layout = place.layout(&[tar.end()]);
    let resolve = |at| {
        let mut hook = Hook { at, asked: 0, run: || true };
        (place.store().resolve(&layout.reference(), &mut hook), hook.asked)
    };
    for at in [1, 50, 100, 150] {
        let (result, asked) = resolve(at);
        assert!(matches!(result, Err(ImageError::Cancelled)) && asked == at, "{at}: {asked} {result:?}");
        assert_eq!(place.leftovers(), NOTHING);
    }
    let (result, asked) = resolve(u32::MAX);
    assert!(result.is_ok() && asked >= 200, "100 entries and 101 inodes: {asked}");
    // And while an archive is looked through for its names, in the middle of a file of it, too.
    let archive = place.path("image.tar");
    let tar = Tar::default().add(file("large"), &vec![7; 8 << 20]).add(file("manifest.json"), b"[]").end();
    for (data, at) in [(gzip(&tar), 20), (tar, 2)] {
        fs::write(&archive, data).unwrap();
        let reference = Reference::DockerArchive { file: archive.clone(), tag: None };
        let mut hook = Hook { at, asked: 0, run: || true };
        assert!(matches!(place.store().resolve(&reference, &mut hook), Err(ImageError::Cancelled)), "{at}");
    }
}

/// A layout whose configuration lists `ids` and whose manifest lists `blobs`, of which only some
/// are there.
fn forged(dir: &Path, ids: &[Digest], blobs: &[&[u8]], there: bool) -> Layout {
    let layout = Layout::new(dir);
    let config = layout.descriptor(CONFIG, Layout::config(ids, "{}").as_bytes(), "");
    let layers: Vec<String> = blobs
        .iter()
        .map(|data| {
            let descriptor = layout.descriptor("application/vnd.oci.image.layer.v1.tar", data, "");
            if !there {
                fs::remove_file(layout.blob_path(&Digest::sha256(data))).unwrap();
            }
            descriptor
        })
        .collect();
    let manifest = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{}]}}"#, layers.join(","));
    layout.index(&[layout.descriptor(MANIFEST, manifest.as_bytes(), "")]);
    layout
}

#[test]
fn a_diff_id_is_verified_also_when_it_is_the_digest_of_the_stored_bytes() {
    let packed = gzip(&layer("packed"));
    let place = TestDir::default();
    let layout = forged(&place.path("layout"), &[Digest::sha256(&packed)], &[&packed], true);
    let message = chain(&place.resolve(&layout.reference()).unwrap_err());
    assert!(message.contains("its uncompressed digest is"), "{message}");
    assert_eq!(place.leftovers(), NOTHING);
    // Stored as it is, it has one digest twice, and rightly so.
    let plain = layer("plain");
    let layout = forged(&place.path("layout"), &[Digest::sha256(&plain)], &[&plain], true);
    assert_eq!(name_in(place.resolve(&layout.reference()).unwrap()), "plain");
}

#[test]
fn layers_come_out_of_the_cache_only_for_those_who_have_them() {
    let place = TestDir::default();
    let secret = layer("secret");
    let other = layer("other!");
    let ids = [Digest::sha256(&secret)];
    let own = Layout::with(&place.path("own"), &[(secret.clone(), Pack::Plain)], r#"{"Cmd":["own"]}"#);
    let image = place.resolve(&own.reference()).unwrap();
    let disk = image.disk_paths.clone();
    assert!(!image.cached);
    // Whoever knows a digest has neither the layer...
    for _ in 0..2 {
        let layout = forged(&place.path("without"), &ids, &[&secret], false);
        let message = chain(&place.resolve(&layout.reference()).unwrap_err());
        assert!(message.contains("does not exist"), "{message}");
        assert!(place.store().plan(&layout.reference()).is_err());
        // ... nor anything that passes for it.
        let layout = forged(&place.path("with-another"), &ids, &[&other], true);
        let message = chain(&place.resolve(&layout.reference()).unwrap_err());
        assert!(message.contains("its uncompressed digest is"), "{message}");
        let packed = gzip(&other);
        let layout = forged(&place.path("packed"), &ids, &[&packed], true);
        assert!(place.resolve(&layout.reference()).is_err());
    }
    // Who has it, in whatever form, shares the disk: from then on the manifest is enough.
    let packed = gzip(&secret);
    let layout = forged(&place.path("honest"), &ids, &[&packed], true);
    let image = place.resolve(&layout.reference()).unwrap();
    assert!(image.cached && image.disk_paths == disk);
    fs::remove_file(layout.blob_path(&Digest::sha256(&packed))).unwrap();
    let image = place.resolve(&layout.reference()).unwrap();
    assert!(image.cached && place.store().plan(&layout.reference()).unwrap().cached);
    assert_eq!(name_in(image), "secret");
}

#[test]
fn every_media_type_of_layers_in_every_compression() {
    let place = TestDir::default();
    let dir = place.path("layout");
    for base in ["oci.image.layer.v1.tar", "oci.image.layer.nondistributable.v1.tar"]
        .iter()
        .flat_map(|base| ["", "+gzip", "+zstd"].map(|end| format!("{base}{end}")))
        .chain(
            ["docker.image.rootfs.diff.tar", "docker.image.rootfs.foreign.diff.tar"]
                .iter()
                .flat_map(|base| ["", ".gzip", ".zstd"].map(|end| format!("{base}{end}"))),
        )
    {
        let tar = layer(&base);
        // What the type says of the compression is not believed: others do not believe it either.
        for data in [tar.clone(), gzip(&tar), zstd::encode_all(&tar[..], 1).unwrap()] {
            let layout = Layout::new(&dir);
            let config =
                layout.descriptor(CONFIG, Layout::config(&[Digest::sha256(&tar)], "{}").as_bytes(), "");
            let blob = layout.descriptor(&format!("application/vnd.{base}"), &data, "");
            let manifest = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{blob}]}}"#);
            layout.index(&[layout.descriptor(MANIFEST, manifest.as_bytes(), "")]);
            let fresh = TestDir::default();
            let image = fresh.resolve(&layout.reference());
            assert_eq!(name_in(image.unwrap_or_else(|error| panic!("{base}: {}", chain(&error)))), base);
            // A layer that images may leave out is missed by the name of its type.
            fs::remove_file(layout.blob_path(&Digest::sha256(&data))).unwrap();
            let message = chain(&TestDir::default().resolve(&layout.reference()).unwrap_err());
            let foreign = base.contains("nondistributable") || base.contains("foreign");
            assert_eq!(message.contains(&format!("`application/vnd.{base}`")), foreign, "{message}");
            assert!(message.contains("does not exist"), "{message}");
        }
    }
}

#[test]
fn a_path_with_a_colon_ends_there_and_the_error_says_so() {
    let place = TestDir::default();
    let made = place.layout(&[layer("colon")]).dir;
    let dir = place.path("with:colon");
    fs::rename(made, &dir).unwrap();
    let reference: Reference = format!("oci:{}", dir.display()).parse().unwrap();
    let before = place.path("with").display().to_string();
    for exists in [false, true] {
        if exists {
            fs::create_dir(place.path("with")).unwrap();
        }
        let message = chain(&place.resolve(&reference).unwrap_err());
        let advice =
            format!("the path ends at the first colon: here the path is `{before}` and the tag is `colon`");
        assert!(message.contains(&advice) && message.contains("through a symbolic link"), "{message}");
    }
    symlink(&dir, place.path("link")).unwrap();
    let reference: Reference = format!("oci:{}:latest", place.path("link").display()).parse().unwrap();
    assert_eq!(name_in(place.resolve(&reference).unwrap()), "colon");
    // A wrong tag alone is no reason to speak of colons.
    let reference: Reference = format!("oci:{}:none", place.path("link").display()).parse().unwrap();
    let message = chain(&TestDir::default().resolve(&reference).unwrap_err());
    assert!(message.contains("no tag `none`") && !message.contains("colon:"), "{message}");
}
