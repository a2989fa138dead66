//! 64-bit Arm: the address map and the state at the kernel's entry.

/// Registers at the guest's first instruction: EL1, MMU off, interrupts masked (Linux `booting.rst` for arm64).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootState {
    /// First instruction, guest physical.
    pub pc: u64,
    /// X0: guest physical address of the flattened device tree.
    pub device_tree: u64,
}

/// Guest physical addresses.
pub mod layout {
    /// RAM starts here and has no gap: all devices are below.
    pub const RAM: u64 = 0x8000_0000;
    /// First virtio-mmio transport; one takes [`VIRTIO_STRIDE`].
    pub const VIRTIO_MMIO: u64 = 0x0a00_0000;
    /// Bytes of one virtio-mmio transport's range.
    pub const VIRTIO_STRIDE: u64 = 0x1000;
    /// Serial port (PL011).
    pub const PL011: u64 = 0x0900_0000;
    /// Real-time clock (PL031).
    pub const PL031: u64 = 0x0901_0000;
    /// Interrupt controller (GICv3): distributor, 64 KiB.
    pub const GIC_DISTRIBUTOR: u64 = 0x0800_0000;
    /// Redistributors, 128 KiB a vCPU.
    pub const GIC_REDISTRIBUTOR: u64 = 0x080a_0000;
    /// First shared peripheral interrupt of a virtio-mmio transport, counted as the device tree counts (SPI 0 is interrupt 32).
    pub const VIRTIO_SPI: u32 = 16;
    /// The serial port's shared peripheral interrupt.
    pub const PL011_SPI: u32 = 1;
}

/// Where memory can be plugged into a machine that boots with `size` bytes: behind them, at a multiple of 128 MiB.
#[must_use]
pub fn hotplug_start(size: u64, _len: u64) -> u64 {
    (layout::RAM + size).next_multiple_of(128 << 20)
}

/// Ranges of `size` bytes of RAM: one.
#[must_use]
pub fn ram_ranges(size: u64) -> Vec<(u64, u64)> {
    vec![(layout::RAM, size)]
}
