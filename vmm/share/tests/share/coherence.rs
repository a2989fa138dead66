//! What the host changes is seen.

use std::fs;

use nelly_share::wire::Op;
use nelly_share::{CacheMode, Options};

use crate::guest::{ENOENT, ESTALE, Guest, O_RDONLY, O_RDWR, ROOT, body, guest, tree, word};

/// The driver still has the name: its OPEN fails with ESTALE, at which Linux looks the name up
/// again and opens once more.
#[test]
fn a_replaced_file_is_new_at_the_next_open() {
    let (guest, tree) = guest();
    let node = guest.walk("g").unwrap();
    let old = guest.open(node, O_RDONLY).unwrap();
    for round in 0..20 {
        let node = guest.walk("g").unwrap();
        fs::write(tree.path().join("new"), format!("new {round}")).unwrap();
        fs::rename(tree.path().join("new"), tree.path().join("g")).unwrap();
        assert_eq!(guest.open(node, O_RDONLY), Err(ESTALE));
        let again = guest.walk("g").unwrap();
        assert_ne!(again, node);
        let handle = guest.open(again, O_RDONLY).expect("no loop of ESTALE");
        assert_eq!(guest.read(handle, 0, 99).unwrap(), format!("new {round}").as_bytes());
        guest.release(handle).unwrap();
    }
    // What was open is what it was.
    assert_eq!(guest.read(old, 0, 99).unwrap(), b"contents of g");
    assert_eq!(guest.attr_of(node, old).unwrap().nlink, 0);
}

#[test]
fn what_the_host_writes_in_place_is_read() {
    let (guest, tree) = guest();
    let node = guest.walk("g").unwrap();
    let handle = guest.open(node, O_RDWR).unwrap();
    fs::write(tree.path().join("g"), b"shorter").unwrap();
    assert_eq!(guest.attr(node).unwrap().size, 7);
    assert_eq!(guest.read(handle, 0, 99).unwrap(), b"shorter");
    // Cut by the host while the guest reads: an end, no signal.
    fs::write(tree.path().join("g"), b"").unwrap();
    assert_eq!(guest.read(handle, 4, 99).unwrap(), b"");
}

#[test]
fn removed_and_new_files_are_seen() {
    let (guest, tree) = guest();
    let node = guest.walk("g").unwrap();
    fs::remove_file(tree.path().join("g")).unwrap();
    assert_eq!(guest.attr(node), Err(ESTALE));
    assert_eq!(guest.lookup(ROOT, "g"), Err(ENOENT));
    fs::write(tree.path().join("h"), b"h").unwrap();
    assert_eq!(guest.lookup(ROOT, "h").unwrap().attr.size, 1);
    // Moved by the host: found by its new name, with its old number.
    let moved = guest.walk("d/f").unwrap();
    fs::rename(tree.path().join("d/f"), tree.path().join("f")).unwrap();
    assert_eq!(guest.attr(moved), Err(ESTALE));
    assert_eq!(guest.walk("f").unwrap(), moved);
    assert_eq!(guest.attr(moved).unwrap().size, 13);
    // A directory removed under the guest.
    let dir = guest.walk("d").unwrap();
    let listing = guest.open_dir(dir).unwrap();
    fs::remove_dir(tree.path().join("d")).unwrap();
    assert!(guest.list_page(listing, 0, true).unwrap_or_default().len() <= 2);
    assert_eq!(guest.lookup(ROOT, "d"), Err(ENOENT));
    assert!(guest.mkdir(dir, "x", 0o755).is_err());
}

#[test]
fn the_whole_tree_removed_is_an_error_and_no_more() {
    let (guest, tree) = guest();
    let node = guest.walk("d/f").unwrap();
    fs::remove_dir_all(tree.path()).unwrap();
    assert_eq!(guest.attr(node), Err(ESTALE));
    assert_eq!(guest.lookup(ROOT, "d"), Err(ENOENT));
    assert_eq!(guest.create(ROOT, "x", O_RDWR, 0o644).map(drop), Err(ENOENT));
    assert_eq!(guest.attr(ROOT).unwrap().mode & 0o170_000, 0o040_000);
}

#[test]
fn what_was_unmounted_below_is_itself_or_gone_and_nothing_else() {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    use nix::sched::{CloneFlags, unshare};

    // The mounts of this thread are nobody else's, and its tree has them.
    let alone = || {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        let (guest, tree) = guest();
        let below = tree.path().join("d");
        mount(None::<&str>, &below, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        fs::create_dir(below.join("e")).unwrap();
        let names = ["f", "e/open", "e/seen"];
        for name in names {
            fs::write(below.join(name), name).unwrap();
        }
        let nodes = names.map(|name| guest.walk(&format!("d/{name}")).unwrap());
        let handle = guest.open(nodes[1], O_RDWR).unwrap();
        // Busy, as with any program that has a file of it open.
        assert!(umount2(&below, MntFlags::empty()).is_err());
        umount2(&below, MntFlags::MNT_DETACH).unwrap();
        // What is open stays so.
        assert_eq!(guest.read(handle, 0, 100).unwrap(), b"e/open");
        // By its number a file is what it was, or gone: never what lies there now.
        for (node, name) in nodes.into_iter().zip(names) {
            match guest.open(node, O_RDONLY) {
                Ok(handle) => {
                    assert_eq!(guest.read(handle, 0, 100).unwrap(), name.as_bytes());
                    guest.release(handle).unwrap();
                }
                Err(error) => assert_eq!(error, ESTALE),
            }
        }
        guest.release(handle).unwrap();
        // The tree has its own directory again.
        let own = guest.walk("d/f").unwrap();
        assert!(!nodes.contains(&own));
        let handle = guest.open(own, O_RDONLY).unwrap();
        assert_eq!(guest.read(handle, 0, 100).unwrap(), fs::read(below.join("f")).unwrap());
        assert_eq!(guest.lookup(guest.walk("d").unwrap(), "e").map(drop), Err(ENOENT));
    };
    std::thread::scope(|scope| scope.spawn(alone).join()).unwrap();
}

#[test]
fn each_mode_tells_how_long_things_hold() {
    let tree = tree();
    for (cache, valid, flags, dir_flags) in
        [(CacheMode::Auto, 1, 0, 0), (CacheMode::Always, 86_400, 2, 10), (CacheMode::None, 0, 1, 0)]
    {
        let guest = Guest::new(tree.path(), Options { cache, ..Options::default() });
        let entry = guest.lookup(ROOT, "g").unwrap();
        assert_eq!(entry.valid, valid);
        let open = guest.ask(Op::Open, entry.node, body().long(0)).unwrap();
        assert_eq!(word(&open, 8), flags, "{cache:?}");
        let open = guest.ask(Op::OpenDir, ROOT, body().long(0)).unwrap();
        assert_eq!(word(&open, 8), dir_flags, "{cache:?}");
        // That there is none may be kept only where nobody else makes one.
        match guest.lookup(ROOT, "none") {
            Ok(none) => assert_eq!((cache, none.node, none.valid), (CacheMode::Always, 0, 86_400)),
            Err(error) => assert!(error == ENOENT && cache != CacheMode::Always),
        }
    }
}
