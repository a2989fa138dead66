//! What a 64-bit Arm guest finds in memory at its first instruction: Linux's Image, its initrd, and
//! a device tree.

mod fdt;
mod image;
#[cfg(test)]
mod tests;
mod tree;
mod zboot;

use vm_memory::{Bytes, GuestAddress};

use super::error::BootError;
use super::loader::Loader;
use super::map::Map;
use super::source::Source;
use super::{BootRequest, Loaded, Platform, PlatformTables};
use crate::arch::BootState;
use crate::arch::aarch64;
use crate::config::BootProtocol;
use crate::memory::GuestRam;
use image::Kernel;
use tree::Described;

/// What messages call the machine.
pub(super) const MACHINE: &str = "64-bit Arm";

/// Whether `head`, a file's first bytes, are those of a kernel for it.
pub(super) fn begins_kernel(head: &[u8]) -> bool {
    image::begins(head) || zboot::begins(head)
}
/// Longest command line that Linux keeps on arm64, without the NUL.
const COMMAND_LINE_MAX: usize = 2047;
/// The largest page of a kernel or host. A kernel gives back whole pages of its initrd, so the
/// device tree shares none with it; and what lies on the host's pages can be mapped.
const PAGE_MAX: u64 = 64 << 10;
/// Kernels map so much of a device tree before they know more.
const TREE_MAX: u64 = 2 << 20;

/// Loads a machine's memory. `ram` must be fresh: what a kernel expects to be zero is not written.
/// Whole pages of [mappable](nelly_disk::ReadAt::mappable) bytes are mapped, all else is copied.
///
/// Nothing of the guest runs meanwhile, and after an error the memory is in an undefined state.
///
/// # Errors
/// The kernel or initrd is damaged, or does not fit; the message names the file and what to do.
pub fn load(ram: &GuestRam, request: &BootRequest<'_>) -> Result<Loaded, BootError> {
    let name = request.kernel.name;
    if request.protocol != BootProtocol::Auto {
        let (protocol, reason) =
            ("other architecture's", "a kernel for 64-bit Arm has only one boot protocol");
        return Err(BootError::WrongProtocol { file: name.to_owned(), protocol, reason });
    }
    if request.platform != Platform::Auto {
        let text = "a 64-bit Arm machine is described by a device tree only";
        return Err(BootError::Undescribable(text.into()));
    }
    let command_line = command_line(request.command_line)?;
    let kernel = Kernel::open(Source::open(name, request.kernel.bytes)?)?;
    let map = Map::of(ram).aligned(PAGE_MAX);
    let place = kernel.place(&map)?;
    let mut loader = Loader::new(ram);
    let whole = (0, kernel.source.len());
    loader.put(&kernel.source, place.0, whole, "kernel")?;
    // Behind the kernel, whose end is known, and the device tree as far away as can be.
    let (mut taken, mut initrd) = (place, None);
    if let Some(image) = request.initrd {
        let source = Source::open(image.name, image.bytes)?;
        let len = source.len();
        let guest = map.lowest(len, taken.1, u64::MAX).ok_or_else(|| {
            let needs = (taken.1 - aarch64::layout::RAM).saturating_add(len).saturating_add(PAGE_MAX);
            BootError::initrd_too_large(image.name, len, map.total(), needs)
        })?;
        loader.put(&source, guest, (0, len), "initrd")?;
        initrd = Some((guest, len));
        taken.1 = guest + len;
    }
    let tree = tree::write(&Described {
        memory: map.ranges(),
        cpus: request.cpus,
        transports: request.transports,
        command_line,
        initrd,
        seed: request.seed,
        kernel_place: request.kernel_place,
    });
    let len = tree.len() as u64;
    if len > TREE_MAX {
        return Err(BootError::too_many("bytes of a device tree", len, TREE_MAX));
    }
    let device_tree = map.highest(len, aarch64::layout::RAM, u64::MAX, taken).ok_or_else(|| {
        let what = "leaves no room for the machine's device tree".to_owned();
        BootError::TooLittleMemory { file: name.to_owned(), what, needs: (map.total() >> 20) + 1 }
    })?;
    ram.memory()
        .write_slice(&tree, GuestAddress(device_tree))
        .map_err(|source| BootError::Memory { what: "device tree", source })?;
    Ok(Loaded {
        state: BootState::Arm64(aarch64::BootState { pc: place.0, device_tree, granule: kernel.granule }),
        platform: PlatformTables::DeviceTree,
        kind: kernel.kind,
        kernel: place,
        initrd,
        mapped_bytes: loader.mapped_bytes,
        // Its header is checked whole.
        says_kernel: true,
    })
}

/// The user's arguments: devices stand in the tree.
fn command_line(text: &str) -> Result<&str, BootError> {
    let text = text.trim_end();
    if text.contains('\0') {
        return Err(BootError::CommandLineNul);
    }
    if text.len() > COMMAND_LINE_MAX {
        let (len, limit) = (text.len(), COMMAND_LINE_MAX);
        return Err(BootError::CommandLineTooLong { len, own: 0, limit });
    }
    Ok(text)
}
