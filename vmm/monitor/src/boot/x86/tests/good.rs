//! What loads, and what the guest then finds.

use super::*;

/// Both segments are where they belong, and what the file does not give is zero.
fn assert_sample(memory: &GuestRam) {
    assert!(read(memory, BASE, 200_000) == code(), "the code differs");
    assert_eq!(read(memory, 0x30_0010, 4), b"data");
    assert_eq!(read(memory, 0x30_0014, 0x2000), [0; 0x2000]);
}

#[test]
fn elf_by_its_64_bit_entry() {
    let memory = memory_of(64);
    let loaded = load_bytes(&sample(&[], &[]), &memory).unwrap();
    assert_sample(&memory);
    let state = registers(&loaded);
    assert_eq!((state.rip, state.rsi), (BASE + 0x40, layout::ZERO_PAGE));
    assert_eq!(state.mode, x86_64::EntryMode::Long);
    assert_eq!(loaded.kernel, (BASE, 0x30_2010));
    assert_eq!(loaded.platform, PlatformTables::Acpi);

    let zero_page = layout::ZERO_PAGE;
    assert_eq!(read(&memory, zero_page + 0x202, 4), b"HdrS");
    assert_eq!(read_text(&memory, u64::from(read_u32(&memory, zero_page + 0x228))), "console=ttyS0");
    assert_eq!(read_u64(&memory, zero_page + 0x70), layout::RSDP);
    assert_eq!(read(&memory, layout::RSDP, 8), b"RSD PTR ");
    let count = read(&memory, zero_page + 0x1e8, 1)[0];
    assert_eq!(count, 3);
    assert_eq!(read_u64(&memory, zero_page + 0x2d0 + 40), MIB);
    assert_eq!(read_u64(&memory, zero_page + 0x2d0 + 48), 63 * MIB);
}

#[test]
fn a_seed_reaches_the_guest_as_setup_data() {
    let kernel = file_of(&sample(&[], &[]));
    let memory = memory_of(64);
    let pointer = layout::ZERO_PAGE + 0x250;
    load(&memory, &request(&kernel)).unwrap();
    assert_eq!(read_u64(&memory, pointer), 0);
    load(&memory, &BootRequest { seed: Some([7; 32]), ..request(&kernel) }).unwrap();
    let at = read_u64(&memory, pointer);
    assert_eq!((read_u64(&memory, at), read_u32(&memory, at + 8), read_u32(&memory, at + 12)), (0, 9, 32));
    assert_eq!(read(&memory, at + 16, 32), [7; 32]);
}

#[test]
fn elf_by_pvh() {
    for value in [&0x20_0080_u32.to_le_bytes()[..], &0x20_0080_u64.to_le_bytes()] {
        let notes = [testing::note("Linux", 1, &[0; 4]), testing::note("Xen", 18, value)].concat();
        let kernel = file_of(&sample(&notes, &[]));
        let initrd = file_of(&[7; 5000]);
        let memory = memory_of(64);
        let image = Image { name: "INITRD", bytes: &initrd };
        let request = BootRequest { protocol: BootProtocol::Pvh, initrd: Some(image), ..request(&kernel) };
        let loaded = load(&memory, &request).unwrap();
        assert_sample(&memory);
        let state = registers(&loaded);
        assert_eq!((state.rip, state.mode), (0x20_0080, x86_64::EntryMode::Protected));
        let info = state.rbx;
        assert_eq!((read_u32(&memory, info), read_u32(&memory, info + 4)), (0x336e_c578, 1));
        assert_eq!(read_u32(&memory, info + 12), 1, "one module");
        let module = read_u64(&memory, info + 16);
        assert_eq!((read_u64(&memory, module), read_u64(&memory, module + 8)), loaded.initrd.unwrap());
        assert_eq!(read_text(&memory, read_u64(&memory, info + 24)), "console=ttyS0");
        assert_eq!(read_u64(&memory, info + 32), layout::RSDP);
        let (map, count) = (read_u64(&memory, info + 40), read_u32(&memory, info + 48));
        let entry = |n: u64| (read_u64(&memory, map + n * 24), read_u64(&memory, map + n * 24 + 8));
        assert_eq!((count, entry(2)), (3, (MIB, 63 * MIB)));
    }
}

#[test]
fn every_compression_gives_the_same_kernel() {
    let elf = sample(&[], &[]);
    let packed = [
        ("gzip", testing::gzip(&elf)),
        ("gzip", testing::with_size(testing::gzip(&elf), &elf)),
        ("zstd", testing::zstd(&elf)),
        ("zstd", packed_by("zstd", &["-q", "--ultra", "-22", "--long=27"], &elf)),
        ("lz4", testing::lz4(&elf, 8 << 20)),
        ("lz4", testing::with_size(testing::lz4(&elf, 70_000), &elf)),
        ("lz4", packed_by("lz4", &["-l", "-9", "-q"], &elf)),
        ("xz", packed_by("xz", &["--check=crc32", "--x86", "--lzma2=dict=1MiB"], &elf)),
        ("xz", packed_by("xz", &["--check=crc64", "--lzma2=preset=9"], &elf)),
    ];
    for (format, bytes) in packed {
        let memory = memory_of(64);
        let loaded = load_bytes(&bytes, &memory).unwrap();
        assert_sample(&memory);
        assert_eq!(loaded.kind, format!("{format}-compressed ELF, 64-bit entry"));
    }
}

#[test]
fn bzimage_is_unpacked_or_unpacks_itself() {
    let elf = sample(&[], &[]);
    for (format, payload) in [
        ("gzip", testing::gzip(&elf)),
        ("zstd", testing::zstd(&elf)),
        ("lz4", testing::lz4(&elf, 8 << 20)),
        ("xz", packed_by("xz", &["--check=crc32", "--x86", "--lzma2=dict=32MiB"], &elf)),
    ] {
        let image = testing::bzimage(16 * MIB, 0x80_0000, &testing::with_size(payload, &elf));
        let file = file_of(&image);
        let inside = BootRequest { protocol: BootProtocol::Elf64, ..request(&file) };
        let memory = memory_of(64);
        let loaded = load(&memory, &inside).unwrap();
        assert_sample(&memory);
        assert_eq!(loaded.kind, format!("bzImage, {format} payload unpacked, 64-bit entry"));
        assert_eq!(registers(&loaded).rip, BASE + 0x40);

        let own = request(&file);
        let memory = memory_of(64);
        let loaded = load(&memory, &own).unwrap();
        assert_eq!((loaded.kernel, registers(&loaded).rip), ((16 * MIB, 24 * MIB), 16 * MIB + 0x200));
        let len = image.len() - 1024;
        assert!(read(&memory, 16 * MIB, len) == image[1024..]);
        assert_eq!(read_u32(&memory, layout::ZERO_PAGE + 0x214), 0x100_0000);
        assert_eq!(read(&memory, layout::ZERO_PAGE + 0x1f1, 1), [1], "its own header is kept");

        // Memory ends before its preferred place: it is relocatable.
        let memory = memory_of(12);
        let loaded = load(&memory, &own).unwrap();
        assert_eq!((loaded.kernel, registers(&loaded).rip), ((2 * MIB, 10 * MIB), 2 * MIB + 0x200));
    }
}

#[test]
fn a_bzimage_may_be_compressed_as_a_whole_and_inside_by_anything() {
    let image = testing::bzimage(16 * MIB, 0x80_0000, b"BZh91AY&SY.......");
    let loaded = load_bytes(&testing::lz4(&image, 8 << 20), &memory_of(64)).unwrap();
    assert_eq!(loaded.kind, "lz4-compressed bzImage, unpacking itself");
}

#[test]
fn whole_pages_of_a_mappable_file_are_mapped() {
    let bytes = sample(&[], &[]);
    let (file, initrd) = (file_of(&bytes).immutable(), file_of(&[9; 300_000]).immutable());
    let memory = memory_of(64);
    let base = request(&file);
    let request = BootRequest { initrd: Some(Image { name: "INITRD", bytes: &initrd }), ..base };
    let loaded = load(&memory, &request).unwrap();
    assert_sample(&memory);
    let (at, len) = loaded.initrd.unwrap();
    assert!(read(&memory, at, 300_000) == [9; 300_000] && len == 300_000);
    // 200,000 bytes are 48 whole pages, 300,000 are 73; four bytes of data are copied.
    assert_eq!(loaded.mapped_bytes, 121 * 4096);

    // The guest's writes are its own.
    memory.memory().write_obj(0_u64, GuestAddress(BASE)).unwrap();
    let again = memory_of(64);
    load(&again, &request).unwrap();
    assert_sample(&again);
}

#[test]
fn initrd_lies_right_behind_an_elf_kernel() {
    let kernel = file_of(&sample(&[], &[]));
    for (len, mib) in [(1, 64), (4096, 64), (4097, 64), (20 << 20, 24), (60 << 20, 64)] {
        let bytes = vec![0x5a; len];
        let initrd = file_of(&bytes);
        let memory = memory_of(mib);
        let image = Image { name: "INITRD", bytes: &initrd };
        let loaded = load(&memory, &BootRequest { initrd: Some(image), ..request(&kernel) }).unwrap();
        let (at, placed) = loaded.initrd.unwrap();
        assert_eq!((at % 4096, placed), (0, len as u64));
        assert!(at >= loaded.kernel.1 && at - loaded.kernel.1 < 4096);
        assert!(read(&memory, at, len) == bytes);
        assert_eq!(u64::from(read_u32(&memory, layout::ZERO_PAGE + 0x218)), at);
        assert_eq!(u64::from(read_u32(&memory, layout::ZERO_PAGE + 0x21c)), placed);
    }
}

#[test]
fn initrd_of_a_kernel_that_unpacks_itself_lies_as_high_as_it_can() {
    let kernel = file_of(&testing::bzimage(16 * MIB, 0x80_0000, b"packed somehow"));
    for (len, mib) in [(1, 64), (4097, 64), (20 << 20, 48)] {
        let initrd = file_of(&vec![0x5a; len]);
        let image = Image { name: "INITRD", bytes: &initrd };
        let loaded = load(&memory_of(mib), &BootRequest { initrd: Some(image), ..request(&kernel) }).unwrap();
        let (at, placed) = loaded.initrd.unwrap();
        assert_eq!((at % 4096, placed), (0, len as u64));
        assert!(at >= loaded.kernel.1 && mib * MIB - (at + placed) < 4096);
    }
}

#[test]
fn devices_stand_on_the_command_line_or_in_acpi_never_in_both() {
    let kernel = file_of(&sample(&[], &[]));
    let transports = [transport(0xd000_0000, 5), transport(0xd000_1000, 6)];
    let base = BootRequest { transports: &transports, command_line: "quiet -- x ", ..request(&kernel) };

    let memory = memory_of(64);
    load(&memory, &BootRequest { platform: Platform::Mptable, ..base }).unwrap();
    assert_eq!(
        read_text(&memory, layout::COMMAND_LINE),
        "virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6 quiet -- x"
    );
    assert_eq!(read(&memory, layout::MP_TABLE, 4), b"_MP_");
    assert_eq!(read_u64(&memory, layout::ZERO_PAGE + 0x70), 0, "no ACPI");
    assert_eq!(read(&memory, layout::MP_CONFIG, 4), b"PCMP");

    let memory = memory_of(64);
    load(&memory, &BootRequest { platform: Platform::Acpi, ..base }).unwrap();
    assert_eq!(read_text(&memory, layout::COMMAND_LINE), "quiet -- x");
    assert_eq!(read(&memory, layout::MP_TABLE, 4), [0; 4], "no MP table");
}

#[test]
fn what_the_kernel_reads_is_found_in_it() {
    let config = |text: &str| {
        let mut rodata = vec![0x11; 262_140]; // so that the mark lies across two reads
        rodata.extend_from_slice(b"IKCFG_ST");
        rodata.extend_from_slice(&testing::gzip(text.as_bytes()));
        rodata.extend_from_slice(b"IKCFG_ED");
        rodata
    };
    let ours =
        config("CONFIG_X86_MPPARSE=y\n# CONFIG_ACPI is not set\nCONFIG_VIRTIO_MMIO_CMDLINE_DEVICES=y\n");
    let both = config("CONFIG_X86_MPPARSE=y\nCONFIG_ACPI=y\nCONFIG_VIRTIO_MMIO_CMDLINE_DEVICES=y\n");
    let neither = config("CONFIG_X86_MPPARSE=y\n");
    let broken = [b"IKCFG_ST".as_slice(), &[0x1f, 0x8b, 8, 0, 1, 2]].concat();
    type Sections<'a> = &'a [(&'a str, &'a [u8])];
    let cases: [(Sections<'_>, PlatformTables); 9] = [
        (&[], PlatformTables::Acpi),
        (&[(".rodata", &ours)], PlatformTables::MpTable),
        (&[(".rodata", &both)], PlatformTables::Acpi),
        (&[(".rodata", &neither)], PlatformTables::Acpi),
        (&[(".rodata", &broken)], PlatformTables::Acpi),
        (&[(".nelly.platform", b"mptable\n")], PlatformTables::MpTable),
        (&[(".rodata", &ours), (".nelly.platform", b"acpi\0")], PlatformTables::Acpi),
        (&[(".nelly.platform", b"something else")], PlatformTables::Acpi),
        (&[(".nelly.platform.not", b"mptable")], PlatformTables::Acpi),
    ];
    for (sections, platform) in cases {
        let elf = sample(&[], sections);
        assert_eq!(load_bytes(&elf, &memory_of(64)).unwrap().platform, platform);
        let packed = testing::with_size(testing::gzip(&elf), &elf);
        let image = file_of(&testing::bzimage(16 * MIB, 0x80_0000, &packed));
        let request = BootRequest { protocol: BootProtocol::Elf64, ..request(&image) };
        assert_eq!(load(&memory_of(64), &request).unwrap().platform, platform);
    }
    let mut image = testing::bzimage(16 * MIB, 0x80_0000, b"packed somehow");
    assert_eq!(load_bytes(&image, &memory_of(64)).unwrap().platform, PlatformTables::Acpi);
    image[0x3f0..0x400].copy_from_slice(b"6.12.117-nelly (");
    assert_eq!(load_bytes(&image, &memory_of(64)).unwrap().platform, PlatformTables::MpTable);
}

#[test]
fn an_entry_that_is_virtual_is_translated() {
    let mut bytes = sample(&[], &[]);
    bytes[24..32].copy_from_slice(&0xffff_ffff_8020_0040_u64.to_le_bytes());
    bytes[64 + 16..64 + 24].copy_from_slice(&0xffff_ffff_8020_0000_u64.to_le_bytes());
    let loaded = load_bytes(&bytes, &memory_of(64)).unwrap();
    assert_eq!(registers(&loaded).rip, BASE + 0x40);
}

#[test]
fn linux_sets_no_memory_aside_for_devices_that_are_not_there() {
    let linux = file_of(&sample(&testing::note("Linux", 1, &[0; 4]), &[]));
    let other = file_of(&sample(&[], &[]));
    let bz = file_of(&testing::bzimage(16 * MIB, 0x80_0000, b"............"));
    let words = "swiotlb=noforce console=ttyS0";
    let table = [
        (&linux, 3328, "console=ttyS0", "console=ttyS0", true),
        (&linux, 3329, "console=ttyS0", words, true),
        (&bz, 3329, "console=ttyS0", words, true),
        (&other, 3329, "console=ttyS0", "console=ttyS0", false),
        (&linux, 3329, "swiotlb=512 quiet", "swiotlb=512 quiet", true),
    ];
    for (file, mib, given, told, says_kernel) in table {
        let memory = memory_of(mib);
        let loaded = load(&memory, &BootRequest { command_line: given, ..request(file) }).unwrap();
        assert_eq!(read_text(&memory, layout::COMMAND_LINE), told);
        assert_eq!(loaded.says_kernel, says_kernel);
    }
}

#[test]
fn devices_that_the_command_line_has_no_room_for_stand_behind_the_initrd() {
    let config = "CONFIG_X86_MPPARSE=y\nCONFIG_VIRTIO_MMIO_CMDLINE_DEVICES=y\n";
    let of = |config: &str| {
        let rodata = [b"IKCFG_ST".as_slice(), &testing::gzip(config.as_bytes())].concat();
        file_of(&sample(&testing::note("Linux", 1, &[0; 4]), &[(".rodata", &rodata)]))
    };
    let (reads, does_not) = (of(&format!("{config}CONFIG_BOOT_CONFIG=y\n")), of(config));
    let transports: Vec<_> = (0..64).map(|n| transport(0xd000_0000 + 0x1000 * u64::from(n), 5 + n)).collect();
    let base = BootRequest { transports: &transports, command_line: "quiet -- x", ..request(&reads) };
    let ending = b"#BOOTCONFIG\n";
    let all: Vec<_> =
        transports.iter().map(|at| format!("\"4K@{:#x}:{}\"", at.address, at.line.number())).collect();
    let text = format!("kernel.virtio_mmio.device = {}\n", all.join(", "));
    for initrd_len in [0, 1, 4096, 70_001] {
        let bytes = vec![0x5a; initrd_len];
        let initrd = FileReader::new(temporary(&bytes)).unwrap();
        let initrd = (initrd_len > 0).then_some(Image { name: "INITRD", bytes: &initrd });
        let memory = memory_of(64);
        let loaded = load(&memory, &BootRequest { initrd, ..base }).unwrap();
        assert_eq!(read_text(&memory, layout::COMMAND_LINE), "bootconfig quiet -- x");
        let (at, len) = loaded.initrd.unwrap();
        assert_eq!((at % 4096, len % 4), (0, 0));
        assert_eq!(u64::from(read_u32(&memory, layout::ZERO_PAGE + 0x21c)), len);
        let found = read(&memory, at, usize::try_from(len).unwrap());
        assert!(found[..initrd_len] == bytes);
        assert_eq!(&found[initrd_len..][..text.len()], text.as_bytes());
        assert!(found.ends_with(ending));
    }

    // What is built into the kernel has room beside them.
    let tight = "x".repeat(2047 - 64 - "swiotlb=noforce ".len());
    let memory = memory_of(64);
    let one = BootRequest { transports: &transports[..1], command_line: &tight, ..base };
    load(&memory, &one).unwrap();
    assert!(read_text(&memory, layout::COMMAND_LINE).starts_with("bootconfig "));
    // As many as fit stay where they were; what nobody would read is refused.
    let memory = memory_of(64);
    let loaded = load(&memory, &BootRequest { transports: &transports[..50], ..base }).unwrap();
    assert!(loaded.initrd.is_none() && !read_text(&memory, layout::COMMAND_LINE).contains("bootconfig"));
    let kernel = Image { name: "KERNEL", bytes: &does_not };
    let own = file_of(b"an archive, and a boot configuration of the user's #BOOTCONFIG\n\0");
    let own = Some(Image { name: "INITRD", bytes: &own });
    let long = "x".repeat(2047);
    for request in [
        BootRequest { kernel, ..base },
        BootRequest { initrd: own, ..base },
        BootRequest { command_line: &long, ..base },
    ] {
        let error = load(&memory_of(64), &request).unwrap_err();
        assert!(matches!(error, BootError::CommandLineTooLong { limit: 2047, .. }), "{error}");
    }
}
