//! Descriptor table and page tables: the mode that the first instruction runs in.

use vm_memory::{Bytes, GuestAddress};

use crate::arch::x86_64::{BootState, EntryMode, descriptor_table, layout};
use crate::boot::error::BootError;
use crate::memory::Memory;

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;
const GIB: u64 = 1 << 30;
const TABLE: u64 = 4096;

/// Page directories that fit between the two top tables and the command line: as many GiB can be
/// reached.
pub(super) const IDENTITY_MAX: u64 = (layout::COMMAND_LINE - layout::PAGE_TABLES - 2 * TABLE) / TABLE * GIB;

/// The state for Linux's 64-bit entry: RSI names the zero page, and everything up to `end` is
/// mapped to itself by 2 MiB pages (the first GiB always is, so that what lies below the kernel is
/// too). `end` is at most [`IDENTITY_MAX`].
pub(super) fn long_mode(memory: &Memory, entry: u64, end: u64) -> Result<BootState, BootError> {
    write_page_tables(memory, end.min(IDENTITY_MAX).div_ceil(GIB).max(1))?;
    write_descriptors(memory, EntryMode::Long)?;
    Ok(BootState {
        mode: EntryMode::Long,
        rip: entry,
        rsi: layout::ZERO_PAGE,
        rbx: 0,
        rsp: layout::STACK,
        cr3: layout::PAGE_TABLES,
        gdt_base: layout::GDT,
        gdt_limit: GDT_LIMIT,
    })
}

/// The state for the PVH entry: EBX names the start info, paging is off.
pub(super) fn protected_mode(memory: &Memory, entry: u64) -> Result<BootState, BootError> {
    write_descriptors(memory, EntryMode::Protected)?;
    Ok(BootState {
        mode: EntryMode::Protected,
        rip: entry,
        rsi: 0,
        rbx: layout::PVH_START_INFO,
        rsp: layout::STACK,
        cr3: 0,
        gdt_base: layout::GDT,
        gdt_limit: GDT_LIMIT,
    })
}

const GDT_LIMIT: u16 = 5 * 8 - 1;

fn write_descriptors(memory: &Memory, mode: EntryMode) -> Result<(), BootError> {
    let bytes: Vec<u8> = descriptor_table(mode).iter().flat_map(|entry| entry.to_le_bytes()).collect();
    memory
        .write_slice(&bytes, GuestAddress(layout::GDT))
        .map_err(|source| BootError::Memory { what: "descriptor table", source })
}

fn write_page_tables(memory: &Memory, gib: u64) -> Result<(), BootError> {
    let pointers = layout::PAGE_TABLES + TABLE;
    let directories = pointers + TABLE;
    let mut bytes = vec![0; 4096];
    bytes[..8].copy_from_slice(&(pointers | PRESENT_WRITABLE).to_le_bytes());
    for index in 0..gib {
        bytes.extend_from_slice(&((directories + index * TABLE) | PRESENT_WRITABLE).to_le_bytes());
    }
    bytes.resize(8192, 0);
    for page in 0..gib * 512 {
        bytes.extend_from_slice(&((page << 21) | LARGE_PAGE | PRESENT_WRITABLE).to_le_bytes());
    }
    memory
        .write_slice(&bytes, GuestAddress(layout::PAGE_TABLES))
        .map_err(|source| BootError::Memory { what: "page tables", source })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks the tables as the processor does.
    fn walk(memory: &Memory, cr3: u64, address: u64) -> Option<u64> {
        let mut table = cr3;
        for shift in [39, 30] {
            let entry: u64 = memory.read_obj(GuestAddress(table + (address >> shift & 511) * 8)).unwrap();
            if entry & 1 == 0 {
                return None;
            }
            table = entry & !0xfff;
        }
        let entry: u64 = memory.read_obj(GuestAddress(table + (address >> 21 & 511) * 8)).unwrap();
        (entry & 0x83 == 0x83).then_some((entry & !0x1f_ffff) | (address & 0x1f_ffff))
    }

    #[test]
    fn memory_is_mapped_to_itself_as_far_as_the_kernel_goes() {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        let state = long_mode(&memory, 0x20_0000, 0x1000).unwrap();
        for address in [0, layout::ZERO_PAGE, 0x12_3456, GIB - 1] {
            assert_eq!(walk(&memory, state.cr3, address), Some(address));
        }
        assert_eq!(walk(&memory, state.cr3, GIB), None);

        let state = long_mode(&memory, 0x20_0000, IDENTITY_MAX).unwrap();
        assert_eq!(walk(&memory, state.cr3, IDENTITY_MAX - 1), Some(IDENTITY_MAX - 1));
        assert_eq!(walk(&memory, state.cr3, IDENTITY_MAX), None);
        let untouched: u64 = memory.read_obj(GuestAddress(layout::COMMAND_LINE)).unwrap();
        assert_eq!(untouched, 0, "the tables end before the command line");
    }

    #[test]
    fn descriptors_are_those_of_the_mode() {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        for (state, long, big) in
            [(long_mode(&memory, 0, 0).unwrap(), 1, 0), (protected_mode(&memory, 0).unwrap(), 0, 1)]
        {
            // The state was written last for its own mode, so write it again before reading.
            write_descriptors(&memory, state.mode).unwrap();
            let code: u64 = memory
                .read_obj(GuestAddress(state.gdt_base + u64::from(crate::arch::x86_64::selector::CODE)))
                .unwrap();
            assert_eq!((code >> 53 & 1, code >> 54 & 1, code >> 43 & 1, code >> 47 & 1), (long, big, 1, 1));
            assert_eq!(u64::from(state.gdt_limit) + 1, 40);
        }
    }
}
