//! Kernels and what they are told: loaders, command line, tables. Turns memory + kernel + initrd + command line into a
//! [`crate::arch::BootState`]; knows no hypervisor.
//!
//! [`load`] reads an ELF kernel (entered in 64-bit mode, or by PVH) or a bzImage, each also compressed as a whole by gzip, zstd, lz4
//! (legacy frame) or xz. Files are input like any other: every length, offset and address in them is checked before it is used, and a
//! kernel can be written nowhere but into guest memory at 1 MiB or above.
//!
//! A bzImage unpacks itself unless [`BootProtocol::Elf64`] or [`BootProtocol::Pvh`] asks for the vmlinux inside, which is then unpacked
//! here. That is no faster: Debian's (58 MB, zstd) takes 0.3 s in the decompressor here and 0.15 s in its own, and in the emulated host
//! 10 s against 5 s; our own (xz) takes the same time both ways.

use std::fs::File;

use nelly_disk::{FileReader, OpenError, ReadAt};
use vm_memory::{Bytes, GuestAddress};

mod bzimage;
mod compress;
mod elf;
mod error;
mod platform;
mod source;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod x86;

pub use error::BootError;
pub use platform::Platform;

use crate::arch::BootState;
use crate::arch::x86_64::layout;
use crate::config::{BootProtocol, Platform as PlatformChoice};
use crate::memory::GuestRam;
use bzimage::{BzImage, Packed};
use compress::{Format, UNPACKED_MAX};
use elf::Elf;
use source::Source;
use x86::entry::IDENTITY_MAX;
use x86::map::Map;
use x86::zero_page::ZeroPage;

/// Longest command line that Linux keeps on x86, without the NUL.
const LINUX_COMMAND_LINE_MAX: usize = 2047;
const PAGE: u64 = 4096;
/// Bytes of a huge page.
const HUGE: u64 = crate::sys::pages::HUGE as u64;
/// Fewer bytes are copied faster than mapped.
const MAP_MIN: u64 = 64 << 10;

/// What is to be loaded.
#[derive(Clone, Copy)]
pub struct Image<'a> {
    /// What messages call it.
    pub name: &'a str,
    /// Its bytes. What of them is [mappable](ReadAt::mappable) (a sealed memfd, a file of our own cache: nobody can truncate or change
    /// it while the machine runs) is mapped into the guest instead of copied.
    ///
    /// Machines then share the pages, and the first instruction comes sooner; but the guest faults them in one by one, 4 KiB and some
    /// 10 us each, where copied memory comes in huge pages, 15 of them for a whole boot. Our kernel (13.6 MB of segments at that time),
    /// instruction-counted, from start to reset: copied 12.1 ms to assemble and 51 ms in all, mapped 3.7 ms and 83 ms. So it is for
    /// those who keep many machines, not for the quickest one.
    pub bytes: &'a dyn ReadAt,
}

impl std::fmt::Debug for Image<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} bytes", self.name, self.bytes.len())
    }
}

/// The bytes of `file`, which messages call `name`; `immutable` is [`FileReader::immutable`]'s promise.
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
pub struct Transport {
    /// Guest physical address of its [`layout::VIRTIO_STRIDE`] bytes, below 4 GiB.
    pub address: u64,
    /// Its interrupt line, below [`layout::IO_APIC_PINS`]; edge-triggered.
    pub gsi: u32,
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
    /// Virtual CPUs; their APIC ids count from 0.
    pub cpus: u32,
    /// Virtio devices and spare slots.
    pub transports: &'a [Transport],
    /// How the machine describes itself; how `Auto` decides is written at [`Platform`]'s module.
    pub platform: PlatformChoice,
    /// How the kernel is entered.
    pub protocol: BootProtocol,
    /// The machine has a PIC whose output arrives at the boot CPU's LINT0.
    pub legacy_pic: bool,
    /// Random bytes for the guest's generator, which then need not wait for anything. Linux takes them by its 64-bit entry.
    pub seed: Option<[u8; 32]>,
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
    /// The file says that it is a kernel: a bzImage, or an ELF file with notes of Linux or for PVH.
    pub says_kernel: bool,
}

/// Loads a machine's memory. `ram` must be fresh: what a kernel expects to be zero is not written. Whole pages of
/// [mappable](ReadAt::mappable) bytes are mapped, all else is copied.
///
/// Nothing of the guest runs meanwhile, and after an error the memory is in an undefined state.
pub fn load(ram: &GuestRam, request: &Request<'_>) -> Result<Loaded, BootError> {
    let memory = ram.memory();
    check_transports(request.transports)?;
    let kernel = Kernel::open(request)?;
    let map = Map::of(ram);
    let platform = match request.platform {
        PlatformChoice::Mptable => Platform::MpTable,
        PlatformChoice::Acpi => Platform::Acpi,
        PlatformChoice::Auto => kernel.platform().unwrap_or(Platform::Acpi),
    };
    let bounce = !(kernel.is_linux() && map.is_high());
    let command_line = command_line(request, platform, bounce, kernel.command_line_max())?;
    let place = kernel.place(&map)?;
    // Who leaves the first 2 MiB free takes them as memory later; a small program lies in them, and takes a dozen pages.
    if place.0 >= HUGE {
        ram.system_starts();
    }
    let mut loader = Loader { ram, mapped_bytes: 0 };
    kernel.write(&mut loader, place)?;
    let initrd = match request.initrd {
        Some(image) => Some(loader.initrd(image, &kernel, &map, place)?),
        None => None,
    };

    let text = [command_line.as_bytes(), &[0]].concat();
    memory
        .write_slice(&text, GuestAddress(layout::COMMAND_LINE))
        .map_err(|source| BootError::Memory { what: "command line", source })?;
    let rsdp = match platform {
        Platform::Acpi => Some(x86::acpi::write(memory, request.cpus, request.transports)?),
        Platform::MpTable => {
            x86::mptable::write(memory, request.cpus, lines(request.transports), request.legacy_pic)?;
            None
        }
    };
    let entries = map.entries();
    let state = if let Some(entry) = kernel.pvh_entry() {
        x86::pvh::write_start_info(memory, &entries, initrd, rsdp)?;
        x86::entry::protected_mode(memory, entry)?
    } else {
        let image = kernel.image().map(|image| (image, place.0));
        let command_line_len = command_line.len();
        ZeroPage { image, initrd, command_line_len, rsdp, seed: request.seed, map: &entries }
            .write(memory)?;
        x86::entry::long_mode(memory, kernel.entry(place.0), place.1)?
    };
    let says_kernel =
        kernel.is_linux() || matches!(&kernel.form, Form::Elf(elf, _) if elf.pvh_entry.is_some());
    Ok(Loaded {
        state: BootState::X86(state),
        platform,
        kind: kernel.kind,
        kernel: place,
        initrd,
        mapped_bytes: loader.mapped_bytes,
        says_kernel,
    })
}

/// Interrupt lines of a machine with these transports: those up to the last that one, or the serial port, uses.
#[must_use]
pub fn lines(transports: &[Transport]) -> u32 {
    transports.iter().map(|transport| transport.gsi).fold(layout::COM1_GSI, u32::max) + 1
}

fn check_transports(transports: &[Transport]) -> Result<(), BootError> {
    for transport in transports {
        let end = transport.address.saturating_add(layout::VIRTIO_STRIDE);
        if transport.gsi >= layout::IO_APIC_PINS || end > layout::HIGH_RAM {
            let place = format!("at {:#x} on line {}", transport.address, transport.gsi);
            return Err(BootError::Undescribable(format!(
                "a virtio device {place} cannot be described: below 4 GiB and line 24 they can"
            )));
        }
    }
    Ok(())
}

/// The monitor's arguments, then the user's: what follows `--` there belongs to the guest's init.
///
/// A Linux with memory above 4 GiB sets 64 MiB of it aside, through which devices of 32 bits could reach the rest. No device here is
/// one, so it is told not to, unless `bounce` or the user speaks of it.
fn command_line(
    request: &Request<'_>,
    platform: Platform,
    bounce: bool,
    limit: usize,
) -> Result<String, BootError> {
    use std::fmt::Write;
    let mut text = String::new();
    if !bounce && !request.command_line.contains("swiotlb=") {
        text.push_str("swiotlb=noforce ");
    }
    if platform == Platform::MpTable {
        for transport in request.transports {
            let _ = write!(
                text,
                "virtio_mmio.device={}K@{:#x}:{} ",
                layout::VIRTIO_STRIDE >> 10,
                transport.address,
                transport.gsi
            );
        }
    }
    let own = text.len();
    text.push_str(request.command_line);
    text.truncate(text.trim_end().len());
    if text.contains('\0') {
        return Err(BootError::CommandLineNul);
    }
    let limit = limit.min(layout::COMMAND_LINE_MAX - 1);
    if text.len() > limit {
        return Err(BootError::CommandLineTooLong { len: text.len(), own, limit });
    }
    Ok(text)
}

/// A kernel whose headers were read and checked.
struct Kernel<'a> {
    source: Source<'a>,
    kind: String,
    form: Form,
    pvh: bool,
}

enum Form {
    /// Entered in 64-bit mode, or by PVH. The header is that of the bzImage it came from.
    Elf(Elf, Option<BzImage>),
    /// Unpacks itself.
    BzImage(BzImage),
}

impl<'a> Kernel<'a> {
    fn open(request: &Request<'a>) -> Result<Self, BootError> {
        let name = request.kernel.name;
        let mut source = Source::open(name, request.kernel.bytes)?;
        let mut kind = String::new();
        let mut head = source.head(0x400)?;
        if let Some(format) = Format::detect(&head) {
            if source.len() > UNPACKED_MAX {
                let (len, limit) = (source.len(), UNPACKED_MAX);
                let why = format!("is too large for a kernel: {len} bytes, at most {limit} are read");
                return Err(BootError::unfit(name, why));
            }
            let whole = (0, source.len());
            let bytes = compress::unpack(&source, format, whole, source.len() * 4, UNPACKED_MAX)?;
            if bytes.is_empty() {
                return Err(BootError::unknown_format(name));
            }
            source = Source::unpacked(name, bytes);
            head = source.head(0x400)?;
            kind = format!("{}-compressed ", format.name());
        }
        if head.starts_with(elf::MAGIC) {
            kind.push_str("ELF");
            Self::elf(request.protocol, source, kind, None)
        } else if bzimage::detect(&head) {
            kind.push_str("bzImage");
            Self::bzimage(request.protocol, source, kind)
        } else if head.get(56..60) == Some(b"ARM\x64") {
            Err(BootError::wrong_machine(name, "AArch64"))
        } else {
            Err(BootError::unknown_format(name))
        }
    }

    fn elf(
        protocol: BootProtocol,
        source: Source<'a>,
        kind: String,
        outer: Option<BzImage>,
    ) -> Result<Self, BootError> {
        let wrong = |protocol, reason| {
            Err(BootError::WrongProtocol { file: source.name().to_owned(), protocol, reason })
        };
        let elf = Elf::parse(&source)?;
        let pvh = protocol == BootProtocol::Pvh;
        if pvh && elf.pvh_entry.is_none() {
            return wrong("PVH", "it has no PVH entry (CONFIG_PVH)");
        }
        if protocol == BootProtocol::Bzimage {
            return wrong("bzImage", "it is an ELF file");
        }
        let kind = format!("{kind}, {} entry", if pvh { "PVH" } else { "64-bit" });
        Ok(Self { source, kind, form: Form::Elf(elf, outer), pvh })
    }

    fn bzimage(protocol: BootProtocol, source: Source<'a>, kind: String) -> Result<Self, BootError> {
        let image = BzImage::parse(&source)?;
        let inside = matches!(protocol, BootProtocol::Elf64 | BootProtocol::Pvh);
        let packed = if inside { image.packed_kernel(&source)? } else { None };
        if let Some(Packed { format, range, size }) = packed {
            let bytes = compress::unpack(&source, format, range, size, UNPACKED_MAX)?;
            let kind = format!("{kind}, {} payload unpacked", format.name());
            let source = Source::unpacked(source.name(), bytes);
            return Self::elf(protocol, source, kind, Some(image));
        }
        let wrong = |protocol| {
            let reason = "it is a bzImage whose compressed kernel cannot be unpacked here";
            Err(BootError::WrongProtocol { file: source.name().to_owned(), protocol, reason })
        };
        match protocol {
            BootProtocol::Elf64 => wrong("ELF"),
            BootProtocol::Pvh => wrong("PVH"),
            BootProtocol::Auto | BootProtocol::Bzimage => {
                let kind = format!("{kind}, unpacking itself");
                Ok(Self { source, kind, form: Form::BzImage(image), pvh: false })
            }
        }
    }

    fn platform(&self) -> Option<Platform> {
        match &self.form {
            Form::Elf(elf, _) => platform::of(elf, &self.source),
            Form::BzImage(image) => platform::of_release(&image.release),
        }
    }

    fn image(&self) -> Option<&BzImage> {
        match &self.form {
            Form::Elf(_, image) => image.as_ref(),
            Form::BzImage(image) => Some(image),
        }
    }

    /// Whether it says of itself that it is Linux.
    fn is_linux(&self) -> bool {
        match &self.form {
            Form::Elf(_, Some(_)) | Form::BzImage(_) => true,
            Form::Elf(elf, None) => elf.linux,
        }
    }

    fn command_line_max(&self) -> usize {
        match &self.form {
            Form::Elf(_, Some(image)) | Form::BzImage(image) => image.command_line_max,
            Form::Elf(elf, None) if elf.linux => LINUX_COMMAND_LINE_MAX,
            Form::Elf(..) => usize::MAX,
        }
    }

    fn pvh_entry(&self) -> Option<u64> {
        match &self.form {
            Form::Elf(elf, _) if self.pvh => elf.pvh_entry,
            _ => None,
        }
    }

    fn entry(&self, base: u64) -> u64 {
        match &self.form {
            Form::Elf(elf, _) => elf.entry,
            Form::BzImage(_) => BzImage::entry(base),
        }
    }

    /// Where the kernel will lie, first byte and end: all of it memory, none of it where tables are.
    fn place(&self, map: &Map) -> Result<(u64, u64), BootError> {
        let file = || self.source.name().to_owned();
        let (start, end) = match &self.form {
            Form::Elf(elf, _) => (elf.start(), elf.end()),
            Form::BzImage(image) => {
                let (wanted, len) = (image.preferred, image.init_size);
                let lowest = image.alignment.map(|align| layout::HIGH_MEMORY.next_multiple_of(align));
                // It wants its preferred address, and takes the lowest when memory ends before.
                let base = match lowest {
                    Some(low) if !map.holds(wanted, wanted + len) && map.holds(low, low + len) => low,
                    _ => wanted,
                };
                (base, base + len)
            }
        };
        if start < layout::HIGH_MEMORY {
            let why = format!("wants to lie at {start:#x}: kernels load at 1 MiB or above");
            return Err(BootError::Unplaceable { file: file(), why });
        }
        if map.holds(start, end) && end <= IDENTITY_MAX {
            return Ok((start, end));
        }
        let needs = if end <= layout::MMIO_GAP {
            end
        } else if start >= layout::HIGH_RAM && end <= IDENTITY_MAX {
            end - layout::HIGH_RAM + layout::MMIO_GAP
        } else {
            let why = format!("wants to lie at {start:#x} to {end:#x}, where no machine has memory");
            return Err(BootError::Unplaceable { file: file(), why });
        };
        let memory = map.total() >> 20;
        let what =
            format!("needs guest memory from {start:#x} to {end:#x}, and the machine has {memory} MiB");
        Err(BootError::TooLittleMemory { file: file(), what, needs: needs.div_ceil(1 << 20) })
    }

    fn write(&self, loader: &mut Loader<'_>, place: (u64, u64)) -> Result<(), BootError> {
        match &self.form {
            Form::Elf(elf, _) => elf.segments.iter().try_for_each(|segment| {
                let range = (segment.offset, segment.file_len);
                loader.put(&self.source, segment.guest, range, "segments")
            }),
            Form::BzImage(image) => loader.put(&self.source, place.0, image.body, "kernel"),
        }
    }

    /// Ends of memory that an initrd may lie below, the preferred one first.
    fn initrd_limits(&self) -> [u64; 2] {
        match &self.form {
            _ if self.pvh => [layout::HIGH_RAM; 2],
            Form::Elf(..) => [layout::HIGH_RAM, u64::MAX],
            Form::BzImage(image) if image.initrd_high => [image.initrd_max + 1, u64::MAX],
            Form::BzImage(image) => [image.initrd_max + 1; 2],
        }
    }
}

/// Writes files into guest memory, and counts what it mapped.
struct Loader<'a> {
    ram: &'a GuestRam,
    mapped_bytes: u64,
}

impl Loader<'_> {
    /// Puts `len` bytes of `source` at `offset` into guest memory at `guest`: whole pages are mapped where that is allowed and
    /// possible, the rest is copied. The caller has checked that memory is there.
    fn put(
        &mut self,
        source: &Source<'_>,
        guest: u64,
        (offset, len): (u64, u64),
        what: &'static str,
    ) -> Result<(), BootError> {
        let first = guest.next_multiple_of(PAGE);
        let last = (guest + len) & !(PAGE - 1);
        let before = first - guest;
        source.check(offset, len, what)?;
        let place = match last.checked_sub(first) {
            Some(pages) if pages >= MAP_MIN => source.mappable(offset + before, pages),
            _ => None,
        };
        let memory = self.ram.memory();
        let Some(place) = place.filter(|place| place.offset.is_multiple_of(PAGE)) else {
            return source.copy_to(memory, guest, offset, len, what);
        };
        self.ram
            .map_file(first, place.file, place.offset, last - first)
            .map_err(|error| BootError::Map { file: source.name().to_owned(), source: error })?;
        self.mapped_bytes += last - first;
        source.copy_to(memory, guest, offset, before, what)?;
        let done = last - guest;
        source.copy_to(memory, last, offset + done, len - done, what)
    }

    /// Places and writes the initrd; gives its address and length.
    fn initrd(
        &mut self,
        image: Image<'_>,
        kernel: &Kernel<'_>,
        map: &Map,
        taken: (u64, u64),
    ) -> Result<(u64, u64), BootError> {
        let source = Source::open(image.name, image.bytes)?;
        let len = source.len();
        let limits = kernel.initrd_limits();
        // Behind an ELF kernel, whose end is known, in pages that the host gives it anyway. What a bzImage needs when it unpacks itself
        // lies there, so its initrd is as far away as can be.
        let behind = match kernel.form {
            Form::Elf(..) => map.lowest(len, taken.1, limits[0]),
            Form::BzImage(_) => None,
        };
        let place = behind.or_else(|| limits.iter().find_map(|&limit| map.highest(len, limit, taken)));
        let Some(guest) = place else {
            let file = image.name.to_owned();
            let end = taken.1.saturating_add(len).saturating_add(PAGE);
            return Err(if end > limits[1] || end > layout::MMIO_GAP && limits[1] <= layout::HIGH_RAM {
                let limit = limits[1].min(layout::MMIO_GAP);
                let why = format!(
                    "is an initrd of {len} bytes, more than this kernel can be given below {limit:#x}"
                );
                BootError::Unplaceable { file, why }
            } else {
                let memory = map.total() >> 20;
                let what = format!(
                    "is an initrd of {len} bytes, which does not fit beside the kernel in the machine's {memory} MiB"
                );
                BootError::TooLittleMemory { file, what, needs: end.div_ceil(1 << 20) }
            });
        };
        self.put(&source, guest, (0, len), "initrd")?;
        Ok((guest, len))
    }
}

#[cfg(test)]
mod tests;
