//! Kernels and what they are told: loaders, command line, tables. Turns memory + kernel + initrd +
//! command line into a [`crate::arch::BootState`]; knows no hypervisor.
//!
//! One room an architecture, none of which knows the other, behind one [`Request`] and one
//! [`Loaded`]: [`x86`] reads ELF files and bzImages and writes an MP table or ACPI, [`arm64`] reads
//! Linux's Image and writes a device tree. Files are input like any other: every length, offset and
//! address in them is checked before it is used, and a kernel can be written nowhere but into guest
//! memory.

use std::fs::File;

use nelly_disk::{FileReader, OpenError, ReadAt};

pub mod arm64;
mod compress;
mod error;
mod loader;
mod map;
mod source;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod x86;

pub use error::BootError;

use crate::arch::{BootState, InterruptLine};
use crate::config::{BootProtocol, Platform as PlatformChoice};

const PAGE: u64 = 4096;
/// Bytes of a huge page.
const HUGE: u64 = crate::sys::pages::HUGE as u64;

/// What is to be loaded.
#[derive(Clone, Copy)]
pub struct Image<'a> {
    /// What messages call it.
    pub name: &'a str,
    /// Its bytes. What of them is [mappable](ReadAt::mappable) (a sealed memfd, a file of our own
    /// cache: nobody can truncate or change it while the machine runs) is mapped into the guest
    /// instead of copied.
    ///
    /// Machines then share the pages, and the first instruction comes sooner; but the guest faults
    /// them in one by one, 4 KiB and some 10 us each, where copied memory comes in huge pages, 15
    /// of them for a whole boot. Our kernel (13.6 MB of segments at that time),
    /// instruction-counted, from start to reset: copied 12.1 ms to assemble and 51 ms in all,
    /// mapped 3.7 ms and 83 ms. So it is for those who keep many machines, not for the quickest
    /// one.
    pub bytes: &'a dyn ReadAt,
}

impl std::fmt::Debug for Image<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} bytes", self.name, self.bytes.len())
    }
}

/// The bytes of `file`, which messages call `name`; `immutable` is [`FileReader::immutable`]'s
/// promise.
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

/// One virtio-mmio transport, as the guest is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioSlot {
    /// Guest physical address of its registers.
    pub address: u64,
    /// Its interrupt line; edge-triggered.
    pub line: InterruptLine,
}

/// What to boot, and what to tell it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The kernel.
    pub kernel: Image<'a>,
    /// The initial RAM disk.
    pub initrd: Option<Image<'a>>,
    /// The user's command line; the monitor's own arguments go before it.
    pub command_line: &'a str,
    /// Virtual CPUs, the boot processor first.
    pub cpus: u32,
    /// Virtio devices and spare slots.
    pub transports: &'a [MmioSlot],
    /// How the machine describes itself; how `Auto` decides is the architecture's.
    pub platform: PlatformChoice,
    /// How the kernel is entered.
    pub protocol: BootProtocol,
    /// Random bytes for the guest's generator, which then need not wait for anything.
    pub seed: Option<[u8; 32]>,
}

/// How a machine describes itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    /// An MP table, and `virtio_mmio.device=` arguments.
    MpTable,
    /// ACPI with reduced hardware.
    Acpi,
    /// A flattened device tree.
    DeviceTree,
}

/// A loaded machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// What the boot processor starts with.
    pub state: BootState,
    /// How the machine was described.
    pub platform: Platform,
    /// What the kernel was found to be, for people.
    pub kind: String,
    /// Guest memory that the kernel occupies: first byte and end.
    pub kernel: (u64, u64),
    /// Guest memory of the initrd: first byte and length.
    pub initrd: Option<(u64, u64)>,
    /// Bytes mapped instead of copied.
    pub mapped_bytes: u64,
    /// The file says of itself that it is a kernel.
    pub says_kernel: bool,
}
