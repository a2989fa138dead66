//! Archives that a copy between host and guest reads: each side's come from the other, whom it does
//! not trust.

use std::fs::File;
use std::os::fd::AsFd;

use nelly_archive::unpack::{Naming, Options, Unpacker};
use nelly_archive::{Entry, Kind, Piece, Reader, Room, Writer};

use super::place::Place;
use super::tarball::{entry, record, sealed};

/// Most bytes and files that a copy may write.
const ROOM: Room = Room { bytes: 1 << 20, files: 64 };

/// The first byte chooses how the rest is unpacked, and with its upper bit whether the sums of
/// headers are put right before.
///
/// # Panics
/// When something beside the directory changes, more is written than may be, or what was read is
/// not read again from what is written of it.
pub fn run(data: &[u8]) {
    let _ = unpacks(data);
}

/// As [`run`]; whether all of it could be unpacked.
///
/// # Panics
/// As [`run`].
#[must_use]
pub fn unpacks(data: &[u8]) -> bool {
    let Some((choice, rest)) = data.split_first() else { return false };
    let bytes = if choice & 0x80 == 0 { rest.to_vec() } else { sealed(rest) };
    let Some(entries) = read(&bytes) else { return false };
    again(&entries);
    let place = Place::new("archive");
    let before = place.beside();
    let root = File::open(place.tree()).expect("it is there");
    let mut reader = Reader::new(bytes.as_slice());
    let first = reader.entry().expect("it was read before");
    let naming = Naming { strip: choice & 1 != 0, put: (choice & 2 != 0).then(|| b"put".to_vec()) };
    let options = Options { archive: choice & 4 != 0, room: ROOM };
    let mut note = |sentence: String| assert!(!sentence.is_empty());
    let whole = Unpacker::new(root.as_fd(), naming, options, &mut note).all(first, &mut reader).is_ok();
    assert!(place.beside() == before, "nothing beside the directory changes");
    whole
}

/// Reads a whole archive: entries and the bytes that it has of each.
fn read(bytes: &[u8]) -> Option<Vec<(Entry, Vec<u8>)>> {
    let mut reader = Reader::new(bytes);
    let mut entries = Vec::new();
    while let Some(entry) = reader.entry().ok()? {
        let (mut data, mut count) = (Vec::new(), 0_u64);
        let mut buffer = [0; 4096];
        loop {
            match reader.piece(&mut buffer).ok()? {
                Piece::Data(len) => {
                    data.extend_from_slice(&buffer[..len]);
                    count += len as u64;
                }
                Piece::Hole(len) => count = count.checked_add(len).expect("a size has 64 bits"),
                Piece::End => break,
            }
        }
        assert!(entry.kind == Kind::Other || count == entry.size, "as many bytes as it says: {entry:?}");
        entries.push((entry, data));
    }
    Some(entries)
}

/// What is written is read again as the same.
fn again(entries: &[(Entry, Vec<u8>)]) {
    // What has no form in an archive that others read is nothing that we would write.
    let plain = |entry: &Entry| {
        entry.kind != Kind::Other
            && !entry.path.is_empty()
            && !entry.path.contains(&0)
            && !entry.link.contains(&0)
            && entry.xattrs.iter().all(|(name, _)| !name.contains(&0) && !name.contains(&b'='))
    };
    let entries: Vec<_> = entries.iter().filter(|(entry, _)| plain(entry)).collect();
    let mut writer = Writer::new(Vec::new());
    for (entry, data) in &entries {
        writer.begin(entry).expect("memory takes every byte");
        writer.data(data).expect("memory takes every byte");
    }
    let bytes = writer.finish().expect("memory takes every byte");
    let second = read(&bytes).expect("what we write can be read");
    assert_eq!(second.len(), entries.len());
    for ((entry, data), (other, again)) in entries.iter().copied().zip(&second) {
        assert_eq!((&entry.path, &entry.link, entry.kind), (&other.path, &other.link, other.kind));
        assert_eq!(
            (entry.mode, entry.uid, entry.gid, entry.size),
            (other.mode, other.uid, other.gid, other.size)
        );
        assert_eq!((entry.mtime, entry.mtime_nsec), (other.mtime, other.mtime_nsec));
        assert_eq!((&entry.xattrs, &entry.extents), (&other.xattrs, &other.extents));
        assert!(data == again, "the contents of {entry:?}");
    }
}

/// Files, links, links that lead away, and a sparse file.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let end = [0; 1024];
    let tree = [
        entry("a/", b'5', "", b""),
        entry("a/file", b'0', "", b"contents"),
        entry("a/second", b'1', "a/file", b""),
        entry("a/link", b'2', "file", b""),
    ]
    .concat();
    let away =
        [entry("up", b'2', "..", b""), entry("up/beside", b'0', "", b"x"), entry("../x", b'0', "", b"y")]
            .concat();
    let records = |all: &[(&str, &str)]| {
        let mut bytes = Vec::new();
        all.iter().for_each(|(key, value)| record(&mut bytes, key.as_bytes(), value.as_bytes()));
        entry("x", b'x', "", &bytes)
    };
    let mut map = b"1\n4096\n3\n".to_vec();
    map.resize(512, 0);
    map.extend_from_slice(b"abc");
    let told = records(&[
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "a/sparse"),
        ("GNU.sparse.realsize", "8192"),
    ]);
    let sparse = [entry("a/", b'5', "", b""), told, entry("GNUSparseFile.0/sparse", b'0', "", &map)].concat();
    let long = records(&[
        ("path", "rather-long-a-path"),
        ("SCHILY.xattr.user.a", "bc"),
        ("mtime", "1000000.000001"),
    ]);
    let named = [long, entry("short", b'0', "", b"1234")].concat();
    [(0, &tree), (0x87, &tree), (0, &away), (0x80, &sparse), (4, &named)]
        .map(|(choice, bytes)| [&[choice], bytes.as_slice(), &end].concat())
        .to_vec()
}
