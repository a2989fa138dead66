//! What the guest writes about a queue, and the one check that turns it into rings the device may
//! use.

use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::memory::Memory;
use crate::state::fields::stateful_fields;
use crate::virtio::fault::QueueConfigError;
use crate::virtio::spec::QUEUE_SIZE_MAX;

/// A queue as the guest describes it, register by register. Nothing here is believed before
/// [`QueueConfig::validate`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueConfig {
    /// The largest size the device offers (QueueNumMax).
    pub max_size: u16,
    /// The size the driver chose (QueueNum).
    pub size: u16,
    /// The driver enabled it (QueueReady).
    pub ready: bool,
    /// Descriptor table, guest physical.
    pub descriptors: u64,
    /// Available ring ("driver area").
    pub available: u64,
    /// Used ring ("device area").
    pub used: u64,
}

stateful_fields!(QueueConfig { max_size, size, ready, descriptors, available, used });

/// Rings whose size, alignment and whole extent were checked. Guest memory does not shrink while a
/// machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rings {
    pub(super) size: u16,
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
}

impl QueueConfig {
    /// A queue of at most `max_size` that the guest has not touched. Its size is the maximum until
    /// the driver writes another.
    #[must_use]
    pub fn new(max_size: u16) -> Self {
        Self { max_size, size: max_size, ..Self::default() }
    }

    /// Checks size, alignment and the whole extent of the three rings against `memory` (2.7.1).
    pub fn validate(&self, memory: &Memory) -> Result<Rings, QueueConfigError> {
        let &Self { max_size, size, ready: _, descriptors, available, used } = self;
        if !size.is_power_of_two() || size > max_size || size > QUEUE_SIZE_MAX {
            return Err(QueueConfigError::Size { size, max_size });
        }
        let n = u64::from(size);
        // Both index rings end with an event index, used or not.
        for (ring, address, align, len) in [
            ("descriptor table", descriptors, 16, 16 * n),
            ("available ring", available, 2, 6 + 2 * n),
            ("used ring", used, 4, 6 + 8 * n),
        ] {
            if !address.is_multiple_of(align) {
                return Err(QueueConfigError::Alignment { ring, address, align });
            }
            let whole = usize::try_from(len).is_ok_and(|len| {
                address.checked_add(len as u64).is_some() && memory.check_range(GuestAddress(address), len)
            });
            if !whole {
                return Err(QueueConfigError::Outside { ring, address, len });
            }
        }
        Ok(Rings { size, descriptors, available, used })
    }
}
