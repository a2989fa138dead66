//! Headers and tables that lie.

use super::*;
use crate::qcow2::{HeaderError, Qcow2Error};
use crate::store::Store;

fn header_with(at: usize, value: &[u8]) -> Result<Qcow2, Qcow2Error> {
    let store = new_image(&options(1 << 20, 16, false));
    let mut bytes = store.bytes();
    bytes[at..at + value.len()].copy_from_slice(value);
    Qcow2::open(Box::new(Recorder::new(bytes)), None, false)
}

#[test]
fn every_lie_of_the_header_is_refused_by_name() {
    let long = u64::to_be_bytes;
    let word = u32::to_be_bytes;
    let table: &[(usize, &[u8], &str)] = &[
        (0, b"QFI\0", "magic number"),
        (4, &word(1), "version 1"),
        (4, &word(4), "version 4"),
        (8, &long(1 << 40), "backing_file_size is 0"),
        (20, &word(8), "cluster_bits is 8"),
        (20, &word(22), "cluster_bits is 22"),
        (20, &word(u32::MAX), "cluster_bits"),
        (24, &long(u64::MAX), "size is"),
        (24, &long(1 << 50), "l1_size is"),
        (24, &long(1000), "whole sectors"),
        (32, &word(1), "encryption (AES)"),
        (32, &word(2), "encryption (LUKS)"),
        (32, &word(7), "crypt_method is 7"),
        (36, &word(0), "too small for the disk"),
        (36, &word(u32::MAX), "at most 32 MiB"),
        (40, &long(0), "l1_table_offset is 0"),
        (40, &long(3 << 16 | 8), "not a multiple"),
        (40, &long(1 << 50), "behind the end"),
        (48, &long(0), "refcount_table_offset is 0"),
        (48, &long(1 << 63), "behind the end"),
        (56, &word(0), "refcount_table_clusters is 0"),
        (56, &word(u32::MAX), "at most 8 MiB"),
        (60, &word(1), "internal snapshots"),
        (72, &long(1), "lazy refcounts"),
        (72, &long(2), "marked as corrupt"),
        (72, &long(4), "external data file"),
        (72, &long(8), "compression_type is 0"),
        (72, &long(16), "extended L2"),
        (72, &long(1 << 40), "bit 40"),
        (96, &word(7), "refcount_order is 7"),
        (100, &word(96), "header_length is 96"),
        (100, &word(105), "header_length is 105"),
        (100, &word(1 << 17), "header_length is"),
        (104, &word(0xe279_2aca), "no word"),
        (104, &[0xe2, 0x79, 0x2a, 0xca, 0xff, 0xff, 0xff, 0xff], "longer than"),
    ];
    for (at, value, said) in table {
        let error = header_with(*at, value).unwrap_err();
        let text = match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        assert!(text.contains(said), "{at} {value:?}: {text}");
    }
    // Several features at once, and a file that is cut off anywhere.
    let bytes = new_image(&options(1 << 20, 9, true)).bytes();
    for len in 0..bytes.len().min(8192) {
        let opened = Qcow2::open(Box::new(Recorder::new(bytes[..len].to_vec())), None, true);
        assert!(opened.is_err(), "{len}");
    }
    let short = Qcow2::open(Box::new(Recorder::new(bytes[..80].to_vec())), None, true).unwrap_err();
    assert!(matches!(short, Qcow2Error::Header(HeaderError::Short(80))), "{short:?}");
}

#[test]
fn tables_that_lie_are_errors_and_never_reach_other_metadata() {
    let cluster = 4096_usize;
    let make = || {
        let store = new_image(&options(1 << 20, 12, false));
        let disk = open(&store, None);
        write(&disk, 0, &[1; 8192]).unwrap();
        disk.flush().unwrap();
        let l1 = disk.header().l1_offset as usize;
        drop(disk);
        let bytes = store.bytes();
        let l2 = u64::from_be_bytes(bytes[l1..l1 + 8].try_into().unwrap()) & 0x00ff_ffff_ffff_fe00;
        (bytes, l1, l2 as usize)
    };
    let (bytes, l1, l2) = make();
    for (at, entry, read_fails) in [
        // The first cluster of the disk is the image's own metadata.
        (l2, 1 << 63 | cluster as u64, false),
        (l2, 1 << 63 | l1 as u64, false),
        (l2, 1 << 63 | l2 as u64, false),
        // Behind the end, reserved bits, not aligned.
        (l2, 1 << 63 | 1 << 40, true),
        (l2, 1 << 63 | l2 as u64 | 2, true),
        (l2, 1 << 63 | 512, true),
        (l2, 1 << 62 | 1 << 40, true),
        (l2, 1 << 62 | l2 as u64, true),
        (l2, u64::MAX, true),
    ] {
        let mut bytes = bytes.clone();
        bytes[at..at + 8].copy_from_slice(&entry.to_be_bytes());
        let store = Arc::new(Recorder::new(bytes));
        let disk = open(&store, None);
        let mut buffer = [0; 512];
        assert_eq!(disk.read_exact_at(&mut buffer, 0).is_err(), read_fails, "{entry:#x}");
        if entry & 1 << 62 == 0 || read_fails {
            assert!(write(&disk, 0, &[2; 512]).is_err(), "{entry:#x}");
        }
        // The rest is as it was.
        disk.read_exact_at(&mut buffer, 4096).unwrap();
        assert_eq!(buffer, [1; 512]);
    }
    for entry in [1 << 63 | 1_u64 << 40, 1 << 63 | 512, 1 << 63 | l1 as u64, 1 << 63, 2, u64::MAX] {
        let mut bytes = bytes.clone();
        bytes[l1..l1 + 8].copy_from_slice(&entry.to_be_bytes());
        let opened = |read_only| Qcow2::open(Box::new(Recorder::new(bytes.clone())), None, read_only);
        assert!(opened(false).is_err(), "{entry:#x}");
        // One that is only read is looked at where it is read.
        let read = opened(true).and_then(|disk| disk.read_exact_at(&mut [0; 512], 0).map_err(Qcow2Error::Io));
        assert!(read.is_err() || entry == 1 << 63 | l1 as u64, "{entry:#x}");
    }
}

#[test]
fn an_image_with_damaged_refcounts_is_read_and_costs_no_memory_for_them() {
    let store = new_image(&options(1 << 20, 16, false));
    let disk = open(&store, None);
    write(&disk, 4096, &[7; 8192]).unwrap();
    drop(disk);
    let mut bytes = store.bytes();
    // Every entry of the refcount table names what is behind the end.
    bytes[1 << 16..2 << 16].fill(0x7f);
    let opened = |read_only| Qcow2::open(Box::new(Recorder::new(bytes.clone())), None, read_only);
    assert!(opened(false).is_err());
    assert_eq!(contents(&opened(true).unwrap())[4096..12288], [7; 8192]);
}

#[test]
fn a_file_that_was_cut_off_is_an_error_and_no_zeroes() {
    let store = new_image(&options(1 << 20, 16, false));
    let disk = open(&store, None);
    write(&disk, 0, &[7; 1 << 18]).unwrap();
    disk.flush().unwrap();
    drop(disk);
    let disk = Qcow2::open(Box::new(Arc::clone(&store)), None, true).unwrap();
    store.set_len(store.len().unwrap() - 100_000).unwrap();
    let error = disk.read_exact_at(&mut vec![0; 1 << 18], 0).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
}

#[test]
fn refcounts_that_are_zero_do_not_give_metadata_away() {
    let store = new_image(&options(1 << 20, 12, false));
    let mut bytes = store.bytes();
    // The counts of all clusters.
    bytes[8192..12288].fill(0);
    let store = Arc::new(Recorder::new(bytes));
    let disk = open(&store, None);
    let error = write(&disk, 0, &[2; 512]).unwrap_err();
    assert!(error.to_string().contains("holds metadata"), "{error}");
}
