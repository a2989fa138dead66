//! Descriptor chains: the guest's memory is the input, rings and buffers at once.

use std::sync::Arc;

use nelly_vmm::sys::Notifier;
use nelly_vmm::virtio::queue::{Queue, QueueConfig};
use nelly_vmm::virtio::spec::feature;
use nelly_vmm::virtio::testing::memory;
use vm_memory::{Bytes as _, GuestAddress};

use super::Bytes;

const MEMORY: usize = 64 << 10;

/// Takes chains until the queue is broken or has none, reads and writes every byte of each, gives
/// it back.
///
/// # Panics
/// When a chain holds what is not in memory, or the queue never ends.
pub fn run(data: &[u8]) {
    let _ = chains(data);
}

/// As [`run`]; how many chains there were.
///
/// # Panics
/// As [`run`].
#[must_use]
pub fn chains(data: &[u8]) -> usize {
    let mut input = Bytes(data);
    let [log_size, features, skew] = input.take();
    let size = 1_u16 << (log_size & 7);
    let memory = memory(MEMORY);
    let rest = &input.0[..input.0.len().min(MEMORY)];
    memory.write_slice(rest, GuestAddress(0)).expect("inside memory");
    // The rings overlap or not, as the input wants.
    let config = QueueConfig {
        max_size: 128,
        size,
        ready: true,
        descriptors: u64::from(skew & 3) << 4,
        available: 16 * u64::from(size) + (u64::from(skew >> 2 & 7) << 1),
        used: 0x1000 + (u64::from(skew >> 5) << 2),
    };
    let Ok(rings) = config.validate(&memory) else { return 0 };
    let mut bits = feature::VERSION_1;
    if features & 1 != 0 {
        bits |= feature::INDIRECT_DESC;
    }
    if features & 2 != 0 {
        bits |= feature::EVENT_IDX;
    }
    let mut queue = Queue::new(rings, bits, Arc::new(Notifier::new().expect("a notifier")));
    for count in 0..1000 {
        let Ok(Some(chain)) = queue.pop(&memory) else { return count };
        for segment in chain.readable().iter().chain(chain.writable()) {
            assert!(segment.address + u64::from(segment.len) <= MEMORY as u64);
        }
        let mut reader = chain.reader(&memory);
        let mut buffer = vec![0; usize::try_from(reader.left().min(1 << 20)).expect("at most a megabyte")];
        reader.read_exact(&mut buffer).expect("what a chain holds can be read");
        let mut writer = chain.writer(&memory);
        let pattern = vec![features; usize::try_from(writer.left().min(4096)).expect("at most a page")];
        writer.write_all(&pattern).expect("what a chain has room for can be written");
        let written = writer.written();
        let _ = queue.push_used(&memory, &chain, written);
        let _ = queue.publish(&memory);
        if skew & 1 != 0 {
            let _ = queue.enable_notifications(&memory);
        }
    }
    1000
}

/// A sound queue of four: a request with an answer, and one through an indirect table.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let mut memory = vec![0_u8; 0x3000];
    let mut descriptor = |at: usize, address: u64, len: u32, flags: u16, next: u16| {
        memory[at..at + 8].copy_from_slice(&address.to_le_bytes());
        memory[at + 8..at + 12].copy_from_slice(&len.to_le_bytes());
        memory[at + 12..at + 14].copy_from_slice(&flags.to_le_bytes());
        memory[at + 14..at + 16].copy_from_slice(&next.to_le_bytes());
    };
    descriptor(0, 0x2000, 64, 1, 1);
    descriptor(16, 0x2100, 128, 2, 0);
    descriptor(32, 0x2800, 32, 4, 0);
    descriptor(0x2800, 0x2200, 16, 1, 1);
    descriptor(0x2810, 0x2300, 16, 2, 0);
    memory[66..68].copy_from_slice(&2_u16.to_le_bytes());
    memory[70..72].copy_from_slice(&2_u16.to_le_bytes());
    [[2, 0, 0], [2, 1, 0], [2, 3, 1]].into_iter().map(|head| [head.as_slice(), &memory].concat()).collect()
}
