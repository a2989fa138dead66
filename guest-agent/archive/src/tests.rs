//! Trees there and back, and archives that want to leave their directory.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use proptest::prelude::*;

use crate::pack::{Choice, Packer};
use crate::unpack::{Naming, Options, Unpacker};
use crate::{ArchiveError, Entry, Kind, Reader, Room, Writer};

mod sparse;

fn entry(path: &str, kind: Kind) -> Entry {
    Entry {
        path: path.into(),
        link: Vec::new(),
        kind,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: 1_000_000,
        mtime_nsec: 5,
        size: 0,
        extents: None,
        xattrs: Vec::new(),
    }
}

fn link(path: &str, kind: Kind, to: &str) -> Entry {
    Entry { link: to.into(), ..entry(path, kind) }
}

/// An archive of entries; files hold `text`.
fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for entry in entries {
        let text = b"text";
        let entry = match entry.kind {
            Kind::File => Entry { size: 4, ..entry.clone() },
            _ => entry.clone(),
        };
        writer.begin(&entry).unwrap();
        if entry.kind == Kind::File {
            writer.data(text).unwrap();
        }
    }
    writer.finish().unwrap()
}

fn unpack(bytes: &[u8], root: &Path, name: Option<&str>) -> Result<Vec<String>, ArchiveError> {
    unpack_within(bytes, root, name, Room::ALL)
}

fn unpack_within(
    bytes: &[u8],
    root: &Path,
    name: Option<&str>,
    room: Room,
) -> Result<Vec<String>, ArchiveError> {
    let (mut notes, opened) = (Vec::new(), File::open(root).unwrap());
    let mut note = |sentence| notes.push(sentence);
    let mut reader = Reader::new(bytes);
    let first = reader.entry()?;
    let naming = Naming {
        strip: name.is_some(),
        put: name.filter(|name| !name.is_empty()).map(|name| name.as_bytes().to_vec()),
    };
    Unpacker::new(opened.as_fd(), naming, Options { room, ..Options::default() }, &mut note)
        .all(first, &mut reader)?;
    Ok(notes)
}

fn pack(root: &Path, name: &str) -> (Vec<u8>, Vec<String>) {
    pack_as(root, name, false)
}

fn pack_as(root: &Path, name: &str, sparse: bool) -> (Vec<u8>, Vec<String>) {
    let (mut notes, opened) = (Vec::new(), File::open(root).unwrap());
    let mut note = |sentence| notes.push(sentence);
    let mut writer = Writer::new(Vec::new());
    Packer::new(&mut writer, Choice { xattrs: true, sparse }, &mut note)
        .tree(&opened, name.as_bytes(), name.as_bytes())
        .unwrap();
    (writer.finish().unwrap(), notes)
}

#[test]
fn a_tree_comes_out_as_it_went_in() {
    let home = tempfile::tempdir().unwrap();
    let (from, to) = (home.path().join("from"), home.path().join("to"));
    let long = "n".repeat(120);
    fs::create_dir_all(from.join("tree/a/b")).unwrap();
    fs::create_dir_all(from.join("tree").join(&long).join(&long)).unwrap();
    fs::create_dir(&to).unwrap();
    fs::write(from.join("tree/a/file"), vec![7; 100_000]).unwrap();
    fs::write(from.join("tree").join(&long).join(&long).join("näme"), "x").unwrap();
    fs::set_permissions(from.join("tree/a/file"), fs::Permissions::from_mode(0o751)).unwrap();
    fs::hard_link(from.join("tree/a/file"), from.join("tree/a/other")).unwrap();
    symlink("/etc/passwd", from.join("tree/out")).unwrap();
    let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(12345, 678);
    File::options().write(true).open(from.join("tree/a/file")).unwrap().set_modified(time).unwrap();
    fs::set_permissions(from.join("tree/a"), fs::Permissions::from_mode(0o555)).unwrap();
    let (bytes, notes) = pack(&from, "tree");
    assert!(notes.is_empty(), "{notes:?}");
    unpack(&bytes, &to, Some("copy")).unwrap();
    let file = fs::metadata(to.join("copy/a/file")).unwrap();
    assert_eq!((file.len(), file.mode() & 0o7777, file.nlink()), (100_000, 0o751, 2));
    assert_eq!((file.mtime(), file.mtime_nsec()), (12345, 678));
    assert_eq!(fs::metadata(to.join("copy/a")).unwrap().mode() & 0o7777, 0o555);
    assert_eq!(fs::metadata(to.join("copy/a/other")).unwrap().ino(), file.ino());
    assert_eq!(fs::read_link(to.join("copy/out")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!(fs::read(to.join("copy").join(&long).join(&long).join("näme")).unwrap(), b"x");
    // Again over what is there, and what is in it into the directory itself.
    fs::set_permissions(to.join("copy/a"), fs::Permissions::from_mode(0o755)).unwrap();
    unpack(&bytes, &to, Some("copy")).unwrap();
    unpack(&bytes, &to, Some("")).unwrap();
    assert_eq!(fs::metadata(to.join("a/file")).unwrap().len(), 100_000);
    for directory in [from.join("tree/a"), to.join("copy/a"), to.join("a")] {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn nothing_is_written_outside_of_the_directory() {
    let home = tempfile::tempdir().unwrap();
    let (root, outside) = (home.path().join("root"), home.path().join("outside"));
    fs::create_dir(&root).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    symlink(&outside, root.join("there")).unwrap();
    let secret = outside.join("secret");
    let secret = secret.to_str().unwrap();
    let hostile: [&[Entry]; 8] = [
        &[entry("../outside/new", Kind::File)],
        &[entry("a/../../outside/new", Kind::File)],
        &[link("l", Kind::Symlink, outside.to_str().unwrap()), entry("l/new", Kind::File)],
        &[link("l", Kind::Symlink, outside.to_str().unwrap()), entry("l/new", Kind::Directory)],
        &[entry("there/new", Kind::File)],
        &[link("hard", Kind::HardLink, "../outside/secret")],
        &[link("hard", Kind::HardLink, "there/secret")],
        &[link("hard", Kind::HardLink, secret)],
    ];
    for entries in hostile {
        assert!(unpack(&archive(entries), &root, None).is_err(), "{entries:?}");
    }
    // Harmless: below the directory, a link that is replaced and not followed.
    unpack(&archive(&[entry("/abs/file", Kind::File)]), &root, None).unwrap();
    assert_eq!(fs::read(root.join("abs/file")).unwrap(), b"text");
    symlink(secret, root.join("target")).unwrap();
    unpack(&archive(&[entry("target", Kind::File)]), &root, None).unwrap();
    assert!(fs::symlink_metadata(root.join("target")).unwrap().is_file());
    let entries = [link("t", Kind::Symlink, secret), entry("t", Kind::File)];
    unpack(&archive(&entries), &root, None).unwrap();
    assert_eq!(fs::read_to_string(secret).unwrap(), "secret");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    // No bits that give the writer's rights away.
    unpack(&archive(&[Entry { mode: 0o4755, ..entry("suid", Kind::File) }]), &root, None).unwrap();
    assert_eq!(fs::metadata(root.join("suid")).unwrap().mode() & 0o7777, 0o755);
    let left = fs::read_dir(&root).unwrap().flatten();
    assert!(left.into_iter().all(|one| !one.file_name().to_string_lossy().contains("nelly-cp")));
}

/// The archive with another type of its first entry.
fn typed(mut bytes: Vec<u8>, kind: u8) -> Vec<u8> {
    bytes[156] = kind;
    bytes[148..156].fill(b' ');
    let sum: u64 = bytes[..512].iter().map(|&byte| u64::from(byte)).sum();
    bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    bytes
}

#[test]
fn a_file_whose_name_ends_with_a_slash_is_a_directory() {
    let plain = Entry { mtime_nsec: 0, ..entry("a/", Kind::Directory) };
    // A name that is too long for a header is in an extension before it.
    let long = Entry { path: [&b"long/".repeat(60)[..]].concat(), ..plain.clone() };
    for kind in [0, b'0', b'7', b'5'] {
        let bytes = typed(archive(std::slice::from_ref(&plain)), kind);
        let read = Reader::new(&bytes[..]).entry().unwrap().unwrap();
        assert_eq!(read, plain, "{kind}");
    }
    let mut bytes = archive(std::slice::from_ref(&long));
    let header = bytes.len() - 1024 - 512;
    let last = typed(bytes.split_off(header), b'0');
    let read = Reader::new(&[bytes, last].concat()[..]).entry().unwrap().unwrap();
    assert_eq!(read, long);
    let sparse = typed(archive(std::slice::from_ref(&plain)), b'S');
    let refused = Reader::new(&sparse[..]).entry().unwrap_err().to_string();
    assert!(refused.contains("sparse"), "{refused}");
}

#[test]
fn what_is_no_file_is_told_of() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("tree")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(home.path().join("tree/socket")).unwrap();
    let (bytes, notes) = pack(home.path(), "tree");
    assert!(notes.len() == 1 && notes[0].contains("tree/socket") && notes[0].contains("socket"), "{notes:?}");
    assert!(unpack(&bytes, home.path(), Some("copy")).unwrap().is_empty());
    // Asked for itself, it is an error.
    let tree = File::open(home.path().join("tree")).unwrap();
    let (mut writer, mut note) = (Writer::new(Vec::new()), |_| {});
    let refused =
        Packer::new(&mut writer, Choice::default(), &mut note).tree(&tree, b"socket", b"socket").unwrap_err();
    assert!(refused.to_string().contains("socket: it is a socket"), "{refused}");
    let (proc, notes) = pack(Path::new("/"), "proc");
    assert!(proc.len() < 4096 && notes.len() == 1, "{} {notes:?}", proc.len());
    // Named itself, a file of it is read to its end, which its size does not tell.
    let (version, notes) = pack(Path::new("/proc"), "version");
    assert!(notes.is_empty(), "{notes:?}");
    assert_eq!(unpack(&version, home.path(), None).unwrap(), [""; 0]);
    assert_eq!(fs::read(home.path().join("version")).unwrap(), fs::read("/proc/version").unwrap());
}

#[test]
fn large_sizes_old_times_and_attributes_are_carried() {
    let wanted = Entry {
        size: 9 << 30,
        mtime: -5,
        mtime_nsec: 250_000_000,
        uid: 4_000_000_000,
        xattrs: vec![(b"security.capability".to_vec(), b"\x01\0\n=\xff".to_vec())],
        ..entry("file", Kind::File)
    };
    let mut writer = Writer::new(Vec::new());
    writer.begin(&wanted).unwrap();
    // Its contents are not made.
    let bytes = writer.finish().unwrap();
    assert_eq!(Reader::new(&bytes[..]).entry().unwrap(), Some(wanted));
}

#[test]
fn an_owner_that_means_no_change_is_refused() {
    // In base 256, in a pax record; the octal field of seven digits has no room for it.
    let written = |one: &Entry| {
        let mut writer = Writer::new(Vec::new());
        writer.begin(one).unwrap();
        writer.finish().unwrap()
    };
    for one in [
        Entry { uid: u32::MAX, ..entry("file", Kind::Symlink) },
        Entry { gid: u32::MAX, ..entry("file", Kind::Symlink) },
    ] {
        let bytes = written(&one);
        assert!(matches!(Reader::new(&bytes[..]).entry(), Err(ArchiveError::Damaged(_))), "{one:?}");
    }
    let mut bytes = written(&Entry { mtime_nsec: 0, ..entry("file", Kind::Symlink) });
    bytes[108..116].copy_from_slice(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    bytes[148..156].fill(b' ');
    let sum: u64 = bytes[..512].iter().map(|byte| u64::from(*byte)).sum();
    bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let refused = Reader::new(&bytes[..]).entry().unwrap_err();
    assert!(refused.to_string().contains("an owner out of range"), "{refused}");
}

#[test]
fn an_archive_that_is_cut_is_an_error_and_leaves_no_file_that_looks_whole() {
    let home = tempfile::tempdir().unwrap();
    let bytes = archive(&[entry("first", Kind::File), entry("second", Kind::File)]);
    for cut in (0..bytes.len() - 512).step_by(5) {
        let root = home.path().join(cut.to_string());
        fs::create_dir(&root).unwrap();
        assert!(unpack(&bytes[..cut], &root, None).is_err(), "{cut}");
        for found in fs::read_dir(&root).unwrap().flatten() {
            assert_eq!(fs::read(found.path()).unwrap(), b"text", "{cut}");
        }
        fs::remove_dir_all(&root).unwrap();
    }
}

proptest! {
    #[test]
    fn entries_come_out_as_they_went_in(
        path in "[a-zäöü\n ]{1,300}", link in "[a-zß/]{0,300}", mode in 0_u32..0o10000,
        uid in 0..u32::MAX, gid in 0..u32::MAX, mtime in -1_i64 << 40..1 << 40, mtime_nsec in 0_u32..1_000_000_000,
        value in proptest::collection::vec(any::<u8>(), 1..99),
    ) {
        let xattrs = vec![(b"user.x".to_vec(), value)];
        let one = Entry {
            path: path.into(), link: link.into(), kind: Kind::Symlink, mode, uid, gid, mtime, mtime_nsec, size: 0,
            extents: None, xattrs,
        };
        let mut writer = Writer::new(Vec::new());
        writer.begin(&one).unwrap();
        let bytes = writer.finish().unwrap();
        let mut reader = Reader::new(&bytes[..]);
        prop_assert_eq!(reader.entry().unwrap(), Some(one));
        prop_assert_eq!(reader.entry().unwrap(), None);
    }

    #[test]
    fn anything_is_read_without_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        // With a right checksum, the fields are looked at.
        if bytes.len() >= 512 {
            bytes[148..156].fill(b' ');
            let sum: u64 = bytes[..512].iter().map(|byte| u64::from(*byte)).sum();
            bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let mut reader = Reader::new(&bytes[..]);
        while let Ok(Some(_)) = reader.entry() {}
    }
}
