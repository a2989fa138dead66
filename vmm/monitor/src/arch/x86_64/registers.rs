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
        let [limit_0, limit_1, base_0, base_1, base_2, access, flags, base_3] = descriptor.to_le_bytes();
        let has = |byte: u8, bit: u32| byte >> bit & 1 == 1;
        let granular = has(flags, 7);
        let limit = u32::from_le_bytes([limit_0, limit_1, flags & 0xf, 0]);
        Self {
            selector,
            base: u32::from_le_bytes([base_0, base_1, base_2, base_3]).into(),
            limit: if granular { limit << 12 | 0xfff } else { limit },
            kind: access & 0xf,
            code_or_data: has(access, 4),
            privilege: access >> 5 & 3,
            present: has(access, 7),
            long: has(flags, 5),
            default_32: has(flags, 6),
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
