//! Kernels for x86-64: an ELF file or a bzImage, perhaps compressed; what they are, and where they
//! go.

use super::MACHINE;
use super::bzimage::{self, BzImage, Packed};
use super::elf::{self, Elf};
use super::entry::IDENTITY_MAX;
use super::platform::{self, Tables};
use crate::arch::x86_64::layout;
use crate::boot::compress::{self, Format, UNPACKED_MAX};
use crate::boot::error::BootError;
use crate::boot::loader::Loader;
use crate::boot::map::Map;
use crate::boot::source::Source;
use crate::boot::{BootRequest, PAGE};
use crate::config::BootProtocol;

/// Longest command line that Linux keeps on x86, without the NUL.
const LINUX_COMMAND_LINE_MAX: usize = 2047;

/// A kernel whose headers were read and checked.
pub(super) struct Kernel<'a> {
    source: Source<'a>,
    /// For people.
    pub(super) kind: String,
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
    pub(super) fn open(request: &BootRequest<'a>) -> Result<Self, BootError> {
        let name = request.kernel.name;
        let mut source = Source::open(name, request.kernel.bytes)?;
        let mut kind = String::new();
        let mut head = source.head(0x400)?;
        if let Some(format) = Format::detect(&head) {
            let bytes = compress::unpack_whole(&source, format)?;
            if bytes.is_empty() {
                return Err(unknown_format(name));
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
            Err(BootError::wrong_machine(name, "AArch64", MACHINE))
        } else {
            Err(unknown_format(name))
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
            let reason = "it is a bzImage whose compressed kernel is in a format that is not supported";
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

    pub(super) fn platform(&self) -> Option<Tables> {
        match &self.form {
            Form::Elf(elf, _) => platform::of(elf, &self.source),
            Form::BzImage(image) => platform::of_release(&image.release),
        }
    }

    /// Whether its own configuration says that it reads a boot configuration behind its initrd.
    pub(super) fn reads_boot_config(&self) -> bool {
        match &self.form {
            Form::Elf(elf, _) => platform::has_line(elf, &self.source, "CONFIG_BOOT_CONFIG=y"),
            Form::BzImage(_) => false,
        }
    }

    pub(super) fn image(&self) -> Option<&BzImage> {
        match &self.form {
            Form::Elf(_, image) => image.as_ref(),
            Form::BzImage(image) => Some(image),
        }
    }

    /// Whether it says of itself that it is Linux.
    pub(super) fn is_linux(&self) -> bool {
        match &self.form {
            Form::Elf(_, Some(_)) | Form::BzImage(_) => true,
            Form::Elf(elf, None) => elf.linux,
        }
    }

    pub(super) fn command_line_max(&self) -> usize {
        match &self.form {
            Form::Elf(_, Some(image)) | Form::BzImage(image) => image.command_line_max,
            Form::Elf(elf, None) if elf.linux => LINUX_COMMAND_LINE_MAX,
            Form::Elf(..) => usize::MAX,
        }
    }

    pub(super) fn pvh_entry(&self) -> Option<u64> {
        match &self.form {
            Form::Elf(elf, _) if self.pvh => elf.pvh_entry,
            _ => None,
        }
    }

    pub(super) fn entry(&self, base: u64) -> u64 {
        match &self.form {
            Form::Elf(elf, _) => elf.entry,
            Form::BzImage(_) => BzImage::entry(base),
        }
    }

    /// Where the kernel will lie, first byte and end: all of it memory, none of it where tables
    /// are.
    pub(super) fn place(&self, map: &Map) -> Result<(u64, u64), BootError> {
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
            let why = format!("is linked to address {start:#x}; kernels are loaded at 1 MiB or above");
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
            let why =
                format!("is linked to addresses {start:#x} to {end:#x}, where a machine never has memory");
            return Err(BootError::Unplaceable { file: file(), why });
        };
        let memory = map.total() >> 20;
        let what = format!(
            "needs guest memory from {start:#x} to {end:#x}, but the machine's memory is {memory} MiB"
        );
        Err(BootError::TooLittleMemory { file: file(), what, needs: needs.div_ceil(1 << 20) })
    }

    pub(super) fn write(&self, loader: &mut Loader<'_>, place: (u64, u64)) -> Result<(), BootError> {
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

    /// Whether the file says of itself that it is a kernel: a bzImage, or an ELF file with notes of
    /// Linux or for PVH.
    pub(super) fn says_kernel(&self) -> bool {
        self.is_linux() || matches!(&self.form, Form::Elf(elf, _) if elf.pvh_entry.is_some())
    }

    /// Where an initrd goes that is called `file` and has `len` bytes, when the kernel lies at
    /// `taken`.
    pub(super) fn place_initrd(
        &self,
        file: &str,
        len: u64,
        map: &Map,
        taken: (u64, u64),
    ) -> Result<u64, BootError> {
        let limits = self.initrd_limits();
        // Behind an ELF kernel, whose end is known, in pages that the host gives it anyway. What a
        // bzImage needs when it unpacks itself lies there, so its initrd is as far away as can be.
        let behind = match self.form {
            Form::Elf(..) => map.lowest(len, taken.1, limits[0]),
            Form::BzImage(_) => None,
        };
        let highest = |limit| map.highest(len, layout::HIGH_MEMORY, limit, taken);
        behind.or_else(|| limits.into_iter().find_map(highest)).ok_or_else(|| {
            let end = taken.1.saturating_add(len).saturating_add(PAGE);
            if end > limits[1] || end > layout::MMIO_GAP && limits[1] <= layout::HIGH_RAM {
                BootError::initrd_unplaceable(file, len, limits[1].min(layout::MMIO_GAP))
            } else {
                BootError::initrd_too_large(file, len, map.total(), end)
            }
        })
    }
}

/// None of the known formats.
fn unknown_format(file: &str) -> BootError {
    let formats = "neither ELF nor bzImage, nor one of these compressed by gzip, zstd, lz4 or xz";
    BootError::unfit(file, format!("is not a kernel: {formats}"))
}
