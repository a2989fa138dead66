//! Segments and control registers at the guest's first instruction.

use super::{BootState, EntryMode, descriptor_table, selector};

/// A segment register with its hidden part (Intel manual, volume 3A, 3.4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Segment {
    /// Index into the descriptor table, times 8.
    pub selector: u16,
    /// Linear address.
    pub base: u64,
    /// Last offset, in bytes.
    pub limit: u32,
    /// Type, 4 bits.
    pub kind: u8,
    /// Code or data (not a system segment).
    pub code_or_data: bool,
    /// Privilege level.
    pub privilege: u8,
    /// Present.
    pub present: bool,
    /// 64-bit code.
    pub long: bool,
    /// 32-bit operands.
    pub default_32: bool,
    /// The limit counts 4 KiB.
    pub granular: bool,
}

impl Segment {
    /// What the processor makes of `descriptor` when `selector` is loaded.
    #[must_use]
    pub fn from_descriptor(selector: u16, descriptor: u64) -> Self {
        let bits = |at: u32, width: u32| (descriptor >> at) & ((1 << width) - 1);
        let granular = bits(55, 1) == 1;
        // 20 bits.
        let limit = u32::try_from(bits(48, 4) << 16 | bits(0, 16)).unwrap_or(0);
        Self {
            selector,
            base: bits(56, 8) << 24 | bits(16, 24),
            limit: if granular { limit << 12 | 0xfff } else { limit },
            kind: u8::try_from(bits(40, 4)).unwrap_or(0),
            code_or_data: bits(44, 1) == 1,
            privilege: u8::try_from(bits(45, 2)).unwrap_or(0),
            present: bits(47, 1) == 1,
            long: bits(53, 1) == 1,
            default_32: bits(54, 1) == 1,
            granular,
        }
    }
}

/// Everything but the general registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemRegisters {
    /// CS.
    pub code: Segment,
    /// DS, ES, FS, GS, SS.
    pub data: Segment,
    /// TR.
    pub task: Segment,
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// `IA32_EFER`.
    pub efer: u64,
}

const CR0_PROTECTED: u64 = 1;
/// Fixed to 1 on every processor since the 486.
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
/// Long mode enabled (bit 8) and active (bit 10).
const EFER_LONG: u64 = 1 << 8 | 1 << 10;

impl SystemRegisters {
    /// For the entry that `state` describes, with the segments of [`descriptor_table`].
    #[must_use]
    pub fn at_entry(state: &BootState) -> Self {
        let table = descriptor_table(state.mode);
        let segment = |selector: u16| Segment::from_descriptor(selector, table[usize::from(selector >> 3)]);
        let (cr0, cr3, cr4, efer) = match state.mode {
            EntryMode::Long => (CR0_PAGING, state.cr3, CR4_PHYSICAL_ADDRESS_EXTENSION, EFER_LONG),
            EntryMode::Protected => (0, 0, 0, 0),
        };
        Self {
            code: segment(selector::CODE),
            data: segment(selector::DATA),
            task: segment(selector::TASK),
            cr0: cr0 | CR0_PROTECTED | CR0_EXTENSION_TYPE,
            cr3,
            cr4,
            efer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(mode: EntryMode) -> BootState {
        BootState {
            mode,
            rip: 0x10_0000,
            rsi: 1,
            rbx: 2,
            rsp: 3,
            cr3: 0x9000,
            gdt_base: 0x500,
            gdt_limit: 39,
        }
    }

    #[test]
    fn descriptors_are_taken_apart() {
        let flat = Segment::from_descriptor(0x10, 0x00af_9b00_0000_ffff);
        assert_eq!(
            flat,
            Segment {
                selector: 0x10,
                base: 0,
                limit: u32::MAX,
                kind: 11,
                code_or_data: true,
                privilege: 0,
                present: true,
                long: true,
                default_32: false,
                granular: true
            }
        );
        let odd = Segment::from_descriptor(8, 0x1240_f356_789a_bcde);
        assert_eq!((odd.base, odd.limit, odd.privilege, odd.granular), (0x1256_789a, 0xbcde, 3, false));
    }

    #[test]
    fn the_two_entries_differ_in_mode_alone() {
        let long = SystemRegisters::at_entry(&state(EntryMode::Long));
        assert_eq!((long.cr0, long.cr3, long.cr4, long.efer), (0x8000_0011, 0x9000, 0x20, 0x500));
        assert!(long.code.long && !long.code.default_32);
        let protected = SystemRegisters::at_entry(&state(EntryMode::Protected));
        assert_eq!((protected.cr0, protected.cr3, protected.cr4, protected.efer), (0x11, 0, 0, 0));
        assert!(!protected.code.long && protected.code.default_32);
        for registers in [long, protected] {
            assert_eq!(
                (registers.task.kind, registers.task.code_or_data, registers.task.limit),
                (11, false, 0x67)
            );
            assert_eq!((registers.data.kind, registers.data.selector), (3, 0x18));
        }
    }
}
