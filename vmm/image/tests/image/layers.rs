//! Layers through the whole path: tar → tree → EROFS → an independent reader, with erofs-utils as
//! the judge.
#![allow(clippy::cast_possible_truncation, reason = "tests")]

use std::collections::BTreeMap;

use crate::support::erofs::Item;
use crate::support::image::{Pack, TestDir, refusal, refusal_of, tree_of};
use crate::support::tarball::{Head, Tar, dir, file, hard_link, symlink};

fn names(tree: &BTreeMap<Vec<u8>, Item>) -> Vec<String> {
    tree.keys()
        .filter(|path| !path.is_empty())
        .map(|path| String::from_utf8_lossy(path).into_owned())
        .collect()
}

fn data<'a>(tree: &'a BTreeMap<Vec<u8>, Item>, path: &str) -> &'a [u8] {
    &tree.get(path.as_bytes()).unwrap_or_else(|| panic!("no {path} among {:?}", names(tree))).data
}

#[test]
fn every_kind_of_file_with_its_attributes() {
    let caps = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(255));
    let mut tar = Tar::default();
    tar.empty(Head { mode: 0o1777, mtime: 5, ..dir("./") })
        .add(
            Head {
                mode: 0o4755,
                uid: 4_000_000_000,
                gid: 70_000,
                pax: vec![
                    (b"SCHILY.xattr.security.capability".to_vec(), caps.to_vec()),
                    (b"SCHILY.xattr.user.note".to_vec(), b"a=b\n".to_vec()),
                    (b"SCHILY.xattr.trusted.overlay.opaque".to_vec(), b"y".to_vec()),
                    (b"SCHILY.xattr.com.apple.x".to_vec(), b"y".to_vec()),
                    (b"mtime".to_vec(), b"-1.5".to_vec()),
                ],
                ..file("bin/su")
            },
            b"su",
        )
        .add(file(&long), b"long")
        .empty(symlink("link", &format!("/{}", "t".repeat(4094))))
        .empty(symlink("short", "bin/su"))
        .empty(Head { kind: b'3', major: 1, minor: 3, ..file("null") })
        .empty(Head { kind: b'4', major: 259, minor: 70_000, ..file("disk") })
        .empty(Head { kind: b'6', mode: 0o600, ..file("fifo") })
        .empty(hard_link("bin/su2", "/bin/su"))
        .add(Head { mtime: 0, ..file("old") }, b"")
        .add(file("name\u{e9}\n"), b"odd");
    let tree = tree_of(&[tar.end()]);
    assert_eq!((tree[&b""[..]].mode, tree[&b""[..]].mtime), (0o041_777, 5));
    let su = &tree[&b"bin/su"[..]];
    assert_eq!((su.mode, su.uid, su.gid, su.nlink), (0o104_755, 4_000_000_000, 70_000, 2));
    assert_eq!((su.mtime, su.mtime_nsec), (-2, 500_000_000));
    let want: BTreeMap<Vec<u8>, Vec<u8>> =
        [(b"security.capability".to_vec(), caps.to_vec()), (b"user.note".to_vec(), b"a=b\n".to_vec())].into();
    assert_eq!(su.xattrs, want);
    assert_eq!(tree[&b"bin/su2"[..]], *su);
    // The parent was never listed.
    assert_eq!(tree[&b"bin"[..]].mode, 0o040_755);
    assert_eq!(data(&tree, &long), b"long");
    assert_eq!(data(&tree, "link").len(), 4095);
    assert_eq!(data(&tree, "short"), b"bin/su");
    assert_eq!((tree[&b"null"[..]].mode, tree[&b"null"[..]].rdev), (0o020_644, 0x103));
    assert_eq!(tree[&b"disk"[..]].rdev, (70_000 & 0xff) | 259 << 8 | (70_000 & !0xff) << 12);
    assert_eq!(tree[&b"fifo"[..]].mode, 0o010_600);
    assert_eq!((tree[&b"old"[..]].mtime, tree[&b"old"[..]].size), (0, 0));
    assert_eq!(data(&tree, "name\u{e9}\n"), b"odd");
}

#[test]
fn file_sizes_round_the_block() {
    let sizes = [0, 1, 31, 32, 4000, 4031, 4032, 4033, 4064, 4095, 4096, 4097, 8191, 8192, 12_000, 3 << 20];
    let mut tar = Tar::default();
    let content = |size: usize| (0..size).map(|i| (i * 7 + i / 251 + size) as u8).collect::<Vec<u8>>();
    for size in sizes {
        tar.add(file(&format!("extended/{size}")), &content(size));
        tar.add(Head { mtime: 0, ..file(&format!("compact/{size}")) }, &content(size));
        let pax = vec![(b"SCHILY.xattr.user.x".to_vec(), vec![b'v'; size % 60_000])];
        tar.add(Head { pax, ..file(&format!("xattr/{size}")) }, &content(size));
    }
    let tree = tree_of(&[tar.end()]);
    for size in sizes {
        for folder in ["extended", "compact", "xattr"] {
            assert_eq!(data(&tree, &format!("{folder}/{size}")), content(size), "{folder}/{size}");
        }
    }
}

#[test]
fn big_directories() {
    let mut tar = Tar::default();
    // Names before and after the dots.
    for name in ["!", "-", ".a", "..b", "...", "0"] {
        tar.add(file(name), name.as_bytes());
    }
    for i in 0..5000 {
        tar.add(file(&format!("many/{i:0width$}", width = 1 + i % 200)), i.to_string().as_bytes());
    }
    // A directory whose blocks are exactly full: 16 records of 256 bytes with the two of the dots
    // replaced.
    for i in 0..15 {
        tar.add(file(&format!("full/{i:0244}")), b"");
    }
    tar.add(file(&format!("full/{}", "x".repeat(256 - 24 - 3 - 12))), b"");
    let tree = tree_of(&[tar.end()]);
    for name in ["!", "-", ".a", "..b", "...", "0"] {
        assert_eq!(data(&tree, name), name.as_bytes());
    }
    for i in 0..5000_usize {
        assert_eq!(data(&tree, &format!("many/{i:0width$}", width = 1 + i % 200)), i.to_string().as_bytes());
    }
    assert_eq!(tree[&b"full"[..]].size, 4096);
}

#[test]
fn whiteouts() {
    let lower = Tar::default()
        .empty(dir("a"))
        .add(file("a/one"), b"1")
        .add(file("a/two"), b"2")
        .empty(dir("b"))
        .add(file("b/one"), b"1")
        .add(file("b/deep/er"), b"1")
        .add(file("c"), b"c")
        .add(file("kept"), b"k")
        .empty(dir("g/h"))
        .add(file("g/h/old"), b"o")
        .end();
    let upper = Tar::default()
        .add(file("a/.wh.one"), b"")
        // Opaque says nothing about this layer, before or after it.
        .add(file("b/new"), b"n")
        .add(file("b/.wh..wh..opq"), b"")
        .add(file("b/newer"), b"n")
        .add(file(".wh.c"), b"")
        .add(file(".wh.never"), b"")
        .add(file("no/such/.wh.dir"), b"")
        // The directory goes and comes again in one layer.
        .add(file("g/h/new"), b"n")
        .add(file("g/.wh.h"), b"")
        .add(file(".wh..wh.plnk"), b"")
        .end();
    let tree = tree_of(&[lower.clone(), upper]);
    assert_eq!(
        names(&tree),
        ["a", "a/two", "b", "b/new", "b/newer", "g", "g/h", "g/h/new", "kept"],
        "the directory `no` is not made by a whiteout"
    );
    // A third layer sees through to the first only by name.
    let upper = Tar::default().add(file(".wh.a"), b"").add(file("a/new"), b"").end();
    let third = Tar::default().add(file("a/.wh.new"), b"").add(file("a/last"), b"").end();
    let tree = tree_of(&[lower, upper, third]);
    assert!(names(&tree).contains(&"a/last".to_owned()));
    assert!(!names(&tree).contains(&"a/one".to_owned()) && !names(&tree).contains(&"a/new".to_owned()));
}

#[test]
fn one_thing_replaces_another() {
    let big = vec![b'x'; 100_000];
    let lower = Tar::default()
        .add(file("dir/inside"), &big)
        .add(file("file"), &big)
        .empty(symlink("link", "file"))
        .empty(Head { mode: 0o700, ..dir("meta") })
        .add(file("meta/kept"), b"k")
        .end();
    let upper = Tar::default().add(file("dir"), b"now a file").add(file("file/below"), b"").end();
    assert!(refusal_of(&[lower.clone(), upper]).contains("`file`, a parent in the path, is not a directory"));
    let upper = Tar::default()
        .add(file("dir"), b"now a file")
        .empty(dir("file"))
        .add(file("file/below"), b"b")
        .empty(dir("link"))
        .empty(Head { mode: 0o711, ..dir("meta/") })
        .add(file("twice"), b"first")
        .add(file("twice"), b"second")
        .end();
    let tree = tree_of(&[lower, upper]);
    assert_eq!(names(&tree), ["dir", "file", "file/below", "link", "meta", "meta/kept", "twice"]);
    assert_eq!(data(&tree, "dir"), b"now a file");
    assert_eq!(data(&tree, "twice"), b"second");
    assert_eq!(tree[&b"link"[..]].mode, 0o040_755);
    assert_eq!(tree[&b"meta"[..]].mode, 0o040_711);
}

#[test]
fn hard_links_across_layers() {
    let lower = Tar::default().add(file("a"), b"shared").empty(hard_link("b", "a")).end();
    // `c` is linked to a file of the layer below; `a` goes, the others stay.
    let upper = Tar::default().empty(hard_link("c", "b")).add(file(".wh.a"), b"").end();
    let third = Tar::default().add(file("b"), b"own").empty(hard_link("d", "c")).end();
    let tree = tree_of(&[lower.clone(), upper, third]);
    assert_eq!(names(&tree), ["b", "c", "d"]);
    assert_eq!((data(&tree, "b"), data(&tree, "c")), (&b"own"[..], &b"shared"[..]));
    assert_eq!(tree[&b"c"[..]].nid, tree[&b"d"[..]].nid);
    assert_eq!((tree[&b"c"[..]].nlink, tree[&b"b"[..]].nlink), (2, 1));
    // In place of a directory that holds the target, and onto itself.
    let upper =
        Tar::default().add(file("x/y"), b"y").empty(hard_link("x", "x/y")).empty(hard_link("a", "a")).end();
    let tree = tree_of(&[lower.clone(), upper]);
    assert_eq!(names(&tree), ["a", "b", "x"]);
    assert_eq!((data(&tree, "x"), tree[&b"a"[..]].nlink), (&b"y"[..], 2));
    // To a link itself, not to what it points to.
    let upper = Tar::default().empty(symlink("s", "a")).empty(hard_link("t", "s")).end();
    assert_eq!(tree_of(&[lower.clone(), upper])[&b"t"[..]].mode & 0o170_000, 0o120_000);
    for (target, why) in
        [("gone", "does not exist"), ("/", "is a directory"), ("../a/../..", "leaves the image")]
    {
        let upper = Tar::default().empty(hard_link("e", target)).end();
        assert!(refusal_of(&[lower.clone(), upper]).contains(why), "{target}");
    }
}

#[test]
fn links_in_directory_positions_are_followed_inside() {
    let lower = Tar::default()
        .empty(dir("usr/lib"))
        .empty(symlink("lib", "usr/lib"))
        .empty(symlink("abs", "/usr/../../usr/lib"))
        .empty(symlink("out", "../../../../made"))
        .empty(symlink("loop", "loop2"))
        .empty(symlink("loop2", "loop"))
        .end();
    let upper = Tar::default()
        .add(file("lib/one"), b"1")
        .add(file("/abs/two"), b"2")
        .add(file("out/three"), b"3")
        .add(file("usr/./lib//../lib/four"), b"4")
        .end();
    let tree = tree_of(&[lower.clone(), upper]);
    for path in ["usr/lib/one", "usr/lib/two", "made/three", "usr/lib/four"] {
        assert!(names(&tree).contains(&path.to_owned()), "{path}");
    }
    let upper = Tar::default().add(file("loop/x"), b"").end();
    assert!(refusal_of(&[lower, upper]).contains("more than 40 symbolic links"));
}

#[test]
fn hostile_entries_are_refused_by_name() {
    let nul = vec![(b"path".to_vec(), b"a\0b".to_vec())];
    let xattr = |name: &str, len| vec![(format!("SCHILY.xattr.{name}").into_bytes(), vec![b'v'; len])];
    for (head, why) in [
        (
            file("../../etc/passwd"),
            "the entry `../../etc/passwd` is refused: the path leaves the image's root",
        ),
        (file("a/../../b"), "leaves the image's root"),
        (Head { pax: nul, ..file("x") }, "NUL"),
        (file(&"n".repeat(256)), "longer than 255"),
        (file(&"n/".repeat(3000)), "longer than 4095"),
        (file("."), "root cannot be anything but a directory"),
        (symlink("s", ""), "target is empty"),
        (symlink("s", &"t".repeat(4096)), "target is empty, longer"),
        (Head { kind: b'3', major: 4096, ..file("d") }, "device number 4096:0"),
        (Head { kind: b'4', minor: 1 << 20, ..file("d") }, "device number 0:1048576"),
        (file("a/.wh."), "whiteout without a name"),
        (file("a/.wh..."), "whiteout without a name"),
        (Head { kind: b'Q', ..file("q") }, "unknown type 'Q'"),
        (Head { pax: xattr("user.x", 65_536), ..file("x") }, "extended attribute"),
        (
            Head { pax: [xattr("user.a", 60_000), xattr("user.b", 60_000)].concat(), ..file("x") },
            "`user.b` is too long",
        ),
    ] {
        let message = refusal_of(&[Tar::default().empty(head.clone()).end()]);
        assert!(message.contains(why), "{head:?}: {message}");
        assert!(message.contains("layer 1 of 1 (sha256:"), "{message}");
    }
}

#[test]
fn depth_is_bounded_even_through_links() {
    // Each entry goes down from where a link leads, so paths in the archive stay short.
    let mut tar = Tar::default();
    let deep = "d/".repeat(1500);
    tar.empty(dir(&deep)).empty(symlink("l", &deep)).empty(dir(&format!("l/{deep}")));
    assert!(refusal_of(&[tar.end()]).contains("deeper than 2048"));
}

#[test]
fn limits_hold() {
    let many = |n: usize| {
        let mut tar = Tar::default();
        for i in 0..n {
            tar.add(file(&format!("f{i}")), &[1; 1000]);
        }
        tar.end()
    };
    let with = |change: &dyn Fn(&mut nelly_image::Limits)| {
        let mut place = TestDir::default();
        change(&mut place.limits);
        place
    };
    let message = refusal(&with(&|l| l.entries = 50), &[many(40), many(20)]);
    assert!(message.contains("more than 50 files") && message.contains("layer 2 of 2"), "{message}");
    let message = refusal(&with(&|l| l.metadata_bytes = 100), &[many(50)]);
    assert!(message.contains("more than 100 bytes of names"), "{message}");
    let message = refusal(&with(&|l| l.disk_bytes = 100_000), &[many(200)]);
    assert!(message.contains("more than 100000 bytes (limit `disk_bytes`)"), "{message}");
    let message = refusal(&with(&|l| l.unpacked_bytes = 50_000), &[many(10), many(50)]);
    assert!(message.contains("unpack to more than 50000 bytes"), "{message}");
    let message = refusal(&with(&|l| l.layers = 1), &[many(1), many(2)]);
    assert!(message.contains("2 layers, over the limit of 1"), "{message}");
    // At the limit all is well.
    let place = with(&|l| l.entries = 50);
    place.resolve(&place.layout(&[many(30), many(20)]).reference()).unwrap();
}

#[test]
fn bombs_end_at_the_limit() {
    let mut place = TestDir::default();
    place.limits.unpacked_bytes = 8 << 20;
    let mut bomb = Tar::default().add(file("zeros"), &vec![0; 24 << 20]).end();
    for pack in [Pack::Gzip, Pack::Zstd] {
        let dir = place.path(&format!("{pack:?}"));
        let layout = crate::support::image::Layout::with(&dir, &[(bomb.clone(), pack)], "{}");
        let message = crate::support::image::chain(&place.resolve(&layout.reference()).unwrap_err());
        assert!(message.contains("unpack to more than 8388608 bytes"), "{message}");
    }
    // A sparse file is a bomb without any compression.
    bomb.clear();
    let sparse = vec![
        (b"GNU.sparse.major".to_vec(), b"1".to_vec()),
        (b"GNU.sparse.minor".to_vec(), b"0".to_vec()),
        (b"GNU.sparse.name".to_vec(), b"hole".to_vec()),
        (b"GNU.sparse.realsize".to_vec(), b"9000000000000000000".to_vec()),
    ];
    let mut map = b"0\n".to_vec();
    map.resize(512, 0);
    let tar = Tar::default().add(Head { pax: sparse, ..file("x") }, &map).end();
    assert!(refusal_of(&[tar]).contains("the entry `hole` cannot be stored"));
}
