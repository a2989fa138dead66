//! Which blocks of a region are plugged in, and what a driver may do to them: pure, knows no queue
//! and no memory.

use std::ops::Range;

use super::spec::{request, response, state};
use crate::sys::fits;

/// Bytes of a block: what memory is plugged in by. A huge page, so that no block keeps another's
/// from being one.
pub(super) const BLOCK: u64 = 2 << 20;

/// A request as the driver wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MemoryRequest {
    /// What it wants, a number of [`request`].
    pub(super) kind: u16,
    /// Guest physical address of the first block; of no meaning for `UNPLUG_ALL`.
    pub(super) address: u64,
    /// Blocks.
    pub(super) count: u16,
}

impl MemoryRequest {
    /// From its 24 bytes (5.15.6).
    pub(super) fn parse(bytes: &[u8; 24]) -> Self {
        let [k0, k1, _, _, _, _, _, _, rest @ ..] = *bytes;
        let [a0, a1, a2, a3, a4, a5, a6, a7, c0, c1, ..] = rest;
        Self {
            kind: u16::from_le_bytes([k0, k1]),
            address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            count: u16::from_le_bytes([c0, c1]),
        }
    }
}

/// What the driver is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Response {
    /// A number of [`response`].
    pub(super) kind: u16,
    /// A number of [`state`], for an acknowledged `STATE`.
    pub(super) state: u16,
}

impl Response {
    const ACK: Self = Self::of(response::ACK);
    const NACK: Self = Self::of(response::NACK);
    const BUSY: Self = Self::of(response::BUSY);
    const ERROR: Self = Self::of(response::ERROR);

    const fn of(kind: u16) -> Self {
        Self { kind, state: 0 }
    }

    /// Its 10 bytes (5.15.6).
    pub(super) fn bytes(self) -> [u8; 10] {
        let ([k0, k1], [s0, s1]) = (self.kind.to_le_bytes(), self.state.to_le_bytes());
        [k0, k1, 0, 0, 0, 0, 0, 0, s0, s1]
    }
}

/// The blocks of a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Blocks {
    /// Guest physical address of the first, a multiple of [`BLOCK`].
    start: u64,
    count: u64,
    /// One bit a block, set when it is plugged in.
    plugged: Vec<u64>,
    plugged_count: u64,
}

impl Blocks {
    /// The region of `len` bytes at `start`, both multiples of [`BLOCK`], with nothing plugged in.
    pub(super) fn new(start: u64, len: u64) -> Self {
        let count = len / BLOCK;
        let words = fits(count.div_ceil(64), "hosts of Nelly have 64 bits");
        Self { start, count, plugged: vec![0; words], plugged_count: 0 }
    }

    /// Bytes plugged in.
    pub(super) fn plugged_bytes(&self) -> u64 {
        self.plugged_count * BLOCK
    }

    /// One bit a block, from the first on.
    pub(super) fn bitmap(&self) -> &[u64] {
        &self.plugged
    }

    /// Plugs in what such a bitmap says; `false`, and nothing changes, when it is another region's.
    pub(super) fn set_bitmap(&mut self, bitmap: Vec<u64>) -> bool {
        let beyond = bitmap.last().is_some_and(|last| match self.count % 64 {
            0 => false,
            used => last >> used != 0,
        });
        if bitmap.len() != self.plugged.len() || beyond {
            return false;
        }
        self.plugged_count = bitmap.iter().fold(0, |count, bits| count + u64::from(bits.count_ones()));
        self.plugged = bitmap;
        true
    }

    /// Serves one request, when `requested` bytes are wanted to be plugged in. What is unplugged is
    /// given to `discard`, as byte offsets in the region, before it counts as unplugged; when that
    /// answers `false` nothing changes and the driver may try again.
    pub(super) fn serve(
        &mut self,
        wanted: MemoryRequest,
        requested: u64,
        discard: &mut dyn FnMut(Range<u64>) -> bool,
    ) -> Response {
        match wanted.kind {
            request::PLUG => self.plug(wanted, requested),
            request::UNPLUG => self.unplug(wanted, discard),
            request::UNPLUG_ALL => self.unplug_all(discard),
            request::STATE => self.state(wanted),
            _ => Response::ERROR,
        }
    }

    fn plug(&mut self, wanted: MemoryRequest, requested: u64) -> Response {
        let Some(blocks) = self.range(wanted) else { return Response::ERROR };
        if self.plugged_in(&blocks) > 0 {
            return Response::ERROR;
        }
        // Not an error: the host may have changed its mind since the driver looked (5.15.6).
        if self.plugged_bytes() + (blocks.end - blocks.start) * BLOCK > requested {
            return Response::NACK;
        }
        self.set(&blocks, true);
        Response::ACK
    }

    fn unplug(&mut self, wanted: MemoryRequest, discard: &mut dyn FnMut(Range<u64>) -> bool) -> Response {
        let Some(blocks) = self.range(wanted) else { return Response::ERROR };
        if self.plugged_in(&blocks) != blocks.end - blocks.start {
            return Response::ERROR;
        }
        if !discard(blocks.start * BLOCK..blocks.end * BLOCK) {
            return Response::BUSY;
        }
        self.set(&blocks, false);
        Response::ACK
    }

    fn unplug_all(&mut self, discard: &mut dyn FnMut(Range<u64>) -> bool) -> Response {
        if self.plugged_count > 0 && !discard(0..self.count * BLOCK) {
            return Response::BUSY;
        }
        self.plugged.fill(0);
        self.plugged_count = 0;
        Response::ACK
    }

    fn state(&self, wanted: MemoryRequest) -> Response {
        let Some(blocks) = self.range(wanted) else { return Response::ERROR };
        let state = match self.plugged_in(&blocks) {
            0 => state::UNPLUGGED,
            all if all == blocks.end - blocks.start => state::PLUGGED,
            _ => state::MIXED,
        };
        Response { state, ..Response::ACK }
    }

    /// The blocks that a request names, if it names whole ones, at least one, and none beyond the
    /// region.
    fn range(&self, wanted: MemoryRequest) -> Option<Range<u64>> {
        let offset = wanted.address.checked_sub(self.start)?;
        let first = offset / BLOCK;
        let end = first.checked_add(u64::from(wanted.count))?;
        (offset.is_multiple_of(BLOCK) && wanted.count > 0 && end <= self.count).then_some(first..end)
    }

    fn plugged_in(&self, blocks: &Range<u64>) -> u64 {
        words(blocks)
            .map(|(word, mask)| self.plugged.get(word).map_or(0, |bits| bits & mask))
            .fold(0, |count, bits| count + u64::from(bits.count_ones()))
    }

    /// Sets the state of blocks that are all in the other one.
    fn set(&mut self, blocks: &Range<u64>, plugged: bool) {
        for (word, mask) in words(blocks) {
            if let Some(bits) = self.plugged.get_mut(word) {
                if plugged { *bits |= mask } else { *bits &= !mask }
            }
        }
        let count = blocks.end - blocks.start;
        self.plugged_count = if plugged { self.plugged_count + count } else { self.plugged_count - count };
    }

    /// Runs of plugged blocks, first block and end.
    #[cfg(test)]
    pub(super) fn runs(&self) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for block in (0..self.count).filter(|&block| self.plugged_in(&(block..block + 1)) == 1) {
            match runs.last_mut() {
                Some(last) if last.1 == block => last.1 = block + 1,
                _ => runs.push((block, block + 1)),
            }
        }
        runs
    }
}

/// The words of the bitmap that hold `blocks`, each with the bits that belong to them.
fn words(blocks: &Range<u64>) -> impl Iterator<Item = (usize, u64)> {
    let (first, end) = (blocks.start, blocks.end);
    (first / 64..end.div_ceil(64)).map(move |word| {
        let from = first.saturating_sub(word * 64);
        let to = (end - word * 64).min(64);
        let mask = (u64::MAX >> (64 - (to - from))) << from;
        (fits(word, "hosts of Nelly have 64 bits"), mask)
    })
}
