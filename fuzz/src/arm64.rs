//! Kernel files for 64-bit Arm: the first byte selects how the file is loaded, the rest is the
//! file.

use nelly_vmm::arch::{BootState, aarch64};
use nelly_vmm::boot::testing::{arm64_image, gzip};
use nelly_vmm::boot::{self, BootRequest, Image};
use nelly_vmm::config::{BootProtocol, Platform};
use nelly_vmm::memory::{Backing, GuestRam};

const RAM: u64 = 8 << 20;

/// Loads the file, and checks where what is accepted lies.
///
/// # Panics
/// When it lies outside of memory, or over something else.
pub fn run(data: &[u8]) {
    let _ = accepts(data);
}

/// As [`run`]; whether the file was a kernel.
///
/// # Panics
/// As [`run`].
#[must_use]
pub fn accepts(data: &[u8]) -> bool {
    let Some((choice, file)) = data.split_first() else { return false };
    let file = file.to_vec();
    let ram = GuestRam::laid_out(&aarch64::ram_ranges(RAM), None, Backing::Anonymous).expect("8 MiB");
    let request = BootRequest {
        kernel: Image { name: "kernel", bytes: &file },
        initrd: (choice & 1 != 0).then_some(Image { name: "initrd", bytes: &file }),
        command_line: "quiet",
        cpus: 1 + u32::from(choice >> 4),
        transports: &[],
        platform: Platform::Auto,
        protocol: BootProtocol::Auto,
        seed: None,
        kernel_place: None,
    };
    let Ok(loaded) = boot::arm64::load(&ram, &request) else { return false };
    let memory = aarch64::layout::RAM..aarch64::layout::RAM + RAM;
    let (start, end) = loaded.kernel;
    let BootState::Arm64(state) = loaded.state else { panic!("{loaded:?}") };
    let mut parts = vec![(start, end), (state.device_tree, state.device_tree + 1)];
    assert!((start..end).contains(&state.pc), "{loaded:?}");
    parts.extend(loaded.initrd.map(|(at, len)| (at, at + len)));
    parts.sort_unstable();
    assert!(parts.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{loaded:?}");
    assert!(
        parts[0].0 >= memory.start && parts.last().is_some_and(|last| last.1 <= memory.end),
        "{loaded:?}"
    );
    true
}

/// Plain, packed, and with an initrd.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let image = arm64_image(0x8_0000, 1 << 20, &[1; 300]);
    [(0, image.clone()), (0x31, image.clone()), (1, gzip(&image)), (0, arm64_image(0, 4096, &[2; 90]))]
        .map(|(choice, file)| [&[choice], file.as_slice()].concat())
        .to_vec()
}
