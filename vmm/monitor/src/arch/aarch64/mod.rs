//! 64-bit Arm: the address map and the state at the kernel's entry.

use super::InterruptLine;

/// Shared peripheral interrupt `number`, counted as the device tree counts (0 is interrupt 32);
/// `None` beyond the controller's last.
#[must_use]
pub const fn line(number: u32) -> Option<InterruptLine> {
    InterruptLine::of(number, layout::SHARED_INTERRUPTS)
}

/// Where vCPU `index` stands among the others: the lower three fields of MPIDR_EL1. Sixteen make a
/// cluster, as many as a message between processors can name at once (GICv3, ICC_SGI1R_EL1).
#[must_use]
pub const fn affinity(index: u32) -> u32 {
    (index >> 4) << 8 | index & 0xf
}

/// Bytes of the pages by which a kernel translates addresses. Each is one that it was built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granule {
    /// 4 KiB.
    Kib4,
    /// 16 KiB.
    Kib16,
    /// 64 KiB.
    Kib64,
}

impl Granule {
    /// What is said of a processor without it, as [`crate::hv::HvError::Missing`] names it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kib4 => "pages of 4 KiB, for which the kernel is built",
            Self::Kib16 => "pages of 16 KiB, for which the kernel is built",
            Self::Kib64 => "pages of 64 KiB, for which the kernel is built",
        }
    }

    /// Whether a processor translates by it, as its ID_AA64MMFR0_EL1 says.
    #[must_use]
    pub fn is_served(self, memory_model: u64) -> bool {
        let field = |shift: u32| memory_model >> shift & 0xf;
        match self {
            Self::Kib4 => field(28) != 0xf,
            // This one alone counts from what is not there.
            Self::Kib16 => field(20) != 0,
            Self::Kib64 => field(24) != 0xf,
        }
    }
}

/// Registers at the guest's first instruction: EL1, MMU off, interrupts masked (Linux `booting.rst`
/// for arm64).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootState {
    /// First instruction, guest physical.
    pub pc: u64,
    /// X0: guest physical address of the flattened device tree.
    pub device_tree: u64,
    /// What the kernel's header says of its pages.
    pub granule: Option<Granule>,
}

/// Guest physical addresses.
pub mod layout {
    use super::{InterruptLine, line};

    /// RAM starts here and has no gap: all devices are below.
    pub const RAM: u64 = 0x8000_0000;
    /// First virtio-mmio transport; one takes [`VIRTIO_STRIDE`].
    pub const VIRTIO_MMIO: u64 = 0x0a00_0000;
    /// Bytes of one virtio-mmio transport's range.
    pub const VIRTIO_STRIDE: u64 = 0x1000;
    /// Serial port: a PC's, so that a guest's console has one name on every architecture.
    pub const SERIAL: u64 = 0x0900_0000;
    /// Bytes of its registers' range.
    pub const SERIAL_LEN: u64 = 0x1000;
    /// Its line.
    pub const SERIAL_LINE: InterruptLine = line(1).expect("a controller has more than two lines");
    /// Real-time clock (PL031).
    pub const RTC: u64 = 0x0901_0000;
    /// Bytes of its registers' range.
    pub const RTC_LEN: u64 = 0x1000;
    /// Interrupt controller (GICv3): distributor.
    pub const GIC_DISTRIBUTOR: u64 = 0x0800_0000;
    /// Bytes of its registers' range.
    pub const GIC_DISTRIBUTOR_LEN: u64 = 0x1_0000;
    /// Redistributors, one a vCPU.
    pub const GIC_REDISTRIBUTOR: u64 = 0x080a_0000;
    /// Bytes of one.
    pub const GIC_REDISTRIBUTOR_LEN: u64 = 0x2_0000;
    /// Shared peripheral interrupts of the controller, beside the 32 that each processor has for
    /// itself.
    pub const SHARED_INTERRUPTS: u32 = 96;
    /// Number of the first line of a virtio-mmio transport; transports count up from here.
    pub const VIRTIO_LINE: u32 = 16;
}

/// Where memory can be plugged into a machine that boots with `size` bytes: behind them, at a
/// multiple of 128 MiB.
#[must_use]
pub fn hotplug_start(size: u64, _len: u64) -> u64 {
    (layout::RAM + size).next_multiple_of(128 << 20)
}

/// Ranges of `size` bytes of RAM: one.
#[must_use]
pub fn ram_ranges(size: u64) -> Vec<(u64, u64)> {
    vec![(layout::RAM, size)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of real processors' ID_AA64MMFR0_EL1, as far as pages go, and what they cannot.
    #[test]
    fn pages_of_a_processor_are_those_that_it_says() {
        let cases = [
            // 4 and 64 KiB (a Cortex-A53), all three (a Neoverse N1), 4 and 16 KiB (Apple M1).
            (0x0000_1122, [true, false, true]),
            (0x0010_1122, [true, true, true]),
            (0x0f10_0003, [true, true, false]),
            // With 52-bit addresses in pages of 4 and 16 KiB.
            (0x1020_0000, [true, true, true]),
            (0xff00_0000, [false, false, false]),
        ];
        for (register, served) in cases {
            let found =
                [Granule::Kib4, Granule::Kib16, Granule::Kib64].map(|pages| pages.is_served(register));
            assert_eq!(found, served, "{register:#x}");
        }
    }
}
