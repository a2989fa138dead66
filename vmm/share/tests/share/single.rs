//! A file that is shared alone does not share its directory.

use std::fs;

use nelly_share::wire::Op;
use nelly_share::{FILE_NAME, Options, Server, Tree};

use crate::guest::{ENOENT, EPERM, Guest, O_RDWR, ROOT, body};

fn shared() -> (Guest, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("one"), b"the one").unwrap();
    fs::write(dir.path().join("beside"), b"not shared").unwrap();
    let fd = fs::File::open(dir.path().join("one")).unwrap().into();
    (Guest::of(Tree::File(fd), Options::default()), dir)
}

#[test]
fn there_is_one_entry_which_works() {
    let (guest, dir) = shared();
    assert_eq!(guest.attr(ROOT).unwrap().mode, 0o040_555);
    for plus in [false, true] {
        let found = guest.list(ROOT, plus);
        assert_eq!(found.keys().collect::<Vec<_>>(), [FILE_NAME]);
    }
    let file = guest.lookup(ROOT, FILE_NAME).unwrap();
    assert_eq!(guest.list(ROOT, true)[FILE_NAME].node, file.node);
    let handle = guest.open(file.node, O_RDWR).unwrap();
    guest.write(handle, 4, b"ONE").unwrap();
    assert_eq!(fs::read(dir.path().join("one")).unwrap(), b"the ONE");
    guest.chmod(file.node, 0o4711).unwrap();
    assert_eq!(guest.attr(file.node).unwrap().mode, 0o104_711);
    // It is reached again after everything was closed and forgotten.
    guest.release(handle).unwrap();
    guest.forget(file.node, u64::MAX);
    let file = guest.lookup(ROOT, FILE_NAME).unwrap();
    let handle = guest.open(file.node, 0).unwrap();
    assert_eq!(guest.read(handle, 0, 9).unwrap(), b"the ONE");
}

#[test]
fn nothing_else_is_reached_or_made() {
    let (guest, dir) = shared();
    let file = guest.lookup(ROOT, FILE_NAME).unwrap().node;
    for name in ["beside", "one", "x"] {
        assert_eq!(guest.lookup(ROOT, name), Err(ENOENT));
    }
    assert_eq!(guest.lookup(file, "beside"), Err(20));
    assert_eq!(guest.mkdir(ROOT, "x", 0o755), Err(EPERM));
    assert_eq!(guest.create(ROOT, "x", O_RDWR, 0o644), Err(EPERM));
    assert_eq!(guest.tmpfile(ROOT).map(drop), Err(EPERM));
    assert_eq!(guest.symlink(ROOT, "x", "y"), Err(EPERM));
    assert_eq!(guest.mknod(ROOT, "x", 0o010_644, 0), Err(EPERM));
    assert_eq!(guest.link(file, ROOT, "x"), Err(EPERM));
    assert_eq!(guest.unlink(ROOT, FILE_NAME), Err(EPERM));
    assert_eq!(guest.rename((ROOT, FILE_NAME), (ROOT, "x"), 0), Err(EPERM));
    assert_eq!(guest.chmod(ROOT, 0o777), Err(EPERM));
    assert_eq!(guest.set_xattr(ROOT, "user.x", b"1"), Err(EPERM));
    assert_eq!(guest.list_xattr(ROOT, 0).unwrap(), [0; 8]);
    assert_eq!(guest.ask(Op::StatFs, ROOT, body()).unwrap().len(), 80);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn what_is_shared_is_what_was_said() {
    let dir = tempfile::tempdir().unwrap();
    let open = |path: &std::path::Path| fs::File::open(path).unwrap().into();
    assert!(Server::new(Tree::File(open(dir.path())), Options::default()).is_err());
    fs::write(dir.path().join("f"), b"").unwrap();
    assert!(Server::new(Tree::Directory(open(&dir.path().join("f"))), Options::default()).is_err());
    let null = Server::new(Tree::File(open("/dev/null".as_ref())), Options::default());
    assert_eq!(null.unwrap_err().to_string(), "what is to be shared is not a regular file");
}
