//! Images of a few bytes loaded into real guest memory, and read back as a kernel would.

use nelly_disk::ReadAt;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::fdt::tests::{Read, read};
use super::*;
use crate::arch::aarch64::layout;
use crate::boot::testing::{arm64_image, gzip, lz4, zstd};
use crate::boot::{Image, MmioSlot};
use crate::memory::Backing;

const MIB: u64 = 1 << 20;

fn file_of(bytes: &[u8]) -> Vec<u8> {
    bytes.to_vec()
}

fn memory_of(mib: u64) -> GuestRam {
    GuestRam::laid_out(&aarch64::ram_ranges(mib * MIB), None, Backing::Anonymous).unwrap()
}

fn request(kernel: &dyn ReadAt) -> BootRequest<'_> {
    BootRequest {
        kernel: Image { name: "KERNEL", bytes: kernel },
        initrd: None,
        command_line: "console=ttyS0 ",
        cpus: 1,
        transports: &[],
        platform: Platform::Auto,
        protocol: BootProtocol::Auto,
        seed: None,
        kernel_place: None,
    }
}

/// State and tree of a loaded machine.
fn load_and_read(memory: &GuestRam, loaded: &Loaded) -> (u64, Read) {
    let BootState::Arm64(state) = loaded.state else { panic!("not for Arm") };
    let len: u32 = memory.memory().read_obj(GuestAddress(state.device_tree + 4)).unwrap();
    let mut tree = vec![0; usize::try_from(u32::from_be(len)).unwrap()];
    memory.memory().read_slice(&mut tree, GuestAddress(state.device_tree)).unwrap();
    assert_eq!(state.device_tree % 8, 0);
    (state.pc, read(&tree))
}

fn bytes(memory: &GuestRam, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.memory().read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

#[test]
fn an_image_lies_at_the_lowest_place_its_header_allows() {
    for (text_offset, packed) in [(0, false), (0x8_0000, false), (0x8_0000, true)] {
        let image = arm64_image(text_offset, 3 * MIB, &[7; 5000]);
        let file = file_of(&if packed { gzip(&image) } else { image.clone() });
        let initrd = vec![9; 4097];
        let memory = memory_of(16);
        let given = Some(Image { name: "INITRD", bytes: &initrd });
        let loaded = load(
            &memory,
            &BootRequest { initrd: given, seed: Some([5; 32]), kernel_place: Some(77), ..request(&file) },
        )
        .unwrap();
        let start = layout::RAM + text_offset;
        assert_eq!(loaded.kernel, (start, start + 3 * MIB));
        assert!(bytes(&memory, start, image.len()) == image, "the kernel differs");
        let (at, len) = loaded.initrd.unwrap();
        assert_eq!((at, len), (start + 3 * MIB, 4097), "right behind what the kernel takes in memory");
        assert!(bytes(&memory, at, 4097) == [9; 4097]);
        let (pc, tree) = load_and_read(&memory, &loaded);
        assert_eq!(pc, start);
        let chosen = tree.at("chosen");
        assert_eq!(chosen.texts("bootargs"), ["console=ttyS0"]);
        assert_eq!([chosen.wide("linux,initrd-start"), chosen.wide("linux,initrd-end")], [[at], [at + len]]);
        assert_eq!(
            (chosen.properties["rng-seed"].as_slice(), chosen.wide("kaslr-seed")),
            (&[5; 32][..], vec![77])
        );
        assert_eq!(loaded.kind.starts_with("gzip-compressed"), packed);
    }
}

#[test]
fn the_tree_has_what_the_board_has() {
    let line = |number| aarch64::line(number).unwrap();
    let transports = [
        MmioSlot { address: layout::VIRTIO_MMIO, line: line(16) },
        MmioSlot { address: layout::VIRTIO_MMIO + 0x1000, line: line(17) },
    ];
    let file = file_of(&arm64_image(0, MIB, &[1; 100]));
    let memory = memory_of(64);
    let loaded = load(&memory, &BootRequest { cpus: 18, transports: &transports, ..request(&file) }).unwrap();
    let (_, tree) = load_and_read(&memory, &loaded);
    assert_eq!(tree.at("memory@80000000").wide("reg"), [layout::RAM, 64 * MIB]);
    assert!(!tree.at("chosen").properties.contains_key("linux,initrd-start"));
    let cpus = &tree.at("cpus").nodes;
    let numbers: std::collections::BTreeSet<u32> = cpus.values().map(|cpu| cpu.cells("reg")[0]).collect();
    let wanted = (0..16).chain([0x100, 0x101]).collect();
    assert_eq!((numbers, cpus.contains_key("cpu@101")), (wanted, true));
    let gic = tree.at("interrupt-controller@8000000");
    assert_eq!(gic.wide("reg"), [0x0800_0000, 0x1_0000, 0x080a_0000, 18 * 0x2_0000]);
    assert_eq!(tree.cells("interrupt-parent"), gic.cells("phandle"));
    for (number, transport) in [(16, &transports[0]), (17, &transports[1])] {
        let node = tree.at(&format!("virtio_mmio@{:x}", transport.address));
        assert_eq!(node.wide("reg"), [transport.address, layout::VIRTIO_STRIDE]);
        assert_eq!(node.cells("interrupts"), [0, number, 1]);
    }
    let serial = tree.at("chosen").texts("stdout-path").remove(0);
    assert_eq!(tree.at(&serial).wide("reg")[0], layout::SERIAL);
    assert_eq!(tree.at("rtc@9010000").cells("clocks"), tree.at("apb-pclk").cells("phandle"));
    assert_eq!(tree.at("timer").cells("interrupts").len(), 12);
    assert_eq!(tree.at("psci").texts("method"), ["hvc"]);
}

/// With 32 processors and a tebibyte, what is described is what is there.
#[test]
fn the_largest_machine_is_described() {
    let memory = [(layout::RAM, layout::RAM + (1 << 40))];
    let slot = |number: u32| MmioSlot {
        address: layout::VIRTIO_MMIO + u64::from(number) * layout::VIRTIO_STRIDE,
        line: aarch64::line(layout::VIRTIO_LINE + number).unwrap(),
    };
    let transports: Vec<_> = (0..64).map(slot).collect();
    let command_line = "x".repeat(2047);
    let written = tree::write(&Described {
        memory: &memory,
        cpus: 32,
        transports: &transports,
        command_line: &command_line,
        initrd: Some((layout::RAM + (1 << 39), 1 << 30)),
        seed: Some([1; 32]),
        kernel_place: Some(2),
    });
    assert!((written.len() as u64) < PAGE_MAX, "{}", written.len());
    let tree = read(&written);
    assert_eq!(tree.at("memory@80000000").wide("reg"), [layout::RAM, 1 << 40]);
    assert_eq!(tree.at("cpus").nodes.len(), 32);
    let gic = tree.at("interrupt-controller@8000000").wide("reg");
    assert_eq!(gic[3], 32 * layout::GIC_REDISTRIBUTOR_LEN);
    assert!(gic[2] + gic[3] <= layout::SERIAL, "the redistributors end before the first device");
    let nodes = tree.nodes.iter().filter(|(name, _)| name.starts_with("virtio_mmio@"));
    let lines: std::collections::BTreeSet<_> = nodes.map(|(_, node)| node.cells("interrupts")[1]).collect();
    assert_eq!(lines, (16..80).collect());
    assert!(lines.iter().all(|line| *line < layout::SHARED_INTERRUPTS));
    // Without it a device's writes are not seen on processors whose caches do not look for them.
    assert!(
        tree.nodes
            .iter()
            .filter(|(name, _)| name.starts_with("virtio"))
            .all(|(_, node)| node.properties.contains_key("dma-coherent"))
    );
    assert_eq!(tree.at("chosen").wide("linux,initrd-end"), [layout::RAM + (1 << 39) + (1 << 30)]);
}

/// What a header says of the kernel's pages goes to the back end, which knows the processor.
#[test]
fn a_kernel_says_which_pages_it_was_built_for() {
    use aarch64::Granule::{Kib4, Kib16, Kib64};
    for (flags, expected) in [
        (0b1000, None),
        (0b1010, Some(Kib4)),
        (0b1100, Some(Kib16)),
        (0b1110, Some(Kib64)),
        (0b110, Some(Kib64)),
    ] {
        let mut image = arm64_image(0, MIB, &[1; 100]);
        image[24] = flags;
        let loaded = load(&memory_of(4), &request(&file_of(&image))).unwrap();
        let BootState::Arm64(state) = loaded.state else { panic!("not for Arm") };
        assert_eq!(state.granule, expected, "{flags:#b}");
    }
}

/// A kernel of 64 KiB pages gives back whole ones of its initrd: nothing else may lie in them.
#[test]
fn initrd_and_device_tree_share_no_page_at_any_size() {
    let file = file_of(&arm64_image(0, MIB + 4096, &[1; 100]));
    let mut loaded_once = 0;
    for len in (0..20).map(|n| 3 * MIB - 10 * 4096 + n * 4096 + 1) {
        let initrd = vec![7; usize::try_from(len).unwrap()];
        let given = Some(Image { name: "INITRD", bytes: &initrd });
        let Ok(loaded) = load(&memory_of(4 + 1), &BootRequest { initrd: given, ..request(&file) }) else {
            continue;
        };
        loaded_once += 1;
        let (at, len) = loaded.initrd.unwrap();
        let BootState::Arm64(state) = loaded.state else { panic!("not for Arm") };
        let page = |address: u64| address / PAGE_MAX;
        assert!(page(loaded.kernel.1 - 1) < page(at) && page(at + len - 1) < page(state.device_tree));
    }
    assert_ne!(loaded_once, 0);
}

#[test]
fn what_cannot_be_loaded_says_why() {
    let image = arm64_image(0, MIB, &[1; 100]);
    let with = |at: usize, bytes: &[u8]| {
        let mut image = image.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        image
    };
    let elf = |class: u8, machine: u8| {
        let mut header = vec![0; 64];
        header[..5].copy_from_slice(&[0x7f, b'E', b'L', b'F', class]);
        header[18] = machine;
        header
    };
    let mut bzimage = vec![0; 0x1000];
    bzimage[..2].copy_from_slice(b"MZ");
    bzimage[0x202..0x206].copy_from_slice(b"HdrS");
    let mut zboot = vec![0; 100];
    zboot[..8].copy_from_slice(b"MZ\0\0zimg");
    let cases = [
        (vec![0; 10], "neither an Image"),
        (b"\x7fELF".repeat(20), "is an ELF file"),
        (elf(2, 62), "is a kernel for x86-64; this machine is 64-bit Arm"),
        (elf(1, 3), "is a kernel for 32-bit x86"),
        (elf(2, 183), "is its Image"),
        (bzimage, "is a kernel for x86;"),
        (zboot, "its compressed kernel begins in its header"),
        (with(16, &[0; 8]), "older than Linux 3.17"),
        (with(24, &[1]), "big-endian"),
        (with(8, &0x20_0000_u64.to_le_bytes()), "2 MiB or more"),
        (with(16, &[0xff; 8]), "beyond the end of the address space"),
        (with(16, &(8 * MIB).to_le_bytes()), "needs 8 MiB or more"),
        (with(16, &(4 * MIB).to_le_bytes()), "no room for the machine's device tree"),
    ];
    for (bytes, sentence) in cases {
        let file = file_of(&bytes);
        let error = load(&memory_of(4), &request(&file)).unwrap_err().to_string();
        assert!(error.contains("KERNEL") && error.contains(sentence), "{error}");
    }
    let file = file_of(&image);
    let initrd = vec![0; 4 << 20];
    let given = Some(Image { name: "INITRD", bytes: &initrd });
    let refused = |request: BootRequest<'_>| load(&memory_of(4), &request).unwrap_err().to_string();
    assert!(
        refused(BootRequest { initrd: given, ..request(&file) }).contains("does not fit beside the kernel")
    );
    // Kernels map no more of a device tree than 2 MiB, however much memory there is.
    let slot = MmioSlot { address: layout::VIRTIO_MMIO, line: aarch64::line(16).unwrap() };
    let many = vec![slot; 20_000];
    let error =
        load(&memory_of(64), &BootRequest { transports: &many, ..request(&file) }).unwrap_err().to_string();
    assert!(error.contains("bytes of a device tree") && error.contains("2097152"), "{error}");
    let long = "x".repeat(2048);
    assert!(refused(BootRequest { command_line: &long, ..request(&file) }).contains("the limit is 2047"));
    assert!(refused(BootRequest { command_line: "\0x", ..request(&file) }).contains("NUL"));
    assert!(refused(BootRequest { platform: Platform::Acpi, ..request(&file) }).contains("device tree"));
    assert!(
        refused(BootRequest { protocol: BootProtocol::Pvh, ..request(&file) })
            .contains("only one boot protocol")
    );
}

/// A program for EFI around `payload`, as the kernel's build makes it, with the payload's size
/// behind it where the build appends that.
fn zboot(name: &str, payload: &[u8], appended: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 0x1000];
    file[..8].copy_from_slice(b"MZ\0\0zimg");
    file[8..12].copy_from_slice(&0x1000_u32.to_le_bytes());
    file[12..16].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
    file[24..24 + name.len()].copy_from_slice(name.as_bytes());
    file[56..60].copy_from_slice(&[0xcd, 0x23, 0x82, 0x81]);
    file[60..64].copy_from_slice(&0x40_u32.to_le_bytes());
    file[0x40..0x46].copy_from_slice(b"PE\0\0\x64\xaa");
    [&file, payload, appended, &[0; 100]].concat()
}

/// As the kernel's build packs it.
fn xz(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    let mut command = Command::new("xz");
    command.args(["--check=crc32", "--lzma2=dict=1MiB", "--stdout", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success());
    done.stdout
}

#[test]
fn a_kernel_in_a_program_for_efi_is_unpacked() {
    let image = arm64_image(0x8_0000, 3 * MIB, &[7; 70_000]);
    let size = u32::try_from(image.len()).unwrap().to_le_bytes();
    for (name, payload, appended) in [
        ("gzip", gzip(&image), &[][..]),
        ("zstd22", zstd(&image), &size),
        ("lz4", lz4(&image, 8 << 20), &size),
        ("xzkern", xz(&image), &size),
    ] {
        let memory = memory_of(16);
        let loaded = load(&memory, &request(&file_of(&zboot(name, &payload, appended)))).unwrap();
        let start = layout::RAM + 0x8_0000;
        assert_eq!(loaded.kernel, (start, start + 3 * MIB), "{name}");
        assert!(bytes(&memory, start, image.len()) == image, "{name}: the kernel differs");
        assert!(loaded.kind.contains("EFI") && loaded.kind.contains(&name[..2]), "{}", loaded.kind);
    }
}

#[test]
fn lies_of_a_program_for_efi_are_told() {
    let image = arm64_image(0, MIB, &[1; 5000]);
    let good = zboot("gzip", &gzip(&image), &[]);
    let with = |at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    let payload = gzip(&image).len();
    for (bytes, sentence) in [
        (with(8, &[0; 4]), "begins in its header"),
        (with(8, &[0xff; 4]), "compressed kernel"),
        (with(8, &[0xff; 8]), "compressed kernel"),
        (with(12, &[0xff; 4]), "compressed kernel"),
        (with(12, &[0; 4]), "not compressed by gzip, as its header says"),
        (with(12, &u32::try_from(payload / 2).unwrap().to_le_bytes()), "gzip"),
        (with(8, &0x1001_u32.to_le_bytes()), "not compressed by gzip, as its header says"),
        (with(24, b"xzkern\0"), "is gzip, and its header says xzkern"),
        (with(24, b"\x1b[2J\0"), "its header says nothing that has a name"),
        (with(24, &[b'g'; 32]), "its header says gggg"),
        (with(0x1000, b"\x5d\0\0lzma"), "and its header says gzip"),
        (with(0x44, &[0x64, 0x86]), "is a kernel for x86-64; this machine is 64-bit Arm"),
        (with(0x44, &[0x64, 0x50]), "is a kernel for 64-bit RISC-V"),
        (with(0x44, &[1, 1]), "is a kernel for another processor"),
        (good[..20].to_vec(), "header for EFI"),
        (zboot("gzip", &gzip(&good), &[]), "is a kernel for another processor, or a program for EFI"),
        (zboot("gzip", &gzip(b"no kernel"), &[]), "neither an Image"),
        (zboot("lzma", b"\x5d\0\0\0\x80", &[]), "compressed by lzma, which is not supported"),
    ] {
        let error = load(&memory_of(4), &request(&file_of(&bytes))).unwrap_err().to_string();
        assert!(error.contains("KERNEL") && error.contains(sentence) && !error.contains('\x1b'), "{error}");
    }
    // Where no header of a program is, only the kernel itself says what it is for.
    assert!(load(&memory_of(4), &request(&file_of(&with(60, &[0xff; 4])))).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever a header says: loading ends, and what it accepts lies in memory, its parts apart.
    #[test]
    fn headers_changed_at_random(at in 0usize..64, value in prop::collection::vec(any::<u8>(), 1..9), cut in any::<prop::sample::Index>()) {
        let mut image = arm64_image(0, MIB, &[1; 200]);
        let end = image.len().min(at + value.len());
        image[at..end].copy_from_slice(&value[..end - at]);
        image.truncate(cut.index(image.len()) + 1);
        let (file, initrd, memory) = (file_of(&image), vec![3; 5000], memory_of(8));
        let given = Some(Image { name: "INITRD", bytes: &initrd });
        if let Ok(loaded) = load(&memory, &BootRequest { initrd: given, ..request(&file) }) {
            let (start, end) = loaded.kernel;
            prop_assert!(layout::RAM <= start && start < end && end <= layout::RAM + 8 * MIB);
            let (at, len) = loaded.initrd.unwrap();
            let BootState::Arm64(state) = loaded.state else { panic!("not for Arm") };
            prop_assert!(end <= at && at + len <= state.device_tree && state.pc == start);
        }
    }
}
