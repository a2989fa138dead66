//! The disk of a cloud image: its partition table, its file systems, what its boot loader reads.
//! The first byte selects what the rest is.

use std::io::Write;

use nelly_cloud::grub::{self, Devices, FileKind, SearchBy};
use nelly_cloud::{Image, Parts, bls, find, fstab, grubenv, syslinux, version};
use nelly_disk::fs::{identify, list, open_volume, read_file};
use nelly_disk::partitions::read_partitions;

/// Most bytes of a file that is read here.
const FILE_MAX: u64 = 1 << 20;

/// Reads the input as a disk, as a file system or as a configuration.
///
/// # Panics
/// A partition lies outside of its disk, or overlaps another one.
pub fn run(data: &[u8]) {
    let _ = accepts(data);
}

/// As [`run`]; whether something was found.
///
/// # Panics
/// As [`run`].
#[must_use]
pub fn accepts(data: &[u8]) -> bool {
    let Some((choice, rest)) = data.split_first() else { return false };
    match choice % 8 {
        0 => disk(rest),
        1 => volume(rest),
        2 => script(rest),
        4 => disk(&gpt(rest)),
        5 => volume(&unpacked(rest)),
        _ => texts(&String::from_utf8_lossy(rest)),
    }
}

/// A disk of 64 KiB with the partitions that the input describes, in a table whose sums are right:
/// 16 bytes a partition, and what is left is the first one's.
fn gpt(rest: &[u8]) -> Vec<u8> {
    const ENTRIES: usize = 128;
    let (described, contents) = rest.split_at(rest.len().min(16 * 8));
    let mut entries = vec![0; ENTRIES * 128];
    for (entry, from) in entries.chunks_exact_mut(128).zip(described.chunks_exact(16)) {
        entry[..4].copy_from_slice(&from[..4]);
        entry[16..20].copy_from_slice(&from[4..8]);
        entry[32] = from[8];
        entry[33..40].fill(from[9] & 0x80);
        entry[40] = from[10];
        entry[41..48].fill(from[11] & 0x80);
        entry[48] = from[12];
        entry[56..60].copy_from_slice(&[from[13], 0, from[14], from[15]]);
    }
    let mut disk = vec![0; 64 << 10];
    disk[446 + 4] = 0xee;
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let last = disk.len() / 512 - 1;
    for (at, other, table) in [(1, last, 2), (last, 1, last - 32)] {
        let number = |number: usize| (number as u64).to_le_bytes();
        let mut header = b"EFI PART\0\0\x01\0\x5c\0\0\0\0\0\0\0\0\0\0\0".to_vec();
        for value in [at, other, 34, last - 33] {
            header.extend(number(value));
        }
        header.extend([7; 16]);
        header.extend(number(table));
        header.extend([128, 0, 0, 0, 128, 0, 0, 0]);
        header.extend(crc32(&entries).to_le_bytes());
        let sum = crc32(&header);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        disk[at * 512..at * 512 + header.len()].copy_from_slice(&header);
        disk[table * 512..table * 512 + entries.len()].copy_from_slice(&entries);
    }
    let room = &mut disk[34 * 512..(last - 33) * 512];
    let len = contents.len().min(room.len());
    room[..len].copy_from_slice(&contents[..len]);
    disk
}

/// The sum of a table of partitions.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |sum, byte| {
        (0..8).fold(
            sum ^ u32::from(*byte),
            |sum, _| if sum & 1 == 1 { sum >> 1 ^ 0xedb8_8320 } else { sum >> 1 },
        )
    })
}

/// A file system is mostly zeros: pieces with the bytes between them that are none. Three bytes say
/// how many zeros there are, in units of 16, and how many bytes follow.
fn unpacked(mut rest: &[u8]) -> Vec<u8> {
    let mut disk = Vec::new();
    while let [low, high, len, more @ ..] = rest {
        let zeros = usize::from(u16::from_le_bytes([*low, *high])) * 16;
        let (piece, more) = more.split_at(more.len().min(usize::from(*len)));
        disk.resize((disk.len() + zeros).min(1 << 20), 0);
        disk.extend_from_slice(piece);
        rest = more;
    }
    disk.truncate(1 << 20);
    disk
}

/// A disk as [`unpacked`] reads it.
#[must_use]
pub fn packed(disk: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut units = disk.chunks(16).peekable();
    let is_zero = |unit: &&[u8]| unit.iter().all(|byte| *byte == 0);
    while units.peek().is_some() {
        let mut zeros = 0_u16;
        while zeros < u16::MAX && units.next_if(is_zero).is_some() {
            zeros += 1;
        }
        let mut piece = Vec::new();
        while piece.len() <= 239
            && let Some(unit) = units.next_if(|unit| !is_zero(unit))
        {
            piece.extend_from_slice(unit);
        }
        bytes.extend(zeros.to_le_bytes());
        bytes.push(u8::try_from(piece.len()).expect("255 at most"));
        bytes.extend(piece);
    }
    bytes
}

fn disk(rest: &[u8]) -> bool {
    let disk = widened(rest);
    for sector in [512, 4096] {
        let Ok(Some(table)) = read_partitions(&disk, sector) else { continue };
        let mut end = 0;
        let mut sorted = table.partitions.clone();
        sorted.sort_by_key(|partition| partition.start);
        for partition in sorted {
            assert!(partition.len > 0 && partition.start >= end, "{partition:?} overlaps");
            end = partition.start + partition.len;
            assert!(end <= disk.len() as u64, "{partition:?} lies outside");
        }
    }
    let Ok(parts) = Parts::read(&disk) else { return false };
    let Ok(image) = Image::open(&parts) else { return false };
    let _ = image.default_user();
    match find(&image, Some("ttyS0")) {
        Ok(plan) => {
            assert!(plan.chosen < plan.entries.len(), "the chosen entry is one of them");
            let _ = image.copy_initrds(plan.entry(), &mut std::io::sink());
        }
        Err(error) => assert!(!error.to_string().is_empty(), "an error says something"),
    }
    image.table.is_some() || image.slots.iter().any(|slot| slot.volume.is_some())
}

/// A disk of which the input has the beginning, so that what lies further behind is zero.
fn widened(rest: &[u8]) -> Vec<u8> {
    let mut disk = rest.to_vec();
    disk.resize(disk.len().next_multiple_of(512), 0);
    disk
}

fn volume(rest: &[u8]) -> bool {
    let disk = rest.to_vec();
    let _ = identify(&disk);
    let Ok(volume) = open_volume(&disk) else { return false };
    let names = list(&*volume, "/").ok().flatten().unwrap_or_default();
    for name in names.iter().take(20) {
        let bytes = read_file(&*volume, name, FILE_MAX);
        if let Ok(Some(bytes)) = bytes {
            assert!(bytes.len() as u64 <= FILE_MAX, "no more than was asked for");
        }
        let _ = list(&*volume, name);
    }
    !names.is_empty()
}

/// Every file of every device is the input.
struct Echo<'a>(&'a [u8]);

impl Devices for Echo<'_> {
    fn search(&self, _by: SearchBy, value: &str) -> Option<String> {
        (value.len() % 2 == 1).then(|| "hd0,gpt1".to_owned())
    }

    fn kind(&self, _device: &str, path: &str) -> Option<FileKind> {
        (path.len() % 2 == 1).then_some(FileKind::File(1))
    }

    fn read(&self, _device: &str, _path: &str) -> Option<Vec<u8>> {
        Some(self.0.to_vec())
    }

    fn bls(&self, _device: &str) -> Vec<bls::BlsEntry> {
        bls::parse("x.conf", &String::from_utf8_lossy(self.0)).into_iter().collect()
    }
}

fn script(rest: &[u8]) -> bool {
    let menu = grub::evaluate(&Echo(rest), "hd0,gpt1", "/boot/grub/grub.cfg");
    menu.is_ok_and(|menu| {
        assert!(menu.chosen.is_none_or(|chosen| chosen < menu.entries.len()), "the default is an entry");
        !menu.entries.is_empty()
    })
}

fn texts(text: &str) -> bool {
    let mut found = !grubenv::parse(text.as_bytes()).is_empty() | !fstab::parse(text).is_empty();
    let config = syslinux::parse(text);
    assert!(config.chosen() <= config.labels.len(), "the default is an entry");
    found |= !config.labels.is_empty();
    let mut entries: Vec<_> =
        text.split("\n\n").filter_map(|part| bls::parse("a-1+2-3.conf", part)).collect();
    entries.extend(text.lines().filter_map(|line| bls::parse(&format!("{line}.conf"), "linux /x")));
    entries.truncate(40);
    // A sort panics when its order contradicts itself.
    bls::sort(&mut entries);
    for pair in entries.windows(2) {
        let _ = version::compare(&pair[0].id, &pair[1].id);
    }
    found
}

/// A GPT with a small FAT that has a configuration, an MBR, scripts and texts.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let script = "if [ -s $prefix/grubenv ]; then load_env; fi\nset default=\"1>0\"\nfunction f { set x=\"$1\"; }\nmenuentry 'A' --id a {\n search --no-floppy --fs-uuid --set=root 123\n linux /k root=UUID=1 ro $x\n initrd /i\n}\nsubmenu 'B' { menuentry 'C' { f z; linux ($root)/k2 \"a b\" ${x} } }\nfor i in 1 2; do echo $i; done\n";
    let fat = fat(script);
    let texts = "# GRUB Environment Block\nsaved_entry=a\nUUID=1 /boot ext4 x\nDEFAULT a\nLABEL a\n LINUX k\n INITRD i,j\n APPEND root=/dev/vda\n\ntitle x\nlinux /k\noptions a\n6.1.0-1\n6.1~rc1";
    let with = |choice: u8, rest: &[u8]| [&[choice], rest].concat();
    let entry = [0xaf, 0x3d, 0xc6, 0x0f, 1, 2, 3, 4, 34, 0, 61, 0, 0, b'a', b'b', 0];
    vec![
        with(0, &mbr(&fat)),
        with(0, &fat),
        with(1, &fat),
        with(2, script.as_bytes()),
        with(3, texts.as_bytes()),
        with(4, &[&entry[..], &[0; 16 * 7], &fat[..28 << 9]].concat()),
        with(5, &packed(&fat)),
        with(5, include_bytes!("../ext4.packed")),
    ]
}

/// A disk with one partition.
fn mbr(fat: &[u8]) -> Vec<u8> {
    let mut disk = vec![0; 512];
    disk[446 + 4] = 0xef;
    disk[446 + 8] = 1;
    disk[446 + 12..446 + 14]
        .copy_from_slice(&u16::try_from(fat.len() / 512).expect("it is small").to_le_bytes());
    disk[510..].copy_from_slice(&[0x55, 0xaa]);
    disk.extend_from_slice(fat);
    disk
}

/// FAT12 of 64 sectors, in whose root are the directory `grub` with `grub.cfg`, and a kernel.
fn fat(script: &str) -> Vec<u8> {
    let mut disk = vec![0; 64 * 512];
    disk[..3].copy_from_slice(&[0xeb, 0x3c, 0x90]);
    for (at, bytes) in
        [(11, &[0, 2, 1, 1, 0, 1, 16, 0, 64, 0, 0xf8, 1, 0][..]), (39, &[1, 2, 3, 4]), (510, &[0x55, 0xaa])]
    {
        disk[at..at + bytes.len()].copy_from_slice(bytes);
    }
    // Reserved, one table, one sector of the root directory: cluster 2 is sector 3.
    let entry = |name: &[u8; 11], kind: u8, cluster: u8, size: usize| {
        let mut entry = [0; 32];
        entry[..11].copy_from_slice(name);
        (entry[11], entry[26]) = (kind, cluster);
        entry[28..32].copy_from_slice(&u32::try_from(size).expect("it is small").to_le_bytes());
        entry
    };
    let chain = |disk: &mut Vec<u8>, cluster: usize, next: u16| {
        let at = 512 + cluster * 3 / 2;
        let word = u16::from_le_bytes([disk[at], disk[at + 1]]);
        let word = if cluster % 2 == 1 { word & 0x000f | next << 4 } else { word & 0xf000 | next };
        disk[at..at + 2].copy_from_slice(&word.to_le_bytes());
    };
    for (cluster, next) in [(2, 0xfff), (3, 4), (4, 0xfff), (5, 0xfff)] {
        chain(&mut disk, cluster, next);
    }
    let root =
        [entry(b"GRUB       ", 16, 2, 0), entry(b"K          ", 32, 5, 512), entry(b"LABEL      ", 8, 0, 0)];
    disk[1024..1024 + 96].copy_from_slice(&root.concat());
    disk[1536..1568].copy_from_slice(&entry(b"GRUB    CFG", 32, 3, script.len()));
    (&mut disk[2048..3072]).write_all(script.as_bytes()).expect("two sectors");
    disk
}
