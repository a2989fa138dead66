//! Virtio 1.2 devices behind a memory-mapped transport.

pub mod balloon;
pub mod blk;
pub mod console;
pub mod device;
pub mod fault;
pub mod fs;
pub mod interrupt;
pub mod mem;
pub mod net;
pub mod queue;
pub mod rng;
pub mod spec;
pub mod tally;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod transport;
pub mod vsock;
