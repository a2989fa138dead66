//! Images made by other programs, and our images read by other programs: umoci, skopeo, tar,
//! erofs-utils, the kernel.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::support::erofs::Item;
use crate::support::image::{Layout, Pack, TestDir, Whole, contents_of};
use crate::support::{fsck, is_root, run};
use nelly_image::{Image, Reference};

/// What a comparison looks at.
#[derive(Clone, Copy, Default)]
struct Skip {
    owners: bool,
    modes: bool,
    mtimes: bool,
    xattrs: bool,
    specials: bool,
}

fn host_xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0u8; 65536];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    let names = names[..len].split(|&b| b == 0).filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0u8; 65536];
        let len = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap();
        value.truncate(len);
        value
    };
    names.map(|name| (name.to_vec(), value(name))).collect()
}

/// Compares a tree with a directory of the host, in both directions.
fn compare(tree: &BTreeMap<Vec<u8>, Item>, dir: &Path, skip: Skip) {
    let mut found = 0;
    let mut inodes: HashMap<u64, u64> = HashMap::new();
    let mut todo = vec![(dir.to_owned(), Vec::new())];
    while let Some((host, path)) = todo.pop() {
        let shown = String::from_utf8_lossy(&path).into_owned();
        let metadata = host.symlink_metadata().unwrap();
        let item = tree.get(&path).unwrap_or_else(|| panic!("`{shown}` is missing in the image"));
        found += 1;
        let kind = item.mode & 0o170_000;
        assert_eq!(kind, metadata.mode() & 0o170_000, "type of `{shown}`");
        if !skip.modes {
            assert_eq!(item.mode, metadata.mode(), "mode of `{shown}`");
        }
        if !skip.owners {
            assert_eq!((item.uid, item.gid), (metadata.uid(), metadata.gid()), "owner of `{shown}`");
        }
        if !skip.mtimes {
            let time = (item.mtime, i64::from(item.mtime_nsec));
            assert_eq!(time, (metadata.mtime(), metadata.mtime_nsec()), "mtime of `{shown}`");
        }
        if !skip.xattrs {
            assert_eq!(item.xattrs, host_xattrs(&host), "extended attributes of `{shown}`");
        }
        match kind {
            0o040_000 => {
                for entry in fs::read_dir(&host).unwrap() {
                    let name = entry.unwrap().file_name();
                    let mut below = path.clone();
                    if !below.is_empty() {
                        below.push(b'/');
                    }
                    below.extend(name.as_bytes());
                    todo.push((host.join(&name), below));
                }
                continue;
            }
            0o100_000 => assert!(item.data == fs::read(&host).unwrap(), "contents of `{shown}`"),
            0o120_000 => assert_eq!(item.data, fs::read_link(&host).unwrap().as_os_str().as_bytes()),
            _ => {}
        }
        assert_eq!(u64::from(item.nlink), metadata.nlink(), "links of `{shown}`");
        assert_eq!(*inodes.entry(metadata.ino()).or_insert(item.nid), item.nid, "inode of `{shown}`");
    }
    let specials = |item: &&Item| matches!(item.mode & 0o170_000, 0o020_000 | 0o060_000);
    let skipped = if skip.specials { tree.values().filter(specials).count() } else { 0 };
    assert_eq!(found + skipped, tree.len(), "the image has more than the directory");
}

/// A root file system with what layers can hold and this user can make.
fn populate(root: &Path) {
    for dir in ["etc", "usr/bin", "usr/share/doc", "var/empty", "tmp", "gone/deep/er", "opaque"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    let write = |path: &str, data: &[u8]| fs::write(root.join(path), data).unwrap();
    write("etc/passwd", b"root:x:0:0::/:/bin/sh\n");
    write("usr/bin/tool", &(0..2_000_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>());
    fs::set_permissions(root.join("usr/bin/tool"), Permissions::from_mode(0o4755)).unwrap();
    fs::set_permissions(root.join("tmp"), Permissions::from_mode(0o1777)).unwrap();
    fs::hard_link(root.join("usr/bin/tool"), root.join("usr/bin/tool2")).unwrap();
    symlink("usr/bin", root.join("bin")).unwrap();
    symlink("/nowhere", root.join("dangling")).unwrap();
    for i in 0..300 {
        write(&format!("usr/share/doc/file with spaces {i}"), format!("text {i}\n").repeat(i).as_bytes());
    }
    write("gone/deep/er/file", b"soon gone");
    write("opaque/old", b"old");
    write(&"l".repeat(255), b"a long name");
    let nested = root.join(format!("usr/{}/{}", "m".repeat(120), "n".repeat(120)));
    fs::create_dir_all(&nested).unwrap();
    fs::write(nested.join("leaf"), b"leaf").unwrap();
    if is_root() {
        run("mknod", &[root.join("null").to_str().unwrap(), "c", "1", "3"]);
        run("mkfifo", &[root.join("fifo").to_str().unwrap()]);
        run("chown", &["70000:4000000", root.join("etc/passwd").to_str().unwrap()]);
        let caps = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(root.join("usr/bin/tool"), "security.capability", caps, flags).unwrap();
        rustix::fs::setxattr(root.join("etc/passwd"), "user.note", b"x", flags).unwrap();
    }
}

/// The second layer's changes.
fn change(root: &Path) {
    fs::remove_dir_all(root.join("gone")).unwrap();
    fs::remove_dir_all(root.join("opaque")).unwrap();
    fs::create_dir(root.join("opaque")).unwrap();
    fs::write(root.join("opaque/new"), b"new").unwrap();
    fs::remove_file(root.join("usr/share/doc/file with spaces 7")).unwrap();
    fs::write(root.join("etc/passwd"), b"changed").unwrap();
    fs::remove_file(root.join("dangling")).unwrap();
    fs::create_dir(root.join("dangling")).unwrap();
    fs::remove_dir_all(root.join("var")).unwrap();
    fs::write(root.join("var"), b"now a file").unwrap();
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// An image of two layers made by umoci, and the directory into which umoci unpacks it.
fn umoci_image(place: &TestDir) -> (PathBuf, PathBuf) {
    let layout = place.path("umoci");
    let image = format!("{}:app", text(&layout));
    let rootless: &[&str] = if is_root() { &[] } else { &["--rootless"] };
    run("umoci", &["init", "--layout", &text(&layout)]);
    run("umoci", &["new", "--image", &image]);
    for (step, make) in [populate as fn(&Path), change].into_iter().enumerate() {
        let bundle = text(&place.path(&format!("bundle{step}")));
        run("umoci", &[&["unpack"], rootless, &["--image", &image, &bundle]].concat());
        make(&Path::new(&bundle).join("rootfs"));
        run("umoci", &["repack", "--image", &image, &bundle]);
    }
    run(
        "umoci",
        &[
            "config",
            "--image",
            &image,
            "--config.entrypoint",
            "/bin/tool",
            "--config.cmd",
            "serve",
            "--config.env",
            "A=b",
            "--config.user",
            "70000:4000000",
            "--config.workingdir",
            "/tmp",
            "--config.stopsignal",
            "SIGINT",
            "--config.volume",
            "/data",
        ],
    );
    let bundle = text(&place.path("unpacked"));
    run("umoci", &[&["unpack"], rootless, &["--image", &image, &bundle]].concat());
    (layout, Path::new(&bundle).join("rootfs"))
}

fn judge(image: &Image, dir: &Path, skip: Skip) {
    let whole = Whole::of(image);
    fsck(whole.path());
    compare(&whole.reader().tree(), dir, skip);
}

#[test]
fn an_image_of_umoci_in_every_form() {
    let place = TestDir::default();
    let (layout, unpacked) = umoci_image(&place);
    let skip = if is_root() {
        Skip::default()
    } else {
        Skip { owners: true, xattrs: true, specials: true, modes: true, ..Skip::default() }
    };
    let tag = || Some("app".to_owned());
    let first = place.resolve(&Reference::OciLayout { dir: layout.clone(), tag: tag() }).unwrap();
    assert!(!first.cached);
    let config = first.config.config().clone().unwrap();
    assert_eq!(config.entrypoint().clone().unwrap(), ["/bin/tool"]);
    assert_eq!(config.cmd().clone().unwrap(), ["serve"]);
    assert!(config.env().clone().unwrap().contains(&"A=b".to_owned()));
    assert_eq!(config.user().as_deref(), Some("70000:4000000"));
    assert_eq!(config.working_dir().as_deref(), Some("/tmp"));
    assert_eq!(config.stop_signal().as_deref(), Some("SIGINT"));
    assert_eq!(config.volumes().clone().unwrap(), ["/data"]);
    let bytes = Whole::of(&first).bytes();
    let digest = first.digest;
    judge(&first, &unpacked, skip);

    // skopeo carries it into the other forms; each has the same layers, so a fresh cache makes the
    // same bytes.
    let from = format!("oci:{}:app", text(&layout));
    let convert = |to: &str, more: &[&str]| {
        run("skopeo", &[&["--insecure-policy", "copy", "--quiet"], more, &[&from, to]].concat());
    };
    let file = |name: &str| place.path(name);
    convert(&format!("oci-archive:{}:app", text(&file("oci.tar"))), &[]);
    convert(&format!("docker-archive:{}:example/app:1.2", text(&file("docker.tar"))), &[]);
    convert(
        &format!("oci:{}:app", text(&file("zstd"))),
        &["--dest-compress-format", "zstd", "--dest-compress"],
    );
    for name in ["oci.tar", "docker.tar"] {
        run("gzip", &["-k", &text(&file(name))]);
    }
    let docker = |name: &str, tag: Option<&str>| Reference::DockerArchive {
        file: file(name),
        tag: tag.map(str::to_owned),
    };
    for reference in [
        Reference::OciArchive { file: file("oci.tar"), tag: tag() },
        Reference::OciArchive { file: file("oci.tar.gz"), tag: None },
        docker("docker.tar", None),
        docker("docker.tar", Some("1.2")),
        docker("docker.tar.gz", Some("docker.io/example/app:1.2")),
        Reference::OciLayout { dir: file("zstd"), tag: None },
    ] {
        let plan = place.store().plan(&reference).unwrap();
        assert!(plan.cached && plan.layers.len() == 2, "{reference}");
        let cached = place.resolve(&reference).unwrap();
        assert!(cached.cached, "{reference}");
        let other = TestDir::default();
        let built = other.resolve(&reference).unwrap();
        assert!(!built.cached);
        assert!(Whole::of(&built).bytes() == bytes, "{reference}");
        assert_eq!(built.config.config(), cached.config.config());
        if matches!(reference, Reference::OciArchive { .. }) {
            assert_eq!(built.digest, digest, "{reference}");
        }
    }
    let message = crate::support::image::chain(&place.resolve(&docker("docker.tar", Some("2"))).unwrap_err());
    assert!(message.contains("no tag `2`; the tags are: docker.io/example/app:1.2"), "{message}");
}

#[test]
fn tars_of_gnu_tar_in_its_formats() {
    let place = TestDir::default();
    let root = place.path("root");
    fs::create_dir(&root).unwrap();
    populate(&root);
    // Sparse files: data at the start, in the middle, a hole at the end; many segments; all hole.
    let sparse = |name: &str, parts: &[(u64, &[u8])], size: u64| {
        use std::os::unix::fs::FileExt;
        let file = File::create(root.join(name)).unwrap();
        for (at, data) in parts {
            file.write_all_at(data, *at).unwrap();
        }
        file.set_len(size).unwrap();
    };
    sparse("sparse", &[(0, b"start"), (5 << 20, &[7; 9000])], 9 << 20);
    sparse("hole", &[], 3 << 20);
    let many: Vec<(u64, &[u8])> = (0..60).map(|i| (i * 300_000, &b"segment"[..])).collect();
    sparse("segments", &many, 20_000_000);
    for format in [
        &["--format=gnu", "--sparse"][..],
        &["--format=posix", "--xattrs", "--sparse", "--sparse-version=0.0"],
        &["--format=posix", "--xattrs", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--xattrs", "--sparse", "--sparse-version=1.0"],
        &["--format=posix", "--xattrs"],
    ] {
        let tar = place.path("layer.tar");
        let (tar_text, root_text) = (text(&tar), text(&root));
        run("tar", &[format, &["-C", &root_text, "-cf", &tar_text, "."]].concat());
        let layout = Layout::with(&place.path("layout"), &[(fs::read(&tar).unwrap(), Pack::Gzip)], "{}");
        let posix = format[0] == "--format=posix";
        let image = place.resolve(&layout.reference()).unwrap();
        // GNU's format has whole seconds and no attributes; xattrs include those of the host's own
        // only for root.
        judge(&image, &root, Skip { mtimes: !posix, xattrs: !posix || !is_root(), ..Skip::default() });
    }
}

#[test]
fn a_directory_becomes_the_same_tree() {
    let place = TestDir::default();
    let root = place.path("root");
    fs::create_dir(&root).unwrap();
    populate(&root);
    let socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    drop(socket);
    let image = place.resolve(&Reference::Rootfs { dir: root.clone() }).unwrap();
    assert!(image.disk_paths.is_empty() && !image.cached);
    assert_eq!(place.leftovers(), [] as [PathBuf; 0]);
    use std::io::Write;
    for mut file in &image.disk {
        assert!(file.write_all(b"x").is_err(), "the disk is open for reading only");
    }
    let whole = Whole::of(&image);
    fsck(whole.path());
    compare(&whole.reader().tree(), &root, Skip::default());
}

#[test]
fn erofs_utils_extract_what_went_in() {
    let place = TestDir::default();
    let root = place.path("root");
    fs::create_dir(&root).unwrap();
    populate(&root);
    for special in ["null", "fifo"] {
        let _ = fs::remove_file(root.join(special));
    }
    let tar = place.path("layer.tar");
    run("tar", &["--format=posix", "--xattrs", "-C", &text(&root), "-cf", &text(&tar), "."]);
    let layout = Layout::with(&place.path("layout"), &[(fs::read(&tar).unwrap(), Pack::Zstd)], "{}");
    let image = place.resolve(&layout.reference()).unwrap();
    let whole = Whole::of(&image);
    let disk = text(whole.path());
    let out = place.path("out");
    run("fsck.erofs", &[&format!("--extract={}", text(&out)), "--preserve-perms", &disk]);
    // Their extraction makes no hard links, keeps no attributes, and loses the set-user-id bit to
    // its chown.
    let strip = |tree: BTreeMap<Vec<u8>, Item>| {
        let keep = |(path, item): (Vec<u8>, Item)| (path, (item.mode & !0o7000, item.data, item.size));
        tree.into_iter()
            .filter(|(_, i)| i.mode & 0o170_000 != 0o040_000)
            .map(keep)
            .collect::<BTreeMap<_, _>>()
    };
    let again = place.resolve(&Reference::Rootfs { dir: out }).unwrap();
    let (extracted, ours) = (strip(contents_of(&again)), strip(whole.reader().tree()));
    for (path, item) in &ours {
        let shown = String::from_utf8_lossy(path);
        let other = extracted.get(path).unwrap_or_else(|| panic!("`{shown}` was not extracted"));
        assert_eq!((item.0, item.2), (other.0, other.2), "`{shown}`");
        assert!(item.1 == other.1, "contents of `{shown}`");
    }
    assert_eq!(ours.len(), extracted.len());
    let dump = run("dump.erofs", &["-s", &disk]);
    assert!(dump.contains("Filesystem magic number") && dump.contains("0xE0F5E1E2"), "{dump}");
    let dump = run("dump.erofs", &["--path=/usr/bin/tool", &disk]);
    assert!(dump.contains("8000000") && dump.contains("Links: 2"), "{dump}");
}

/// Mounted, and unmounted whatever happens.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(self.0).status();
    }
}

/// The kernel is the last judge, where this machine lets us ask it; elsewhere the end-to-end tests
/// do, in a guest.
#[test]
fn the_kernel_mounts_it() {
    let known = fs::read_to_string("/proc/filesystems").unwrap().contains("\terofs\n");
    if !is_root() || !known || !Path::new("/dev/loop-control").exists() {
        eprintln!("not root, no erofs or no loop devices here");
        return;
    }
    let place = TestDir::default();
    let root = place.path("root");
    fs::create_dir(&root).unwrap();
    populate(&root);
    for i in 0..3000 {
        fs::write(root.join(format!("usr/share/doc/{i:0width$}", width = 1 + i % 200)), b"x").unwrap();
    }
    symlink("t".repeat(4095), root.join("long")).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(root.join("etc"), "user.big", &[b'v'; 3000], flags).unwrap();
    rustix::fs::setxattr(root.join("usr/bin"), "trusted.same", b"1", flags).unwrap();
    rustix::fs::setxattr(root.join("usr/share"), "trusted.same", b"1", flags).unwrap();
    let tar = place.path("layer.tar");
    run(
        "tar",
        &["--format=posix", "--xattrs", "--xattrs-include=*", "-C", &text(&root), "-cf", &text(&tar), "."],
    );
    let layout = Layout::with(&place.path("layout"), &[(fs::read(&tar).unwrap(), Pack::Plain)], "{}");
    let image = place.resolve(&layout.reference()).unwrap();
    let whole = Whole::of(&image);
    let point = place.path("mnt");
    fs::create_dir(&point).unwrap();
    run("mount", &["-t", "erofs", "-o", "loop,ro", &text(whole.path()), &text(&point)]);
    let mounted = Mounted(&point);
    let tree = whole.reader().tree();
    compare(&tree, mounted.0, Skip::default());
    compare(&tree, &root, Skip::default());
}
