//! The file system of an image, from its layer to the disk: a tar of whatever entries the input
//! describes, read back from the disk by a reader that was not written with the writer.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};

use nelly_image::{Digest, Reference, Silent, Store, StoreOptions};

use super::Bytes;
use super::place::Place;
use super::tarball::{entry, record, seal};

#[path = "../../vmm/image/tests/image/support/erofs.rs"]
#[allow(dead_code, missing_docs, unreachable_pub, reason = "it is part of the tests of images")]
#[allow(
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_docs_in_private_items,
    reason = "as there"
)]
mod reader;

use reader::ErofsReader;

/// Entries of one input.
const ENTRIES: usize = 60;
const DIRECTORY: u32 = 0o040_000;

/// What the disk has to have under a path.
#[derive(Debug)]
struct Wanted {
    /// Type and permissions.
    mode: u32,
    owner: (u32, u32),
    data: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The path that has the same file.
    same: Option<String>,
}

/// Entries of ten bytes each.
///
/// # Panics
/// When the disk has anything else than the layer.
pub fn run(data: &[u8]) {
    let _ = files(data);
}

/// As [`run`]; how many files the disk has.
///
/// # Panics
/// As [`run`].
#[must_use]
pub fn files(data: &[u8]) -> usize {
    let mut input = Bytes(data);
    let (mut tar, mut wanted, mut directories) = (Vec::new(), BTreeMap::new(), vec![String::new()]);
    for _ in 0..ENTRIES {
        if input.is_empty() {
            break;
        }
        add(input.take(), &mut tar, &mut wanted, &mut directories);
    }
    tar.resize(tar.len() + 1024, 0);
    let mut found = disk(&tar).tree();
    found.remove(&b""[..]).expect("a root");
    let paths = |names: Vec<&[u8]>| {
        names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect::<Vec<_>>()
    };
    assert_eq!(
        paths(found.keys().map(Vec::as_slice).collect()),
        paths(wanted.keys().map(|path: &String| path.as_bytes()).collect())
    );
    for (path, want) in &wanted {
        let item = &found[path.as_bytes()];
        assert_eq!((item.mode, (item.uid, item.gid)), (want.mode, want.owner), "{path}");
        assert_eq!(item.xattrs, want.xattrs, "{path}");
        if want.mode & 0o170_000 != DIRECTORY {
            assert!(item.data == want.data, "the contents of {path}");
        }
        if let Some(same) = &want.same {
            assert_eq!(item.nid, found[same.as_bytes()].nid, "{path} is {same}");
        }
    }
    wanted.len()
}

/// Adds an entry to the layer, and what the disk then has.
fn add(
    [kind, parent, name, low, high, mode, owner, count, value, length]: [u8; 10],
    tar: &mut Vec<u8>,
    wanted: &mut BTreeMap<String, Wanted>,
    directories: &mut Vec<String>,
) {
    let parent = &directories[usize::from(parent) % directories.len()];
    // Names of two to 250 letters: 255 is the most.
    let name = format!("{}{name:02x}", "n".repeat(usize::from(name.min(248)) * usize::from(kind >> 7)));
    let path = if parent.is_empty() { name } else { format!("{parent}/{name}") };
    if wanted.contains_key(&path) || path.len() > 1000 {
        return;
    }
    let mut permissions = 0o200 | u32::from(mode) << 1;
    let (uid, gid) = (u32::from(owner) << (kind >> 3 & 15), u32::from(owner & 15));
    let size = usize::from(u16::from_le_bytes([low, high]));
    let mut records = Vec::new();
    if path.len() > 100 {
        record(&mut records, b"path", path.as_bytes());
    }
    let mut xattrs = BTreeMap::new();
    for index in 0..count & 3 {
        let (name, value) =
            (format!("user.{index}"), vec![value; 1 + usize::from(length) * usize::from(index + 1)]);
        record(&mut records, format!("SCHILY.xattr.{name}").as_bytes(), &value);
        xattrs.insert(name.into_bytes(), value);
    }
    if uid > 0o7_777_777 {
        record(&mut records, b"uid", uid.to_string().as_bytes());
    }
    let (mut data, mut link) = (Vec::new(), String::new());
    let (kind, file_type) = match kind & 7 {
        0..=2 => {
            data = (0..size).map(|at| value.wrapping_add((at / 5).to_le_bytes()[0])).collect();
            (b'0', 0o100_000)
        }
        3 | 4 => {
            directories.push(path.clone());
            (b'5', DIRECTORY)
        }
        5 => {
            link = "t".repeat(1 + size % 90);
            data = link.clone().into_bytes();
            permissions = 0o777;
            (b'2', 0o120_000)
        }
        6 => (b'6', 0o010_000),
        _ => {
            // Another name of a file that is there and is not too long for a header.
            let regular =
                |(path, want): &(&String, &Wanted)| want.mode & 0o170_000 == 0o100_000 && path.len() < 100;
            let all: Vec<_> = wanted.iter().filter(regular).map(|(path, _)| path.clone()).collect();
            let Some(first) = all.get(size % all.len().max(1)) else { return };
            let (first, file) = (first.clone(), &wanted[first]);
            let other = Wanted {
                same: Some(first.clone()),
                data: file.data.clone(),
                xattrs: file.xattrs.clone(),
                ..*file
            };
            let mut records = Vec::new();
            if path.len() > 100 {
                record(&mut records, b"path", path.as_bytes());
            }
            extended(tar, &records);
            tar.extend(entry(&path[path.len().saturating_sub(100)..], b'1', &first, b""));
            wanted.insert(path, other);
            return;
        }
    };
    extended(tar, &records);
    let mut head =
        entry(&path[path.len().saturating_sub(100)..], kind, &link, if kind == b'0' { &data } else { b"" });
    for (at, number) in [(100, permissions), (108, uid.min(0o7_777_777)), (116, gid)] {
        head[at..at + 8].copy_from_slice(format!("{number:07o}\0").as_bytes());
    }
    // Zeros are a device's numbers and a time.
    head[329..345].fill(0);
    seal(&mut head[..512]);
    tar.extend(head);
    wanted
        .insert(path, Wanted { mode: file_type | permissions, owner: (uid, gid), data, xattrs, same: None });
}

fn extended(tar: &mut Vec<u8>, records: &[u8]) {
    if !records.is_empty() {
        tar.extend(entry("x", b'x', "", records));
    }
}

/// The disk of an image with this layer.
fn disk(tar: &[u8]) -> ErofsReader {
    let place = Place::new("erofs");
    let dir = place.tree().join("layout");
    std::fs::create_dir_all(dir.join("blobs/sha256")).expect("there is room");
    let blob = |bytes: &[u8]| {
        let digest = Digest::sha256(bytes);
        std::fs::write(dir.join("blobs/sha256").join(digest.hex()), bytes).expect("there is room");
        format!(r#""digest":"{digest}","size":{}"#, bytes.len())
    };
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let (layer, id) = (blob(tar), Digest::sha256(tar));
    let config = blob(
        format!(r#"{{"architecture":"{architecture}","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["{id}"]}}}}"#)
            .as_bytes(),
    );
    let oci = "application/vnd.oci.image";
    let manifest = blob(
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"{oci}.config.v1+json",{config}}},"layers":[{{"mediaType":"{oci}.layer.v1.tar",{layer}}}]}}"#
        )
        .as_bytes(),
    );
    let index =
        format!(r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{oci}.manifest.v1+json",{manifest}}}]}}"#);
    std::fs::write(dir.join("index.json"), index).expect("there is room");
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("there is room");
    let store = Store::open(StoreOptions::new(place.tree().join("cache"))).expect("a store");
    let image = store.resolve(&Reference::OciLayout { dir, tag: None }, &mut Silent).expect("a sound layer");
    let fd = rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).expect("a memory file");
    let mut whole = File::from(fd);
    for mut file in &image.disk {
        let mut bytes = Vec::new();
        file.rewind().expect("a file");
        file.read_to_end(&mut bytes).expect("a file");
        assert_eq!(bytes.len() % 4096, 0);
        whole.write_all(&bytes).expect("a memory file");
    }
    assert_eq!(whole.metadata().expect("a memory file").len(), image.disk_bytes);
    ErofsReader::new(whole)
}

/// Files of all sizes that count, directories in each other, links and attributes.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let step = |kind: u8, parent: u8, name: u8, size: u16, more: [u8; 5]| {
        let [low, high] = size.to_le_bytes();
        let [mode, owner, count, value, length] = more;
        [kind, parent, name, low, high, mode, owner, count, value, length]
    };
    let plain = [0x52, 0, 0, 1, 0];
    let sizes = [0, 1, 4000, 4095, 4096, 4097, 12_000];
    let files = (1..).zip(sizes).map(|(name, size)| step(0, 0, name, size, plain));
    let tree = [
        step(3, 0, 1, 0, [0xff, 3, 0, 0, 0]),
        step(3, 1, 2, 0, [0x52, 3, 2, 9, 200]),
        step(0, 2, 3, 5000, [0x52, 200, 3, 7, 3]),
        step(0x7b, 2, 4, 0, [0x52, 255, 1, 7, 0]),
        step(0x80, 1, 200, 70, plain),
        step(5, 2, 5, 60, plain),
        step(6, 0, 6, 0, plain),
        step(7, 0, 7, 0, plain),
        step(0x87, 0, 150, 0, plain),
    ];
    let many = (0..50).map(|name| step(if name % 3 == 0 { 3 } else { 0x80 }, name, name + 100, 40, plain));
    vec![files.flatten().collect(), tree.concat(), many.flatten().collect()]
}
