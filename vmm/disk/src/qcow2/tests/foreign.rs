//! Images that QEMU made.

use std::fs::File;
use std::path::PathBuf;

use super::*;
use crate::testing::Dice;

/// Bytes of which some are zero, some can be compressed and some cannot.
fn mixed(size: usize, seed: u64) -> Vec<u8> {
    let mut dice = Dice(seed * 2 + 1);
    let mut bytes = vec![0; size];
    for sector in bytes.chunks_mut(512) {
        match dice.roll(4) {
            0 => {}
            1 => sector.fill(dice.roll(255) as u8 + 1),
            _ => sector.fill_with(|| dice.roll(256) as u8),
        }
    }
    // Whole clusters of zeroes, of every cluster size.
    let third = size / 3 / 512 * 512;
    bytes[third..2 * third].fill(0);
    bytes
}

fn opened(path: &PathBuf, backing: Option<Box<dyn ReadAt>>, read_only: bool) -> Qcow2 {
    let file = File::options().read(true).write(!read_only).open(path).unwrap();
    Qcow2::open(Box::new(file), backing, read_only).unwrap()
}

#[test]
fn images_of_every_kind_are_read_as_qemu_wrote_them_and_can_be_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let size = 1 << 20;
    let bytes = mixed(size, 1);
    std::fs::write(path("raw"), &bytes).unwrap();
    let raw = path("raw");
    for cluster in ["512", "1k", "4k", "64k", "256k", "2M"] {
        for (compat, more) in [
            ("0.10", ""),
            ("1.1", ""),
            ("1.1", "lazy_refcounts=on"),
            ("1.1", "refcount_bits=1"),
            ("1.1", "refcount_bits=64"),
            ("1.1", "compressed"),
            ("0.10", "compressed"),
            ("1.1", "compressed,compression_type=zstd"),
        ] {
            let what = format!("{cluster} {compat} {more}");
            let mut words = vec!["convert", "-f", "raw", "-O", "qcow2"];
            let (packed, rest) = match more.strip_prefix("compressed") {
                Some(rest) => (true, rest),
                None => (false, more),
            };
            if packed {
                words.push("-c");
            }
            let rest = rest.trim_start_matches(',');
            let comma = if rest.is_empty() { "" } else { "," };
            let options = format!("cluster_size={cluster},compat={compat}{comma}{rest}");
            let image = path("image");
            words.extend(["-o", &options, word(&raw), word(&image)]);
            qemu(&words);
            let disk = opened(&image, None, true);
            assert!(contents(&disk) == bytes, "{what}");
            drop(disk);
            let disk = opened(&image, None, false);
            let mut model = bytes.clone();
            let mut dice = Dice(77);
            for step in 0..60_u64 {
                let offset = dice.roll(size as u64 / 512 - 20) * 512;
                let range = offset as usize..offset as usize + 5 * 512;
                if step % 3 == 0 {
                    disk.write_zeroes(offset, 5 * 512, step % 2 == 0).unwrap();
                    model[range].fill(0);
                } else {
                    write(&disk, offset, &[step as u8 + 1; 5 * 512]).unwrap();
                    model[range].fill(step as u8 + 1);
                }
            }
            // The statement of a peer's bug: growing an image with compressed clusters.
            disk.grow(3 << 20).unwrap();
            write(&disk, (2 << 20) + 512, &[9; 512]).unwrap();
            model.resize(3 << 20, 0);
            model[(2 << 20) + 512..][..512].fill(9);
            disk.flush().unwrap();
            assert!(contents(&disk) == model, "{what}");
            drop(disk);
            std::fs::write(path("model"), &model).unwrap();
            qemu(&["check", "-f", "qcow2", word(&image)]);
            qemu(&["compare", "-f", "qcow2", "-F", "raw", word(&image), word(&path("model"))]);
        }
    }
}

#[test]
fn a_chain_of_qemus_is_read_and_a_shorter_base_ends_in_zeroes() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let bytes = mixed(300 << 10, 2);
    std::fs::write(path("base.raw"), &bytes).unwrap();
    let (middle, top) = (path("middle.qcow2"), path("top.qcow2"));
    qemu(&["create", "-f", "qcow2", "-F", "raw", "-b", "base.raw", word(&middle), "500k"]);
    qemu(&["create", "-f", "qcow2", "-F", "qcow2", "-b", "middle.qcow2", word(&top), "1M"]);
    let base = crate::file::FileReader::new(File::open(path("base.raw")).unwrap()).unwrap();
    let disk = opened(&middle, Some(Box::new(base)), true);
    let header = opened(&top, Some(Box::new(Vec::new())), true).header().clone();
    let wanted = BackingName { name: "middle.qcow2".into(), format: Some("qcow2".into()) };
    assert_eq!(header.backing, Some(wanted));
    let disk = opened(&top, Some(Box::new(disk)), false);
    let mut model = bytes.clone();
    model.resize(1 << 20, 0);
    assert!(contents(&disk) == model);
    write(&disk, (300 << 10) - 512, &[5; 1536]).unwrap();
    model[(300 << 10) - 512..][..1536].fill(5);
    disk.write_zeroes(0, 4096, true).unwrap();
    model[..4096].fill(0);
    disk.discard(65536, 65536).unwrap();
    model[65536..131_072].fill(0);
    assert!(contents(&disk) == model);
    drop(disk);
    std::fs::write(path("model"), &model).unwrap();
    qemu(&["check", "-f", "qcow2", word(&top)]);
    qemu(&["compare", "-f", "qcow2", "-F", "raw", word(&top), word(&path("model"))]);
}

#[test]
fn what_is_not_supported_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    let refused = |read_only| {
        let file = File::options().read(true).write(true).open(&image).unwrap();
        let error = Qcow2::open(Box::new(file), None, read_only).unwrap_err();
        match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        }
    };
    qemu(&["create", "-f", "qcow2", "-o", "extended_l2=on", word(&image), "1M"]);
    assert!(refused(true).contains("extended L2 entries (subclusters)"), "{}", refused(true));
    let data = format!("data_file={}", word(&directory.path().join("data")));
    qemu(&["create", "-f", "qcow2", "-o", &data, word(&image), "1M"]);
    assert!(refused(true).contains("an external data file"));
    qemu(&["create", "-f", "qcow2", word(&image), "1M"]);
    qemu(&["snapshot", "-c", "one", word(&image)]);
    assert!(refused(false).contains("internal snapshots"));
    opened(&image, None, true);
    qemu(&["create", "-f", "qcow2", word(&image), "1M"]);
    qemu(&["bitmap", "--add", word(&image), "changed"]);
    assert!(refused(false).contains("persistent bitmaps"));
    opened(&image, None, true);
}
