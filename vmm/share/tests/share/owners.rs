//! Owners and modes.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use nelly_share::{Options, Owners};

use crate::guest::{EPERM, Guest, O_RDWR, ROOT, guest, tree};

fn host(path: std::path::PathBuf) -> (u32, u32, u32) {
    let meta = fs::symlink_metadata(path).unwrap();
    (meta.mode() & 0o7777, meta.uid(), meta.gid())
}

/// As a guest that has this tree and has just begun.
fn anew(tree: &tempfile::TempDir) -> Guest {
    Guest::new(tree.path(), Options::default())
}

#[test]
fn what_a_guest_sets_is_what_it_sees_and_the_host_keeps_its_files() {
    let (guest, tree) = guest();
    let me = (host(tree.path().join("g")).1, host(tree.path().join("g")).2);
    for (name, mode, host_mode) in [
        ("g", 0, 0o600),
        ("g", 0o6755, 0o755),
        ("g", 0o444, 0o644),
        ("g", 0o666, 0o644),
        ("g", 0o1777, 0o755),
        ("d", 0, 0o700),
        ("d", 0o3777, 0o755),
    ] {
        let node = guest.walk(name).unwrap();
        let kind = guest.attr(node).unwrap().mode & 0o170_000;
        guest.chown(node, 1000, 2000).unwrap();
        let attr = guest.chmod(node, mode).unwrap();
        assert_eq!((attr.mode, attr.uid, attr.gid), (kind | mode, 1000, 2000));
        let again = anew(&tree);
        let attr = again.attr(again.walk(name).unwrap()).unwrap();
        assert_eq!((attr.mode, attr.uid, attr.gid), (kind | mode, 1000, 2000), "after a restart");
        assert_eq!(host(tree.path().join(name)), (host_mode, me.0, me.1), "{name} {mode:o}");
    }
    // A file with mode 0 is one that the guest's kernel guards: here it is opened as ever.
    let node = guest.walk("g").unwrap();
    guest.chmod(node, 0).unwrap();
    let handle = guest.open(node, O_RDWR).unwrap();
    assert_eq!(guest.read(handle, 0, 4).unwrap(), b"cont");
    // Listed with attributes they are the same.
    let listed = guest.list(ROOT, true);
    assert_eq!(guest.attr(listed["g"].node).unwrap().mode, 0o100_000);
}

#[test]
fn what_a_user_makes_is_shown_as_its_own() {
    let (mut guest, tree) = guest();
    (guest.uid, guest.gid) = (1000, 1001);
    let (file, _) = guest.create(ROOT, "file", O_RDWR, 0o640).unwrap();
    let dir = guest.mkdir(ROOT, "dir", 0o711).unwrap();
    let plain = guest.mknod(ROOT, "plain", 0o100_600, 0).unwrap();
    for attr in [file.attr, dir.attr, plain.attr] {
        assert_eq!((attr.uid, attr.gid), (1000, 1001));
    }
    // Others of the guest can use them, too, if its kernel lets them: they are the host user's.
    (guest.uid, guest.gid) = (0, 0);
    let again = anew(&tree);
    assert_eq!(again.lookup(ROOT, "file").unwrap().attr.uid, 1000);
    assert!(again.open(again.walk("file").unwrap(), O_RDWR).is_ok());
    let here = host(tree.path().join("g"));
    assert_eq!(host(tree.path().join("file")), (0o640, here.1, here.2));
    // Ordinary files of the default owner need no attribute.
    guest.create(ROOT, "ordinary", O_RDWR, 0o644).unwrap();
    let names = rustix::fs::listxattr(tree.path().join("ordinary"), &mut [0; 100][..]).unwrap();
    assert_eq!(names, 0);
}

#[test]
fn set_id_ends_with_a_write_a_new_length_and_a_new_owner() {
    let (guest, _tree) = guest();
    let node = guest.walk("g").unwrap();
    let mode = || guest.attr(node).unwrap().mode & 0o7777;
    let handle = guest.open(node, O_RDWR).unwrap();
    guest.chmod(node, 0o6755).unwrap();
    guest.write_with(handle, 0, b"x", 0).unwrap();
    assert_eq!(mode(), 0o6755, "one who may keep it");
    guest.write_with(handle, 0, b"x", 4).unwrap();
    assert_eq!(mode(), 0o755);
    guest.chmod(node, 0o6744).unwrap();
    guest.set(node, 8 | 1 << 11, 3, 0, (0, 0)).unwrap();
    assert_eq!(mode(), 0o2744, "without execution by the group it means something else");
    guest.chmod(node, 0o6755).unwrap();
    guest.chown(node, 5, 5).unwrap();
    assert_eq!(mode(), 0o755);
    guest.chmod(node, 0o4755).unwrap();
    let open = crate::guest::body().word(O_RDWR | 0o1000).word(1);
    guest.ask(nelly_share::wire::Op::Open, node, open).unwrap();
    assert_eq!(mode(), 0o755);
}

#[test]
fn a_directory_hands_its_group_down() {
    let (mut guest, _tree) = guest();
    let dir = guest.walk("d").unwrap();
    guest.chown(dir, 0, 77).unwrap();
    guest.chmod(dir, 0o2775).unwrap();
    (guest.uid, guest.gid) = (5, 5);
    let (file, _) = guest.create(dir, "file", O_RDWR, 0o644).unwrap();
    let sub = guest.mkdir(dir, "sub", 0o755).unwrap();
    assert_eq!((file.attr.gid, file.attr.mode & 0o7777), (77, 0o644));
    assert_eq!((sub.attr.gid, sub.attr.mode & 0o7777), (77, 0o2755));
}

#[test]
fn links_and_pipes_show_the_default_owner() {
    let (mut guest, _tree) = guest();
    (guest.uid, guest.gid) = (5, 5);
    let link = guest.symlink(ROOT, "link", "x").unwrap();
    let pipe = guest.mknod(ROOT, "pipe", 0o010_640, 0).unwrap();
    for made in [link, pipe] {
        assert_eq!((made.attr.uid, made.attr.gid), (0, 0));
        assert_eq!(guest.chown(made.node, 0, 0).unwrap().uid, 0, "what it has can be set");
    }
    // A link's owner gives no right: archives are unpacked with it, and it stays as it is.
    assert_eq!(guest.chown(link.node, 5, 5).unwrap().uid, 0);
    assert_eq!(guest.chown(pipe.node, 5, 5), Err(EPERM), "what cannot be kept is refused");
    assert_eq!(guest.attr(pipe.node).unwrap().mode & 0o7777, 0o640);
}

#[test]
fn a_change_on_the_host_is_seen() {
    let (guest, tree) = guest();
    let node = guest.walk("g").unwrap();
    guest.chown(node, 9, 9).unwrap();
    guest.chmod(node, 0o4755).unwrap();
    fs::set_permissions(tree.path().join("g"), fs::Permissions::from_mode(0o640)).unwrap();
    let attr = guest.attr(node).unwrap();
    assert_eq!((attr.mode & 0o7777, attr.uid), (0o640, 9));
}

#[test]
fn the_default_owner_is_what_was_asked_for() {
    let tree = tree();
    let owners = Owners::Mapped { uid: 33, gid: 44 };
    let guest = Guest::new(tree.path(), Options { owners, ..Options::default() });
    let attr = guest.lookup(ROOT, "g").unwrap().attr;
    assert_eq!((attr.uid, attr.gid), (33, 44));
    let root = guest.attr(ROOT).unwrap();
    assert_eq!((root.uid, root.gid), (33, 44));
}

/// Needs root, as the mode does; without it what the process may not do is refused.
#[test]
fn kept_owners_are_the_hosts() {
    let tree = tree();
    let mut guest = Guest::new(tree.path(), Options { owners: Owners::Kept, ..Options::default() });
    let node = guest.walk("g").unwrap();
    let (_, uid, gid) = host(tree.path().join("g"));
    let attr = guest.attr(node).unwrap();
    assert_eq!((attr.uid, attr.gid), (uid, gid));
    guest.chmod(node, 0o4711).unwrap();
    assert_eq!(host(tree.path().join("g")).0, 0o4711);
    (guest.uid, guest.gid) = (1234, 1235);
    if uid == 0 {
        guest.create(ROOT, "file", O_RDWR, 0o640).unwrap();
        guest.mkdir(ROOT, "dir", 0o2711).unwrap();
        guest.symlink(ROOT, "link", "x").unwrap();
        guest.mknod(ROOT, "pipe", 0o010_666, 0).unwrap();
        assert_eq!(host(tree.path().join("file")), (0o640, 1234, 1235));
        assert_eq!(host(tree.path().join("dir")), (0o2711, 1234, 1235));
        assert_eq!(host(tree.path().join("pipe")), (0o666, 1234, 1235));
        assert_eq!(host(tree.path().join("link")).1, 1234);
        let link = guest.walk("link").unwrap();
        guest.chown(link, 5, 6).unwrap();
        assert_eq!(host(tree.path().join("link")).1, 5, "the link itself");
        assert_eq!(guest.mknod(ROOT, "device", 0o020_666, 0x103), Err(EPERM), "never one of the host's");
    } else {
        assert_eq!(guest.create(ROOT, "file", O_RDWR, 0o640).map(drop), Err(EPERM));
        assert!(!tree.path().join("file").exists(), "nothing is left behind");
    }
}
