//! Numbers of the memory device (virtio 1.2, 5.15).

/// Feature: the driver does not touch memory that is not plugged in (5.15.3).
pub(super) const F_UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;

/// Bytes of the configuration space (5.15.4).
pub(super) const CONFIG_BYTES: usize = 56;
/// The word that holds `node_id`, which only a feature that is not offered gives a meaning.
pub(super) const NODE_NONE: u64 = 0;
/// Bytes of a request (5.15.6).
pub(super) const REQUEST_BYTES: usize = 24;
/// Bytes of an answer (5.15.6).
pub(super) const RESPONSE_BYTES: u32 = 10;

/// Kinds of requests.
pub(super) mod request {
    /// Plug blocks in.
    pub(in super::super) const PLUG: u16 = 0;
    /// Unplug blocks.
    pub(in super::super) const UNPLUG: u16 = 1;
    /// Unplug all.
    pub(in super::super) const UNPLUG_ALL: u16 = 2;
    /// Tell the state of blocks.
    pub(in super::super) const STATE: u16 = 3;
}

/// Kinds of answers.
pub(super) mod response {
    /// Done.
    pub(in super::super) const ACK: u16 = 0;
    /// Not now: more than is requested.
    pub(in super::super) const NACK: u16 = 1;
    /// Try again.
    pub(in super::super) const BUSY: u16 = 2;
    /// The request makes no sense.
    pub(in super::super) const ERROR: u16 = 3;
}

/// States of blocks.
pub(super) mod state {
    /// All are plugged in.
    pub(in super::super) const PLUGGED: u16 = 0;
    /// None is.
    pub(in super::super) const UNPLUGGED: u16 = 1;
    /// Some are.
    pub(in super::super) const MIXED: u16 = 2;
}
