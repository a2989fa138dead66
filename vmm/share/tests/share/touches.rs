//! The attribute by which programs of the guest are told that the host has changed something.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use nelly_share::{Options, TOUCH, Tree};

use crate::guest::{ENODATA, EPERM, EROFS, Guest, O_RDWR, ROOT, guest, tree};

const EAGAIN: i32 = 11;

fn touch(guest: &Guest, node: u64) -> Result<(), i32> {
    guest.set_xattr(node, TOUCH.to_str().unwrap(), b"1")
}

/// Longer than a tick of the host's clock.
fn later() {
    std::thread::sleep(Duration::from_millis(20));
}

#[test]
fn only_what_the_host_has_changed_is_told() {
    let (guest, tree) = guest();
    let host = |name: &str, contents: &str| fs::write(tree.path().join(name), contents).unwrap();
    let node = guest.walk("g").unwrap();
    assert_eq!(touch(&guest, node), Ok(()));
    assert_eq!(guest.get_xattr(node, TOUCH.to_str().unwrap(), 100), Err(ENODATA));
    assert_eq!(guest.set_xattr(node, "user.nelly.owner", b"1"), Err(EPERM));
    // Whatever the guest does to a file, until the host does something to it.
    let handle = guest.open(node, O_RDWR).unwrap();
    let changes: [&dyn Fn(); 5] = [
        &|| {
            guest.write(handle, 0, b"x").unwrap();
        },
        &|| {
            guest.chmod(node, 0o600).unwrap();
        },
        &|| guest.set_xattr(node, "user.colour", b"green").unwrap(),
        &|| {
            guest.open(node, O_RDWR | 0o1000).unwrap();
        },
        &|| guest.rename((ROOT, "g"), (ROOT, "g2"), 0).unwrap(),
    ];
    for (number, change) in changes.iter().enumerate() {
        change();
        assert_eq!(touch(&guest, node), Err(EAGAIN), "{number}");
        later();
        host(if number == 4 { "g2" } else { "g" }, "host");
        assert_eq!(touch(&guest, node), Ok(()), "{number}");
    }
    // What it makes, and the directory that it makes it in.
    let made = guest.create(ROOT, "new", O_RDWR, 0o644).unwrap().0.node;
    let directory = guest.mkdir(ROOT, "newer", 0o755).unwrap().node;
    for node in [made, directory, ROOT] {
        assert_eq!(touch(&guest, node), Err(EAGAIN));
    }
    later();
    host("newer/host", "");
    assert_eq!(touch(&guest, directory), Ok(()));
    assert_eq!(touch(&guest, made), Err(EAGAIN));
    // A driver that begins anew knows nothing.
    guest.init();
    assert_eq!(touch(&guest, guest.walk("new").unwrap()), Ok(()));
}

#[test]
fn a_touch_changes_nothing_and_is_good_where_nothing_may_be_changed() {
    let tree = tree();
    let path = tree.path().join("g");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    let state = || {
        let meta = fs::metadata(&path).unwrap();
        (meta.ctime(), meta.ctime_nsec(), meta.mode(), meta.mtime_nsec())
    };
    let before = state();
    let fixed = Guest::new(tree.path(), Options { read_only: true, ..Options::default() });
    let node = fixed.walk("g").unwrap();
    assert_eq!(touch(&fixed, node), Ok(()));
    assert_eq!(touch(&fixed, ROOT), Ok(()));
    assert_eq!(fixed.set_xattr(node, "user.x", b"1"), Err(EROFS));
    assert_eq!(fixed.set_xattr(node, "user.nelly.touched", b"1"), Err(EROFS));
    let file = fs::File::open(&path).unwrap();
    let single = Guest::of(Tree::File(file.into()), Options { read_only: true, ..Options::default() });
    assert_eq!(touch(&single, single.walk("file").unwrap()), Ok(()));
    assert_eq!(touch(&single, ROOT), Err(EROFS));
    assert_eq!(state(), before);
}
