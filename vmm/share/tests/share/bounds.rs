//! Memory and descriptors are bounded, whatever the guest does.

use std::fs;

use nelly_share::Options;
use nelly_share::wire::{BODY_MAX, Op};

use crate::guest::{EINVAL, ENFILE, Guest, O_RDONLY, O_RDWR, ROOT, body, guest, request, word};

/// Descriptors of this process that lead below a path.
fn descriptors(below: &std::path::Path) -> usize {
    fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .filter(|target| target.starts_with(below))
        .count()
}

/// A twentieth of what NELLY_FULL_SHARE asks for.
fn scale(whole: usize) -> usize {
    if std::env::var_os("NELLY_FULL_SHARE").is_some() { whole } else { whole / 20 }
}

/// `find` over a million files (10,000 of them here), each directory listed with attributes and
/// walked into.
#[test]
fn a_large_tree_needs_few_descriptors() {
    let tree = tempfile::tempdir().unwrap();
    let (dirs, files) = (scale(1_000), scale(1_000).max(200));
    for dir in 0..dirs {
        let path = tree.path().join(format!("{:02}/{dir}", dir % 10));
        fs::create_dir_all(&path).unwrap();
        for file in 0..files {
            fs::File::create(path.join(file.to_string())).unwrap();
        }
    }
    let guest = Guest::new(tree.path(), Options { descriptors: Some(32), ..Options::default() });
    let mut found = 0;
    let mut most = 0;
    let mut to_do = vec![ROOT];
    while let Some(node) = to_do.pop() {
        for (_, entry) in guest.list(node, true) {
            let attr = guest.attr(entry.node).unwrap();
            if attr.mode & 0o170_000 == 0o040_000 {
                to_do.push(entry.node);
            } else {
                found += 1;
            }
        }
        most = most.max(descriptors(tree.path()));
    }
    assert_eq!(found, dirs * files);
    assert!(most <= 32 + 2, "{most} descriptors");
}

#[test]
fn a_hundred_thousand_files_are_open() {
    let tree = tempfile::tempdir().unwrap();
    let count = scale(100_000);
    let guest = Guest::new(tree.path(), Options { descriptors: Some(64), ..Options::default() });
    let handles: Vec<_> = (0..count)
        .map(|n| {
            let (_, handle) = guest.create(ROOT, n.to_string(), O_RDWR, 0o644).unwrap();
            guest.write(handle, 0, n.to_string().as_bytes()).unwrap();
            handle
        })
        .collect();
    assert!(descriptors(tree.path()) <= 64 + 2);
    for (n, handle) in handles.iter().enumerate() {
        assert_eq!(guest.read(*handle, 0, 9).unwrap(), n.to_string().as_bytes());
    }
    assert_eq!(guest.server.usage().handles, count);
    for handle in handles {
        guest.release(handle).unwrap();
    }
    assert_eq!(guest.server.usage().handles, 0);
}

#[test]
fn limits_are_told_and_end_with_what_held_them() {
    let tree = tempfile::tempdir().unwrap();
    for n in 0..100 {
        fs::write(tree.path().join(n.to_string()), b"x").unwrap();
    }
    let options = Options { inodes: 50, handles: 10, descriptors: Some(16), ..Options::default() };
    let guest = Guest::new(tree.path(), options);
    // No listing drops names, whatever the driver may know.
    let found = guest.list(ROOT, true);
    assert_eq!(found.len(), 100);
    let known: Vec<_> = found.values().map(|entry| entry.node).filter(|node| *node != 0).collect();
    assert_eq!(known.len(), 49);
    let unknown = found.iter().find(|(_, entry)| entry.node == 0).unwrap().0.clone();
    assert_eq!(guest.lookup(ROOT, &unknown), Err(ENFILE));
    let handles: Vec<_> = (0..10).map(|_| guest.open(known[0], O_RDONLY).unwrap()).collect();
    assert_eq!(guest.open(known[1], O_RDONLY), Err(ENFILE));
    assert_eq!(guest.open_dir(ROOT), Err(ENFILE));
    guest.release(handles[0]).unwrap();
    assert!(guest.open_dir(ROOT).is_ok());
    for node in known {
        guest.forget(node, 1);
    }
    assert!(guest.lookup(ROOT, &unknown).is_ok());
    guest.server.reset();
    let usage = guest.server.usage();
    assert_eq!((usage.inodes, usage.handles, usage.unnamed), (1, 0, 0));
}

/// Open files that lose their names occupy a descriptor each. When there are too many, the next
/// name is not taken: nothing that is open is lost.
#[test]
fn unlinked_open_files_are_bounded() {
    let tree = tempfile::tempdir().unwrap();
    let guest = Guest::new(tree.path(), Options { descriptors: Some(40), ..Options::default() });
    let made: Vec<_> = (0..50)
        .map(|n| {
            let (entry, handle) = guest.create(ROOT, n.to_string(), O_RDWR, 0o644).unwrap();
            guest.write(handle, 0, &[n]).unwrap();
            (entry.node, handle)
        })
        .collect();
    let taken = (0..50).filter(|n| guest.unlink(ROOT, n.to_string()) == Ok(())).count();
    assert_eq!(taken, 10);
    assert_eq!(guest.unlink(ROOT, "49"), Err(ENFILE));
    guest.rename((ROOT, "49"), (ROOT, "48"), 0).unwrap_err();
    assert!(descriptors(tree.path()) <= 40 + 2);
    for (n, (_, handle)) in made.iter().enumerate() {
        assert_eq!(guest.read(*handle, 0, 9).unwrap(), [u8::try_from(n).unwrap()]);
    }
    for (node, handle) in &made {
        guest.release(*handle).unwrap();
        guest.forget(*node, 1);
    }
    for n in 10..50 {
        guest.unlink(ROOT, n.to_string()).unwrap();
    }
    assert_eq!(guest.server.usage().inodes, 1);
}

/// The process is at its limit of descriptors: others are not in the share's way for ever.
#[test]
fn the_server_gives_way_when_there_are_no_descriptors() {
    // In a process of its own: the limit is the process's.
    if std::env::var_os("SHARE_LIMITED").is_none() {
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "bounds::the_server_gives_way_when_there_are_no_descriptors"])
            .env("SHARE_LIMITED", "1")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let tree = tempfile::tempdir().unwrap();
    for n in 0..60 {
        fs::create_dir(tree.path().join(n.to_string())).unwrap();
        fs::write(tree.path().join(n.to_string()).join("f"), b"x").unwrap();
    }
    let guest = Guest::new(tree.path(), Options { descriptors: Some(200), ..Options::default() });
    let limit = rustix::process::Rlimit { current: Some(48), maximum: Some(48) };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    let walk = || {
        for n in 0..60 {
            let file = guest.walk(&format!("{n}/f")).unwrap();
            let handle = guest.open(file, O_RDONLY).unwrap();
            assert_eq!(guest.read(handle, 0, 1).unwrap(), b"x");
        }
    };
    walk();
    // Somebody else takes all that are left.
    let mut others = Vec::new();
    while let Ok(file) = fs::File::open("/dev/null") {
        others.push(file);
    }
    others.truncate(others.len().saturating_sub(4));
    walk();
    drop(others);
    walk();
}

#[test]
fn requests_that_lie_about_their_length_are_refused() {
    let (guest, _tree) = guest();
    let good = request(1, 7, ROOT, (0, 0), b"g\0");
    let mut reply = vec![0; 256];
    assert_eq!(guest.server.handle(&good, &mut reply), 144);
    for len in [0, 1, 39, 40, 41, 43, 4096, u32::MAX] {
        let mut lie = good.clone();
        lie[..4].copy_from_slice(&len.to_le_bytes());
        assert_eq!(guest.server.handle(&lie, &mut reply), 16, "{len}");
        assert_eq!(word(&reply, 4).cast_signed(), -EINVAL);
    }
    // Too short for a header of either kind: no answer.
    for len in 0..40 {
        assert_eq!(guest.server.handle(&&good[..len], &mut reply), 0);
    }
    for room in 0..16 {
        assert_eq!(guest.server.handle(&good, &mut &mut reply[..room]), 0);
    }
    // No room for the answer: nothing is done.
    let make = request(9, 7, ROOT, (0, 0), &body().long(0o755).name("made").0);
    for room in [16, 17, 143] {
        assert_eq!(guest.server.handle(&make, &mut &mut reply[..room]), 16);
        assert_eq!(word(&reply, 4).cast_signed(), -EINVAL);
    }
    assert!(guest.lookup(ROOT, "made").is_err());
    // A body larger than any.
    let large = vec![b'n'; BODY_MAX + 1];
    assert_eq!(guest.ask_raw(1, ROOT, body().bytes(&large), 4096), Err(EINVAL));
    // WRITE whose number of bytes is not what is there.
    let (entry, handle) = guest.create(ROOT, "file", O_RDWR, 0o644).unwrap();
    for size in [0, 2, 4, u32::MAX] {
        let body = body().long(handle).long(0).word(size).word(0).long(0).long(0).bytes(b"abc");
        assert_eq!(guest.ask(Op::Write, entry.node, body), Err(EINVAL), "{size}");
    }
    let huge = vec![1; (1 << 20) + 1];
    assert_eq!(guest.write(handle, 0, &huge), Err(EINVAL));
    assert_eq!(guest.write(handle, u64::MAX, b"x"), Err(27));
    assert_eq!(guest.attr(entry.node).unwrap().size, 0);
    assert_eq!(guest.write(handle, 0, &huge[1..]).unwrap(), 1 << 20);
    assert_eq!(guest.read(handle, 0, u32::MAX).unwrap().len(), 1 << 20);
}

#[test]
fn lists_of_what_is_forgotten_end_where_they_end() {
    let (guest, _tree) = guest();
    let (d, g) = (guest.walk("d").unwrap(), guest.walk("g").unwrap());
    let pairs = body().word(u32::MAX).word(0).long(d).long(1).long(g).long(u64::MAX).bytes(&[1; 15]);
    guest.ask(Op::BatchForget, 0, pairs).unwrap();
    assert_eq!(guest.attr(d), Err(crate::guest::ESTALE));
    assert_eq!(guest.attr(g), Err(crate::guest::ESTALE));
    for short in [body(), body().word(9), body().word(9).word(0)] {
        guest.ask(Op::BatchForget, 0, short).unwrap();
    }
    assert_eq!(guest.server.usage().inodes, 1);
}

/// A directory that is forgotten before what is below it stays a way to it.
#[test]
fn forgotten_directories_stay_ways() {
    let (guest, _tree) = guest();
    let (dir, file) = (guest.walk("d").unwrap(), guest.walk("d/f").unwrap());
    guest.forget(dir, 2);
    assert_eq!(guest.attr(file).unwrap().size, 13);
    guest.forget(file, 1);
    assert_eq!(guest.server.usage().inodes, 1);
}
