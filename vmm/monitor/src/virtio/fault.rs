//! What can go wrong in a device, and in its queues: below both, which name each other's.

use std::io;

/// Why a device did not start; the transport answers with NEEDS_RESET.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver left a queue disabled that the device cannot work without.
    #[error("queue {0} is needed and was not enabled")]
    MissingQueue(usize),
    /// The host side could not be prepared.
    #[error("cannot prepare the device's host side")]
    Host(#[source] io::Error),
}

/// Why a worker cannot go on: the device gets NEEDS_RESET and waits for the driver.
#[derive(Debug, thiserror::Error)]
pub enum DeviceFault {
    /// The guest broke a ring or a descriptor chain.
    #[error("the driver broke a queue")]
    Queue(#[from] QueueFault),
    /// The guest described a queue that cannot be used.
    #[error("the driver described a bad queue")]
    QueueConfig(#[from] QueueConfigError),
    /// The guest broke the device's protocol in a way that has no answer of its own.
    #[error("the driver broke the protocol: {0}")]
    Protocol(&'static str),
    /// The host side failed.
    #[error("the device's host side failed")]
    Host(#[from] io::Error),
    /// The host's file system is full. Nothing is broken: requests wait until it has room.
    #[error("the host's file system is full, and what the guest writes waits until it has room")]
    NoRoom,
    /// The device could not start.
    #[error("the device did not start")]
    Activate(#[from] ActivateError),
}

impl DeviceFault {
    /// Every kind there is.
    pub const KINDS: [&str; 15] = [
        "available_index",
        "descriptor_index",
        "descriptor_loop",
        "indirect_table",
        "read_after_write",
        "chain_too_long",
        "outside_memory",
        "chain_too_short",
        "queue_size",
        "ring_alignment",
        "ring_outside_memory",
        "missing_queue",
        "protocol",
        "host",
        "no_room",
    ];

    /// What kind of fault it is, whatever numbers the driver put into it: one word for a count.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Queue(QueueFault::Available { .. }) => "available_index",
            Self::Queue(QueueFault::Index { .. }) => "descriptor_index",
            Self::Queue(QueueFault::Loop { .. }) => "descriptor_loop",
            Self::Queue(QueueFault::Indirect { .. }) => "indirect_table",
            Self::Queue(QueueFault::ReadAfterWrite { .. }) => "read_after_write",
            Self::Queue(QueueFault::TooLong { .. }) => "chain_too_long",
            Self::Queue(QueueFault::Outside { .. }) => "outside_memory",
            Self::Queue(QueueFault::Short { .. }) => "chain_too_short",
            Self::QueueConfig(QueueConfigError::Size { .. }) => "queue_size",
            Self::QueueConfig(QueueConfigError::Alignment { .. }) => "ring_alignment",
            Self::QueueConfig(QueueConfigError::Outside { .. }) => "ring_outside_memory",
            Self::Activate(ActivateError::MissingQueue(_)) => "missing_queue",
            Self::Protocol(_) => "protocol",
            Self::NoRoom => "no_room",
            Self::Host(_) | Self::Activate(ActivateError::Host(_)) => "host",
        }
    }
}

/// What a driver may do to a queue that it must not. The device needs a reset after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueFault {
    /// The available index ran ahead of the ring's size.
    #[error("available index {index} is more than {size} ahead of {seen}")]
    Available {
        /// As read.
        index: u16,
        /// Where the device is.
        seen: u16,
        /// The ring's size.
        size: u16,
    },
    /// A descriptor number beyond its table.
    #[error("descriptor {index} of {entries}")]
    Index {
        /// The number.
        index: u16,
        /// Entries of the table.
        entries: u32,
    },
    /// A chain longer than its table: a loop.
    #[error("descriptor chain {head} does not end")]
    Loop {
        /// Its head.
        head: u16,
    },
    /// An indirect table that was not negotiated, is nested, followed by another descriptor, or of
    /// a bad length.
    #[error("descriptor chain {head} abuses an indirect table")]
    Indirect {
        /// Its head.
        head: u16,
    },
    /// A segment to read after one to write.
    #[error("descriptor chain {head} has a readable segment after a writable one")]
    ReadAfterWrite {
        /// Its head.
        head: u16,
    },
    /// 2^32 bytes or more.
    #[error("descriptor chain {head} is too long")]
    TooLong {
        /// Its head.
        head: u16,
    },
    /// Not inside the guest's memory.
    #[error("{len} bytes at {address:#x} are not inside the guest's memory")]
    Outside {
        /// Guest physical.
        address: u64,
        /// Bytes.
        len: u64,
    },
    /// A chain with too few bytes for the message it carries.
    #[error("descriptor chain without the {wanted} bytes that are needed")]
    Short {
        /// Bytes of the message.
        wanted: u64,
    },
}

/// Why a queue cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueConfigError {
    /// Not a power of two, zero, or more than the device offers.
    #[error("queue size {size} is no power of two up to {max_size}")]
    Size {
        /// As written.
        size: u16,
        /// As offered.
        max_size: u16,
    },
    /// A ring does not stand where the specification demands (2.7).
    #[error("{ring} at {address:#x} is not aligned to {align} bytes")]
    Alignment {
        /// Which ring.
        ring: &'static str,
        /// Its address.
        address: u64,
        /// What it must be a multiple of.
        align: u64,
    },
    /// A ring is not whole inside the guest's memory.
    #[error("{ring} at {address:#x} with {len} bytes is not inside the guest's memory")]
    Outside {
        /// Which ring.
        ring: &'static str,
        /// Its address.
        address: u64,
        /// Its extent in bytes.
        len: u64,
    },
}
