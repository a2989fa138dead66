//! Nothing outside of the tree is reached, whatever the guest names and whatever is swapped in.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};

use nelly_share::wire::Op;
use nelly_share::{CacheMode, Options};

use crate::guest::{EINVAL, ENOENT, Guest, O_RDWR, ROOT, body, guest};

/// Every way to name something, with every operation that takes a name.
#[test]
fn names_that_are_none_touch_nothing() {
    let (guest, tree) = guest();
    let outside = tempfile::NamedTempFile::new().unwrap();
    fs::write(outside.path(), b"outside").unwrap();
    let absolute = outside.path().to_str().unwrap().to_owned();
    let up = format!("../{}", outside.path().file_name().unwrap().to_str().unwrap());
    let node = guest.walk("g").unwrap();
    let before = listing(tree.path());
    let long = "n".repeat(256);
    let names: Vec<(&[u8], i32)> = vec![
        (b"", EINVAL),
        (b".", EINVAL),
        (b"..", EINVAL),
        (b"/", EINVAL),
        (b"d/f", EINVAL),
        (b"d/", EINVAL),
        (b"./g", EINVAL),
        (b"../x", EINVAL),
        (b"g\0", EINVAL),
        (b"x\0y", EINVAL),
        (absolute.as_bytes(), EINVAL),
        (up.as_bytes(), EINVAL),
        (long.as_bytes(), 36),
    ];
    for (name, error) in names {
        let named = |prefix: crate::guest::Body| prefix.name(name);
        let requests = [
            (Op::Lookup, named(body())),
            (Op::SymLink, named(body()).name("target")),
            (Op::MkNod, named(body().word(0o100_644).word(0).long(0))),
            (Op::MkDir, named(body().word(0o755).word(0))),
            (Op::Unlink, named(body())),
            (Op::RmDir, named(body())),
            (Op::Rename, named(body().long(ROOT)).name("new")),
            (Op::Rename, named(body().long(ROOT).name("g"))),
            (Op::Rename2, named(body().long(ROOT).long(0)).name("new")),
            (Op::Rename2, named(body().long(ROOT).long(0).name("g"))),
            (Op::Link, named(body().long(node))),
            (Op::Create, named(body().word(O_RDWR | 0o1000).word(0o644).long(0))),
        ];
        for (op, body) in requests {
            let error = if name == b"x\0y" || name == b"g\0" { EINVAL } else { error };
            assert_eq!(guest.ask(op, ROOT, body), Err(error), "{op:?} {name:?}");
        }
    }
    // No NUL at the end, nothing at all.
    for op in [Op::Lookup, Op::Unlink, Op::RmDir] {
        assert_eq!(guest.ask(op, ROOT, body().bytes(b"g")), Err(EINVAL));
        assert_eq!(guest.ask(op, ROOT, body()), Err(EINVAL));
    }
    assert_eq!(listing(tree.path()), before);
    assert_eq!(fs::read(outside.path()).unwrap(), b"outside");
}

fn listing(path: &std::path::Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn symbolic_links_are_never_followed() {
    let (guest, tree) = guest();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), b"secret").unwrap();
    symlink(outside.path(), tree.path().join("out")).unwrap();
    symlink(outside.path().join("secret"), tree.path().join("file")).unwrap();
    let (dir, file) = (guest.lookup(ROOT, "out").unwrap(), guest.lookup(ROOT, "file").unwrap());
    assert_eq!(dir.attr.mode & 0o170_000, 0o120_000);
    assert_eq!(guest.lookup(dir.node, "secret"), Err(20));
    assert_eq!(guest.mkdir(dir.node, "new", 0o755), Err(20));
    assert_eq!(guest.open_dir(dir.node), Err(20));
    for flags in [0, 1, 2, 0o1000] {
        assert_eq!(guest.open(file.node, flags), Err(95));
    }
    assert_eq!(guest.set(file.node, 8, 0, 0, (0, 0)), Err(EINVAL));
    assert_eq!(guest.chmod(file.node, 0o777), Err(95));
    assert!(guest.create(ROOT, "file", O_RDWR | 0o1000, 0o644).is_err());
    // A link that the guest makes leads nowhere on the host either.
    let made = guest.symlink(ROOT, "made", outside.path().to_str().unwrap()).unwrap();
    assert_eq!(guest.lookup(made.node, "secret"), Err(20));
    assert_eq!(fs::read(outside.path().join("secret")).unwrap(), b"secret");
    assert_eq!(listing(outside.path()), ["secret"]);
}

/// A directory of the tree and a link out of it change places all the time, while the guest works
/// in the directory. Nothing is cached, and few descriptors are at hand.
#[test]
fn swapped_directories_lead_nowhere() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("f"), b"outside").unwrap();
    fs::create_dir(outside.path().join("sub")).unwrap();
    let tree = tempfile::tempdir().unwrap();
    let at = |name: &str| tree.path().join(name);
    fs::create_dir_all(at("d/sub")).unwrap();
    fs::write(at("d/f"), b"inside!").unwrap();
    symlink(outside.path(), at("link")).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let exchange = rustix::fs::RenameFlags::EXCHANGE;
                let root = crate::guest::directory(tree.path());
                rustix::fs::renameat_with(&root, "d", &root, "link", exchange).unwrap();
            }
        });
        let options = Options { descriptors: Some(16), cache: CacheMode::None, ..Options::default() };
        let guest = Guest::new(tree.path(), options);
        let mut read = 0;
        for round in 0..4_000 {
            let Ok(dir) = guest.lookup(ROOT, "d") else { continue };
            if let Ok(file) = guest.lookup(dir.node, "f") {
                if let Ok(handle) = guest.open(file.node, O_RDWR) {
                    let bytes = guest.read(handle, 0, 10).unwrap();
                    assert_eq!(bytes, b"inside!", "round {round}");
                    read += 1;
                    guest.release(handle).unwrap();
                }
                let _ = guest.set(file.node, 8, 7, 0, (0, 0));
                guest.forget(file.node, 1);
            }
            let _ = guest.mkdir(dir.node, "made", 0o755);
            let _ = guest.rmdir(dir.node, "made");
            let _ = guest.rename((dir.node, "sub"), (dir.node, "sub2"), 0);
            let _ = guest.rename((dir.node, "sub2"), (dir.node, "sub"), 0);
            guest.forget(dir.node, 1);
        }
        done.store(true, Ordering::Relaxed);
        assert!(read > 0, "the test reached the file");
    });
    assert_eq!(listing(outside.path()), ["f", "sub"]);
    assert_eq!(fs::read(outside.path().join("f")).unwrap(), b"outside");
}

/// The guest renames directories while other threads of it walk through them.
#[test]
fn renames_beside_walks_lose_nothing() {
    let tree = tempfile::tempdir().unwrap();
    fs::create_dir_all(tree.path().join("a/b/c")).unwrap();
    fs::write(tree.path().join("a/b/c/f"), b"found").unwrap();
    let guest = Guest::new(tree.path(), Options { descriptors: Some(16), ..Options::default() });
    let file = guest.walk("a/b/c/f").unwrap();
    let (a, b) = (guest.walk("a").unwrap(), guest.walk("a/b").unwrap());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let walkers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut walks = 0;
                    while !done.load(Ordering::Relaxed) {
                        assert_eq!(guest.attr(file).unwrap().size, 5);
                        let handle = guest.open(file, 0).unwrap();
                        assert_eq!(guest.read(handle, 0, 5).unwrap(), b"found");
                        guest.release(handle).unwrap();
                        walks += 1;
                    }
                    walks
                })
            })
            .collect();
        for _ in 0..500 {
            guest.rename((a, "b"), (ROOT, "moved"), 0).unwrap();
            guest.rename((b, "c"), (a, "c"), 0).unwrap();
            guest.rename((a, "c"), (b, "c"), 0).unwrap();
            guest.rename((ROOT, "moved"), (a, "b"), 0).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        assert!(walkers.into_iter().all(|walker| walker.join().unwrap() > 0));
    });
}

/// The host moves directories into each other and the guest sees one move after the other: the
/// places that the server remembers would form a circle.
#[test]
fn moves_of_the_host_form_no_circle() {
    let tree = tempfile::tempdir().unwrap();
    let at = |name: &str| tree.path().join(name);
    fs::create_dir_all(at("a/b")).unwrap();
    fs::write(at("a/b/f"), b"x").unwrap();
    let guest = Guest::new(tree.path(), Options { descriptors: Some(16), ..Options::default() });
    let (a, b) = (guest.walk("a").unwrap(), guest.walk("a/b").unwrap());
    for _ in 0..20 {
        fs::rename(at("a/b"), at("b")).unwrap();
        fs::rename(at("a"), at("b/a")).unwrap();
        // `a` is still known in the root when it is found below `b`, which is known in `a`.
        let _ = guest.lookup(b, "a");
        for node in [a, b] {
            let _ = guest.attr(node);
        }
        assert_eq!(guest.walk("b/a").unwrap(), a);
        fs::rename(at("b/a"), at("a")).unwrap();
        fs::rename(at("b"), at("a/b")).unwrap();
        let _ = guest.lookup(a, "b");
        assert_eq!(guest.walk("a/b").unwrap(), b);
        assert!(guest.walk("a/b/f").is_ok());
    }
    guest.forget(a, u64::MAX);
    guest.forget(b, u64::MAX);
    assert_eq!(guest.lookup(ROOT, "b"), Err(ENOENT));
}

/// A pipe or a device is not opened by the server: the first would wait, the second might act.
#[test]
fn special_files_are_not_opened() {
    let (guest, _tree) = guest();
    let pipe = guest.mknod(ROOT, "pipe", 0o010_644, 0).unwrap();
    for flags in [0, 1, 2] {
        assert_eq!(guest.open(pipe.node, flags), Err(95));
        assert!(guest.create(ROOT, "pipe", flags, 0o644).is_err());
    }
    assert_eq!(guest.set(pipe.node, 8, 0, 0, (0, 0)), Err(EINVAL));
}

/// Nothing that is asked of an inode that is none, or of another driver's, does anything.
#[test]
fn numbers_that_are_none_are_stale() {
    let (guest, tree) = guest();
    let node = guest.walk("d/f").unwrap();
    let handle = guest.open(node, O_RDWR).unwrap();
    for number in [0, 2_000_000, u64::MAX] {
        assert_eq!(guest.attr(number), Err(crate::guest::ESTALE));
        assert_eq!(guest.lookup(number, "g"), Err(crate::guest::ESTALE));
        assert_eq!(guest.unlink(number, "g"), Err(crate::guest::ESTALE));
        assert_eq!(guest.link(number, ROOT, "x"), Err(crate::guest::ESTALE));
        assert_eq!(guest.read(number, 0, 1), Err(crate::guest::EBADF));
        guest.forget(number, u64::MAX);
    }
    guest.forget(ROOT, u64::MAX);
    guest.server.reset();
    assert_eq!(guest.attr(node), Err(crate::guest::ESTALE));
    assert_eq!(guest.read(handle, 0, 1), Err(crate::guest::EBADF));
    assert_ne!(guest.walk("d/f").unwrap(), node, "no number comes again");
    assert!(tree.path().join("g").exists());
}

#[test]
fn the_memory_of_processes_is_no_file_of_a_tree() {
    const EACCES: i32 = 13;
    let guest = Guest::new(std::path::Path::new("/proc"), Options::default());
    for file in ["mem", "environ"] {
        let node = guest.walk(&format!("{}/{file}", std::process::id())).unwrap();
        for how in [0, O_RDWR] {
            assert_eq!(guest.open(node, how), Err(EACCES), "{file} {how}");
        }
    }
}
