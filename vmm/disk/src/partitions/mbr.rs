//! MBR: four entries in the first sector, one of which may be extended: a chain of sectors with an
//! entry for a logical partition and one for the next link.

use super::{PARTITIONS_MAX, Partition, PartitionError, PartitionTable, PartitionType, TableKind, distinct};
use crate::le::u32_at;
use crate::number::fits;
use crate::traits::ReadAt;

/// Where the entries begin in a sector.
const ENTRIES: usize = 446;
const PROTECTIVE: u8 = 0xee;

/// An entry, in sectors.
#[derive(Clone, Copy)]
struct Entry {
    status: u8,
    kind: u8,
    first: u32,
    count: u32,
}

impl Entry {
    fn of(sector: &[u8; 512], index: usize) -> Self {
        let at = ENTRIES + 16 * index;
        Self {
            status: sector[at],
            kind: sector[at + 4],
            first: u32_at(sector, at + 8),
            count: u32_at(sector, at + 12),
        }
    }

    fn used(self) -> bool {
        self.kind != 0
    }

    fn extended(self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }

    /// Whether boot code or text of another kind of first sector would not look like this.
    fn plausible(self) -> bool {
        matches!(self.status, 0 | 0x80) && (!self.used() || (self.first > 0 && self.count > 0))
    }
}

fn signed(sector: &[u8; 512]) -> bool {
    sector[510..] == [0x55, 0xaa]
}

/// Whether the first sector says that there is a GPT.
pub(super) fn announces_gpt(first: &[u8; 512]) -> bool {
    signed(first) && (0..4).any(|index| Entry::of(first, index).kind == PROTECTIVE)
}

/// Reads the table in the first sector; `None` when it is none: no signature, no partition, or
/// fields that a file system's own boot sector has there.
pub(super) fn read(
    disk: &dyn ReadAt,
    first: &[u8; 512],
    sector: u32,
) -> Result<Option<PartitionTable>, PartitionError> {
    let entries: Vec<Entry> = (0..4).map(|index| Entry::of(first, index)).collect();
    let used = entries.iter().filter(|entry| entry.used()).count();
    if !signed(first) || used == 0 || !entries.iter().all(|entry| entry.plausible()) {
        return Ok(None);
    }
    let disk_id = u32_at(first, 440);
    let reader = Reader { disk, unit: u64::from(sector), disk_id };
    let mut partitions = Vec::new();
    let mut chain: Option<Entry> = None;
    for (number, entry) in (1..).zip(&entries).filter(|(_, entry)| entry.used()) {
        if entry.extended() && chain.replace(*entry).is_some() {
            return Err(PartitionError::Mbr("it has two extended partitions".to_owned()));
        }
        partitions.push(reader.partition(number, entry.kind, u64::from(entry.first), entry.count));
    }
    distinct(&partitions, disk.len()).map_err(PartitionError::Mbr)?;
    if let Some(extended) = chain {
        let logical = reader.logical(extended)?;
        distinct(&logical, disk.len()).map_err(PartitionError::Mbr)?;
        partitions.retain(|partition| !matches!(partition.kind, PartitionType::Byte(0x05 | 0x0f | 0x85)));
        partitions.extend(logical);
    }
    let disk = format!("{disk_id:08x}");
    Ok(Some(PartitionTable { kind: TableKind::Mbr, sector, disk, partitions, notes: Vec::new() }))
}

struct Reader<'a> {
    disk: &'a dyn ReadAt,
    unit: u64,
    disk_id: u32,
}

impl Reader<'_> {
    fn partition(&self, number: u32, kind: u8, first: u64, count: u32) -> Partition {
        Partition {
            number,
            start: first * self.unit,
            len: u64::from(count) * self.unit,
            kind: PartitionType::Byte(kind),
            uuid: format!("{:08x}-{number:02x}", self.disk_id),
            name: String::new(),
        }
    }

    /// Walks the chain of an extended partition. Its links only go forward, so that it ends.
    fn logical(&self, extended: Entry) -> Result<Vec<Partition>, PartitionError> {
        let refused = |why: String| Err(PartitionError::Mbr(why));
        let (base, count) = (u64::from(extended.first), u64::from(extended.count));
        let (mut at, mut found) = (base, Vec::new());
        for _ in 4..PARTITIONS_MAX {
            let number: u32 = fits(found.len() + 5, "bounded below");
            let mut sector = [0; 512];
            self.disk.read_exact_at(&mut sector, at * self.unit)?;
            if !signed(&sector) {
                // An extended partition in which none was ever made is all zeroes.
                let empty = at == base && sector == [0; 512];
                return if empty {
                    Ok(found)
                } else {
                    refused(format!("the link for partition {number} has no signature"))
                };
            }
            let (entry, next) = (Entry::of(&sector, 0), Entry::of(&sector, 1));
            if entry.used() {
                let first = at + u64::from(entry.first);
                let end = first + u64::from(entry.count);
                if !entry.plausible() || entry.extended() || end > base + count {
                    return refused(format!("partition {number} does not lie in the extended partition"));
                }
                found.push(self.partition(number, entry.kind, first, entry.count));
            }
            if !next.used() {
                return Ok(found);
            }
            let target = base + u64::from(next.first);
            if !next.extended() || target <= at || target >= base + count {
                return refused(format!("the link after partition {number} leads nowhere"));
            }
            at = target;
        }
        refused(format!("it has more than {PARTITIONS_MAX} partitions"))
    }
}
