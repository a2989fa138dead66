//! The machine's memory as its guest is told of it.

use crate::arch::x86_64::layout;
use crate::boot::map::Map;

/// What a range of the map is, by the numbers of the BIOS call E820 (and of PVH).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    Ram = 1,
    Reserved = 2,
}

impl Kind {
    /// Its number.
    pub(super) fn number(self) -> u32 {
        match self {
            Self::Ram => 1,
            Self::Reserved => 2,
        }
    }
}

/// One range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub start: u64,
    pub end: u64,
    pub kind: Kind,
}

/// Whether some of the memory lies above 4 GiB.
pub(super) fn is_high(map: &Map) -> bool {
    map.ranges().last().is_some_and(|&(_, end)| end > layout::HIGH_RAM)
}

/// The map that the guest gets: memory, without the hole that every PC has between its BIOS data
/// and 1 MiB, where the tables of the platform lie.
pub(super) fn entries(map: &Map) -> Vec<Entry> {
    let (hole, hole_end) = (layout::MP_TABLE, layout::HIGH_MEMORY);
    let mut entries = Vec::with_capacity(map.ranges().len() + 2);
    for &(start, end) in map.ranges() {
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

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn map_leaves_the_hole_below_1_mib_out() {
        let map = Map::with(&[(0, 64 * MIB), (1 << 32, (1 << 32) + MIB)]);
        let entries: Vec<_> = entries(&map).iter().map(|e| (e.start, e.end, e.kind.number())).collect();
        assert_eq!(
            entries,
            [(0, 0x9_fc00, 1), (0x9_fc00, MIB, 2), (MIB, 64 * MIB, 1), (1 << 32, (1 << 32) + MIB, 1)]
        );
        assert_eq!(map.total(), 65 * MIB);
    }
}
