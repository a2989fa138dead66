//! What an x86-64 guest finds in memory at its first instruction.
//!
//! [`load`] reads an ELF kernel (entered in 64-bit mode, or by PVH) or a bzImage, each also
//! compressed as a whole by gzip, zstd, lz4 (legacy frame) or xz, and writes it at 1 MiB or above.
//!
//! A bzImage unpacks itself unless [`BootProtocol::Elf64`](crate::config::BootProtocol::Elf64) or
//! [`BootProtocol::Pvh`](crate::config::BootProtocol::Pvh) asks for the vmlinux inside, which is
//! then unpacked here. That is no faster: Debian's (58 MB, zstd) takes 0.3 s in the decompressor
//! here and 0.15 s in its own, and in the emulated host 10 s against 5 s; our own (xz) takes the
//! same time both ways.

mod acpi;
mod aml;
mod boot_config;
mod bzimage;
mod elf;
mod entry;
mod kernel;
mod map;
mod mptable;
mod platform;
mod pvh;
#[cfg(test)]
mod tests;
mod zero_page;

use vm_memory::{Bytes, GuestAddress};

use super::error::BootError;
use super::loader::Loader;
use super::map::Map;
use super::source::Source;
use super::{BootRequest, HUGE, Loaded, MmioSlot, Platform, PlatformTables};
use crate::arch::x86_64::layout;
use crate::arch::{BootState, InterruptLine};
use crate::memory::GuestRam;
use crate::sys::at_most;
use kernel::Kernel;
use platform::Tables;
use zero_page::ZeroPage;

/// What messages call the machine.
pub(super) const MACHINE: &str = "x86-64";

/// Whether `head`, a file's first bytes, are those of a kernel for it.
pub(super) fn begins_kernel(head: &[u8]) -> bool {
    bzimage::detect(head) || elf::begins(head)
}

/// Loads a machine's memory. `ram` must be fresh: what a kernel expects to be zero is not written.
/// Whole pages of [mappable](nelly_disk::ReadAt::mappable) bytes are mapped, all else is copied.
///
/// Nothing of the guest runs meanwhile, and after an error the memory is in an undefined state.
///
/// # Errors
/// The kernel or initrd is damaged, or does not fit; the message names the file and what to do.
pub fn load(ram: &GuestRam, request: &BootRequest<'_>) -> Result<Loaded, BootError> {
    let memory = ram.memory();
    check_transports(request.transports)?;
    let kernel = Kernel::open(request)?;
    let map = Map::of(ram);
    let tables = match request.platform {
        Platform::Mptable => Tables::MpTable,
        Platform::Acpi => Tables::Acpi,
        Platform::Auto => kernel.platform().unwrap_or(Tables::Acpi),
    };
    let bounce = !(kernel.is_linux() && map::is_high(&map));
    let Told { command_line, devices } = Told::new(request, &kernel, tables, bounce)?;
    let place = kernel.place(&map)?;
    // Who leaves the first 2 MiB free takes them as memory later; a small program lies in them, and
    // takes a dozen pages.
    if place.0 >= HUGE {
        ram.system_starts();
    }
    let mut loader = Loader::new(ram);
    kernel.write(&mut loader, place)?;
    let initrd = put_initrd(request, &kernel, &map, place, &mut loader, &devices)?;

    let text = [command_line.as_bytes(), &[0]].concat();
    memory
        .write_slice(&text, GuestAddress(layout::COMMAND_LINE))
        .map_err(|source| BootError::Memory { what: "command line", source })?;
    let (platform, rsdp) = match tables {
        Tables::MpTable => {
            mptable::write(memory, request.cpus, lines(request.transports))?;
            (PlatformTables::MpTable, None)
        }
        Tables::Acpi => (PlatformTables::Acpi, Some(acpi::write(memory, request.cpus, request.transports)?)),
    };
    let entries = map::entries(&map);
    let state = if let Some(entry) = kernel.pvh_entry() {
        pvh::write_start_info(memory, &entries, initrd, rsdp)?;
        entry::protected_mode(memory, entry)?
    } else {
        let image = kernel.image().map(|image| (image, place.0));
        let command_line_len = command_line.len();
        ZeroPage { image, initrd, command_line_len, rsdp, seed: request.seed, map: &entries }
            .write(memory)?;
        entry::long_mode(memory, kernel.entry(place.0), place.1)?
    };
    Ok(Loaded {
        state: BootState::X86(state),
        platform,
        says_kernel: kernel.says_kernel(),
        kind: kernel.kind,
        kernel: place,
        initrd,
        mapped_bytes: loader.mapped_bytes,
    })
}

/// Interrupt lines of a machine with these transports: those up to the last that one, or the serial
/// port, uses.
fn lines(transports: &[MmioSlot]) -> u32 {
    transports.iter().map(|transport| transport.line).fold(layout::COM1_LINE, InterruptLine::max).number() + 1
}

fn check_transports(transports: &[MmioSlot]) -> Result<(), BootError> {
    for transport in transports {
        let end = transport.address.saturating_add(layout::VIRTIO_STRIDE);
        if end > layout::HIGH_RAM {
            return Err(BootError::Undescribable(format!(
                "a virtio device at {:#x} cannot be described: it must be below 4 GiB",
                transport.address
            )));
        }
    }
    Ok(())
}

/// The name of the argument that describes a virtio device to a kernel.
const DEVICE: &str = "virtio_mmio.device";

/// Bytes of the command line that are left free where devices can be told in another way: words
/// that are built into a kernel (`CONFIG_CMDLINE`, as our hardened one has) stand before ours, and
/// what is too long then is cut off without a word.
const BUILT_IN_WORDS: usize = 64;

/// What the kernel is told in words.
struct Told {
    command_line: String,
    /// Values of [`DEVICE`] that the command line has no room for.
    devices: Vec<String>,
}

impl Told {
    /// The monitor's arguments, then the user's: what follows `--` there belongs to the guest's
    /// init. When they are too long, devices go into a boot configuration if the kernel reads one.
    ///
    /// A Linux with memory above 4 GiB sets 64 MiB of it aside, through which devices of 32 bits
    /// could reach the rest. No device here is one, so it is told not to, unless `bounce` or the
    /// user speaks of it.
    fn new(
        request: &BootRequest<'_>,
        kernel: &Kernel<'_>,
        tables: Tables,
        bounce: bool,
    ) -> Result<Self, BootError> {
        let swiotlb =
            if bounce || request.command_line.contains("swiotlb=") { "" } else { "swiotlb=noforce " };
        let transports = if tables == Tables::MpTable { request.transports } else { &[] };
        let devices: Vec<_> = transports.iter().map(device).collect();
        let arguments: String = devices.iter().map(|device| format!("{DEVICE}={device} ")).collect();
        let limit = kernel.command_line_max();
        let whole = command_line(&format!("{swiotlb}{arguments}"), request.command_line, limit);
        let is_tight = match &whole {
            Ok(text) => text.len() > limit.saturating_sub(BUILT_IN_WORDS),
            Err(error) => matches!(error, BootError::CommandLineTooLong { .. }),
        };
        // Asked last: the kernel's configuration is unpacked for it, which takes milliseconds.
        if is_tight && !devices.is_empty() && kernel.reads_boot_config() && !has_boot_config(request)? {
            let own = format!("{}{swiotlb}", boot_config::WORD);
            let command_line = command_line(&own, request.command_line, limit)?;
            return Ok(Self { command_line, devices });
        }
        Ok(Self { command_line: whole?, devices: Vec::new() })
    }
}

/// A device as [`DEVICE`] has it.
fn device(transport: &MmioSlot) -> String {
    let kib = layout::VIRTIO_STRIDE >> 10;
    format!("{kib}K@{:#x}:{}", transport.address, transport.line.number())
}

/// `own` and the user's arguments, if the kernel keeps all of them.
fn command_line(own: &str, user: &str, limit: usize) -> Result<String, BootError> {
    let mut text = format!("{own}{user}");
    text.truncate(text.trim_end().len());
    if text.contains('\0') {
        return Err(BootError::CommandLineNul);
    }
    let limit = limit.min(layout::COMMAND_LINE_MAX - 1);
    if text.len() > limit {
        return Err(BootError::CommandLineTooLong { len: text.len(), own: own.len(), limit });
    }
    Ok(text)
}

/// Whether the user's initrd has a boot configuration.
fn has_boot_config(request: &BootRequest<'_>) -> Result<bool, BootError> {
    let Some(image) = request.initrd else { return Ok(false) };
    let source = Source::open(image.name, image.bytes)?;
    let mut tail = vec![0; at_most(source.len(), boot_config::TAIL)];
    source.read(source.len() - tail.len() as u64, &mut tail, "end")?;
    Ok(boot_config::is_at_end(&tail))
}

/// Loads the initrd, and behind it a boot configuration of `devices`, if there are any. Returns
/// where both lie: first byte and length.
fn put_initrd(
    request: &BootRequest<'_>,
    kernel: &Kernel<'_>,
    map: &Map,
    taken: (u64, u64),
    loader: &mut Loader<'_>,
    devices: &[String],
) -> Result<Option<(u64, u64)>, BootError> {
    let source = request.initrd.map(|image| Source::open(image.name, image.bytes)).transpose()?;
    let (name, len) =
        source.as_ref().map_or(("the boot configuration", 0), |source| (source.name(), source.len()));
    let trailer = if devices.is_empty() { Vec::new() } else { boot_config::trailer(DEVICE, devices, len) };
    let whole = len.saturating_add(trailer.len() as u64);
    if whole == 0 {
        return Ok(None);
    }
    let guest = kernel.place_initrd(name, whole, map, taken)?;
    if let Some(source) = &source {
        loader.put(source, guest, (0, len), "initrd")?;
    }
    loader
        .memory()
        .write_slice(&trailer, GuestAddress(guest + len))
        .map_err(|source| BootError::Memory { what: "boot configuration", source })?;
    Ok(Some((guest, whole)))
}
