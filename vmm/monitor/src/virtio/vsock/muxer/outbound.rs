//! Packets to the guest.

use std::collections::VecDeque;

use super::slot::{HEADER_SIZE, Slot, say};
use super::{Muxer, Served};
use crate::memory::Memory;
use crate::virtio::queue::{Chain, QueueFault};

impl Muxer {
    /// There may be something to say to the guest.
    pub(in crate::virtio::vsock) fn has_word(&self) -> bool {
        !self.resets.is_empty() || !self.turns.is_empty()
    }

    /// Puts one packet into `chain`: RSTs first, then the connections in turn, one packet each.
    pub(in crate::virtio::vsock) fn serve(
        &mut self,
        chain: &Chain,
        memory: &Memory,
    ) -> Result<Served, QueueFault> {
        let room = chain.writable_len().saturating_sub(HEADER_SIZE);
        if chain.writable_len() < HEADER_SIZE {
            self.fault();
            return Ok(Served::Written(0));
        }
        if let Some(header) = self.resets.pop_front() {
            if self.resets.is_empty() {
                self.resets = VecDeque::new();
            }
            chain.writer(memory).write_all(&header.encode())?;
            return Ok(Served::Written(HEADER_SIZE));
        }
        while let Some(handle) = self.turns.pop_front() {
            let Some(slot) = self.table.get_mut(handle) else { continue };
            slot.queued = false;
            let said = if slot.due() { say(slot, self.cid, chain, room, memory)? } else { None };
            // Back to the end of the line if there is more, and a look at what to wait for.
            self.touch(handle);
            if let Some(len) = said {
                return Ok(Served::Written(len));
            }
            if room == 0 && self.table.get(handle).is_some_and(Slot::due) {
                // Only payload waits, and this chain has room for none.
                self.fault();
                return Ok(Served::Written(0));
            }
        }
        Ok(Served::Unused)
    }
}
