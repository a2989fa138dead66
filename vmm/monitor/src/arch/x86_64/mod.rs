//! x86-64: the address map and the state at the kernel's entry.

pub mod cpuid;
pub mod msr;
mod registers;

pub use registers::{Segment, SystemRegisters};

use super::InterruptLine;

/// The line of pin `number` of the I/O APIC; `None` beyond its last.
#[must_use]
pub const fn line(number: u32) -> Option<InterruptLine> {
    InterruptLine::of(number, layout::IO_APIC_PINS)
}

/// How the guest's first instruction is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryMode {
    /// 64-bit mode, paging on (Linux x86 boot protocol, "64-bit boot protocol").
    Long,
    /// 32-bit protected mode, paging off (PVH: Xen's x86/HVM direct boot ABI).
    Protected,
}

/// General registers and mode at the guest's first instruction. Descriptor and page tables are in
/// guest memory already, at the addresses of [`layout`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootState {
    /// Mode of entry.
    pub mode: EntryMode,
    /// First instruction, guest physical (identity-mapped).
    pub rip: u64,
    /// RSI: the zero page for Linux's 64-bit protocol.
    pub rsi: u64,
    /// RBX: `hvm_start_info` for PVH.
    pub rbx: u64,
    /// RSP.
    pub rsp: u64,
    /// CR3, for [`EntryMode::Long`].
    pub cr3: u64,
    /// Base of the global descriptor table.
    pub gdt_base: u64,
    /// Its limit: size in bytes less one.
    pub gdt_limit: u16,
}

/// Segment selectors of the start-up descriptor table, as Linux's 64-bit boot protocol numbers them
/// (`__BOOT_CS`, `__BOOT_DS`).
pub mod selector {
    /// Code: 64-bit for [`EntryMode::Long`](super::EntryMode::Long), flat 32-bit for PVH.
    pub const CODE: u16 = 0x10;
    /// Flat data, for DS, ES, FS, GS and SS.
    pub const DATA: u16 = 0x18;
    /// A busy task state segment with base 0: hardware wants TR to name one.
    pub const TASK: u16 = 0x20;
}

/// The start-up descriptor table, which lies at [`layout::GDT`] in guest memory: null, unused,
/// code, data, task.
#[must_use]
pub const fn descriptor_table(mode: EntryMode) -> [u64; 5] {
    let code = match mode {
        // Present, ring 0, execute and read, accessed; L set, D clear; 4 KiB granularity, limit 4
        // GiB.
        EntryMode::Long => 0x00af_9b00_0000_ffff,
        // The same with D set and L clear.
        EntryMode::Protected => 0x00cf_9b00_0000_ffff,
    };
    // Data: present, ring 0, read and write, accessed, 32-bit. Task: present, busy 32/64-bit TSS,
    // limit 0x67.
    [0, 0, code, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067]
}

/// Ranges of `size` bytes of RAM: from 0 to [`layout::MMIO_GAP`], the rest from 4 GiB.
#[must_use]
pub fn ram_ranges(size: u64) -> Vec<(u64, u64)> {
    let low = size.min(layout::MMIO_GAP);
    let mut ranges = vec![(0, low)];
    if size > low {
        ranges.push((layout::HIGH_RAM, size - low));
    }
    ranges
}

/// Where `len` bytes of memory can be plugged into a machine that boots with `size` bytes: behind
/// them, below the devices if all of it fits there, otherwise above 4 GiB. A multiple of
/// [`layout::HOTPLUG_ALIGN`].
#[must_use]
pub fn hotplug_start(size: u64, len: u64) -> u64 {
    let end = ram_ranges(size).last().map_or(0, |(start, bytes)| start + bytes);
    let start = end.next_multiple_of(layout::HOTPLUG_ALIGN);
    if start.saturating_add(len) > layout::MMIO_GAP { start.max(layout::HIGH_RAM) } else { start }
}

/// Guest physical addresses of what the monitor writes before the first instruction, and of what it
/// emulates.
pub mod layout {
    use super::{InterruptLine, line};

    /// Memory that is plugged in begins and ends at multiples of this: Linux adds memory by blocks
    /// of it (128 MiB; larger ones only to machines that boot with 64 GiB and more).
    pub const HOTPLUG_ALIGN: u64 = 128 << 20;
    /// Descriptor table.
    pub const GDT: u64 = 0x500;
    /// Linux zero page (`boot_params`), 4 KiB.
    pub const ZERO_PAGE: u64 = 0x7000;
    /// PVH `hvm_start_info`, its memory map and module list.
    pub const PVH_START_INFO: u64 = 0x6000;
    /// Initial stack pointer.
    pub const STACK: u64 = 0x8ff0;
    /// Page tables of the 64-bit entry: PML4, PDPT, then page directories.
    pub const PAGE_TABLES: u64 = 0x9000;
    /// Command line, up to [`COMMAND_LINE_MAX`] bytes with its NUL.
    pub const COMMAND_LINE: u64 = 0x2_0000;
    /// Most bytes of a command line, NUL included.
    pub const COMMAND_LINE_MAX: usize = 0x1_0000;
    /// Start of the extended BIOS data area and end of low memory: 639 KiB. The MP table lies here.
    pub const MP_TABLE: u64 = 0x9_fc00;
    /// ACPI RSDP, where the kernel scans for it. The other ACPI tables follow.
    pub const RSDP: u64 = 0xe_0000;
    /// The MP configuration table that the pointer at [`MP_TABLE`] names: the 1 KiB there holds no
    /// more than some 40 CPUs. Never used together with [`RSDP`].
    pub const MP_CONFIG: u64 = 0xe_0000;
    /// End of the platform tables that begin at [`RSDP`] or [`MP_CONFIG`].
    pub const PLATFORM_TABLES_END: u64 = 0xf_0000;
    /// What the zero page's `setup_data` names: the seed of the guest's random generator. Among
    /// what is reserved anyway, so that the kernel's map of memory has no more ranges for it: it
    /// looks them up thousands of times.
    pub const SETUP_DATA: u64 = 0xf_0000;
    /// Kernels load at 1 MiB or above.
    pub const HIGH_MEMORY: u64 = 0x10_0000;
    /// RAM below 4 GiB ends here; the rest continues at 4 GiB.
    pub const MMIO_GAP: u64 = 0xd000_0000;
    /// First virtio-mmio transport; one takes [`VIRTIO_STRIDE`].
    pub const VIRTIO_MMIO: u64 = 0xd000_0000;
    /// Bytes of one virtio-mmio transport's range.
    pub const VIRTIO_STRIDE: u64 = 0x1000;
    /// I/O APIC.
    pub const IO_APIC: u64 = 0xfec0_0000;
    /// Local APIC.
    pub const LOCAL_APIC: u64 = 0xfee0_0000;
    /// TSS of KVM's real mode on Intel, three pages.
    pub const KVM_TSS: u64 = 0xfffb_d000;
    /// Identity map page of KVM on Intel.
    pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
    /// Above-4-GiB RAM.
    pub const HIGH_RAM: u64 = 0x1_0000_0000;
    /// First serial port.
    pub const COM1: u16 = 0x3f8;
    /// Line of the first serial port.
    pub const COM1_LINE: InterruptLine = line(4).expect("an I/O APIC has more than five pins");
    /// Line of the power button, of machines with ACPI.
    pub const POWER_BUTTON_LINE: InterruptLine = line(3).expect("an I/O APIC has more than four pins");
    /// Number of the first line of a virtio-mmio transport; transports count up from here, a line
    /// each.
    pub const VIRTIO_LINE: u32 = 5;
    /// Most pins of the I/O APIC: as many as its register that selects, of eight bits, reaches. A
    /// PC has 24; a machine has those it uses.
    pub const IO_APIC_PINS: u32 = 120;
    /// Where a PC's processor starts after a reset, as seen from real mode: [`RESET_VECTOR_CODE`]
    /// lies there.
    pub const RESET_VECTOR: u64 = 0xf_fff0;
    /// Writes the reset register (`mov al, 1; mov dx, 0x602; out dx, al; hlt; jmp`). Linux on
    /// hardware-reduced ACPI without EFI restarts by a jump to the reset vector, and by nothing
    /// else.
    pub const RESET_VECTOR_CODE: [u8; 9] = [0xb0, ACPI_RESET_VALUE, 0xba, 0x02, 0x06, 0xee, 0xf4, 0xeb, 0xfd];
    /// ACPI sleep control register (reduced hardware, ACPI 6.5, 4.8.3.7), system I/O, 8 bits:
    /// SLP_TYP in bits 2 to 4, SLP_EN bit 5.
    pub const ACPI_SLEEP_CONTROL: u16 = 0x600;
    /// ACPI sleep status register, system I/O, 8 bits.
    pub const ACPI_SLEEP_STATUS: u16 = 0x601;
    /// ACPI reset register, system I/O, 8 bits.
    pub const ACPI_RESET: u16 = 0x602;
    /// What the guest writes to [`ACPI_RESET`].
    pub const ACPI_RESET_VALUE: u8 = 1;
    /// SLP_TYP of the soft-off state, first element of `\_S5`.
    pub const ACPI_SLEEP_TYPE_S5: u8 = 5;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_leaves_the_device_gap_free() {
        let gap = layout::MMIO_GAP;
        assert_eq!(ram_ranges(gap), [(0, gap)]);
        assert_eq!(ram_ranges(gap + 4096), [(0, gap), (1 << 32, 4096)]);
    }

    #[test]
    fn hotplug_memory_is_aligned_and_clear_of_ram_and_devices() {
        let (mib, gap, high) = (1 << 20, layout::MMIO_GAP, layout::HIGH_RAM);
        for (size, len, start) in [
            (128 * mib, 384 * mib, 128 * mib),
            (200 * mib, 128 * mib, 256 * mib),
            (128 * mib, gap - 128 * mib, 128 * mib),
            (128 * mib, gap, high),
            (gap, 128 * mib, high),
            (gap + 4096, 128 * mib, high + 128 * mib),
        ] {
            assert_eq!(hotplug_start(size, len), start, "{size:#x} + {len:#x}");
        }
    }
}
