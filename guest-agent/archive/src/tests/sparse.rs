//! Holes, zeros, and how much room they take.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use super::{archive, entry, pack_as, unpack, unpack_within};
use crate::{Entry, Extent, Kind, Piece, Reader, Room, Writer};

/// A file of these parts, as the one that `path` names.
fn sparse_file(path: &Path, size: u64, parts: &[(u64, &[u8])]) {
    let made = File::create(path).unwrap();
    made.set_len(size).unwrap();
    for (at, bytes) in parts {
        made.write_all_at(bytes, *at).unwrap();
    }
}

fn disk_bytes(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

#[test]
fn zeros_take_no_room_and_holes_are_carried() {
    let home = tempfile::tempdir().unwrap();
    let from = home.path().join("tree");
    fs::create_dir(&from).unwrap();
    let big = 24 << 20;
    sparse_file(&from.join("holes"), big, &[(5000, b"first"), (7 << 20, &[7; 9000]), (big - 1, b"e")]);
    sparse_file(&from.join("empty"), 64 << 20, &[]);
    sparse_file(&from.join("ends"), (1 << 20) + 5, &[(0, b"begin")]);
    // Zeros that are no hole, in blocks and across them.
    let mut zeros = vec![0; 1 << 20];
    zeros[300_000] = 1;
    zeros[(1 << 20) - 1] = 2;
    fs::write(from.join("zeros"), &zeros).unwrap();
    fs::write(from.join("no\u{eb}l"), "x").unwrap();
    for sparse in [true, false] {
        let (bytes, notes) = pack_as(home.path(), "tree", sparse);
        assert!(notes.is_empty(), "{notes:?}");
        assert_eq!(bytes.len() < 2 << 20, sparse, "{}", bytes.len());
        let to = home.path().join(format!("to-{sparse}"));
        fs::create_dir(&to).unwrap();
        assert_eq!(unpack(&bytes, &to, None).unwrap(), [""; 0]);
        for name in ["holes", "empty", "ends", "zeros", "no\u{eb}l"] {
            let (from, to) = (from.join(name), to.join("tree").join(name));
            assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap(), "{name} {sparse}");
            assert!(disk_bytes(&to) <= 128 << 10, "{name} {sparse}: {}", disk_bytes(&to));
        }
    }
}

#[test]
fn a_copy_that_needs_more_room_than_it_has_ends() {
    let home = tempfile::tempdir().unwrap();
    let from = home.path().join("tree");
    fs::create_dir(&from).unwrap();
    fs::write(from.join("file"), vec![1; 100_000]).unwrap();
    sparse_file(&from.join("hole"), 1 << 30, &[]);
    let (bytes, _) = pack_as(home.path(), "tree", true);
    // A directory, two files, and 25 blocks.
    let enough = Room { bytes: 28 * 4096, files: 3 };
    let within = |name: &str, room: Room| {
        let to = home.path().join(name);
        fs::create_dir(&to).unwrap();
        let done = unpack_within(&bytes, &to, None, room);
        let left: Vec<_> = fs::read_dir(to.join("tree")).unwrap().flatten().collect();
        (done.map_err(|error| error.to_string()), left.len())
    };
    assert_eq!(within("enough", enough), (Ok(Vec::new()), 2));
    let (done, left) = within("bytes", Room { bytes: enough.bytes - 4096, ..enough });
    assert!(done.unwrap_err().contains("tree/hole: 110592 bytes"));
    assert_eq!(left, 1, "what was whole stays");
    let (done, left) = within("few", Room { bytes: 4 * 4096, ..enough });
    assert!(done.unwrap_err().contains("tree/file: "));
    assert_eq!(left, 0, "what was begun goes");
    let deep = archive(&[entry("a/b/c/file", Kind::File)]);
    for (files, fits) in [(3, false), (4, true)] {
        let done = unpack_within(&deep, home.path(), None, Room { files, ..Room::ALL });
        assert_eq!(done.is_ok(), fits, "directories on the way count");
        let _ = fs::remove_dir_all(home.path().join("a"));
    }
    assert!(within("files", Room { files: 2, ..enough }).0.unwrap_err().contains("and 2 files"));
    // One byte in each block takes all of the blocks, whatever the archive has of them.
    let entry = Entry {
        size: 100 << 12,
        extents: Some((0..100).map(|at| Extent { offset: at << 12, length: 1 }).collect()),
        ..entry("file", Kind::File)
    };
    let mut writer = Writer::new(Vec::new());
    writer.begin(&entry).unwrap();
    writer.data(&[1; 100]).unwrap();
    let bytes = writer.finish().unwrap();
    for (blocks, fits) in [(100, false), (101, true)] {
        let room = Room { bytes: blocks * 4096, files: 1 };
        assert_eq!(unpack_within(&bytes, home.path(), None, room).is_ok(), fits, "{blocks}");
    }
}

/// Puts a checksum into a header.
fn sealed(mut block: Vec<u8>) -> Vec<u8> {
    block[148..156].fill(b' ');
    let sum: u64 = block[..512].iter().map(|byte| u64::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// A header and what stands before it.
fn header(kind: u8, name: &str, size: usize) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..108].copy_from_slice(b"0000644\0");
    block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    block[156] = kind;
    block
}

/// An extended header of these records.
fn pax(records: &[&str]) -> Vec<u8> {
    let records: String = records
        .iter()
        .map(|record| {
            let length = record.len() + 2;
            let length = length + (length + 2).to_string().len();
            format!("{length} {record}\n")
        })
        .collect();
    let mut all = sealed(header(b'x', "PaxHeaders", records.len()));
    all.extend(records.as_bytes());
    all.resize(all.len().next_multiple_of(512), 0);
    all
}

/// Contents, and the end of an archive.
fn data(bytes: &[u8]) -> Vec<u8> {
    let mut all = bytes.to_vec();
    all.resize(all.len().next_multiple_of(512), 0);
    all.extend([0; 1024]);
    all
}

/// Headers of GNU's old form.
fn old(pairs: &[(u64, u64)], more: &[(u64, u64)], size: u64, stored: usize) -> Vec<u8> {
    let put = |room: &mut [u8], pairs: &[(u64, u64)]| {
        for (room, (offset, length)) in room.chunks_exact_mut(24).zip(pairs) {
            room.copy_from_slice(format!("{offset:011o}\0{length:011o}\0").as_bytes());
        }
    };
    let mut block = header(b'S', "file", stored);
    put(&mut block[386..482], pairs);
    block[482] = u8::from(!more.is_empty());
    block[483..495].copy_from_slice(format!("{size:011o}\0").as_bytes());
    let mut all = sealed(block);
    for (index, part) in more.chunks(21).enumerate() {
        let mut block = [0; 512];
        put(&mut block[..504], part);
        block[504] = u8::from((index + 1) * 21 < more.len());
        all.extend(block);
    }
    all
}

/// The header of the other forms.
fn plain(size: usize) -> Vec<u8> {
    sealed(header(b'0', "GNUSparseFile.0/file", size))
}

#[test]
fn sparse_files_of_every_form_are_read() {
    let map = |text: &str| {
        let mut map = text.as_bytes().to_vec();
        map.resize(512, 0);
        map
    };
    let mut expected = vec![0; 10_000];
    expected[1000..1003].copy_from_slice(b"abc");
    expected[9000..9002].copy_from_slice(b"de");
    let many: Vec<_> = (0..30).map(|at| (9002 + at, 0)).collect();
    let good = [
        [old(&[(1000, 3), (9000, 2)], &[], 10_000, 5), data(b"abcde")].concat(),
        [old(&[(1000, 3), (9000, 2), (9002, 0), (9002, 0)], &many, 10_000, 5), data(b"abcde")].concat(),
        [
            pax(&[
                "GNU.sparse.size=10000",
                "GNU.sparse.numblocks=2",
                "GNU.sparse.offset=1000",
                "GNU.sparse.numbytes=3",
                "GNU.sparse.offset=9000",
                "GNU.sparse.numbytes=2",
                "path=file",
            ]),
            plain(5),
            data(b"abcde"),
        ]
        .concat(),
        [
            pax(&["GNU.sparse.size=10000", "GNU.sparse.map=1000,3,9000,2", "GNU.sparse.name=file"]),
            plain(5),
            data(b"abcde"),
        ]
        .concat(),
        [
            pax(&[
                "GNU.sparse.major=1",
                "GNU.sparse.minor=0",
                "GNU.sparse.name=file",
                "GNU.sparse.realsize=10000",
            ]),
            plain(517),
            map("2\n1000\n3\n9000\n2\n"),
            data(b"abcde"),
        ]
        .concat(),
    ];
    for (index, bytes) in good.iter().enumerate() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(unpack(bytes, home.path(), None).unwrap(), [""; 0], "{index}");
        assert!(fs::read(home.path().join("file")).unwrap() == expected, "{index}");
    }
}

#[test]
fn maps_that_are_damaged_or_of_another_version_are_not_read() {
    let newer =
        [pax(&["GNU.sparse.major=2", "GNU.sparse.realsize=10000"]), plain(5), data(b"abcde")].concat();
    let home = tempfile::tempdir().unwrap();
    assert_eq!(unpack(&newer, home.path(), None).unwrap().len(), 1);
    let one = |records: &[&str], size: usize, text: &[u8]| [pax(records), plain(size), data(text)].concat();
    for (index, bad) in [
        [old(&[(1000, 3), (9000, 2)], &[], 9001, 5), data(b"abcde")].concat(),
        [old(&[(1000, 3), (1002, 2)], &[], 10_000, 5), data(b"abcde")].concat(),
        [old(&[(1000, 3)], &[], 10_000, 5), data(b"abcde")].concat(),
        one(&["GNU.sparse.map=1000,3"], 3, b"abc"),
        one(&["GNU.sparse.size=10000", "GNU.sparse.map=1000"], 3, b"abc"),
        one(&["GNU.sparse.size=10000", "GNU.sparse.map=a,b"], 3, b"abc"),
        one(&["GNU.sparse.size=10000", "GNU.sparse.numbytes=3"], 3, b"abc"),
        one(&["GNU.sparse.major=1", "GNU.sparse.realsize=10000"], 3, b"1\n0"),
        one(&["GNU.sparse.major=1", "GNU.sparse.realsize=10000"], 512, &[b'1'; 512]),
    ]
    .iter()
    .enumerate()
    {
        assert!(unpack(bad, home.path(), None).is_err(), "{index}");
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0, "{index}");
    }
    // A map of a size that no disk has costs nothing to refuse or to make.
    let endless = one(&["GNU.sparse.size=18446744073709551615", "GNU.sparse.map=0,0"], 0, b"");
    assert!(unpack(&endless, home.path(), None).is_err());
    let mut reader = Reader::new(&endless[..]);
    assert_eq!(reader.entry().unwrap().unwrap().size, u64::MAX);
    assert_eq!(reader.piece(&mut [0]).unwrap(), Piece::Hole(u64::MAX));
    assert_eq!(reader.piece(&mut [0]).unwrap(), Piece::End);
}
