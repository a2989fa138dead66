//! Images by path: made, copied, checked and chained. The judge is qemu-img.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::Command;

use nelly_disk::qcow2::{self, CreateOptions, Qcow2};
use nelly_disk::{
    Disk, ExtentKind, Follow, Format, ImageError, NewFile, NewImage, RawDisk, check_image, convert,
    create_image, image_info, open_image, resize_image,
};

/// Runs qemu-img; returns its exit code and what it wrote.
fn qemu_img(words: &[&str]) -> (Option<i32>, String) {
    let done = Command::new("qemu-img").args(words).output().expect("qemu-img, of Debian's qemu-utils");
    (done.status.code(), String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned())
}

#[track_caller]
fn qemu(words: &[&str]) {
    let (code, said) = qemu_img(words);
    assert_eq!(code, Some(0), "qemu-img {words:?}: {said}");
}

fn word(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text += &format!(": {error}");
        next = error.source();
    }
    text
}

fn new(format: Format, size: u64) -> NewImage {
    NewImage { format, size: Some(size), cluster_bits: 16, backing: None }
}

fn write(disk: &dyn Disk, mut offset: u64, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let written = disk.write_at(&bytes, offset).unwrap();
        (offset, bytes) = (offset + written as u64, &bytes[written..]);
    }
}

/// Copies an image as the command does.
fn copy(from: &Path, format: Format, to: &Path, to_format: Format) -> u64 {
    let source = open_image(from, format, true, Follow::Beside).unwrap();
    let file = NewFile::begin(to).unwrap();
    let store = file.file().try_clone().unwrap();
    let target: Box<dyn Disk> = match to_format {
        Format::Raw => {
            store.set_len(source.len()).unwrap();
            Box::new(RawDisk::new(store, false).unwrap())
        }
        Format::Qcow2 => {
            qcow2::create(Box::new(store.try_clone().unwrap()), &CreateOptions::new(source.len())).unwrap();
            Box::new(Qcow2::open(Box::new(store), None, false).unwrap())
        }
    };
    let mut seen = 0;
    let converted = convert(&*source, &*target, &mut |done, total| {
        assert!(seen <= done && done <= total);
        seen = done;
    });
    drop(target);
    file.finish().unwrap();
    assert_eq!(seen, source.len());
    converted.unwrap().data_bytes
}

#[test]
fn an_image_goes_there_and_back_and_stays_sparse() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let (raw, image, back) = (path("a.raw"), path("a.qcow2"), path("b.raw"));
    let size = 64 << 20;
    assert_eq!(create_image(&raw, &new(Format::Raw, size)).unwrap(), size);
    let disk = open_image(&raw, Format::Raw, false, Follow::Beside).unwrap();
    for at in [0, 1 << 20, (5 << 20) + 4096, size - 512] {
        write(&*disk, at, &[7; 512]);
    }
    // Zeroes that are written are found, too.
    write(&*disk, 8 << 20, &[0; 1 << 20]);
    drop(disk);
    assert_eq!(copy(&raw, Format::Raw, &image, Format::Qcow2), 4 * 4096);
    assert_eq!(copy(&image, Format::Qcow2, &back, Format::Raw), 4 * 4096);
    assert_eq!(std::fs::read(&raw).unwrap(), std::fs::read(&back).unwrap());
    for path in [&image, &back] {
        let format = if *path == image { Format::Qcow2 } else { Format::Raw };
        let info = image_info(path, format).unwrap();
        assert!(info.size == size && info.allocated_bytes < 1 << 20, "{info:?}");
    }
    qemu(&["check", "-f", "qcow2", word(&image)]);
    qemu(&["compare", "-f", "qcow2", "-F", "raw", word(&image), word(&raw)]);
    // Where something is, nothing is made.
    for path in [&image, &back] {
        let error = create_image(path, &new(Format::Raw, 512)).unwrap_err();
        assert!(chain(&error).contains("exists"), "{}", chain(&error));
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 3, "nothing else is left");
}

#[test]
fn an_overlay_finds_its_base_and_hides_what_it_changed() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::create_dir(path("below")).unwrap();
    let (base, middle, top) = (path("below/base.raw"), path("middle.qcow2"), path("top.qcow2"));
    std::fs::write(&base, vec![3; 1 << 20]).unwrap();
    let over = |base: &PathBuf, format| NewImage {
        size: None,
        backing: Some((base.clone(), format)),
        ..new(Format::Qcow2, 0)
    };
    assert_eq!(create_image(&middle, &over(&base, Format::Raw)).unwrap(), 1 << 20);
    assert_eq!(create_image(&top, &over(&middle, Format::Qcow2)).unwrap(), 1 << 20);
    let name = |path| image_info(path, Format::Qcow2).unwrap().header.unwrap().backing.unwrap().name;
    assert_eq!((name(&middle), name(&top)), ("below/base.raw".to_owned(), "middle.qcow2".to_owned()));
    let disk = open_image(&top, Format::Qcow2, false, Follow::Beside).unwrap();
    write(&*disk, 65536 + 512, &[9; 512]);
    disk.write_zeroes(1 << 17, 65536, true).unwrap();
    disk.flush().unwrap();
    let extent = |at| disk.extent(at, u64::MAX).unwrap();
    let seen = [0, 65536, 1 << 17].map(|at| (extent(at).kind, extent(at).depth));
    assert_eq!(seen, [(ExtentKind::Data, 2), (ExtentKind::Data, 0), (ExtentKind::Zero, 0)]);
    // One writer, or many readers.
    for read_only in [true, false] {
        let error = open_image(&top, Format::Qcow2, read_only, Follow::Beside).err().unwrap();
        assert!(chain(&error).contains("in use"), "{}", chain(&error));
    }
    drop(disk);
    assert_eq!(resize_image(&top, Format::Qcow2, 2 << 20, Follow::Beside).unwrap(), 1 << 20);
    let error = resize_image(&top, Format::Qcow2, 1 << 20, Follow::Beside).unwrap_err();
    assert!(error.to_string().contains("never made smaller"), "{error}");
    let raw = path("whole.raw");
    copy(&top, Format::Qcow2, &raw, Format::Raw);
    let mut model = vec![3; 1 << 20];
    model.resize(2 << 20, 0);
    model[65536 + 512..][..512].fill(9);
    model[1 << 17..][..65536].fill(0);
    assert!(std::fs::read(&raw).unwrap() == model);
    assert!(std::fs::read(&base).unwrap() == vec![3; 1 << 20], "the base is as it was");
    qemu(&["check", "-f", "qcow2", word(&top)]);
    qemu(&["compare", "-f", "qcow2", "-F", "raw", word(&top), word(&raw)]);
}

#[test]
fn backing_files_that_escape_loop_or_are_missing_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::create_dir(path("in")).unwrap();
    std::fs::write(path("secret"), vec![1; 65536]).unwrap();
    std::fs::write(path("in/base"), vec![1; 65536]).unwrap();
    std::os::unix::fs::symlink("../secret", path("in/link")).unwrap();
    let image = path("in/image");
    let make = |name: &str, format: &[&str]| {
        let _ = std::fs::remove_file(&image);
        let mut words = vec!["create", "-q", "-u", "-f", "qcow2", "-b", name];
        words.extend_from_slice(format);
        words.extend([word(&image), "64k"]);
        qemu(&words);
    };
    let opened = |follow| open_image(&image, Format::Qcow2, true, follow).map_err(|error| chain(&error));
    let secret = path("secret");
    for name in ["../secret", word(&secret), "link"] {
        make(name, &["-F", "raw"]);
        let said = opened(Follow::Beside).err().unwrap();
        assert!(said.contains("outside of the image's directory"), "{name}: {said}");
        assert!(opened(Follow::Anywhere).is_ok(), "{name}");
    }
    make("missing", &["-F", "raw"]);
    assert!(opened(Follow::Beside).err().unwrap().contains("missing"));
    make("base", &["-F", "vmdk"]);
    assert!(opened(Follow::Beside).err().unwrap().contains("not raw or qcow2"));
    make("nbd://localhost/x", &["-F", "raw"]);
    assert!(opened(Follow::Anywhere).err().unwrap().contains("no protocols"));
    make("image", &["-F", "qcow2"]);
    assert!(opened(Follow::Beside).err().unwrap().contains("chain of its own"));
    let writing = open_image(&image, Format::Qcow2, false, Follow::Beside).err().unwrap();
    assert!(chain(&writing).contains("chain of its own"), "{}", chain(&writing));
    // Older images do not say the format, and it is not guessed.
    make("base", &["-F", "raw"]);
    let mut bytes = std::fs::read(&image).unwrap();
    let at = bytes.windows(4).position(|four| four == [0xe2, 0x79, 0x2a, 0xca]).unwrap();
    bytes[at] = 0x11;
    std::fs::write(&image, bytes).unwrap();
    assert!(opened(Follow::Beside).err().unwrap().contains("does not say its format"));
}

#[test]
fn what_is_no_image_is_refused_and_nothing_waits() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("empty"), b"").unwrap();
    std::fs::write(path("text"), b"hello").unwrap();
    let fifo = Command::new("mkfifo").arg(path("fifo")).status().unwrap();
    assert!(fifo.success());
    for (name, said) in [
        ("", "neither a regular file"),
        ("fifo", "neither a regular file"),
        ("missing", "cannot open"),
        ("empty", "not a qcow2 image"),
        ("text", "not a qcow2 image"),
        ("/dev/null", "neither a regular file"),
    ] {
        let error = open_image(&path(name), Format::Qcow2, true, Follow::Beside).err().unwrap();
        assert!(chain(&error).contains(said), "{name}: {}", chain(&error));
        assert!(check_image(&path(name), &mut |_, _| {}).is_err(), "{name}");
    }
    let error =
        create_image(&path("large.qcow2"), &NewImage { cluster_bits: 9, ..new(Format::Qcow2, 1 << 40) });
    assert!(matches!(error.unwrap_err(), ImageError::Size { .. }));
    assert!(!path("large.qcow2").exists());
}

#[test]
fn the_check_says_what_qemus_says() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let image = path("image");
    for (cluster, more) in [
        ("512", ""),
        ("4k", ",compat=0.10"),
        ("64k", ",refcount_bits=1"),
        ("64k", ",refcount_bits=64"),
        ("64k", ",compression_type=zstd"),
    ] {
        let bytes: Vec<u8> = (0..1_u32 << 20).map(|at| (at / 3000 % 7) as u8).collect();
        std::fs::write(path("raw"), &bytes).unwrap();
        let options = format!("cluster_size={cluster}{more}");
        let (raw, what) = (path("raw"), options.clone());
        let packed = more.contains("zstd");
        let mut words = vec!["convert", "-f", "raw", "-O", "qcow2", "-o", &options, word(&raw), word(&image)];
        if packed {
            words.insert(1, "-c");
        }
        qemu(&words);
        let report = check_image(&image, &mut |_, _| {}).unwrap();
        assert_eq!((report.corruptions, report.leaks), (0, 0), "{what}: {report:?}");
        assert_eq!(report.compressed_clusters > 0, packed, "{what}");
        let good = std::fs::read(&image).unwrap();
        let header = image_info(&image, Format::Qcow2).unwrap().header.unwrap();
        let long = |at: usize| u64::from_be_bytes(good[at..at + 8].try_into().unwrap());
        let l1 = header.l1_offset as usize;
        let l2 = (long(l1) & 0x00ff_ffff_ffff_fe00) as usize;
        let block = long(header.refcount_table_offset as usize) as usize;
        let cluster = header.cluster_size() as usize;
        for (at, value) in [
            // A cluster that nobody names any more; the same one named twice; its table lost.
            (l2 + 8, vec![0; 8]),
            (l2, good[l2 + 8..l2 + 16].to_vec()),
            (l1, vec![0; 8]),
            // Counts that are wrong, and a block that is lost.
            (block, vec![0; 8]),
            (block + 2, vec![0xff; 8]),
            (header.refcount_table_offset as usize, vec![0; 8]),
            // An entry for what is behind the end.
            (
                l2,
                ((1_u64 << 63) | ((good.len() + 8 * cluster) / cluster * cluster) as u64)
                    .to_be_bytes()
                    .to_vec(),
            ),
        ] {
            let mut bytes = good.clone();
            bytes[at..at + value.len()].copy_from_slice(&value);
            std::fs::write(&image, &bytes).unwrap();
            let what = format!("{what}, {value:x?} at {at}");
            let report = check_image(&image, &mut |_, _| {}).unwrap();
            let (code, said) = qemu_img(&["check", "-f", "qcow2", word(&image)]);
            let wanted = match (report.corruptions, report.leaks) {
                (0, 0) => Some(0),
                (0, _) => Some(3),
                _ => Some(2),
            };
            assert_eq!(code, wanted, "{what}: {report:?} {said}");
            if report.corruptions == 0 {
                let leaks = format!("{} leaked clusters", report.leaks);
                assert!(report.leaks == 0 || said.contains(&leaks), "{what}: {report:?} {said}");
            }
            assert_eq!(std::fs::read(&image).unwrap(), bytes, "a check only reads");
        }
    }
}
