//! Numbers of the virtio 1.2 specification, by section.

/// Device status bits (2.1).
pub mod status {
    /// The driver found the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The driver knows how to drive it.
    pub const DRIVER: u8 = 2;
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// Feature negotiation is over.
    pub const FEATURES_OK: u8 = 8;
    /// The device cannot go on until it is reset.
    pub const NEEDS_RESET: u8 = 0x40;
    /// The driver gave up.
    pub const FAILED: u8 = 0x80;
}

/// Features that are not a device's own (6).
pub mod feature {
    /// Indirect descriptors.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Notification suppression by index.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// A modern device: required.
    pub const VERSION_1: u64 = 1 << 32;
}

/// Descriptor flags (2.7.5).
pub mod descriptor {
    /// Another one follows.
    pub const NEXT: u16 = 1;
    /// The device writes it.
    pub const WRITE: u16 = 2;
    /// It holds a table of descriptors.
    pub const INDIRECT: u16 = 4;
    /// Bytes of one descriptor.
    pub const SIZE: u32 = 16;
}

/// `flags` of the available ring: the driver wants no interrupt (2.7.6).
pub const AVAIL_NO_INTERRUPT: u16 = 1;
/// `flags` of the used ring: the device wants no notification (2.7.8).
pub const USED_NO_NOTIFY: u16 = 1;
/// The largest split queue (2.7).
pub const QUEUE_SIZE_MAX: u16 = 32768;

/// Device ids (5).
pub mod id {
    /// An empty slot of the memory-mapped transport (4.2.3.1.1).
    pub const NONE: u32 = 0;
    /// Network card.
    pub const NET: u32 = 1;
    /// Block device.
    pub const BLOCK: u32 = 2;
    /// Console.
    pub const CONSOLE: u32 = 3;
    /// Entropy source.
    pub const ENTROPY: u32 = 4;
    /// Balloon: memory that the guest has no use for.
    pub const BALLOON: u32 = 5;
    /// Socket device.
    pub const VSOCK: u32 = 19;
    /// Memory that is plugged in.
    pub const MEMORY: u32 = 24;
    /// File system.
    pub const FILE_SYSTEM: u32 = 26;

    /// What people call the devices that there are here.
    #[must_use]
    pub fn name(id: u32) -> &'static str {
        match id {
            NONE => "none",
            NET => "net",
            BLOCK => "block",
            CONSOLE => "console",
            ENTROPY => "entropy",
            BALLOON => "balloon",
            VSOCK => "vsock",
            MEMORY => "memory",
            FILE_SYSTEM => "fs",
            _ => "unknown",
        }
    }
}

/// Offsets of the registers of a device on MMIO (4.2.2).
pub mod register {
    /// "virt" (R).
    pub const MAGIC: u64 = 0x000;
    /// 2 (R).
    pub const VERSION: u64 = 0x004;
    /// Device id, 0 for an empty slot (R).
    pub const DEVICE_ID: u64 = 0x008;
    /// Vendor (R).
    pub const VENDOR_ID: u64 = 0x00c;
    /// Window on the device's features (R).
    pub const DEVICE_FEATURES: u64 = 0x010;
    /// Which window (W).
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    /// Window on the driver's features (W).
    pub const DRIVER_FEATURES: u64 = 0x020;
    /// Which window (W).
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    /// Which queue the registers below speak of (W).
    pub const QUEUE_SEL: u64 = 0x030;
    /// Its largest size, 0 if there is no such queue (R).
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    /// Its size (W).
    pub const QUEUE_NUM: u64 = 0x038;
    /// Enabled (RW).
    pub const QUEUE_READY: u64 = 0x044;
    /// A queue's number: it has chains (W).
    pub const QUEUE_NOTIFY: u64 = 0x050;
    /// Pending interrupts (R).
    pub const INTERRUPT_STATUS: u64 = 0x060;
    /// Those seen (W).
    pub const INTERRUPT_ACK: u64 = 0x064;
    /// Device status (RW).
    pub const STATUS: u64 = 0x070;
    /// Descriptor table, low half; the high half follows (W).
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    /// Available ring, low half (W).
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    /// Used ring, low half (W).
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    /// Which shared memory region (W).
    pub const SHM_SEL: u64 = 0x0ac;
    /// Its length, low half; all ones: there is none (R).
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    /// Its base, high half (R).
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    /// Changes whenever the configuration does (R).
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    /// Configuration space.
    pub const CONFIG: u64 = 0x100;
}
