//! How the monitor knows what a kernel reads: an MP table and device arguments, or ACPI.
//!
//! A device is never described both ways, so the choice is made before anything is written:
//!
//! 1. what the configuration says (`platform`): the command line takes it from the manifest beside its own kernel, and then nothing
//!    of the kernel is searched;
//! 2. an ELF section `.nelly.platform` that holds the word `mptable` or `acpi` and is not loaded, which our kernel's build adds:
//!    `objcopy --add-section .nelly.platform=FILE vmlinux`. Finding it takes three small reads;
//! 3. the kernel's own configuration (`CONFIG_IKCONFIG`), searched in the section `.rodata`: ACPI if it has `CONFIG_ACPI`, else an MP
//!    table if it has both `CONFIG_X86_MPPARSE` and `CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES`;
//! 4. of a bzImage that unpacks itself, which cannot be searched, its release: `-nelly` in it is our own build's local version, and an
//!    MP table;
//! 5. ACPI, which every stock kernel reads.

use std::io::Read;

use memchr::memmem;

use super::elf::{Elf, Range};
use super::source::Source;

/// How the machine describes itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    /// An MP table, and `virtio_mmio.device=` arguments.
    MpTable,
    /// ACPI with reduced hardware.
    Acpi,
}

/// The section that says it in a word.
const SECTION: &str = ".nelly.platform";
/// `CONFIG_LOCALVERSION` of our own kernel.
const LOCAL_VERSION: &[u8] = b"-nelly";
const CONFIG_START: &[u8] = b"IKCFG_ST";
/// Most bytes that are searched for a kernel's configuration; Debian's `.rodata` has 6 MiB.
const SEARCH_MAX: u64 = 64 << 20;
const CHUNK: usize = 256 << 10;
/// Most bytes of a configuration, unpacked: Debian's has 130 KiB.
const CONFIG_MAX: u64 = 1 << 20;

/// What `elf` reads, if it says so.
pub(super) fn of(elf: &Elf, source: &Source<'_>) -> Option<Platform> {
    by_section(elf, source).or_else(|| by_config(elf, source))
}

/// What a kernel of this release reads, if it is one of ours.
pub(super) fn of_release(release: &[u8]) -> Option<Platform> {
    memmem::find(release, LOCAL_VERSION).map(|_| Platform::MpTable)
}

fn by_section(elf: &Elf, source: &Source<'_>) -> Option<Platform> {
    let range = elf.section(source, SECTION)?;
    let mut word = [0; 16];
    let word = &mut word[..usize::try_from(range.len).ok().filter(|&len| len <= 16)?];
    source.read(range.offset, word, "section").ok()?;
    match word.trim_ascii_end().split(|&byte| byte == 0 || byte == b'\n').next()? {
        b"mptable" => Some(Platform::MpTable),
        b"acpi" => Some(Platform::Acpi),
        _ => None,
    }
}

fn by_config(elf: &Elf, source: &Source<'_>) -> Option<Platform> {
    let range = elf.section(source, ".rodata")?;
    let start = find(source, range)?;
    let end = range.offset + range.len;
    let packed = source.reader(start, end.saturating_sub(start));
    let mut config = Vec::new();
    // Whatever can be read of it counts: a damaged configuration must not keep a kernel from booting.
    let reader = std::io::BufReader::with_capacity(16 << 10, packed);
    let _ = flate2::bufread::GzDecoder::new(reader).take(CONFIG_MAX).read_to_end(&mut config);
    let has = |option: &[u8]| config.split(|&byte| byte == b'\n').any(|line| line == option);
    if has(b"CONFIG_ACPI=y") {
        Some(Platform::Acpi)
    } else if has(b"CONFIG_X86_MPPARSE=y") && has(b"CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES=y") {
        Some(Platform::MpTable)
    } else {
        None
    }
}

/// Where the packed configuration begins in the file.
fn find(source: &Source<'_>, range: Range) -> Option<u64> {
    let finder = memmem::Finder::new(CONFIG_START);
    let end = range.offset.checked_add(range.len.min(SEARCH_MAX))?;
    let mut buffer = vec![0; CHUNK];
    let mut at = range.offset;
    while at < end {
        let len = usize::try_from(end - at).map_or(CHUNK, |left| left.min(CHUNK));
        let chunk = &mut buffer[..len];
        source.read(at, chunk, "section").ok()?;
        if let Some(found) = finder.find(chunk) {
            return at.checked_add((found + CONFIG_START.len()) as u64);
        }
        // The mark may lie across two chunks.
        let step = len.saturating_sub(CONFIG_START.len() - 1);
        if step == 0 || len < CHUNK {
            return None;
        }
        at += step as u64;
    }
    None
}
