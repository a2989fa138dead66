//! The machine's memory as its guest is told of it, and where things fit.

use crate::arch::x86_64::layout;
use crate::memory::GuestRam;

/// What a range of the map is, by the numbers of the BIOS call E820 (and of PVH).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(in crate::boot) enum Kind {
    Ram = 1,
    Reserved = 2,
}

impl Kind {
    /// Its number.
    pub(in crate::boot) fn number(self) -> u32 {
        match self {
            Self::Ram => 1,
            Self::Reserved => 2,
        }
    }
}

/// One range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::boot) struct Entry {
    pub start: u64,
    pub end: u64,
    pub kind: Kind,
}

/// The memory of a machine: ranges that hold memory, ascending, none touching the next.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::boot) struct Map {
    ram: Vec<(u64, u64)>,
}

impl Map {
    /// Of the memory that is there from the start.
    pub(in crate::boot) fn of(memory: &GuestRam) -> Self {
        let mut ram: Vec<(u64, u64)> = Vec::new();
        for slot in memory.boot_slots() {
            let start = slot.guest();
            let end = start.saturating_add(slot.len());
            match ram.last_mut() {
                Some(last) if last.1 == start => last.1 = end,
                _ => ram.push((start, end)),
            }
        }
        Self { ram }
    }

    /// Bytes of memory.
    pub(in crate::boot) fn total(&self) -> u64 {
        self.ram.iter().map(|(start, end)| end - start).sum()
    }

    /// Whether some of it lies above 4 GiB.
    pub(in crate::boot) fn is_high(&self) -> bool {
        self.ram.last().is_some_and(|&(_, end)| end > layout::HIGH_RAM)
    }

    /// Whether all of `start..end` is memory.
    pub(in crate::boot) fn holds(&self, start: u64, end: u64) -> bool {
        self.ram.iter().any(|&(first, last)| first <= start && end <= last)
    }

    /// The map that the guest gets: memory, without the hole that every PC has between its BIOS data and 1 MiB, where the tables of
    /// the platform lie.
    pub(in crate::boot) fn entries(&self) -> Vec<Entry> {
        let (hole, hole_end) = (layout::MP_TABLE, layout::HIGH_MEMORY);
        let mut entries = Vec::with_capacity(self.ram.len() + 2);
        for &(start, end) in &self.ram {
            let mut push = |start: u64, end: u64, kind| {
                if start < end {
                    entries.push(Entry { start, end, kind });
                }
            };
            push(start, end.min(hole), Kind::Ram);
            push(start.max(hole), end.min(hole_end), Kind::Reserved);
            push(start.max(hole_end), end, Kind::Ram);
        }
        entries
    }

    /// The first place, a multiple of 4096, for `len` bytes that lies in memory at `from` or above and ends at `limit` at the latest.
    pub(in crate::boot) fn lowest(&self, len: u64, from: u64, limit: u64) -> Option<u64> {
        self.ram.iter().find_map(|&(start, end)| {
            let place = start.max(from).checked_next_multiple_of(0x1000)?;
            (place.checked_add(len)? <= end.min(limit)).then_some(place)
        })
    }

    /// The highest place, a multiple of 4096, for `len` bytes that lies in memory at 1 MiB or above, ends at `limit` at the latest and
    /// stays clear of `taken`.
    pub(in crate::boot) fn highest(&self, len: u64, limit: u64, taken: (u64, u64)) -> Option<u64> {
        let fits = |start: u64, end: u64| {
            let place = end.min(limit).checked_sub(len)? & !0xfff;
            (place >= start.max(layout::HIGH_MEMORY)).then_some(place)
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

    #[test]
    fn map_leaves_the_hole_below_1_mib_out() {
        let map = Map { ram: vec![(0, 64 * MIB), (1 << 32, (1 << 32) + MIB)] };
        let entries: Vec<_> = map.entries().iter().map(|e| (e.start, e.end, e.kind.number())).collect();
        assert_eq!(
            entries,
            [(0, 0x9_fc00, 1), (0x9_fc00, MIB, 2), (MIB, 64 * MIB, 1), (1 << 32, (1 << 32) + MIB, 1)]
        );
        assert_eq!(map.total(), 65 * MIB);
    }

    #[test]
    fn lowest_place() {
        let map = Map { ram: vec![(0, 64 * MIB), (1 << 32, (1 << 32) + MIB)] };
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
        let map = Map { ram: vec![(0, 64 * MIB), (1 << 32, (1 << 32) + MIB)] };
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
            assert_eq!(map.highest(len, limit, kernel), place, "{len:#x} below {limit:#x}");
        }
    }
}
