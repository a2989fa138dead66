//! A kernel that unpacks itself with EFI (drivers/firmware/efi/libstub/zboot-header.S of Linux): a
//! program for EFI around a compressed Image, which is unpacked here instead.

use super::MACHINE;
use crate::boot::compress::{self, Format, UNPACKED_MAX};
use crate::boot::error::BootError;
use crate::boot::source::Source;
use crate::sys::{at_most, fits};

/// At byte 4 of the file, behind `MZ`.
const MAGIC: &[u8] = b"zimg";
/// Where the compressed Image is in the file, and how many bytes it has: 32 bits each.
const PAYLOAD_OFFSET_AT: usize = 8;
const PAYLOAD_LEN_AT: usize = 12;
/// The name of the compression, which ends with a zero byte.
const NAME: std::ops::Range<usize> = 24..56;
/// Where the header of the program for EFI is.
const PE_AT: usize = 60;
/// That header's first bytes; the processor's number follows.
const PE_MAGIC: &[u8] = b"PE\0\0";
/// Its number of 64-bit Arm.
const PE_ARM64: u16 = 0xaa64;
/// Bytes of the header.
const LEN: usize = 64;

/// Whether a file that begins so is one.
pub(super) fn detect(head: &[u8]) -> bool {
    head.starts_with(b"MZ") && head.get(4..8) == Some(MAGIC)
}

/// Whether `head`, a file's first bytes, are those of one for 64-bit Arm.
pub(super) fn begins(head: &[u8]) -> bool {
    let word = head.get(PE_AT..LEN).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
    detect(head) && word.and_then(|at| pe_machine(head, at)) == Some(PE_ARM64)
}

/// Unpacks the Image inside; also how it was compressed.
pub(super) fn unpack(source: &Source<'_>, head: &[u8]) -> Result<(Vec<u8>, Format), BootError> {
    let name = source.name();
    let word = |at: usize| {
        let bytes = head.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes
            .map(u32::from_le_bytes)
            .ok_or_else(|| BootError::truncated(name, "header for EFI", LEN as u64, source.len()))
    };
    let (offset, len) = (u64::from(word(PAYLOAD_OFFSET_AT)?), u64::from(word(PAYLOAD_LEN_AT)?));
    check_machine(name, head, word(PE_AT)?)?;
    if offset < LEN as u64 {
        return Err(BootError::corrupt(name, "its compressed kernel begins in its header"));
    }
    source.check(offset, len, "compressed kernel")?;
    let mut magic = vec![0; at_most(len, 8)];
    source.read(offset, &mut magic, "compressed kernel")?;
    let said = said_format(head);
    let Some(format) = Format::detect(&magic) else {
        let what =
            format!("its compressed kernel is not compressed by {said}, as its header says, nor otherwise");
        return Err(BootError::corrupt(name, &what));
    };
    // "xzkern" and "zstd22" are how the kernel's build calls them.
    if !said.starts_with(format.name()) {
        let what = format!("its compressed kernel is {}, and its header says {said}", format.name());
        return Err(BootError::corrupt(name, &what));
    }
    let image = compress::unpack(source, format, (offset, len), len.saturating_mul(4), UNPACKED_MAX)?;
    Ok((image, format))
}

/// The name of the compression, fit to be shown.
fn said_format(head: &[u8]) -> String {
    let name = head.get(NAME).unwrap_or_default();
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    let good = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    if !name.is_empty() && name.iter().all(good) {
        String::from_utf8_lossy(name).into_owned()
    } else {
        "nothing that has a name".to_owned()
    }
}

/// Refuses one for another processor; a header that does not say is no reason.
fn check_machine(name: &str, head: &[u8], at: u32) -> Result<(), BootError> {
    match pe_machine(head, at) {
        Some(0x8664) => Err(BootError::wrong_machine(name, "x86-64", MACHINE)),
        Some(0x5064) => Err(BootError::wrong_machine(name, "64-bit RISC-V", MACHINE)),
        Some(0x6264) => Err(BootError::wrong_machine(name, "64-bit LoongArch", MACHINE)),
        Some(other) if other != PE_ARM64 => Err(BootError::wrong_machine(name, "another processor", MACHINE)),
        _ => Ok(()),
    }
}

/// The number of the processor in the header at `at` of a program for EFI.
fn pe_machine(head: &[u8], at: u32) -> Option<u16> {
    let at: usize = fits(at, "hosts of Nelly have 64 bits");
    let header = head.get(at..at.checked_add(6)?)?;
    header.starts_with(PE_MAGIC).then(|| u16::from_le_bytes([header[4], header[5]]))
}
