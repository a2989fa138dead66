//! Extended attributes.

use crate::guest::{EINVAL, ENODATA, EPERM, ROOT, guest, word};

#[test]
fn attributes_are_set_listed_and_removed() {
    let (guest, tree) = guest();
    for path in ["g", "d"] {
        let node = guest.walk(path).unwrap();
        guest.set_xattr(node, "user.colour", b"green").unwrap();
        let host = xattr(&tree.path().join(path), "user.colour");
        assert_eq!(host.as_deref(), Some(&b"green"[..]));
        assert_eq!(guest.get_xattr(node, "user.colour", 100).unwrap(), b"green");
        assert_eq!(word(&guest.get_xattr(node, "user.colour", 0).unwrap(), 0), 5);
        assert_eq!(guest.get_xattr(node, "user.colour", 4), Err(34));
        assert_eq!(guest.list_xattr(node, 100).unwrap(), b"user.colour\0");
        assert_eq!(word(&guest.list_xattr(node, 0).unwrap(), 0), 12);
        assert_eq!(guest.list_xattr(node, 11), Err(34));
        guest.remove_xattr(node, "user.colour").unwrap();
        assert_eq!(guest.get_xattr(node, "user.colour", 100), Err(ENODATA));
        assert_eq!(guest.remove_xattr(node, "user.colour"), Err(ENODATA));
        assert_eq!(guest.list_xattr(node, 100).unwrap(), b"");
    }
}

fn xattr(path: &std::path::Path, name: &str) -> Option<Vec<u8>> {
    let mut value = [0; 256];
    let len = rustix::fs::lgetxattr(path, name, &mut value).ok()?;
    Some(value[..len].to_vec())
}

#[test]
fn ours_can_be_neither_seen_nor_forged() {
    let (guest, tree) = guest();
    let node = guest.walk("g").unwrap();
    guest.chown(node, 1234, 1234).unwrap();
    let name = "user.nelly.owner";
    let ours = xattr(&tree.path().join("g"), name).expect("it is kept there");
    assert_eq!(guest.get_xattr(node, name, 100), Err(ENODATA));
    assert_eq!(guest.get_xattr(node, name, 0), Err(ENODATA));
    assert_eq!(guest.list_xattr(node, 100).unwrap(), b"");
    assert_eq!(guest.set_xattr(node, name, b"1:0:0:6755:755"), Err(EPERM));
    assert_eq!(guest.set_xattr(node, "user.nelly.other", b"x"), Err(EPERM));
    assert_eq!(guest.remove_xattr(node, name), Err(ENODATA));
    assert_eq!(xattr(&tree.path().join("g"), name), Some(ours));
}

#[test]
fn a_links_attributes_are_not_its_targets() {
    let (guest, tree) = guest();
    let target = guest.walk("d/f").unwrap();
    guest.set_xattr(target, "user.x", b"of the target").unwrap();
    let link = guest.walk("l").unwrap();
    // Linux keeps no such attribute on links.
    assert!(guest.get_xattr(link, "user.x", 100).is_err());
    assert!(guest.set_xattr(link, "user.x", b"of the link").is_err());
    assert!(guest.remove_xattr(link, "user.x").is_err());
    assert_eq!(guest.list_xattr(link, 100).unwrap(), b"");
    assert_eq!(xattr(&tree.path().join("d/f"), "user.x").as_deref(), Some(&b"of the target"[..]));
}

#[test]
fn what_needs_the_hosts_rights_is_refused() {
    let (guest, _tree) = guest();
    let node = guest.walk("g").unwrap();
    for name in ["security.capability", "trusted.overlay.opaque", "strange"] {
        assert_eq!(guest.set_xattr(node, name, b"x"), Err(95), "{name}");
        assert_eq!(guest.get_xattr(node, name, 100), Err(ENODATA), "{name}");
    }
    assert_eq!(guest.get_xattr(node, "system.posix_acl_access", 100), Err(95));
    assert_eq!(guest.set_xattr(node, "", b"x"), Err(34));
    assert_eq!(guest.set_xattr(node, &"n".repeat(256), b"x"), Err(34));
    // A size that lies.
    let body = crate::guest::body().word(500).word(0).name("user.x").bytes(b"1");
    assert_eq!(guest.ask(nelly_share::wire::Op::SetXattr, node, body), Err(EINVAL));
    let body = crate::guest::body().word(0).word(0).name("user.x").bytes(b"1");
    assert_eq!(guest.ask(nelly_share::wire::Op::SetXattr, node, body), Err(EINVAL));
    assert!(guest.set_xattr(ROOT, "user.large", &[0; 65_536]).is_err(), "more than a file system takes");
}
