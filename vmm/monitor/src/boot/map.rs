//! The memory of a machine, and where things fit.

use super::PAGE;
use crate::memory::GuestRam;

/// The memory of a machine: ranges that hold memory, ascending, none touching the next.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Map {
    ram: Vec<(u64, u64)>,
    /// What is put somewhere begins at a multiple of this, a power of two.
    align: u64,
}

impl Map {
    /// Of the memory that is there from the start.
    pub(super) fn of(memory: &GuestRam) -> Self {
        let mut ram: Vec<(u64, u64)> = Vec::new();
        for slot in memory.boot_slots() {
            let start = slot.guest();
            let end = start.saturating_add(slot.len());
            match ram.last_mut() {
                Some(last) if last.1 == start => last.1 = end,
                _ => ram.push((start, end)),
            }
        }
        Self { ram, align: PAGE }
    }

    /// The same memory, in which all begins at multiples of `align`, a power of two.
    pub(super) fn aligned(self, align: u64) -> Self {
        Self { align, ..self }
    }

    /// Bytes of memory.
    pub(super) fn total(&self) -> u64 {
        self.ram.iter().map(|(start, end)| end - start).sum()
    }

    /// First byte and end of each range.
    pub(super) fn ranges(&self) -> &[(u64, u64)] {
        &self.ram
    }

    /// Whether all of `start..end` is memory.
    pub(super) fn holds(&self, start: u64, end: u64) -> bool {
        self.ram.iter().any(|&(first, last)| first <= start && end <= last)
    }

    /// The first aligned place for `len` bytes that lies in memory at `from` or above
    /// and ends at `limit` at the latest.
    pub(super) fn lowest(&self, len: u64, from: u64, limit: u64) -> Option<u64> {
        self.ram.iter().find_map(|&(start, end)| {
            let place = start.max(from).checked_next_multiple_of(self.align)?;
            (place.checked_add(len)? <= end.min(limit)).then_some(place)
        })
    }

    /// The highest aligned place for `len` bytes that lies in memory at `floor` or
    /// above, ends at `limit` at the latest and stays clear of `taken`.
    pub(super) fn highest(&self, len: u64, floor: u64, limit: u64, taken: (u64, u64)) -> Option<u64> {
        let fits = |start: u64, end: u64| {
            let place = end.min(limit).checked_sub(len)? & !(self.align - 1);
            (place >= start.max(floor)).then_some(place)
        };
        self.ram
            .iter()
            .rev()
            .find_map(|&(start, end)| fits(start.max(taken.1), end).or_else(|| fits(start, end.min(taken.0))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    impl Map {
        pub(in crate::boot) fn with(ram: &[(u64, u64)]) -> Self {
            Self { ram: ram.to_vec(), align: PAGE }
        }
    }

    #[test]
    fn lowest_place() {
        let map = Map::with(&[(0, 64 * MIB), (1 << 32, (1 << 32) + MIB)]);
        let high = 1 << 33;
        for (len, from, limit, place) in [
            (1, 0, high, Some(0)),
            (1, MIB + 1, high, Some(MIB + 4096)),
            (MIB, 63 * MIB, high, Some(63 * MIB)),
            (MIB, 63 * MIB + 1, high, Some(1 << 32)),
            (MIB, 63 * MIB + 1, 1 << 32, None),
            (MIB + 1, 63 * MIB, high, None),
            (1, u64::MAX, high, None),
            (u64::MAX, 0, u64::MAX, None),
        ] {
            assert_eq!(map.lowest(len, from, limit), place, "{len:#x} from {from:#x} below {limit:#x}");
        }
    }

    #[test]
    fn highest_place() {
        let map = Map::with(&[(0, 64 * MIB), (1 << 32, (1 << 32) + MIB)]);
        let kernel = (16 * MIB, 40 * MIB);
        let high = 1 << 33;
        for (len, limit, place) in [
            (1, high, Some((1 << 32) + MIB - 4096)),
            (MIB, high, Some(1 << 32)),
            (MIB + 1, high, Some(63 * MIB - 4096)),
            (24 * MIB, 1 << 32, Some(40 * MIB)),
            // Only below the kernel is so much left, or allowed.
            (24 * MIB + 1, 1 << 32, None),
            (15 * MIB, 40 * MIB, Some(MIB)),
            (15 * MIB + 1, 40 * MIB, None),
            (4096, 50 * MIB + 1, Some(50 * MIB - 4096)),
            (0, 0, None),
        ] {
            assert_eq!(map.highest(len, MIB, limit, kernel), place, "{len:#x} below {limit:#x}");
        }
    }
}
