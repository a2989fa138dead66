//! Kernel files: the first byte selects how the file is loaded, the rest is the file.

use std::fs::File;
use std::io::Write;

use nelly_disk::FileReader;
use nelly_vmm::arch::{BootState, x86_64};
use nelly_vmm::boot::testing::{self, Segment};
use nelly_vmm::boot::{self, BootRequest, Image, MmioSlot};
use nelly_vmm::config::{BootProtocol, Platform};
use nelly_vmm::memory::{Backing, GuestRam};

const RAM: u64 = 8 << 20;

/// Loads the file, and checks that an accepted kernel and its entry point are at 1 MiB or above.
///
/// # Panics
/// If they are not.
pub fn run(data: &[u8]) {
    let _ = accepts(data);
}

/// As [`run`]; whether the file was a kernel.
///
/// # Panics
/// As [`run`].
#[must_use]
pub fn accepts(data: &[u8]) -> bool {
    let [choice, ..] = *data else { return false };
    let ram = GuestRam::new(RAM, Backing::Anonymous).expect("8 MiB");
    let file = FileReader::new(file_of(&data[1..])).expect("a memory file");
    let file = if choice & 4 != 0 { file.immutable() } else { file };
    let request = BootRequest {
        kernel: Image { name: "kernel", bytes: &file },
        initrd: (choice & 8 != 0).then_some(Image { name: "initrd", bytes: &file }),
        command_line: "quiet",
        cpus: 1 + u32::from(choice >> 4),
        transports: &[MmioSlot { address: 0xd000_0000, line: x86_64::line(5).expect("a pin") }],
        platform: Platform::Auto,
        protocol: [BootProtocol::Auto, BootProtocol::Elf64, BootProtocol::Pvh, BootProtocol::Bzimage]
            [usize::from(choice & 3)],
        seed: None,
        kernel_place: None,
    };
    let Ok(loaded) = boot::x86::load(&ram, &request) else { return false };
    let (start, end) = loaded.kernel;
    assert!((1 << 20) <= start && start < end && end <= RAM, "{loaded:?}");
    let BootState::X86(state) = loaded.state else { panic!("{loaded:?}") };
    assert!((start..end).contains(&state.rip), "{loaded:?}");
    if let Some((at, len)) = loaded.initrd {
        assert!(at + len <= RAM && (at >= end || at + len <= start), "{loaded:?}");
    }
    true
}

fn file_of(bytes: &[u8]) -> File {
    let fd = rustix::fs::memfd_create("kernel", rustix::fs::MemfdFlags::CLOEXEC).expect("a memory file");
    let mut file = File::from(fd);
    file.write_all(bytes).expect("a memory file");
    file
}

/// One file of each format.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let notes =
        [testing::note("Linux", 1, &[0; 4]), testing::note("Xen", 18, &0x20_0000_u32.to_le_bytes())].concat();
    let segments = [
        Segment { address: 0x20_0000, bytes: &[0xf4; 6000], memory: 0x3000 },
        Segment { address: 0x21_0010, bytes: b"data", memory: 0x40 },
    ];
    let config = [b"IKCFG_ST".to_vec(), testing::gzip(b"CONFIG_ACPI=y\n"), b"IKCFG_ED".to_vec()].concat();
    let elf =
        testing::elf(0x20_0000, &segments, &notes, &[(".rodata", &config), (".nelly.platform", b"mptable")]);
    let payload = testing::with_size(testing::lz4(&elf, 4096), &elf);
    let files: [(u8, Vec<u8>); 8] = [
        (0, elf.clone()),
        (4 + 8, elf.clone()),
        (2 + 16, elf.clone()),
        (0, testing::gzip(&elf)),
        (0, testing::zstd(&elf)),
        (0, testing::lz4(&elf, 4096)),
        (8, testing::bzimage(0x20_0000, 0x10_0000, &payload)),
        (3 + 8, testing::bzimage(0x20_0000, 0x10_0000, &payload)),
    ];
    files.into_iter().map(|(choice, file)| [&[choice], file.as_slice()].concat()).collect()
}
