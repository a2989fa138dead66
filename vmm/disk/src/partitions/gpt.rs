//! GPT: a header and an array of entries, at the start of the disk and again at its end.

use super::{PARTITIONS_MAX, Partition, PartitionError, PartitionTable, PartitionType, TableKind, distinct};
use crate::le::{plain, u16_at, u32_at, u64_at};
use crate::number::fits;
use crate::traits::ReadAt;

const SIGNATURE: &[u8; 8] = b"EFI PART";
/// Bytes of the header that the specification defines.
const HEADER: usize = 92;
/// Most bytes of the array of entries: eight times what the specification has as the least.
const ENTRIES_BYTES_MAX: u64 = 128 << 10;
/// Sectors that a header is looked for with.
const SECTORS: [u32; 2] = [512, 4096];

/// A GUID as it is written: its first three parts are little-endian numbers.
pub(super) fn guid(bytes: &[u8; 16]) -> String {
    let mut turned = *bytes;
    turned[0..4].reverse();
    turned[4..6].reverse();
    turned[6..8].reverse();
    crate::le::uuid(&turned)
}

fn sixteen(bytes: &[u8], at: usize) -> [u8; 16] {
    let mut id = [0; 16];
    id.copy_from_slice(&bytes[at..at + 16]);
    id
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// Reads the table, or its backup at the disk's end where the first one is broken.
pub(super) fn read(disk: &dyn ReadAt) -> Result<PartitionTable, PartitionError> {
    let mut primary: Option<String> = None;
    for sector in SECTORS {
        match read_at(disk, sector, 1)? {
            Ok(table) => return Ok(table),
            // The sector size by which there is a header has the say.
            Err(Broken::Damaged(why)) => primary = Some(why),
            Err(Broken::Absent) => {}
        }
    }
    let primary = primary.unwrap_or_else(|| "there is no header in the second sector".to_owned());
    let mut backup: Option<String> = None;
    for sector in SECTORS {
        let last = (disk.len() / u64::from(sector)).saturating_sub(1);
        match read_at(disk, sector, last)? {
            Ok(mut table) => {
                table.notes.push(format!("the first GPT is not valid ({primary}); its backup was used"));
                return Ok(table);
            }
            Err(Broken::Damaged(why)) => backup = Some(why),
            Err(Broken::Absent) => {}
        }
    }
    let backup = backup.unwrap_or_else(|| "there is none in the last sector".to_owned());
    Err(PartitionError::Gpt { primary, backup })
}

/// Why there is no table in a place.
enum Broken {
    Absent,
    Damaged(String),
}

impl From<String> for Broken {
    fn from(why: String) -> Self {
        Self::Damaged(why)
    }
}

/// Reads the header at sector `place` and its entries.
fn read_at(
    disk: &dyn ReadAt,
    sector: u32,
    place: u64,
) -> Result<Result<PartitionTable, Broken>, PartitionError> {
    let (unit, sectors) = (u64::from(sector), disk.len() / u64::from(sector));
    if place == 0 || place >= sectors {
        return Ok(Err(Broken::Absent));
    }
    let mut header = vec![0; fits(sector, "hosts of Nelly have 64 bits")];
    disk.read_exact_at(&mut header, place * unit)?;
    if !header.starts_with(SIGNATURE) {
        return Ok(Err(Broken::Absent));
    }
    let array = match check_header(&header, place, sectors, unit) {
        Ok(array) => array,
        Err(why) => return Ok(Err(why.into())),
    };
    let mut entries = vec![0; fits(array.bytes, "it is at most 128 KiB")];
    disk.read_exact_at(&mut entries, array.at)?;
    if crc32(&entries) != array.crc {
        return Ok(Err("the checksum of its entries does not match".to_owned().into()));
    }
    Ok(table(&header, &entries, &array, sector, disk.len()).map_err(Broken::Damaged))
}

/// Where the entries lie, and the sectors that partitions may have.
struct Array {
    at: u64,
    bytes: u64,
    crc: u32,
    size: usize,
    usable: (u64, u64),
}

fn check_header(header: &[u8], place: u64, sectors: u64, unit: u64) -> Result<Array, String> {
    let (revision, size) = (u32_at(header, 8), u32_at(header, 12));
    if revision != 0x1_0000 {
        return Err(format!("its revision is {revision:#x}, and only 0x10000 is known"));
    }
    let size = usize::try_from(size).ok().filter(|size| (HEADER..=header.len()).contains(size));
    let size = size.ok_or("its header has an impossible size")?;
    let mut summed = header[..size].to_vec();
    summed[16..20].fill(0);
    if crc32(&summed) != u32_at(header, 16) {
        return Err("the checksum of its header does not match".to_owned());
    }
    if u64_at(header, 24) != place {
        return Err("its header is for another sector".to_owned());
    }
    let usable = (u64_at(header, 40), u64_at(header, 48));
    if usable.0 > usable.1 || usable.1 >= sectors {
        return Err(format!("its partitions may lie in sectors {} to {}, of {sectors}", usable.0, usable.1));
    }
    let (at, count, entry) = (u64_at(header, 72), u32_at(header, 80), u32_at(header, 84));
    if !(128..=4096).contains(&entry) || !entry.is_power_of_two() {
        return Err(format!("its entries have {entry} bytes"));
    }
    let bytes = u64::from(count) * u64::from(entry);
    if bytes == 0 || bytes > ENTRIES_BYTES_MAX {
        return Err(format!(
            "it has {count} entries of {entry} bytes, more than {ENTRIES_BYTES_MAX} bytes in all"
        ));
    }
    let end = at.checked_add(bytes.div_ceil(unit));
    if at < 2 || end.is_none_or(|end| end > sectors) {
        return Err("its entries lie outside of the disk".to_owned());
    }
    // Entries inside the area of partitions would be overwritten by one.
    if end.is_some_and(|end| at <= usable.1 && usable.0 < end) {
        return Err("its entries lie where partitions may lie".to_owned());
    }
    Ok(Array { at: at * unit, bytes, crc: u32_at(header, 88), size: fits(entry, "at most 4096"), usable })
}

fn table(
    header: &[u8],
    entries: &[u8],
    array: &Array,
    sector: u32,
    end: u64,
) -> Result<PartitionTable, String> {
    let unit = u64::from(sector);
    let mut partitions = Vec::new();
    for (index, entry) in entries.chunks_exact(array.size).enumerate() {
        let kind = sixteen(entry, 0);
        if kind == [0; 16] {
            continue;
        }
        let number: u32 = fits(index + 1, "there are at most 1024");
        let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
        if first > last || first < array.usable.0 || last > array.usable.1 {
            let (from, to) = array.usable;
            return Err(format!(
                "partition {number} has sectors {first} to {last}, outside of {from} to {to}"
            ));
        }
        if partitions.len() == PARTITIONS_MAX {
            return Err(format!("it has more than {PARTITIONS_MAX} partitions"));
        }
        let name: Vec<u16> =
            (56..128).step_by(2).map(|at| u16_at(entry, at)).take_while(|&c| c != 0).collect();
        partitions.push(Partition {
            number,
            start: first * unit,
            len: (last - first + 1) * unit,
            kind: PartitionType::Guid(kind),
            uuid: guid(&sixteen(entry, 16)),
            name: plain(&String::from_utf16_lossy(&name)),
        });
    }
    distinct(&partitions, end)?;
    let mut notes = Vec::new();
    let last = end / unit - 1;
    if u64_at(header, 24) == 1 && u64_at(header, 32) != last {
        let grown = (last - u64_at(header, 32).min(last)) * unit;
        notes.push(format!("the disk has {grown} bytes behind the end that the GPT knows: it has grown"));
    }
    Ok(PartitionTable { kind: TableKind::Gpt, sector, disk: guid(&sixteen(header, 56)), partitions, notes })
}
