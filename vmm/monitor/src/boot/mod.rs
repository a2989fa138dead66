//! Loading of kernels: kernel formats, command line, tables. Converts guest memory, kernel, initrd
//! and command line to a [`crate::arch::BootState`]; independent of the hypervisor.
//!
//! There is one module for each architecture, behind one [`BootRequest`] and one [`Loaded`]:
//! [`x86`] reads ELF files and bzImages and writes an MP table or ACPI tables, [`arm64`] reads
//! Linux's Image and writes a device tree. Kernel files are not trusted: every length, offset and
//! address is checked before it is used, and only guest memory is written.

use std::fs::File;

use nelly_disk::{FileReader, OpenError, ReadAt};

pub mod arm64;
mod compress;
mod error;
mod foreign;
mod loader;
mod map;
mod source;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod x86;

pub use error::BootError;
pub use foreign::refuse_foreign;

use crate::arch::{BootState, InterruptLine};
use crate::config::{BootProtocol, Platform};

const PAGE: u64 = 4096;
/// Size of a huge page in bytes.
const HUGE: u64 = crate::sys::pages::HUGE as u64;

/// A file to load.
#[derive(Clone, Copy)]
pub struct Image<'a> {
    /// Its name in messages.
    pub name: &'a str,
    /// Its contents. [Mappable](ReadAt::mappable) parts (of a sealed memfd or a file in our own
    /// cache, which cannot be truncated or changed while the machine runs) are mapped into the
    /// guest instead of copied.
    ///
    /// Machines then share these pages, and the first instruction runs earlier. But the guest takes
    /// a page fault for each 4 KiB, about 10 us, while copied memory uses huge pages, 15 for a
    /// whole boot. Instruction-counted, from start to reset, with an earlier kernel with segments
    /// of 13.6 MB: copied 12.1 ms to assemble and 51 ms in total, mapped 3.7 ms and 83 ms. So
    /// mapping is useful for many machines, but not for the fastest start of one.
    pub bytes: &'a dyn ReadAt,
}

impl std::fmt::Debug for Image<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} bytes", self.name, self.bytes.len())
    }
}

/// An image with the contents of `file`, called `name` in messages; for `immutable` see
/// [`FileReader::immutable`].
pub fn reader<'a>(name: &str, file: &'a File, immutable: bool) -> Result<FileReader<&'a File>, BootError> {
    match FileReader::new(file) {
        Ok(reader) if immutable => Ok(reader.immutable()),
        Ok(reader) => Ok(reader),
        Err(error @ OpenError::Kind) => {
            Err(BootError::unfit(name, "cannot be loaded: ".to_owned() + &error.to_string()))
        }
        Err(OpenError::Size(source)) => Err(BootError::Read { file: name.to_owned(), source }),
    }
}

/// A virtio-mmio transport, as it is described to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioSlot {
    /// Guest physical address of its registers.
    pub address: u64,
    /// Its interrupt line; edge-triggered.
    pub line: InterruptLine,
}

/// The kernel to load, and the hardware to describe to it.
#[derive(Clone, Copy, Debug)]
pub struct BootRequest<'a> {
    /// The kernel.
    pub kernel: Image<'a>,
    /// The initramfs.
    pub initrd: Option<Image<'a>>,
    /// The user's command line, which follows the monitor's own arguments.
    pub command_line: &'a str,
    /// Number of virtual CPUs; the first is the boot processor.
    pub cpus: u32,
    /// Virtio devices and spare slots.
    pub transports: &'a [MmioSlot],
    /// How the hardware is described; `Auto` depends on the architecture.
    pub platform: Platform,
    /// The boot protocol.
    pub protocol: BootProtocol,
    /// Random bytes for the guest's random number generator.
    pub seed: Option<[u8; 32]>,
    /// Random bits by which a kernel chooses where it runs, where it is told them.
    pub kernel_place: Option<u64>,
}

/// How the hardware was described.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlatformTables {
    /// An MP table, and `virtio_mmio.device=` arguments.
    MpTable,
    /// Hardware-reduced ACPI tables.
    Acpi,
    /// A flattened device tree.
    DeviceTree,
}

impl PlatformTables {
    /// Whether they tell the guest of a power button.
    #[must_use]
    pub const fn name_a_power_button(self) -> bool {
        matches!(self, Self::Acpi)
    }
}

/// A loaded kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The initial state of the boot processor.
    pub state: BootState,
    /// How the hardware was described.
    pub platform: PlatformTables,
    /// A description of the kernel for users.
    pub kind: String,
    /// Guest memory that the kernel occupies: start and end address.
    pub kernel: (u64, u64),
    /// Guest memory of the initrd: address and length.
    pub initrd: Option<(u64, u64)>,
    /// Number of bytes that were mapped instead of copied.
    pub mapped_bytes: u64,
    /// Whether the file has a header that identifies it as a kernel.
    pub says_kernel: bool,
}
