//! Linux's Image for arm64 (Documentation/arch/arm64/booting.rst): its header, and where it goes.

use super::{MACHINE, zboot};
use crate::arch::aarch64::{Granule, layout};
use crate::boot::compress::{self, Format};
use crate::boot::error::BootError;
use crate::boot::map::Map;
use crate::boot::source::Source;

/// Bytes of a file that tell what it is; the header is the first 64.
const HEAD_LEN: usize = 0x400;
/// `ARM\x64`.
const MAGIC: &[u8] = b"ARM\x64";
const MAGIC_AT: usize = 56;
/// `flags`: the kernel is big-endian.
const BIG_ENDIAN: u64 = 1;
/// `flags`: two bits from here on say which pages it was built for.
const PAGES: u32 = 1;
/// A kernel lies so many bytes behind a multiple of this.
const ALIGN: u64 = 2 << 20;

/// A kernel whose header was read and checked.
pub(super) struct Kernel<'a> {
    pub(super) source: Source<'a>,
    /// For people.
    pub(super) kind: String,
    /// Bytes behind a multiple of [`ALIGN`].
    text_offset: u64,
    /// Bytes of memory that it takes, what the file does not give included.
    image_size: u64,
    /// What its flags say of its pages; old kernels say nothing.
    pub(super) granule: Option<Granule>,
}

impl<'a> Kernel<'a> {
    /// Reads the header, and unpacks the kernel if it is compressed as a whole.
    pub(super) fn open(mut source: Source<'a>) -> Result<Self, BootError> {
        let name = source.name();
        let mut kind = String::from("Image");
        let mut head = source.head(HEAD_LEN)?;
        if let Some(format) = Format::detect(&head) {
            let bytes = compress::unpack_whole(&source, format)?;
            source = Source::unpacked(name, bytes);
            head = source.head(HEAD_LEN)?;
            kind = format!("{}-compressed Image", format.name());
        }
        if zboot::detect(&head) {
            let (bytes, format) = zboot::unpack(&source, &head)?;
            source = Source::unpacked(name, bytes);
            head = source.head(HEAD_LEN)?;
            kind = format!("Image in a program for EFI, {}-compressed", format.name());
        }
        if head.get(MAGIC_AT..MAGIC_AT + 4) != Some(MAGIC) {
            return Err(unknown(name, &head));
        }
        let field = |at: usize| {
            let bytes = head.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u64::from_le_bytes)
        };
        let (text_offset, image_size, flags) = (field(8), field(16), field(24));
        if image_size == 0 {
            return Err(BootError::unfit(
                name,
                "is a kernel older than Linux 3.17, whose header does not contain its size",
            ));
        }
        if flags & BIG_ENDIAN != 0 {
            return Err(BootError::unfit(name, "is a big-endian kernel"));
        }
        let granule = match flags >> PAGES & 3 {
            1 => Some(Granule::Kib4),
            2 => Some(Granule::Kib16),
            3 => Some(Granule::Kib64),
            _ => None,
        };
        if text_offset >= ALIGN {
            return Err(BootError::corrupt(name, "its text offset is 2 MiB or more"));
        }
        let image_size = image_size.max(source.len());
        if image_size > u64::MAX - layout::RAM - 2 * ALIGN {
            return Err(BootError::corrupt(name, "it would be loaded beyond the end of the address space"));
        }
        Ok(Self { source, kind, text_offset, image_size, granule })
    }

    /// Where it will lie, first byte and end: at the lowest place there is. Memory below a kernel
    /// is of less use to it.
    pub(super) fn place(&self, map: &Map) -> Result<(u64, u64), BootError> {
        let start = layout::RAM.next_multiple_of(ALIGN) + self.text_offset;
        let end = start + self.image_size;
        if map.holds(start, end) {
            return Ok((start, end));
        }
        let memory = map.total() >> 20;
        let what = format!(
            "needs guest memory from {start:#x} to {end:#x}, but the machine's memory is {memory} MiB"
        );
        let needs = (end - layout::RAM).div_ceil(1 << 20);
        Err(BootError::TooLittleMemory { file: self.source.name().to_owned(), what, needs })
    }
}

/// Whether `head`, a file's first bytes, are those of an Image, or of the ELF file that it is made
/// of.
pub(super) fn begins(head: &[u8]) -> bool {
    head.get(MAGIC_AT..MAGIC_AT + 4) == Some(MAGIC)
        || head.starts_with(b"\x7fELF\x02\x01") && head.get(18..20) == Some(&[183, 0])
}

/// What a file is that is no Image.
fn unknown(name: &str, head: &[u8]) -> BootError {
    if head.starts_with(b"\x7fELF") {
        return match (head.get(4), head.get(18..20)) {
            (Some(2), Some([62, 0])) => BootError::wrong_machine(name, "x86-64", MACHINE),
            (Some(1), Some([3, 0])) => BootError::wrong_machine(name, "32-bit x86", MACHINE),
            _ => BootError::unfit(name, "is an ELF file; a kernel for 64-bit Arm is its Image"),
        };
    }
    // The setup header of a bzImage.
    if head.get(0x202..0x206) == Some(b"HdrS") {
        return BootError::wrong_machine(name, "x86", MACHINE);
    }
    if head.starts_with(b"MZ") {
        return BootError::wrong_machine(name, "another processor, or a program for EFI", MACHINE);
    }
    BootError::unfit(name, "is not a kernel: neither an Image nor one compressed by gzip, zstd, lz4 or xz")
}
