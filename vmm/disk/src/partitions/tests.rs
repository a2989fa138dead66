//! Tables that are made here, sound ones and ones with a lie in each field.

use super::*;
use crate::testing::Endless;

const TYPE: [u8; 16] =
    [0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4];

fn put(disk: &mut [u8], at: usize, bytes: &[u8]) {
    disk[at..at + bytes.len()].copy_from_slice(bytes);
}

fn crc(bytes: &[u8]) -> [u8; 4] {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum().to_le_bytes()
}

fn protective(disk: &mut [u8]) {
    disk[446 + 4] = 0xee;
    put(disk, 446 + 8, &1_u32.to_le_bytes());
    put(disk, 446 + 12, &u32::MAX.to_le_bytes());
    put(disk, 510, &[0x55, 0xaa]);
}

/// A header at sector `place` for the entries at sector `array`, with the checksums that it needs.
fn seal(disk: &mut [u8], unit: usize, place: usize, array: usize) {
    let sectors = disk.len() / unit;
    let at = place * unit;
    let other = if place == 1 { sectors - 1 } else { 1 };
    let entries = crc(&disk[array * unit..array * unit + 128 * 128]);
    put(disk, at, b"EFI PART");
    put(disk, at + 8, &0x1_0000_u32.to_le_bytes());
    put(disk, at + 12, &92_u32.to_le_bytes());
    put(disk, at + 24, &(place as u64).to_le_bytes());
    put(disk, at + 32, &(other as u64).to_le_bytes());
    put(disk, at + 40, &40_u64.to_le_bytes());
    put(disk, at + 48, &(sectors as u64 - 41).to_le_bytes());
    put(disk, at + 56, &[7; 16]);
    put(disk, at + 72, &(array as u64).to_le_bytes());
    put(disk, at + 80, &128_u32.to_le_bytes());
    put(disk, at + 84, &128_u32.to_le_bytes());
    put(disk, at + 88, &entries);
    resum(disk, at);
}

fn resum(disk: &mut [u8], at: usize) {
    disk[at + 16..at + 20].fill(0);
    let sum = crc(&disk[at..at + 92]);
    put(disk, at + 16, &sum);
}

/// A disk of 200 sectors with partitions 1 and 15.
fn gpt(unit: usize) -> Vec<u8> {
    let mut disk = vec![0; unit * 200];
    protective(&mut disk);
    for array in [2, 200 - 1 - 128 * 128 / unit] {
        for (number, first, last) in [(1_usize, 40_u64, 49_u64), (15, 60, 60)] {
            let at = array * unit + (number - 1) * 128;
            put(&mut disk, at, &TYPE);
            put(&mut disk, at + 16, &[u8::try_from(number).unwrap(); 16]);
            put(&mut disk, at + 32, &first.to_le_bytes());
            put(&mut disk, at + 40, &last.to_le_bytes());
            put(&mut disk, at + 56, &[b'r', 0, 0xe4, 0, 27, 0]);
        }
    }
    seal(&mut disk, unit, 1, 2);
    seal(&mut disk, unit, 199, 200 - 1 - 128 * 128 / unit);
    disk
}

#[test]
fn gpt_is_read_with_both_sector_sizes() {
    for unit in [512_u32, 4096] {
        let disk = gpt(unit as usize);
        let table = read_partitions(&disk, 512).unwrap().unwrap();
        assert_eq!((table.kind, table.sector), (TableKind::Gpt, unit));
        assert_eq!(table.notes, Vec::<String>::new());
        let [first, second] = &table.partitions[..] else { panic!("{table:?}") };
        assert_eq!((first.number, first.start, first.len), (1, 40 * u64::from(unit), 10 * u64::from(unit)));
        assert_eq!((second.number, second.start, second.len), (15, 60 * u64::from(unit), u64::from(unit)));
        assert_eq!(first.kind.to_string(), "0fc63daf-8483-4772-8e79-3d69d8477de4");
        assert_eq!(second.uuid, "0f0f0f0f-0f0f-0f0f-0f0f-0f0f0f0f0f0f");
        assert_eq!(first.name, "r\u{e4}\u{fffd}", "no control character reaches a terminal");
    }
}

#[test]
fn a_broken_first_header_gives_way_to_the_backup() {
    for unit in [512, 4096] {
        let mut disk = gpt(unit);
        disk[unit + 56] ^= 1;
        let table = read_partitions(&disk, 512).unwrap().unwrap();
        assert_eq!(table.partitions.len(), 2);
        assert!(table.notes[0].contains("its backup was used"), "{:?}", table.notes);
        // The array of entries, too.
        let mut disk = gpt(unit);
        disk[2 * unit + 32] ^= 1;
        assert_eq!(read_partitions(&disk, 512).unwrap().unwrap().partitions.len(), 2);
        disk[199 * unit + 9] ^= 1;
        let error = read_partitions(&disk, 512).unwrap_err().to_string();
        assert!(error.contains("checksum of its entries") && error.contains("revision"), "{error}");
    }
    // A disk that has grown has no backup at its end, and needs none.
    let mut disk = gpt(512);
    disk.extend_from_slice(&[0; 5120]);
    let table = read_partitions(&disk, 512).unwrap().unwrap();
    assert_eq!(table.notes, ["the disk has 5120 bytes behind the end that the GPT knows: it has grown"]);
}

/// Each lie with a checksum that is right, in the header of a disk whose backup is gone.
#[test]
fn a_lie_in_any_field_of_a_gpt_is_refused() {
    let lies: &[(usize, &[u8], &str)] = &[
        (8, &[0, 0, 2, 0], "revision"),
        (12, &[91, 0, 0, 0], "size"),
        (12, &[0xff; 4], "size"),
        (24, &[2], "another sector"),
        (40, &[0xff; 8], "may lie in sectors"),
        (48, &[0xff; 8], "may lie in sectors"),
        (48, &[200, 0], "may lie in sectors"),
        (40, &[3], "where partitions may lie"),
        (72, &[1], "outside of the disk"),
        (72, &[0xff; 8], "outside of the disk"),
        (72, &[190, 0], "outside of the disk"),
        (80, &[0; 4], "entries of"),
        (80, &[0xff; 4], "more than"),
        (84, &[0; 4], "entries have 0 bytes"),
        (84, &[129], "entries have 129 bytes"),
        (84, &[0, 0, 1], "entries have"),
        (88, &[1, 2, 3, 4], "checksum of its entries"),
    ];
    for (at, bytes, why) in lies {
        let mut disk = gpt(512);
        disk[199 * 512..].fill(0);
        put(&mut disk, 512 + at, bytes);
        resum(&mut disk, 512);
        let error = read_partitions(&disk, 512).unwrap_err().to_string();
        assert!(error.contains(why), "{at} {bytes:?}: {error}");
    }
    let entries: &[(usize, u64, u64, &str)] = &[
        (1, 39, 45, "outside of"),
        (1, 50, 49, "outside of"),
        (1, 40, 160, "outside of"),
        (1, 0, u64::MAX, "outside of"),
        (1, u64::MAX, u64::MAX, "outside of"),
        (1, 40, 60, "overlap"),
        (1, 60, 60, "overlap"),
    ];
    for (number, first, last, why) in entries {
        let mut disk = gpt(512);
        disk[199 * 512..].fill(0);
        put(&mut disk, 1024 + (number - 1) * 128 + 32, &first.to_le_bytes());
        put(&mut disk, 1024 + (number - 1) * 128 + 40, &last.to_le_bytes());
        seal(&mut disk, 512, 1, 2);
        let error = read_partitions(&disk, 512).unwrap_err().to_string();
        assert!(error.contains(why), "{first} {last}: {error}");
    }
    // A disk that was cut.
    let mut disk = gpt(512);
    disk.truncate(100 * 512);
    assert!(read_partitions(&disk, 512).is_err());
}

#[test]
fn what_is_no_table_is_none() {
    for disk in [vec![], vec![0; 511], vec![0; 512], vec![0; 8192], vec![0xff; 8192]] {
        assert!(read_partitions(&disk, 512).unwrap().is_none());
    }
    assert!(read_partitions(&Endless(1 << 20), 512).unwrap().is_none());
    // A GPT that no MBR announces is what Linux does not see either.
    let mut disk = gpt(512);
    disk[450] = 0;
    assert!(read_partitions(&disk, 512).unwrap().is_none());
    // A boot sector of a file system has code where the entries would be.
    let mut disk = vec![0x90; 512];
    put(&mut disk, 510, &[0x55, 0xaa]);
    assert!(read_partitions(&disk, 512).unwrap().is_none());
}

fn entry(disk: &mut [u8], sector: usize, index: usize, kind: u8, first: u32, count: u32) {
    let at = sector * 512 + 446 + 16 * index;
    disk[at + 4] = kind;
    put(disk, at + 8, &first.to_le_bytes());
    put(disk, at + 12, &count.to_le_bytes());
    put(disk, sector * 512 + 510, &[0x55, 0xaa]);
}

/// One primary partition, and an extended one with two logical ones.
fn mbr() -> Vec<u8> {
    let mut disk = vec![0; 512 * 200];
    put(&mut disk, 440, &0x1234_abcd_u32.to_le_bytes());
    entry(&mut disk, 0, 0, 0x83, 10, 20);
    entry(&mut disk, 0, 2, 0x05, 50, 100);
    entry(&mut disk, 50, 0, 0x83, 1, 10);
    entry(&mut disk, 50, 1, 0x05, 20, 30);
    entry(&mut disk, 70, 0, 0x82, 2, 28);
    disk
}

#[test]
fn mbr_with_logical_partitions_is_read() {
    let table = read_partitions(&mbr(), 512).unwrap().unwrap();
    let found: Vec<_> = table
        .partitions
        .iter()
        .map(|p| (p.number, p.start / 512, p.len / 512, p.kind.to_string(), p.uuid.as_str()))
        .collect();
    assert_eq!(
        found,
        [
            (1, 10, 20, "0x83".to_owned(), "1234abcd-01"),
            (5, 51, 10, "0x83".to_owned(), "1234abcd-05"),
            (6, 72, 28, "0x82".to_owned(), "1234abcd-06"),
        ]
    );
    assert_eq!((table.kind, table.disk.as_str()), (TableKind::Mbr, "1234abcd"));
    // The same numbers in larger sectors.
    let mut disk = vec![0; 4096 * 40];
    entry(&mut disk, 0, 0, 0x83, 10, 20);
    let table = read_partitions(&disk, 4096).unwrap().unwrap();
    assert_eq!((table.partitions[0].start, table.partitions[0].len), (40_960, 81_920));
    // An extended partition in which there is nothing.
    let mut disk = vec![0; 512 * 200];
    entry(&mut disk, 0, 0, 0x0f, 10, 20);
    assert_eq!(read_partitions(&disk, 512).unwrap().unwrap().partitions, []);
}

/// A change of a sound MBR.
type Lie = fn(&mut [u8]);

#[test]
fn a_lie_in_an_mbr_is_refused() {
    let lies: [(Lie, &str); 11] = [
        (|disk| entry(disk, 0, 1, 0x83, 29, 5), "partitions 1 and 2 overlap"),
        (|disk| entry(disk, 0, 1, 0x83, 190, 11), "ends behind the disk"),
        (|disk| entry(disk, 0, 1, 0x83, u32::MAX, u32::MAX), "ends behind the disk"),
        (|disk| entry(disk, 0, 1, 0x83, 149, 5), "overlap"),
        (|disk| entry(disk, 0, 1, 0x0f, 160, 5), "two extended"),
        (|disk| entry(disk, 50, 1, 0x05, 0, 30), "leads nowhere"),
        (|disk| entry(disk, 70, 1, 0x05, 20, 30), "leads nowhere"),
        (|disk| entry(disk, 50, 1, 0x05, 100, 30), "leads nowhere"),
        (|disk| entry(disk, 70, 0, 0x83, 2, 100), "does not lie in the extended"),
        (|disk| entry(disk, 50, 0, 0x83, 1, 25), "overlap"),
        (|disk| disk[70 * 512 + 510] = 0, "no signature"),
    ];
    for (lie, why) in lies {
        let mut disk = mbr();
        lie(&mut disk);
        let error = read_partitions(&disk, 512).unwrap_err().to_string();
        assert!(error.contains(why), "{why}: {error}");
    }
}

#[test]
fn a_part_stays_inside() {
    let bytes: Vec<u8> = (0..100).collect();
    let part = Part::new(&bytes, 10, 20);
    let mut buffer = [0; 30];
    assert_eq!((part.len(), part.read_at(&mut buffer, 5).unwrap()), (20, 15));
    assert_eq!((buffer[0], buffer[14], buffer[15]), (15, 29, 0));
    assert_eq!(part.read_at(&mut buffer, 20).unwrap(), 0);
    assert_eq!(Part::new(&bytes, 95, 20).len(), 5);
    assert_eq!(Part::new(&bytes, 101, 20).len(), 0);
}
