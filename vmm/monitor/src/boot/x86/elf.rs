//! ELF kernels: headers read in place and checked, segments, notes, named sections.
//!
//! # What makes a kernel's segments mappable
//!
//! A segment's whole pages are mapped instead of copied when its offset in the file and its
//! physical address are equal modulo
//! 4096. A linker does that when `max-page-size` is 4096 or more, which is its default for x86-64
//!       (Linux's own link script aligns segments to 2 MiB); `strip` and `objcopy` keep it. Pages
//!       that a segment covers only in part, and what follows the file's bytes (`.bss`), are copied
//!       or left zero.

use super::MACHINE;
use crate::boot::error::BootError;
use crate::boot::source::Source;
use crate::sys::fits;

/// The four bytes an ELF file begins with.
pub(super) const MAGIC: &[u8] = b"\x7fELF";

const EHDR_LEN: usize = 64;
const PHDR_LEN: usize = 56;
const SHDR_LEN: usize = 64;
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;
const SHT_NOBITS: u32 = 8;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_X86_64: u16 = 62;
/// Kernels have five or so; a program, a dozen.
const MAX_SEGMENTS: u16 = 128;
/// A kernel linked with a section a function has some hundred thousand, but then it is not one to
/// boot.
const MAX_SECTIONS: u16 = 8192;
const MAX_NAMES: u64 = 1 << 20;
const MAX_NOTES: u64 = 1 << 20;
const NOTE_PVH_ENTRY: u32 = 18; // XEN_ELFNOTE_PHYS32_ENTRY

/// One segment to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ElfSegment {
    /// Its bytes in the file.
    pub offset: u64,
    /// How many of them.
    pub file_len: u64,
    /// Guest physical address.
    pub guest: u64,
    /// Virtual address, by which `e_entry` is translated if it is not physical.
    pub virt: u64,
    /// Length in memory: what the file does not give is zero.
    pub memory_len: u64,
}

impl ElfSegment {
    /// Where it ends in guest memory.
    pub(super) fn end(&self) -> u64 {
        self.guest + self.memory_len
    }
}

/// A range of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// What an ELF kernel says of itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Elf {
    /// Where it starts in 64-bit mode, guest physical.
    pub entry: u64,
    /// Where it starts by PVH, guest physical.
    pub pvh_entry: Option<u64>,
    /// Its notes name Linux.
    pub linux: bool,
    /// To load, never empty; addresses and lengths were checked for overflow.
    pub segments: Vec<ElfSegment>,
    sections: Range,
    section_count: u16,
    names_index: u16,
}

impl Elf {
    /// Reads the headers.
    pub(super) fn parse(source: &Source<'_>) -> Result<Self, BootError> {
        let corrupt = |what| BootError::corrupt(source.name(), what);
        let mut header = [0; EHDR_LEN];
        source.read(0, &mut header, "ELF header")?;
        check_identity(source.name(), &header)?;
        if usize::from(u16_at(&header, 54)) != PHDR_LEN {
            return Err(corrupt("its program headers have an invalid size"));
        }
        let (table, count) = (u64_at(&header, 32), u16_at(&header, 56));
        if count == 0 || count > MAX_SEGMENTS {
            return Err(corrupt("it has no segments, or too many of them"));
        }
        let mut headers = vec![0; usize::from(count) * PHDR_LEN];
        source.read(table, &mut headers, "program headers")?;

        let mut elf = Self {
            entry: 0,
            pvh_entry: None,
            linux: false,
            segments: Vec::new(),
            sections: Range {
                offset: u64_at(&header, 40),
                len: u64::from(u16_at(&header, 60)) * SHDR_LEN as u64,
            },
            section_count: u16_at(&header, 60),
            names_index: u16_at(&header, 62),
        };
        if usize::from(u16_at(&header, 58)) != SHDR_LEN || elf.section_count > MAX_SECTIONS {
            elf.section_count = 0; // Sections only help: a file without them boots.
        }
        let mut dynamic = false;
        for header in headers.chunks_exact(PHDR_LEN) {
            match u32_at(header, 0) {
                PT_LOAD => elf.segments.extend(load_segment(source, header)?),
                PT_NOTE => elf.read_notes(source, header)?,
                PT_INTERP => {
                    let why = "is a program, not a kernel: it needs a dynamic linker";
                    return Err(BootError::unfit(source.name(), why));
                }
                PT_DYNAMIC => dynamic = true,
                _ => {}
            }
        }
        // A kernel may be one that moves itself, and then it says whose.
        if dynamic && !elf.linux && elf.pvh_entry.is_none() {
            let why = "is a program or a library, not a kernel: it is position-independent";
            return Err(BootError::unfit(source.name(), why));
        }
        if elf.segments.is_empty() {
            return Err(corrupt("it has no loadable segment"));
        }
        elf.entry = elf.physical_entry(source.name(), u64_at(&header, 24))?;
        if let Some(entry) = elf.pvh_entry
            && !elf.segments.iter().any(|s| (s.guest..s.end()).contains(&entry))
        {
            return Err(BootError::entry_outside(source.name(), entry));
        }
        Ok(elf)
    }

    /// First byte that its segments occupy in guest memory.
    pub(super) fn start(&self) -> u64 {
        self.segments.iter().map(|segment| segment.guest).min().unwrap_or(0)
    }

    /// Where its segments end in guest memory.
    pub(super) fn end(&self) -> u64 {
        self.segments.iter().map(ElfSegment::end).max().unwrap_or(0)
    }

    /// The section called `name`, if there is one with bytes in the file. Sections are a help, not
    /// a need: whatever is wrong with them makes them absent.
    pub(super) fn section(&self, source: &Source<'_>, name: &str) -> Option<Range> {
        if self.section_count == 0 || self.names_index >= self.section_count {
            return None;
        }
        let mut headers = vec![0; usize::from(self.section_count) * SHDR_LEN];
        source.read(self.sections.offset, &mut headers, "section headers").ok()?;
        let names_header = headers.chunks_exact(SHDR_LEN).nth(usize::from(self.names_index))?;
        let names_len = u64_at(names_header, 32).min(MAX_NAMES);
        let mut names = vec![0; usize::try_from(names_len).ok()?];
        source.read(u64_at(names_header, 24), &mut names, "section names").ok()?;
        headers.chunks_exact(SHDR_LEN).find_map(|header| {
            let at = usize::try_from(u32_at(header, 0)).ok()?;
            let rest = names.get(at..)?.strip_prefix(name.as_bytes())?;
            let range = Range { offset: u64_at(header, 24), len: u64_at(header, 32) };
            let whole = rest.first() == Some(&0) && u32_at(header, 4) != SHT_NOBITS;
            (whole && source.check(range.offset, range.len, "section").is_ok()).then_some(range)
        })
    }

    fn read_notes(&mut self, source: &Source<'_>, header: &[u8]) -> Result<(), BootError> {
        let len = u64_at(header, 32);
        if len > MAX_NOTES {
            return Err(BootError::corrupt(source.name(), "its notes are too long"));
        }
        let align = if u64_at(header, 48) == 8 { 8 } else { 4 };
        let mut notes = vec![0; fits(len, "notes of more than a mebibyte were refused")];
        source.read(u64_at(header, 8), &mut notes, "notes")?;
        for (owner, kind, value) in (Notes { bytes: &notes, align }) {
            match (owner, kind) {
                (b"Xen\0", NOTE_PVH_ENTRY) => {
                    self.pvh_entry = match value.len() {
                        4 => Some(u64::from(u32_at(value, 0))),
                        8 => Some(u64_at(value, 0)),
                        _ => None,
                    };
                }
                (b"Linux\0", _) => self.linux = true,
                _ => {}
            }
        }
        Ok(())
    }

    /// `e_entry` of a vmlinux is physical; of a kernel that is linked high it may be virtual.
    fn physical_entry(&self, file: &str, entry: u64) -> Result<u64, BootError> {
        if self.segments.iter().any(|s| (s.guest..s.end()).contains(&entry)) {
            return Ok(entry);
        }
        self.segments
            .iter()
            .find_map(|s| {
                entry.checked_sub(s.virt).filter(|&offset| offset < s.memory_len).map(|o| s.guest + o)
            })
            .ok_or_else(|| BootError::entry_outside(file, entry))
    }
}

/// Whether `head`, a file's first bytes, are those of an ELF file for x86-64.
pub(super) fn begins(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
        && head.get(4..6) == Some(&[2, 1])
        && head.get(18..20) == Some(&EM_X86_64.to_le_bytes())
}

fn check_identity(name: &str, header: &[u8; EHDR_LEN]) -> Result<(), BootError> {
    let corrupt = |what| BootError::corrupt(name, what);
    let machine =
        if header[5] == 2 { u16::from_be_bytes([header[18], header[19]]) } else { u16_at(header, 18) };
    if header[4] != 2 || header[5] != 1 || machine != EM_X86_64 {
        if header[4] == 2 && machine == EM_X86_64 {
            return Err(corrupt("it is an x86-64 ELF file of the wrong byte order"));
        }
        return Err(BootError::wrong_machine(name, &machine_name(machine), MACHINE));
    }
    match u16_at(header, 16) {
        ET_EXEC | ET_DYN => Ok(()),
        _ => Err(corrupt("it is an ELF file, but not an executable")),
    }
}

/// The processor an `e_machine` stands for.
fn machine_name(machine: u16) -> String {
    match machine {
        3 => "32-bit x86",
        8 => "MIPS",
        20 => "32-bit PowerPC",
        21 => "PowerPC",
        22 => "s390",
        40 => "32-bit ARM",
        EM_X86_64 => "x86-64 with 32-bit addresses",
        183 => "AArch64",
        243 => "RISC-V",
        258 => "LoongArch",
        other => return format!("an unknown processor (ELF machine {other})"),
    }
    .to_owned()
}

fn load_segment(source: &Source<'_>, header: &[u8]) -> Result<Option<ElfSegment>, BootError> {
    let corrupt = |what| BootError::corrupt(source.name(), what);
    let segment = ElfSegment {
        offset: u64_at(header, 8),
        virt: u64_at(header, 16),
        guest: u64_at(header, 24),
        file_len: u64_at(header, 32),
        memory_len: u64_at(header, 40),
    };
    if segment.file_len > segment.memory_len {
        return Err(corrupt("a segment has more bytes in the file than in memory"));
    }
    if segment.guest.checked_add(segment.memory_len).is_none() {
        return Err(corrupt("a segment extends beyond the end of the address space"));
    }
    source.check(segment.offset, segment.file_len, "segments")?;
    Ok((segment.memory_len > 0).then_some(segment))
}

/// The notes of a note segment. Ends at the first one that is not whole.
struct Notes<'a> {
    bytes: &'a [u8],
    align: usize,
}

impl<'a> Iterator for Notes<'a> {
    type Item = (&'a [u8], u32, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.bytes.get(..12)?;
        let owner_len = usize::try_from(u32_at(header, 0)).ok()?;
        let value_len = usize::try_from(u32_at(header, 4)).ok()?;
        let value_at = 12_usize.checked_add(owner_len)?.checked_next_multiple_of(self.align)?;
        let value_end = value_at.checked_add(value_len)?;
        let owner = self.bytes.get(12..12 + owner_len)?;
        let value = self.bytes.get(value_at..value_end)?;
        // The padding behind the last value may be missing.
        let next = value_end.checked_next_multiple_of(self.align)?.min(self.bytes.len());
        self.bytes = &self.bytes[next..];
        Some((owner, u32_at(header, 8), value))
    }
}

/// Little-endian fields of a header whose length the caller knows.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// See [`u16_at`].
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

/// See [`u16_at`].
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
