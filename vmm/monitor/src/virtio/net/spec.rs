//! Numbers of the network device (virtio 1.2, 5.1) and of Ethernet.

/// Features (5.1.3).
pub mod feature {
    /// The device completes checksums.
    pub const CSUM: u64 = 1;
    /// The driver takes frames whose checksum is not complete.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// The driver changes at run time what it takes.
    pub const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
    /// The device has an MTU.
    pub const MTU: u64 = 1 << 3;
    /// The device has an address.
    pub const MAC: u64 = 1 << 5;
    /// The driver takes segments of TCP over IPv4.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// The driver takes segments of TCP over IPv6.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// The device takes segments of TCP over IPv4.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// The device takes segments of TCP over IPv6.
    pub const HOST_TSO6: u64 = 1 << 12;
    /// A frame may fill several receive buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// The device says whether its link is up.
    pub const STATUS: u64 = 1 << 16;
    /// There is a control queue.
    pub const CTRL_VQ: u64 = 1 << 17;
    /// There are several pairs of queues.
    pub const MQ: u64 = 1 << 22;
    /// The driver takes segments of UDP over IPv4.
    pub const GUEST_USO4: u64 = 1 << 54;
    /// The driver takes segments of UDP over IPv6.
    pub const GUEST_USO6: u64 = 1 << 55;
    /// The device takes segments of UDP.
    pub const HOST_USO: u64 = 1 << 56;
}

/// Of the control queue (5.1.6.5).
pub mod control {
    /// Pairs of queues.
    pub const CLASS_MQ: u8 = 4;
    /// How many are in use.
    pub const MQ_VQ_PAIRS_SET: u8 = 0;
    /// What the driver takes.
    pub const CLASS_GUEST_OFFLOADS: u8 = 5;
    /// All of it.
    pub const GUEST_OFFLOADS_SET: u8 = 0;
    /// Done.
    pub const OK: u8 = 0;
    /// Not done.
    pub const ERR: u8 = 1;
}

/// Of the header before each frame (5.1.6).
pub mod header {
    /// Its bytes.
    pub const BYTES: usize = 12;
    /// The checksum is to be completed.
    pub const NEEDS_CSUM: u8 = 1;
    /// The checksum was found right.
    pub const DATA_VALID: u8 = 2;
    /// One frame.
    pub const GSO_NONE: u8 = 0;
    /// Segments of TCP over IPv4.
    pub const GSO_TCPV4: u8 = 1;
    /// Segments of TCP over IPv6.
    pub const GSO_TCPV6: u8 = 4;
    /// Segments of UDP.
    pub const GSO_UDP_L4: u8 = 5;
}

/// The link is up, in `status` of the configuration space (5.1.4).
pub const STATUS_LINK_UP: u16 = 1;
/// Bytes of an Ethernet header, without which there is no frame.
pub const ETHERNET: u32 = 14;
/// Most bytes of a frame: its header and the longest packet.
pub const FRAME_MAX: u32 = ETHERNET + 65_535;
/// Entries of a queue of frames.
pub const QUEUE_SIZE: u16 = 256;
/// Entries of the control queue.
pub const CONTROL_QUEUE_SIZE: u16 = 64;
