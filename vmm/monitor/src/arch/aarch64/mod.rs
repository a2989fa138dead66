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

/// Registers at the guest's first instruction: EL1, MMU off, interrupts masked (Linux `booting.rst`
/// for arm64).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootState {
    /// First instruction, guest physical.
    pub pc: u64,
    /// X0: guest physical address of the flattened device tree.
    pub device_tree: u64,
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
