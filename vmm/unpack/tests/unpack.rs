//! The program as a store uses it: what is unpacked by it is what is unpacked without it, to the
//! byte, and so are the errors.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../image/tests/image/support/mod.rs"]
#[allow(dead_code, reason = "for the tests of another crate too")]
mod support;

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use nelly_image::{
    Image, ImageError, ImageStage, Progress, Reference, Silent, Store, StoreOptions, Unpacker,
};
use support::image::{Layout, Pack, TestDir, Whole, chain, gzip};
use support::tarball::{Tar, file};

const PROGRAM: &str = env!("CARGO_BIN_EXE_nelly-unpack");

/// The store of a directory, with the unpacker.
fn store(place: &TestDir) -> Store {
    let mut options = StoreOptions::new(place.cache());
    options.limits = place.limits;
    options.local_dir = Some(place.local());
    options.unpacker = Some(Unpacker::at(vec![PROGRAM.into()]));
    Store::open(options).unwrap()
}

/// A layer with a file of this name and these bytes.
fn layer(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut tar = Tar::default();
    tar.add(file(name), bytes);
    tar.end()
}

fn layout(place: &TestDir) -> Layout {
    let layers = [
        (layer("a", &[7; 5000]), Pack::Plain),
        (layer("b", b"two"), Pack::Gzip),
        (layer("c", &[1; 100_000]), Pack::Zstd),
    ];
    Layout::with(&place.path("layout"), &layers, r#"{"Cmd":["/a"],"Healthcheck":{"Test":["NONE"]}}"#)
}

fn same(one: &Image, other: &Image) {
    assert_eq!(Whole::of(one).bytes(), Whole::of(other).bytes());
    assert_eq!((one.digest, &one.config), (other.digest, &other.config));
    assert_eq!(one.raw_config.health_check().unwrap(), other.raw_config.health_check().unwrap());
}

#[test]
fn every_kind_of_image_is_unpacked_as_it_is_without() {
    let place = TestDir::default();
    let layout = layout(&place);
    place.add(&layout, "app:1");
    let tar = place.path("image.tar");
    support::run("tar", &["-C", layout.dir.to_str().unwrap(), "-cf", tar.to_str().unwrap(), "."]);
    fs::write(place.path("image.tar.gz"), gzip(&fs::read(&tar).unwrap())).unwrap();
    let archive = |name: &str| Reference::OciArchive { file: place.path(name), tag: None };
    let listed = place.add(&layout, "app:2").digest.to_string();
    let references = [
        layout.reference(),
        archive("image.tar"),
        archive("image.tar.gz"),
        "app:1".parse().unwrap(),
        listed.parse().unwrap(),
    ];
    for reference in references {
        let _none_at_first = fs::remove_dir_all(place.cache());
        let without = place.resolve(&reference).unwrap();
        let bytes = Whole::of(&without).bytes();
        fs::remove_dir_all(place.cache()).unwrap();
        let image = store(&place).resolve(&reference, &mut Silent).unwrap_or_else(|error| {
            panic!("{reference}: {}", chain(&error));
        });
        assert!(!image.cached && !without.cached);
        assert_eq!(Whole::of(&image).bytes(), bytes);
        same(&image, &place.resolve(&reference).unwrap());
        let again = store(&place).resolve(&reference, &mut Silent).unwrap();
        assert!(again.cached);
        same(&image, &again);
        assert_eq!(place.leftovers(), [again.disk_paths[0].clone()]);
    }
}

#[test]
fn a_layout_whose_blobs_are_links_is_unpacked() {
    let place = TestDir::default();
    let layout = layout(&place);
    fs::rename(layout.dir.join("blobs"), place.path("blobs")).unwrap();
    std::os::unix::fs::symlink(place.path("blobs"), layout.dir.join("blobs")).unwrap();
    fs::rename(layout.dir.join("index.json"), place.path("index")).unwrap();
    std::os::unix::fs::symlink(place.path("index"), layout.dir.join("index.json")).unwrap();
    store(&place).resolve(&layout.reference(), &mut Silent).unwrap();
}

#[test]
fn what_the_caller_has_open_is_none_of_its_business() {
    let place = TestDir::default();
    let layout = layout(&place);
    let program = place.path("nelly-unpack");
    // It is started with a file that it may not have, and says what it has open.
    fs::write(
        &program,
        format!("#!/bin/sh\nexec 7<'{}'\nexec '{PROGRAM}'\n", layout.dir.join("index.json").display()),
    )
    .unwrap();
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut child = Command::new(&program)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // It waits for its order, and has begun.
    let open = || -> Vec<String> {
        let listed = fs::read_dir(format!("/proc/{}/fd", child.id())).unwrap();
        listed.map(|entry| entry.unwrap().file_name().to_str().unwrap().to_owned()).collect()
    };
    let limit = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let mut now = open();
        now.sort();
        // Not the shell any more.
        let runs = fs::read_link(format!("/proc/{}/exe", child.id())).unwrap();
        if runs == std::path::Path::new(PROGRAM) && now == ["0", "1", "2"] {
            break;
        }
        assert!(std::time::Instant::now() < limit, "{now:?}");
        std::thread::yield_now();
    }
    drop(child.stdin.take());
    child.wait().unwrap();
}

#[test]
fn what_is_in_the_cache_starts_no_process() {
    let place = TestDir::default();
    let layout = layout(&place);
    let image = place.resolve(&layout.reference()).unwrap();
    let mut options = StoreOptions::new(place.cache());
    options.unpacker = Some(Unpacker::at(vec!["/nowhere/nelly-unpack".into()]));
    let store = Store::open(options).unwrap();
    same(&store.resolve(&layout.reference(), &mut Silent).unwrap(), &image);
    fs::remove_dir_all(place.cache()).unwrap();
    let error = store.resolve(&layout.reference(), &mut Silent).unwrap_err();
    assert_eq!(error.code(), "image_unpacker_failed");
    assert!(chain(&error).contains("looked for /nowhere/nelly-unpack"), "{}", chain(&error));
}

#[test]
fn errors_are_those_of_a_store_without() {
    for (name, damage) in [
        ("a layer that is no tar", vec![(vec![b'x'; 2048], Pack::Plain)]),
        ("a path out of the image", vec![(layer("../x", b""), Pack::Gzip)]),
    ] {
        let place = TestDir::default();
        let layout = Layout::with(&place.path("layout"), &damage, "{}");
        let (with, without) =
            (store(&place).resolve(&layout.reference(), &mut Silent), place.resolve(&layout.reference()));
        let (with, without) = (with.unwrap_err(), without.unwrap_err());
        assert_eq!((chain(&with), with.code()), (chain(&without), without.code()), "{name}");
        assert_eq!(place.leftovers(), [] as [std::path::PathBuf; 0]);
    }
    // A limit arrives.
    let mut place = TestDir::default();
    place.limits.entries = 2;
    let error = store(&place).resolve(&layout(&place).reference(), &mut Silent).unwrap_err();
    assert!(chain(&error).contains("limit `entries`"), "{}", chain(&error));
}

/// Gives up when the first layer begins.
struct Impatient(Vec<ImageStage>);

impl Progress for Impatient {
    fn update(&mut self, stage: ImageStage, _: u64, _: Option<u64>) {
        self.0.push(stage);
    }

    fn cancelled(&mut self) -> bool {
        !self.0.is_empty()
    }
}

#[test]
fn one_that_is_not_wanted_any_more_leaves_nothing() {
    let place = TestDir::default();
    // Long to read and quick to make.
    let layers = [(layer("zeros", &vec![0; 256 << 20]), Pack::Zstd)];
    let layout = Layout::with(&place.path("layout"), &layers, "{}");
    let mut impatient = Impatient(Vec::new());
    let left = store(&place).resolve(&layout.reference(), &mut impatient);
    assert!(matches!(left, Err(ImageError::Cancelled)), "{left:?}");
    assert_eq!(impatient.0[0], ImageStage::Layer { number: 1, count: 1 });
    assert_eq!(place.leftovers(), [] as [std::path::PathBuf; 0]);
}

#[test]
fn the_program_explains_itself_and_refuses_nonsense() {
    let run = |arguments: &[&str], input: &str| {
        let mut child = Command::new(PROGRAM)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It may have ended without reading.
        let _unread = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    };
    let help = run(&["--help"], "");
    assert!(help.status.success() && help.stdout.starts_with(b"Unpacks an image"));
    assert!(run(&["--version"], "").stdout.starts_with(b"nelly-unpack 0."));
    for input in ["", "\n", "{}\n", "[1]"] {
        let refused = run(&[], input);
        let said = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(1), "{said}");
        assert!(said.contains("started by nelly"), "{said}");
    }
    assert_eq!(run(&["x"], "").status.code(), Some(1));
}
