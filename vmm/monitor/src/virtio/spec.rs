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
    /// Socket device.
    pub const VSOCK: u32 = 19;
    /// Memory that is plugged in.
    pub const MEMORY: u32 = 24;
}
