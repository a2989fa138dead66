//! What is refused, and that the message names the file and the way out.

use super::*;
use crate::boot::compress::{self, Format};

fn refused(bytes: &[u8], mib: u64) -> BootError {
    load_bytes(bytes, &memory_of(mib)).unwrap_err()
}

#[test]
fn what_is_no_kernel() {
    let elf = sample(&[], &[]);
    let with = |at: usize, bytes: &[u8]| {
        let mut elf = elf.clone();
        elf[at..at + bytes.len()].copy_from_slice(bytes);
        elf
    };
    let mut arm_image = vec![0; 64];
    arm_image[56..60].copy_from_slice(b"ARM\x64");
    let bz = testing::bzimage(16 * MIB, 0x80_0000, &testing::with_size(testing::gzip(&elf), &elf));
    let bz_with = |at: usize, bytes: &[u8]| {
        let mut bz = bz.clone();
        bz[at..at + bytes.len()].copy_from_slice(bytes);
        bz
    };
    let gz = testing::gzip(&elf);
    let mut damaged = gz.clone();
    damaged[gz.len() / 2] ^= 0x40;
    let lz4 = testing::lz4(&elf, 8 << 20);
    let zstd = packed_by("zstd", &["-q"], &elf);
    let xz = packed_by("xz", &["--check=crc32"], &elf);

    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "KERNEL is empty"),
        (b"\x7fEL".to_vec(), "neither ELF nor bzImage"),
        (b"#!/bin/sh\necho no kernel\n".to_vec(), "neither ELF nor bzImage"),
        (elf[..40].to_vec(), "truncated: its ELF header ends at byte 64, but the file ends at byte 40"),
        (elf[..100].to_vec(), "truncated: its program headers"),
        (elf[..150_000].to_vec(), "truncated: its segments"),
        (with(18, &[183, 0]), "KERNEL is a kernel for AArch64; this machine is x86-64"),
        (with(18, &[243, 0]), "RISC-V"),
        (with(4, &[1]), "32-bit addresses"),
        (with(18, &[0x34, 0x12]), "ELF machine 4660"),
        (with(16, &[1, 0]), "not an executable"),
        (with(56, &[0, 0]), "no segments"),
        (with(64, &[3]), "is a program, not a kernel"),
        (with(64, &[2]), "is a program or a library"),
        (with(24, &[0, 0, 0, 1]), "its entry point 0x1000000 is not within"),
        (with(64 + 24, &[0, 0, 1]), "is linked to address 0x10000; kernels are loaded at 1 MiB"),
        (with(64 + 40, &[0; 8]), "more bytes in the file than in memory"),
        (with(64 + 40, &[0xff; 8]), "beyond the end of the address space"),
        (with(64 + 8, &[0xff; 8]), "beyond the end of the address space"),
        (arm_image, "AArch64"),
        (bz_with(0x206, &[11, 2]), "protocol 2.11; 2.12"),
        (bz_with(0x236, &[0]), "a kernel for 32-bit x86"),
        (bz_with(0x211, &[0]), "zImage"),
        (bz_with(0x1f4, &[0xff; 4]), "truncated: its kernel ends"),
        (bz_with(0x248, &[0xff; 4]), "extends beyond the end"),
        (bz_with(0x230, &[3]), "not a power of two"),
        (bz[..0x210].to_vec(), "truncated: its set-up header"),
        (gz[..gz.len() / 2].to_vec(), "cannot unpack KERNEL: its gzip data is corrupt or truncated"),
        (damaged, "cannot unpack KERNEL: its gzip data"),
        (zstd[..zstd.len() / 2].to_vec(), "its zstd data"),
        (xz[..xz.len() / 2].to_vec(), "its xz data"),
        (lz4[..lz4.len() / 2].to_vec(), "its lz4 data"),
        (testing::gzip(b"not a kernel"), "neither ELF nor bzImage"),
        (testing::gzip(b""), "neither ELF nor bzImage"),
        (b"BZh91AY&SY".to_vec(), "compressed by bzip2, which is not supported"),
    ];
    for (bytes, message) in cases {
        let error = refused(&bytes, 64).to_string();
        assert!(error.contains("KERNEL") && error.contains(message), "{error:?} lacks {message:?}");
    }
}

#[test]
fn a_damaged_zstd_stream_fails_its_checksum() {
    let elf = sample(&[], &[]);
    let mut packed = packed_by("zstd", &["-q", "--check"], &elf);
    let last = packed.len() - 1;
    packed[last] ^= 1;
    assert!(matches!(refused(&packed, 64), BootError::Unpack { format: "zstd", .. }));
}

#[test]
fn what_unpacks_without_end_is_stopped() {
    let zeros = vec![0; 3 << 20];
    for (format, bomb) in [
        (Format::Gzip, testing::gzip(&zeros)),
        (Format::Zstd, testing::zstd(&zeros)),
        (Format::Lz4, testing::lz4(&zeros, 8 << 20)),
        (Format::Xz, packed_by("xz", &["--check=crc32"], &zeros)),
    ] {
        let file = file_of(&bomb);
        let source = Source::open("BOMB", &file).unwrap();
        let unpack = |limit| compress::unpack(&source, format, (0, source.len()), u64::MAX, limit);
        assert!(unpack(3 << 20).unwrap() == zeros);
        let error = unpack((3 << 20) - 1).unwrap_err();
        assert!(matches!(&error, BootError::Unfit { why, .. } if why.contains("3145727 bytes")), "{error}");
    }
    // A file of holes costs nobody anything, and is not read.
    let holes = tempfile::tempfile().unwrap();
    holes.set_len(100 << 30).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&holes, &[0x1f, 0x8b, 8], 0).unwrap();
    let error = load(&memory_of(16), &request(&FileReader::new(holes).unwrap())).unwrap_err().to_string();
    assert!(error.contains("too large for a kernel"), "{error}");
}

#[test]
fn memory_that_is_too_small_says_how_much_is_needed() {
    let kernel = |end: u64| {
        let bytes =
            testing::elf(BASE, &[Segment { address: BASE, bytes: b"x", memory: end - BASE }], &[], &[]);
        refused(&bytes, 16).to_string()
    };
    let small = kernel(60 * MIB + 1);
    assert!(small.contains("16 MiB") && small.contains("61 MiB or more (-m)"), "{small}");
    assert!(kernel(0xd800_0000).contains("where a machine never has memory"));
    let bz = testing::bzimage(16 * MIB, 0x200_0000, &[0xee; 100]);
    let error = refused(&bz, 20).to_string();
    assert!(error.contains("48 MiB or more (-m)"), "{error}");

    let file = file_of(&sample(&[], &[]));
    let initrd = file_of(&[1; 20 << 20]);
    let image = Image { name: "INITRD", bytes: &initrd };
    let request = BootRequest { initrd: Some(image), ..request(&file) };
    let error = load(&memory_of(16), &request).unwrap_err().to_string();
    assert!(error.contains("INITRD") && error.contains("or more (-m)"), "{error}");
}

/// Programs of this machine: dynamic, and (this one) perhaps static and position independent.
#[test]
fn programs_are_no_kernels() {
    for path in ["/bin/ls", "/proc/self/exe"] {
        let file = FileReader::new(File::open(path).unwrap()).unwrap();
        let error = load(&memory_of(64), &request(&file)).unwrap_err();
        assert!(matches!(&error, BootError::Unfit { why, .. } if why.contains("program")), "{error}");
    }
}

#[test]
fn files_that_are_none() {
    let directory = File::open("/").unwrap();
    let error = reader("KERNEL", &directory, false).unwrap_err();
    assert!(matches!(error, BootError::Unfit { .. }));
    assert_eq!(error.to_string(), "KERNEL cannot be loaded: it is neither a regular file nor a block device");
    let kernel = file_of(&sample(&[], &[]));
    let empty = file_of(&[]);
    let image = Image { name: "INITRD", bytes: &empty };
    let request = BootRequest { initrd: Some(image), ..request(&kernel) };
    assert_eq!(load(&memory_of(16), &request).unwrap_err().to_string(), "INITRD is empty");
}

#[test]
fn a_damaged_kernel_inside_a_bzimage() {
    let elf = sample(&[], &[]);
    let mut image = testing::bzimage(16 * MIB, 0x80_0000, &testing::with_size(testing::gzip(&elf), &elf));
    image[1024 + 0x300 + 400..][..400].fill(0xaa);
    let file = file_of(&image);
    let request = BootRequest { protocol: BootProtocol::Pvh, ..request(&file) };
    let error = load(&memory_of(64), &request).unwrap_err().to_string();
    assert!(error.contains("cannot unpack KERNEL: its gzip data"), "{error}");
}

#[test]
fn protocols_that_do_not_go_with_the_file() {
    let elf = sample(&[], &[]);
    let odd = testing::bzimage(16 * MIB, 0x80_0000, b"not packed by anything known");
    let outside = sample(&testing::note("Xen", 18, &0x10_u32.to_le_bytes()), &[]);
    for (bytes, protocol, message) in [
        (&elf, BootProtocol::Pvh, "PVH protocol: it has no PVH entry"),
        (&elf, BootProtocol::Bzimage, "bzImage protocol: it is an ELF file"),
        (&odd, BootProtocol::Elf64, "ELF protocol: it is a bzImage"),
        (&odd, BootProtocol::Pvh, "PVH protocol: it is a bzImage"),
        (&outside, BootProtocol::Pvh, "its entry point 0x10 is not within"),
    ] {
        let file = file_of(bytes);
        let request = BootRequest { protocol, ..request(&file) };
        let error = load(&memory_of(64), &request).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn command_lines_that_would_be_cut_off() {
    let tiny = file_of(&sample(&[], &[]));
    let linux = file_of(&sample(&testing::note("Linux", 1, &[0; 4]), &[]));
    let bz = file_of(&testing::bzimage(16 * MIB, 0x80_0000, b"............"));
    let transports = [transport(0xd000_0000, 5)];
    for (file, limit) in [(&tiny, 0xffff), (&linux, 2047), (&bz, 2047)] {
        for (platform, own) in [(Platform::Acpi, 0), (Platform::Mptable, 35)] {
            let text = "x".repeat(limit - own + 1);
            let base = BootRequest { platform, transports: &transports, ..request(file) };
            let fits = BootRequest { command_line: &text[1..], ..base };
            load(&memory_of(64), &fits).unwrap();
            let error = load(&memory_of(64), &BootRequest { command_line: &text, ..base }).unwrap_err();
            let BootError::CommandLineTooLong { len, own: found, limit: most } = error else {
                panic!("{error}");
            };
            assert_eq!((len, found, most), (limit + 1, own, limit));
        }
    }
    let nul = BootRequest { command_line: "a\0b", ..request(&tiny) };
    assert!(matches!(load(&memory_of(64), &nul), Err(BootError::CommandLineNul)));
}

#[test]
fn machines_that_no_table_describes() {
    let file = file_of(&sample(&[], &[]));
    for (cpus, platform) in
        [(0, Platform::Acpi), (10_000, Platform::Acpi), (0, Platform::Mptable), (256, Platform::Mptable)]
    {
        let request = BootRequest { cpus, platform, ..request(&file) };
        let error = load(&memory_of(64), &request).unwrap_err().to_string();
        assert!(error.contains("vCPUs are too many"), "{error}");
    }
    let request = BootRequest { transports: &[transport(0xffff_f001, 5)], ..request(&file) };
    assert!(matches!(load(&memory_of(64), &request), Err(BootError::Undescribable(_))));
    assert_eq!(x86_64::line(layout::IO_APIC_PINS), None, "no line of the I/O APIC");
}
