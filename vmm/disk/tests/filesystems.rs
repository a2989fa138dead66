//! File systems that mke2fs and mkfs.vfat made, read and held against the tree that they were made
//! of; e2fsck is the judge of journals.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nelly_disk::FileReader;
use nelly_disk::fs::{FsError, FsKind, NodeKind, Volume, identify, list, open_volume, read_file, resolve};
use tempfile::TempDir;

/// Runs a tool that must succeed, with `input`; returns what it said.
fn tool(program: &str, words: &[&str], input: &str) -> String {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let mut child = Command::new(program)
        .args(words)
        .env("PATH", path)
        .env("E2FSPROGS_FAKE_TIME", "1700000000")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}; `make packages` installs it"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() || program == "e2fsck", "{program} {words:?}: {said}");
    said
}

/// Bytes that no two places of a file have in common.
fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    (0..len).map(|_| step()).collect()
}

/// A tree with all that a reader can stumble over.
fn tree(directory: &Path) {
    let put = |name: &str, data: &[u8]| {
        let path = directory.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, data).unwrap();
    };
    put("empty", b"");
    put("tiny", b"five\n");
    put("inside", &bytes(130, 3));
    put("boot/vmlinuz-6.1", &bytes(700_001, 5));
    for number in 0..400 {
        put(&format!("many/a-name-that-takes-some-room-{number:04}"), format!("{number}\n").as_bytes());
    }
    // A file with holes, before, between and behind.
    let sparse = File::create(directory.join("sparse")).unwrap();
    sparse.set_len(3_000_000).unwrap();
    for (at, number) in [(500_000, 1), (1_500_000, 2)] {
        (&sparse).seek(SeekFrom::Start(at)).unwrap();
        (&sparse).write_all(&bytes(5000, number)).unwrap();
    }
    let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, directory.join(name)).unwrap();
    link("boot/vmlinuz-6.1", "vmlinuz");
    link("/boot/../../tiny", "up");
    link(&format!("{}tiny", "./".repeat(60)), "long");
    link("circle-b", "circle-a");
    link("circle-a", "circle-b");
}

/// Every file of `directory` is in the volume with its bytes, and every name of the volume is
/// there.
fn same(volume: &dyn Volume, directory: &Path, at: &str) {
    let mut names = list(volume, &format!("/{at}")).unwrap().unwrap();
    names.retain(|name| name != "lost+found");
    names.sort();
    let mut theirs: Vec<String> = fs::read_dir(directory.join(at))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    theirs.sort();
    assert_eq!(names, theirs, "{at}");
    for name in names {
        let path = format!("{at}/{name}");
        let host = directory.join(path.trim_start_matches('/'));
        let meta = fs::symlink_metadata(&host).unwrap();
        if meta.is_dir() {
            same(volume, directory, path.trim_start_matches('/'));
        } else if meta.is_file() {
            let found = read_file(volume, &path, 1 << 23).unwrap().unwrap();
            let wanted = fs::read(&host).unwrap();
            let differs = found.iter().zip(&wanted).position(|(a, b)| a != b);
            assert_eq!((found.len(), differs), (wanted.len(), None), "{path}");
        }
    }
}

fn make_ext(scratch: &TempDir, words: &[&str], size: &str) -> (PathBuf, PathBuf) {
    let source = scratch.path().join("tree");
    fs::create_dir(&source).unwrap();
    tree(&source);
    if words.iter().any(|word| word.contains("inline_data")) {
        // mke2fs 1.47.0 gives a sparse file the wrong size there.
        fs::remove_file(source.join("sparse")).unwrap();
    }
    let image = scratch.path().join("image");
    File::create(&image).unwrap();
    let mut all = vec!["-q", "-F", "-d", source.to_str().unwrap()];
    all.extend_from_slice(words);
    all.extend_from_slice(&[image.to_str().unwrap(), size]);
    tool("mke2fs", &all, "");
    (image, source)
}

fn reader(path: &Path) -> FileReader<File> {
    FileReader::new(File::open(path).unwrap()).unwrap()
}

#[test]
fn every_kind_of_ext_is_read_as_it_was_made() {
    let kinds: &[&[&str]] = &[
        &["-t", "ext2", "-b", "1024"],
        &["-t", "ext3", "-b", "4096"],
        &["-t", "ext4", "-b", "1024"],
        &["-t", "ext4", "-b", "4096", "-O", "64bit,metadata_csum,metadata_csum_seed,orphan_file"],
        &["-t", "ext4", "-b", "4096", "-I", "256", "-O", "inline_data,^64bit,^metadata_csum"],
        &["-t", "ext4", "-b", "1024", "-I", "512", "-O", "inline_data,64bit,metadata_csum"],
        &["-t", "ext4", "-b", "2048", "-O", "meta_bg,^resize_inode,^metadata_csum,uninit_bg"],
        &["-t", "ext4", "-b", "4096", "-O", "bigalloc,sparse_super2,large_dir,casefold"],
        &["-t", "ext4", "-b", "65536", "-O", "64bit"],
    ];
    for words in kinds {
        let scratch = TempDir::new().unwrap();
        // Blocks and clusters of 64 KiB take room.
        let large = words.iter().any(|word| *word == "65536" || word.contains("bigalloc"));
        let size = if large { "128M" } else { "24M" };
        let (image, source) = make_ext(&scratch, &[&["-L", "root fs"], *words].concat(), size);
        let disk = reader(&image);
        let identity = identify(&disk).unwrap().unwrap();
        assert_eq!((identity.kind, identity.label.as_str()), (FsKind::Ext, "root fs"));
        let told = tool("dumpe2fs", &["-h", image.to_str().unwrap()], "");
        assert!(told.contains(&identity.uuid), "{told}");
        let volume = open_volume(&disk).unwrap_or_else(|error| panic!("{words:?}: {error}"));
        assert_eq!(volume.notes(), &[] as &[String]);
        println!("{words:?}");
        same(&*volume, &source, "");
        links(&*volume);
    }
}

fn links(volume: &dyn Volume) {
    let read = |path: &str| read_file(volume, path, 1 << 20).unwrap().unwrap();
    assert_eq!(read("vmlinuz").len(), 700_001);
    // Above the root is the root, and no file of the host.
    assert_eq!((read("up"), read("/../../long")), (b"five\n".to_vec(), b"five\n".to_vec()));
    let error = resolve(volume, "circle-a").unwrap_err();
    assert!(error.to_string().contains("circle"), "{error}");
    let error = resolve(volume, "tiny/x").unwrap_err();
    assert!(matches!(error, FsError::Path { .. }), "{error}");
    assert_eq!(resolve(volume, "nothing/there").unwrap(), None);
    assert_eq!(read_file(volume, "boot", 10).unwrap(), None, "a directory is no file");
    let error = read_file(volume, "vmlinuz", 700_000).unwrap_err();
    assert!(matches!(error, FsError::TooLarge { max: 700_000, .. }), "{error}");
    assert_eq!(resolve(volume, "/").unwrap().unwrap().kind, NodeKind::Directory);
}

/// Which blocks of 4 KiB differ between two files.
fn differing(a: &Path, b: &Path) -> Vec<usize> {
    let (a, b) = (fs::read(a).unwrap(), fs::read(b).unwrap());
    assert_eq!(a.len(), b.len());
    let pairs = a.chunks(4096).zip(b.chunks(4096));
    pairs.enumerate().filter(|(_, (a, b))| a != b).map(|(index, _)| index).collect()
}

/// What a package's update leaves in the journal when the machine stops before it is written back:
/// the blocks that differ, written to the log of the old image by debugfs.
fn dirty(scratch: &TempDir, features: &str, log: &str) -> (PathBuf, Vec<u8>, String) {
    let (image, _) = make_ext(scratch, &["-t", "ext4", "-b", "4096", "-O", features, "-J", "size=4"], "24M");
    let newer = scratch.path().join("newer");
    fs::copy(&image, &newer).unwrap();
    let kernel = scratch.path().join("kernel");
    // It begins as a block of the journal does, which is written there in another way.
    let mut data = bytes(30_000, 77);
    data[..4].copy_from_slice(&[0xc0, 0x3b, 0x39, 0x98]);
    fs::write(&kernel, &data).unwrap();
    let write = format!(
        "rm /boot/vmlinuz-6.1\nwrite {} boot/vmlinuz-6.12\nrm vmlinuz\nsymlink vmlinuz boot/vmlinuz-6.12\n",
        kernel.display()
    );
    tool("debugfs", &["-w", "-f", "/dev/stdin", newer.to_str().unwrap()], &write);
    let blocks = differing(&image, &newer);
    let content = fs::read(&newer).unwrap();
    let changed: Vec<u8> = blocks.iter().flat_map(|at| content[at * 4096..][..4096].to_vec()).collect();
    let file = scratch.path().join("blocks");
    fs::write(&file, changed).unwrap();
    let numbers = blocks.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let commands = format!("{log}\njw -b {numbers} {}\njc\n", file.display());
    tool("debugfs", &["-w", "-f", "/dev/stdin", image.to_str().unwrap()], &commands);
    (image, data, numbers)
}

#[test]
fn a_journal_that_was_not_closed_holds_the_newer_kernel() {
    let kinds = [
        ("64bit,metadata_csum", "jo -c -v 3"),
        ("^64bit,^metadata_csum", "jo"),
        ("^64bit,metadata_csum", "jo -c -v 2"),
    ];
    for (features, log) in kinds {
        let scratch = TempDir::new().unwrap();
        let (image, data, _) = dirty(&scratch, features, log);
        let before = fs::read(&image).unwrap();
        let disk = reader(&image);
        let volume = open_volume(&disk).unwrap_or_else(|error| panic!("{features}: {error}"));
        assert!(volume.notes()[0].contains("from its journal"), "{:?}", volume.notes());
        assert!(read_file(&*volume, "vmlinuz", 1 << 20).unwrap().unwrap() == data, "{features}");
        assert_eq!(resolve(&*volume, "boot/vmlinuz-6.1").unwrap(), None);
        drop(volume);
        assert!(fs::read(&image).unwrap() == before, "a base image is never written");
        // The same that e2fsck makes of it.
        let said = tool("e2fsck", &["-fy", image.to_str().unwrap()], "");
        assert!(said.contains("recovering journal"), "{said}");
        let disk = reader(&image);
        let volume = open_volume(&disk).unwrap();
        assert_eq!(volume.notes(), &[] as &[String]);
        assert!(read_file(&*volume, "vmlinuz", 1 << 20).unwrap().unwrap() == data, "{said}");
    }
}

/// What the kernel is told to forget is not written again: here the blocks of the update.
#[test]
fn revoked_blocks_stay_as_they_are() {
    let scratch = TempDir::new().unwrap();
    let (image, _, numbers) = dirty(&scratch, "64bit,metadata_csum", "jo -c -v 3");
    let disk = reader(&image);
    assert!(resolve(&*open_volume(&disk).unwrap(), "boot/vmlinuz-6.12").unwrap().is_some());
    // A second transaction, which revokes everything of the first.
    let commands = format!("jo\njw -r {numbers}\njc\n");
    tool("debugfs", &["-w", "-f", "/dev/stdin", image.to_str().unwrap()], &commands);
    let disk = reader(&image);
    let volume = open_volume(&disk).unwrap();
    assert_eq!(resolve(&*volume, "boot/vmlinuz-6.12").unwrap(), None);
    assert!(resolve(&*volume, "boot/vmlinuz-6.1").unwrap().is_some());
}

#[test]
fn every_kind_of_fat_is_read_as_it_was_made() {
    let kinds: [(&[&str], u64); 4] = [
        (&["-F", "12"], 6 << 20),
        (&["-F", "16", "-s", "2"], 24 << 20),
        (&["-F", "32", "-s", "1"], 48 << 20),
        (&["-F", "32", "-S", "4096", "-s", "1"], 300 << 20),
    ];
    for (words, size) in kinds {
        let scratch = TempDir::new().unwrap();
        let source = scratch.path().join("tree");
        fs::create_dir_all(source.join("EFI/debian")).unwrap();
        fs::create_dir_all(source.join("loader/entries")).unwrap();
        fs::write(source.join("EFI/debian/grub.cfg"), "configfile /boot/grub/grub.cfg\n").unwrap();
        fs::write(source.join("loader/entries/a long name of an entry \u{e4}.conf"), "title x\n").unwrap();
        fs::write(source.join("BIG"), bytes(1_234_567, 9)).unwrap();
        fs::write(source.join("empty"), "").unwrap();
        for number in 0..100 {
            fs::write(source.join(format!("loader/entry-with-a-name-{number}")), format!("{number}"))
                .unwrap();
        }
        let image = scratch.path().join("image");
        File::create(&image).unwrap().set_len(size).unwrap();
        let path = image.to_str().unwrap();
        tool("mkfs.vfat", &[words, &["-n", "EFI PART", "-i", "1234abcd", path]].concat(), "");
        for name in ["EFI", "loader", "BIG", "empty"] {
            let from = source.join(name);
            tool("mcopy", &["-s", "-i", path, from.to_str().unwrap(), "::"], "");
        }
        let disk = reader(&image);
        let identity = identify(&disk).unwrap().unwrap();
        assert_eq!((identity.label.as_str(), identity.uuid.as_str()), ("EFI PART", "1234-ABCD"), "{words:?}");
        let volume = open_volume(&disk).unwrap();
        same(&*volume, &source, "");
        assert!(resolve(&*volume, "efi/DEBIAN/Grub.cfg").unwrap().is_some(), "names have no case");
        assert!(resolve(&*volume, "EFI/debian/../../BIG").unwrap().is_some());
    }
}

#[test]
fn other_file_systems_are_named() {
    let table: [(usize, &[u8], &str); 6] = [
        (0, b"XFSB", "xfs"),
        (0x10040, b"_BHRfS_M", "btrfs"),
        (4086, b"SWAPSPACE2", "swap"),
        (0, b"LUKS\xba\xbe", "LUKS (encrypted)"),
        (512, b"LABELONE", "LVM"),
        (0, b"hsqs", "squashfs"),
    ];
    for (at, magic, name) in table {
        let mut disk = vec![0; 1 << 17];
        disk[at..at + magic.len()].copy_from_slice(magic);
        assert_eq!(identify(&disk).unwrap().unwrap().kind.to_string(), name);
        let error = open_volume(&disk).err().unwrap().to_string();
        assert!(error.contains(name), "{error}");
    }
    for disk in [vec![], vec![0; 100], vec![0; 4096]] {
        assert_eq!(identify(&disk).unwrap(), None);
        assert!(open_volume(&disk).is_err());
    }
}

/// Lies in a file system end with an error or with other bytes, and always end.
#[test]
fn damage_is_an_error_and_no_panic() {
    let scratch = TempDir::new().unwrap();
    let (image, _) =
        make_ext(&scratch, &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^64bit", "-N", "1024"], "6M");
    let sound = fs::read(&image).unwrap();
    let mut seed = 1_u64;
    for round in 0..150_usize {
        let mut disk = sound.clone();
        for _ in 0..8 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // The metadata of the first group, and the directories behind them.
            let at =
                1024 + usize::try_from(seed >> 33).unwrap() % (if round % 2 == 0 { 300_000 } else { 1024 });
            disk[at] = seed.to_le_bytes()[6];
        }
        if round % 7 == 0 {
            disk.truncate(disk.len() / 2);
        }
        let Ok(volume) = open_volume(&disk) else { continue };
        for path in ["vmlinuz", "up", "long", "sparse", "many/a-name-that-takes-some-room-0399"] {
            let _ = read_file(&*volume, path, 4 << 20);
        }
        let _ = list(&*volume, "many");
    }
}
