//! bzImage: Linux's boot protocol for x86 (Documentation/arch/x86/boot.rst), 2.12 and later.

use super::MACHINE;
use super::elf::{u16_at, u32_at, u64_at};
use crate::boot::compress::Format;
use crate::boot::error::BootError;
use crate::boot::source::Source;
use crate::sys::{at_most, fits};

/// Where the set-up header begins in the file, and in the zero page.
pub(super) const SETUP_HEADER: usize = 0x1f1;
/// `HdrS`.
const MAGIC_AT: usize = 0x202;
/// As much of the file as every field that is read lies in.
const HEAD: usize = 0x268;
/// Most bytes of the header: it ends where the zero page has the EDD signatures.
const SETUP_HEADER_END_MAX: usize = 0x290;
const XLF_KERNEL_64: u16 = 1;
const XLF_ABOVE_4G: u16 = 2;
/// The 64-bit entry lies here in the protected-mode part.
const ENTRY_64: u64 = 0x200;

/// What a bzImage says of itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BzImage {
    /// The set-up header, as it goes to the zero page at [`SETUP_HEADER`].
    pub header: Vec<u8>,
    /// The protected-mode part in the file: offset and length.
    pub body: (u64, u64),
    /// Where it wants to lie.
    pub preferred: u64,
    /// Bytes of memory that it needs from there on until it runs.
    pub init_size: u64,
    /// It may lie elsewhere, at a multiple of this.
    pub alignment: Option<u64>,
    /// Last byte that an initrd may occupy.
    pub initrd_max: u64,
    /// The initrd may lie above 4 GiB.
    pub initrd_high: bool,
    /// Bytes of the command line it reads, without the NUL.
    pub command_line_max: usize,
    /// The compressed kernel in the file, offset and length, if the header names one.
    pub payload: Option<(u64, u64)>,
    /// `uname -r` of the kernel inside, as far as the header says it.
    pub release: Vec<u8>,
}

/// The first word of the version text that lies 0x200 bytes behind `pointer`, which is 0 if there
/// is none.
fn release(source: &Source<'_>, pointer: u16) -> Vec<u8> {
    let mut text = [0; 64];
    if pointer == 0 || source.read(u64::from(pointer) + 0x200, &mut text, "version").is_err() {
        return Vec::new();
    }
    text.split(|&byte| byte == b' ' || byte == 0).next().unwrap_or_default().to_vec()
}

/// The compressed kernel inside.
pub(super) struct Packed {
    /// How it is compressed.
    pub format: Format,
    /// Its bytes in the file: offset and length.
    pub range: (u64, u64),
    /// What it unpacks to in bytes, by the build's word.
    pub size: u64,
}

/// Whether `head`, the first bytes of a file, is that of a Linux boot image of some kind.
pub(super) fn detect(head: &[u8]) -> bool {
    head.get(MAGIC_AT..MAGIC_AT + 4) == Some(b"HdrS") && head.get(0x1fe..0x200) == Some(&[0x55, 0xaa])
}

impl BzImage {
    /// Reads the header.
    pub(super) fn parse(source: &Source<'_>) -> Result<Self, BootError> {
        let corrupt = |what| BootError::corrupt(source.name(), what);
        let mut head = vec![0; HEAD];
        source.read(0, &mut head, "set-up header")?;
        let [minor, major] = u16_at(&head, 0x206).to_le_bytes();
        if (major, minor) < (2, 12) {
            let why = format!("has boot protocol {major}.{minor:02}; 2.12 (Linux 3.8) or later is needed");
            return Err(BootError::unfit(source.name(), why));
        }
        if head[0x211] & 1 == 0 {
            return Err(corrupt("it is a zImage, which loads below 1 MiB"));
        }
        let features = u16_at(&head, 0x236);
        if features & XLF_KERNEL_64 == 0 {
            return Err(BootError::wrong_machine(source.name(), "32-bit x86", MACHINE));
        }
        let header_end = MAGIC_AT + usize::from(head[0x201]);
        if !(HEAD..=SETUP_HEADER_END_MAX).contains(&header_end) {
            return Err(corrupt("its set-up header has an invalid length"));
        }
        let mut header = vec![0; header_end - SETUP_HEADER];
        source.read(SETUP_HEADER as u64, &mut header, "set-up header")?;

        let sectors = if head[SETUP_HEADER] == 0 { 4 } else { u64::from(head[SETUP_HEADER]) };
        let body = (sectors + 1) * 512;
        // syssize is what the build wrote; signatures may follow it.
        let len = u64::from(u32_at(&head, 0x1f4)) * 16;
        source.check(body, len, "kernel")?;
        if len <= ENTRY_64 {
            return Err(corrupt("there is no kernel after its set-up code"));
        }
        let (payload_at, payload_len) = (u64::from(u32_at(&head, 0x248)), u64::from(u32_at(&head, 0x24c)));
        if payload_at.saturating_add(payload_len) > len {
            return Err(corrupt("its compressed kernel extends beyond the end of the file"));
        }
        let alignment = u64::from(u32_at(&head, 0x230));
        if head[0x234] != 0 && !alignment.is_power_of_two() {
            return Err(corrupt("its alignment is not a power of two"));
        }
        let preferred = u64_at(&head, 0x258);
        let init_size = u64::from(u32_at(&head, 0x260)).max(len);
        if preferred.checked_add(init_size).is_none() {
            return Err(corrupt("it would be loaded beyond the end of the address space"));
        }
        Ok(Self {
            header,
            body: (body, len),
            preferred,
            init_size,
            alignment: (head[0x234] != 0).then_some(alignment.max(4096)),
            initrd_max: u64::from(u32_at(&head, 0x22c)),
            initrd_high: features & XLF_ABOVE_4G != 0,
            command_line_max: fits(u32_at(&head, 0x238), "hosts of Nelly have 64 bits"),
            payload: (payload_len > 4).then_some((body + payload_at, payload_len)),
            release: release(source, u16_at(&head, 0x20e)),
        })
    }

    /// Where its 64-bit entry is when it lies at `base`.
    pub(super) fn entry(base: u64) -> u64 {
        base + ENTRY_64
    }

    /// The compressed kernel inside, if it can be unpacked here.
    pub(super) fn packed_kernel(&self, source: &Source<'_>) -> Result<Option<Packed>, BootError> {
        let Some((at, len)) = self.payload else { return Ok(None) };
        let mut magic = [0; 6];
        source.read(at, &mut magic[..at_most(len, 6)], "compressed kernel")?;
        let Some(format) = Format::detect(&magic).filter(|format| !matches!(format, Format::Other(_))) else {
            return Ok(None);
        };
        let mut size = [0; 4];
        source.read(at + len - 4, &mut size, "compressed kernel")?;
        Ok(Some(Packed { format, range: (at, len), size: u64::from(u32::from_le_bytes(size)) }))
    }
}
