//! A read-only share is one in the server.

use std::fs;
use std::os::unix::fs::MetadataExt;

use nelly_share::wire::Op;
use nelly_share::{Options, Tree};

use crate::guest::{EROFS, Guest, O_RDONLY, ROOT, body, tree};

#[test]
fn nothing_changes_whatever_is_asked() {
    let tree = tree();
    let guest = Guest::new(tree.path(), Options { read_only: true, ..Options::default() });
    let node = guest.walk("g").unwrap();
    let dir = guest.walk("d").unwrap();
    let handle = guest.open(node, O_RDONLY).unwrap();
    let state = || {
        let of = |name: &str| {
            let meta = fs::symlink_metadata(tree.path().join(name)).unwrap();
            (
                meta.ino(),
                meta.mode(),
                meta.size(),
                meta.mtime_nsec(),
                meta.ctime(),
                meta.ctime_nsec(),
                meta.nlink(),
            )
        };
        [".", "d", "d/f", "g", "l"].map(of)
    };
    let before = state();
    let name = |prefix: crate::guest::Body| prefix.name("x");
    let requests = [
        (Op::SymLink, ROOT, name(body()).name("target")),
        (Op::MkNod, ROOT, name(body().word(0o100_644).word(0).long(0))),
        (Op::MkDir, ROOT, name(body().word(0o755).word(0))),
        (Op::Unlink, ROOT, body().name("g")),
        (Op::RmDir, ROOT, body().name("d")),
        (Op::Rename, ROOT, body().long(ROOT).name("g").name("h")),
        (Op::Rename2, ROOT, body().long(ROOT).long(2).name("g").name("l")),
        (Op::Link, ROOT, name(body().long(node))),
        (Op::Create, ROOT, name(body().word(2).word(0o644).long(0))),
        (Op::Create, ROOT, body().word(0).word(0o644).long(0).name("g")),
        (Op::TmpFile, ROOT, body().word(2).word(0o644).long(0).name("/")),
        (Op::SetXattr, node, body().word(1).word(0).name("user.x").bytes(b"1")),
        (Op::RemoveXattr, node, body().name("user.x")),
        (Op::FAllocate, node, body().long(handle).long(0).long(99).long(0)),
        (
            Op::CopyFileRange,
            node,
            body().long(handle).long(0).long(node).long(handle).long(9).long(1).long(0),
        ),
        (Op::Write, node, body().long(handle).long(0).word(1).word(0).long(0).long(0).bytes(b"x")),
    ];
    for (op, node, body) in requests {
        assert_eq!(guest.ask(op, node, body), Err(EROFS), "{op:?}");
    }
    // SETATTR with each bit, and with none: touching a file is a change of its times.
    for bit in 0..12 {
        assert_eq!(guest.set(node, 1 << bit, 0, 0o777, (1, 1)), Err(EROFS), "bit {bit}");
    }
    for flags in [1, 2, 0o1000, 0o1001, 0o2001] {
        assert_eq!(guest.open(node, flags), Err(EROFS), "{flags:o}");
    }
    // IOCTL, which could set flags of the file, and mappings for DAX do not exist at all.
    for opcode in [39, 48, 49] {
        assert_eq!(guest.ask_raw(opcode, node, body().bytes(&[0; 40]), 64), Err(crate::guest::ENOSYS));
    }
    assert_eq!(guest.ask(Op::Access, node, body().word(2).word(0)), Err(EROFS));
    // Reading works.
    assert_eq!(guest.read(handle, 0, 8).unwrap(), b"contents");
    assert_eq!(guest.readlink(guest.walk("l").unwrap()).unwrap(), b"d/f");
    assert_eq!(guest.list(dir, true).len(), 1);
    guest.ask(Op::FSync, node, body().long(handle).long(0)).unwrap();
    assert_eq!(state(), before);
}

/// The descriptor that the holder opened may be writable: the server decides.
#[test]
fn a_writable_descriptor_makes_no_difference() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), b"fixed").unwrap();
    let fd = fs::OpenOptions::new().read(true).write(true).open(file.path()).unwrap().into();
    let guest = Guest::of(Tree::File(fd), Options { read_only: true, ..Options::default() });
    let node = guest.lookup(ROOT, nelly_share::FILE_NAME).unwrap().node;
    assert_eq!(guest.open(node, 2), Err(EROFS));
    assert_eq!(guest.set(node, 8, 0, 0, (0, 0)), Err(EROFS));
    let handle = guest.open(node, 0).unwrap();
    assert_eq!(guest.write(handle, 0, b"x"), Err(EROFS));
    assert_eq!(fs::read(file.path()).unwrap(), b"fixed");
}
