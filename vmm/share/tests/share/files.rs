//! What files, directories and links do for an honest guest.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use nelly_share::wire::Op;

use crate::guest::{
    EBADF, EINVAL, ENOENT, ENOSYS, EPERM, Guest, O_RDONLY, O_RDWR, O_WRONLY, ROOT, body, guest, word,
};

#[test]
fn a_file_is_found_read_and_written() {
    let (guest, tree) = guest();
    let entry = guest.lookup(guest.walk("d").unwrap(), "f").unwrap();
    assert_eq!((entry.attr.size, entry.attr.mode & 0o170_000, entry.valid), (13, 0o100_000, 1));
    assert_eq!(guest.walk("d/f").unwrap(), entry.node, "one inode has one number");
    let handle = guest.open(entry.node, O_RDWR).unwrap();
    assert_eq!(guest.read(handle, 9, 100).unwrap(), b"of f");
    assert_eq!(guest.read(handle, 13, 100).unwrap(), b"");
    assert_eq!(guest.read(handle, u64::MAX, 100).unwrap(), b"");
    assert_eq!(guest.write(handle, 12, b"new").unwrap(), 3);
    assert_eq!(guest.attr(entry.node).unwrap().size, 15);
    assert_eq!(fs::read(tree.path().join("d/f")).unwrap(), b"contents of new");
    guest.ask(Op::FSync, entry.node, body().long(handle).long(1)).unwrap();
    guest.ask(Op::Flush, entry.node, body().long(handle).long(0).long(7)).unwrap();
    guest.release(handle).unwrap();
    assert_eq!(guest.release(handle), Err(EBADF));
    assert_eq!(guest.read(handle, 0, 1), Err(EBADF));
    assert_eq!(guest.lookup(ROOT, "nothing"), Err(ENOENT));
}

#[test]
fn a_handle_does_what_it_was_opened_for() {
    let (guest, _tree) = guest();
    let node = guest.walk("g").unwrap();
    let read = guest.open(node, O_RDONLY).unwrap();
    let write = guest.open(node, O_WRONLY).unwrap();
    assert_eq!(guest.write(read, 0, b"x"), Err(EBADF));
    assert_eq!(guest.read(write, 0, 1), Err(EBADF));
    let allocate = |handle| guest.ask(Op::FAllocate, node, body().long(handle).long(0).long(10).long(0));
    assert_eq!(allocate(read), Err(EBADF));
    allocate(write).unwrap();
    assert_eq!(guest.open(node, 3), Err(EINVAL));
    let dir = guest.walk("d").unwrap();
    assert_eq!(guest.open(dir, O_RDONLY), Err(21));
    assert_eq!(guest.open_dir(node), Err(20));
    let listing = guest.open_dir(dir).unwrap();
    assert_eq!(guest.read(listing, 0, 1), Err(EBADF));
}

#[test]
fn contents_can_be_cut_grown_and_appended_to() {
    let (guest, tree) = guest();
    let node = guest.walk("g").unwrap();
    assert_eq!(guest.set(node, 8, 4, 0, (0, 0)).unwrap().size, 4);
    assert_eq!(guest.set(node, 8, 6, 0, (0, 0)).unwrap().size, 6);
    assert_eq!(fs::read(tree.path().join("g")).unwrap(), b"cont\0\0");
    let handle = guest.open(node, O_WRONLY | 0o2000).unwrap();
    guest.write(handle, 6, b"!").unwrap();
    assert_eq!(fs::read(tree.path().join("g")).unwrap(), b"cont\0\0!");
    guest.open(node, O_RDONLY | 0o1000).unwrap();
    assert_eq!(guest.attr(node).unwrap().size, 0);
    assert_eq!(guest.set(node, 8, u64::MAX, 0, (0, 0)), Err(27));
    assert_eq!(guest.set(guest.walk("d").unwrap(), 8, 0, 0, (0, 0)), Err(21));
}

#[test]
fn times_are_set() {
    let (guest, tree) = guest();
    for name in ["g", "l", "d"] {
        let node = guest.walk(name).unwrap();
        guest.set(node, 1 << 4 | 1 << 5, 0, 0, (0, 0)).unwrap();
        let meta = fs::symlink_metadata(tree.path().join(name)).unwrap();
        assert_eq!(
            (meta.atime(), meta.atime_nsec(), meta.mtime(), meta.mtime_nsec()),
            (1, 4, 2, 5),
            "{name}"
        );
    }
    assert_ne!(fs::metadata(tree.path().join("d/f")).unwrap().mtime(), 2, "the link, not its target");
    let node = guest.walk("g").unwrap();
    let before = fs::metadata(tree.path().join("g")).unwrap();
    guest.set(node, 1 << 5 | 1 << 8, 0, 0, (0, 0)).unwrap();
    let after = fs::metadata(tree.path().join("g")).unwrap();
    assert!(after.mtime() > 1_000_000 && after.atime() == before.atime());
}

#[test]
fn entries_are_made_and_removed() {
    let (guest, tree) = guest();
    let at = |name: &str| fs::symlink_metadata(tree.path().join(name));
    let dir = guest.mkdir(ROOT, "new", 0o750).unwrap();
    assert_eq!(at("new").unwrap().permissions().mode() & 0o7777, 0o750);
    assert_eq!(guest.mkdir(ROOT, "new", 0o750), Err(17));
    let (file, handle) = guest.create(dir.node, "file", O_RDWR, 0o640).unwrap();
    guest.write(handle, 0, b"abc").unwrap();
    assert_eq!(guest.attr(file.node).unwrap().size, 3);
    assert_eq!(guest.attr(file.node).unwrap().mode, 0o100_640);
    let link = guest.symlink(dir.node, "link", "../../anywhere").unwrap();
    assert_eq!(guest.readlink(link.node).unwrap(), b"../../anywhere");
    assert_eq!(guest.readlink(file.node), Err(EINVAL));
    let second = guest.link(file.node, ROOT, "second").unwrap();
    assert_eq!((second.node, second.attr.nlink), (file.node, 2));
    let of_link = guest.link(link.node, ROOT, "link2").unwrap();
    assert_eq!(guest.readlink(of_link.node).unwrap(), b"../../anywhere");
    assert_eq!(guest.link(dir.node, ROOT, "dir2"), Err(EPERM));
    guest.mknod(dir.node, "pipe", 0o010_644, 0).unwrap();
    guest.mknod(dir.node, "socket", 0o140_644, 0).unwrap();
    guest.mknod(dir.node, "plain", 0o100_600, 0).unwrap();
    assert_eq!(guest.rmdir(ROOT, "new"), Err(39));
    assert_eq!(guest.unlink(ROOT, "new"), Err(21));
    for name in ["file", "link", "pipe", "socket", "plain"] {
        guest.unlink(dir.node, name).unwrap();
    }
    assert_eq!(guest.rmdir(ROOT, "second"), Err(20));
    guest.rmdir(ROOT, "new").unwrap();
    assert!(at("new").is_err() && at("second").is_ok());
    assert_eq!(guest.unlink(ROOT, "new"), Err(ENOENT));
}

#[test]
fn no_device_is_made() {
    let (guest, tree) = guest();
    for mode in [0o020_666, 0o060_666] {
        assert_eq!(guest.mknod(ROOT, "device", mode, 0x103), Err(EPERM));
    }
    assert_eq!(guest.mknod(ROOT, "device", 0o120_777, 0), Err(EINVAL));
    assert!(fs::symlink_metadata(tree.path().join("device")).is_err());
}

#[test]
fn what_is_unlinked_or_replaced_stays_usable_while_it_is_open() {
    let (guest, tree) = guest();
    let node = guest.walk("g").unwrap();
    let handle = guest.open(node, O_RDWR).unwrap();
    guest.unlink(ROOT, "g").unwrap();
    assert_eq!(guest.attr(node).unwrap().nlink, 0);
    guest.write(handle, 0, b"CON").unwrap();
    assert_eq!(guest.read(handle, 0, 8).unwrap(), b"CONtents");
    guest.set(node, 8, 5, 0, (0, 0)).unwrap();
    let again = guest.open(node, O_RDONLY).unwrap();
    assert_eq!(guest.read(again, 0, 8).unwrap(), b"CONte");
    // As dpkg replaces files: written beside, renamed over.
    let old = guest.walk("d/f").unwrap();
    let old_handle = guest.open(old, O_RDONLY).unwrap();
    let dir = guest.walk("d").unwrap();
    let (new, _) = guest.create(dir, "f.new", O_RDWR, 0o644).unwrap();
    guest.rename((dir, "f.new"), (dir, "f"), 0).unwrap();
    assert_eq!(guest.read(old_handle, 0, 8).unwrap(), b"contents");
    assert_eq!(guest.attr(old).unwrap().nlink, 0);
    assert_eq!(guest.walk("d/f").unwrap(), new.node);
    assert_eq!(guest.attr(new.node).unwrap().size, 0);
    assert!(tree.path().join("d/f").exists());
    // When nobody has them any more, nothing is held.
    assert_eq!(guest.server.usage().unnamed, 2);
    for handle in [handle, again, old_handle] {
        guest.release(handle).unwrap();
    }
    guest.forget(node, 1);
    guest.forget(old, 1);
    assert_eq!(guest.server.usage().unnamed, 0);
    assert_eq!(guest.attr(node), Err(crate::guest::ESTALE));
}

#[test]
fn moved_entries_keep_their_numbers() {
    let (guest, tree) = guest();
    let (dir, file) = (guest.walk("d").unwrap(), guest.walk("d/f").unwrap());
    guest.rename((ROOT, "d"), (ROOT, "e"), 0).unwrap();
    assert_eq!(guest.attr(file).unwrap().size, 13, "below what was moved");
    guest.rename((dir, "f"), (ROOT, "h"), 1).unwrap();
    assert_eq!(guest.attr(file).unwrap().size, 13);
    assert_eq!(guest.rename((ROOT, "h"), (ROOT, "g"), 1), Err(17), "RENAME_NOREPLACE");
    let other = guest.walk("g").unwrap();
    guest.rename((ROOT, "h"), (ROOT, "g"), 2).unwrap();
    assert_eq!(fs::read(tree.path().join("g")).unwrap(), b"contents of f");
    let handle = guest.open(file, O_RDONLY).unwrap();
    assert_eq!(guest.read(handle, 12, 1).unwrap(), b"f");
    let handle = guest.open(other, O_RDONLY).unwrap();
    assert_eq!(guest.read(handle, 12, 1).unwrap(), b"g");
    assert_eq!(guest.rename((ROOT, "e"), (dir, "below"), 0), Err(EINVAL), "into itself");
    assert_eq!(guest.rename((ROOT, "g"), (ROOT, "x"), 8), Err(EINVAL));
    // Two names of one file: nothing happens, and the number stays usable.
    guest.link(file, ROOT, "twin").unwrap();
    guest.rename((ROOT, "twin"), (ROOT, "g"), 0).unwrap();
    assert!(tree.path().join("twin").exists());
    assert_eq!(guest.attr(file).unwrap().nlink, 2);
}

#[test]
fn a_file_without_a_name_gets_one() {
    let (guest, tree) = guest();
    let (entry, handle) = match guest.tmpfile(ROOT) {
        Err(95) => return eprintln!("this file system has no files without names"),
        made => made.unwrap(),
    };
    guest.write(handle, 0, b"unnamed").unwrap();
    assert_eq!(guest.attr(entry.node).unwrap().nlink, 0);
    guest.link(entry.node, ROOT, "named").unwrap();
    assert_eq!(fs::read(tree.path().join("named")).unwrap(), b"unnamed");
    assert_eq!(guest.server.usage().unnamed, 0, "it is reached by its name");
}

#[test]
fn holes_ranges_and_space() {
    let (guest, _tree) = guest();
    let node = guest.walk("g").unwrap();
    let handle = guest.open(node, O_RDWR).unwrap();
    guest.set(node, 8, 1 << 20, 0, (0, 0)).unwrap();
    let seek = |offset, whence| {
        guest
            .ask(Op::LSeek, node, body().long(handle).long(offset).word(whence).word(0))
            .map(|answer| crate::guest::long(&answer, 0))
    };
    assert_eq!(seek(0, 3).unwrap(), 0);
    assert!(seek(0, 4).unwrap() <= 1 << 20);
    assert_eq!(seek(u64::MAX, 3), Err(6));
    assert_eq!(seek(0, 2), Err(EINVAL));
    let (_, target) = guest.create(ROOT, "copy", O_RDWR, 0o600).unwrap();
    let copy = |to_offset, flags| {
        let body = body().long(handle).long(9).long(0).long(target).long(to_offset).long(4).long(flags);
        guest.ask(Op::CopyFileRange, node, body).map(|answer| word(&answer, 0))
    };
    assert_eq!(copy(0, 0).unwrap(), 4);
    assert_eq!(guest.read(target, 0, 9).unwrap(), b"of g");
    assert_eq!(copy(0, 1), Err(EINVAL));
    assert!(copy(u64::MAX, 0).is_err());
    let punch = |mode, offset, len| {
        guest.ask(Op::FAllocate, node, body().long(handle).long(offset).long(len).word(mode).word(0))
    };
    assert_eq!(punch(8, 0, 4096), Err(95), "collapsing moves data under the cache");
    assert_eq!(punch(0, u64::MAX, 2), Err(27));
    if punch(3, 0, 4096) != Err(95) {
        assert_eq!(guest.read(handle, 0, 4).unwrap(), [0; 4]);
    }
    let space = guest.ask(Op::StatFs, ROOT, body()).unwrap();
    assert_eq!((space.len(), word(&space, 44)), (80, 255));
    guest.ask(Op::SyncFs, ROOT, body().long(0)).unwrap();
    let dir = guest.open_dir(ROOT).unwrap();
    guest.ask(Op::FSyncDir, ROOT, body().long(dir).long(0)).unwrap();
}

#[test]
fn access_is_by_owner_and_mode() {
    let (mut guest, _tree) = guest();
    let node = guest.walk("g").unwrap();
    guest.chown(node, 7, 8).unwrap();
    guest.chmod(node, 0o640).unwrap();
    let may = |guest: &Guest, mask: u32| guest.ask(Op::Access, node, body().word(mask).word(0)).is_ok();
    for (uid, gid, granted) in [(7, 0, [true, true, false]), (9, 8, [true, false, false]), (9, 9, [false; 3])]
    {
        (guest.uid, guest.gid) = (uid, gid);
        assert_eq!([4, 2, 1].map(|mask| may(&guest, mask)), granted, "{uid} {gid}");
    }
    (guest.uid, guest.gid) = (0, 0);
    assert!(may(&guest, 6) && !may(&guest, 1) && may(&guest, 0));
}

#[test]
fn what_the_server_does_not_have_says_so() {
    let (guest, _tree) = guest();
    // BMAP, IOCTL, POLL, mappings for DAX, STATX, and numbers that are none.
    for opcode in [0, 7, 19, 37, 39, 40, 41, 48, 49, 52, 53, 4096, u32::MAX] {
        assert_eq!(guest.ask_raw(opcode, ROOT, body().bytes(&[0; 64]), 4096), Err(ENOSYS), "{opcode}");
    }
}

#[test]
fn pages_of_the_cache_are_written_where_they_belong() {
    const O_APPEND: u32 = 0o2000;
    const FROM_CACHE: u32 = 1;
    let (guest, tree) = guest();
    let handle = guest.open(guest.walk("g").unwrap(), O_RDWR | O_APPEND).unwrap();
    // What a program writes is appended, wherever its guest believes the end to be.
    assert_eq!(guest.write(handle, 13, b"+").unwrap(), 1);
    assert_eq!(guest.write_with(handle, 0, b"CONT", FROM_CACHE).unwrap(), 4);
    assert_eq!(fs::read(tree.path().join("g")).unwrap(), b"CONTents of g+");
}
