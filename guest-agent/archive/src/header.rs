//! The 512-byte header block and the records of pax.

use crate::sparse::{self, Extent};
use crate::{ArchiveError, Entry, Kind};

/// Bytes of a block.
pub(crate) const BLOCK: usize = 512;

/// Bytes of padding after data of `size` bytes.
pub(crate) fn padding(size: u64) -> u64 {
    (512 - size % 512) % 512
}

pub(crate) type Block = [u8; BLOCK];

/// A number in octal digits, or (GNU) in base 256. Empty is 0.
pub(crate) fn number(field: &[u8]) -> Result<i64, ArchiveError> {
    const BAD: ArchiveError = ArchiveError::Damaged("a header with an invalid number");
    if let Some((first, rest)) = field.split_first().filter(|(first, _)| **first & 0x80 != 0) {
        let mut value = if first & 0x40 != 0 { -1_i128 } else { 0 };
        value = value << 6 | i128::from(first & 0x3f);
        for byte in rest {
            value = value.checked_mul(256).ok_or(BAD)? | i128::from(*byte);
        }
        return i64::try_from(value).map_err(|_| BAD);
    }
    let digits = field.trim_ascii_start();
    let end = digits.iter().position(|byte| matches!(byte, 0 | b' ')).unwrap_or(digits.len());
    digits[..end].iter().try_fold(0_i64, |value, digit| match digit {
        b'0'..=b'7' => {
            value.checked_mul(8).and_then(|value| value.checked_add(i64::from(digit - b'0'))).ok_or(BAD)
        }
        _ => Err(BAD),
    })
}

fn unsigned(field: &[u8]) -> Result<u64, ArchiveError> {
    u64::try_from(number(field)?).map_err(|_| ArchiveError::Damaged("a header with a negative number"))
}

fn text(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|byte| *byte == 0).unwrap_or(field.len())]
}

/// The sum over a block, with its own field as spaces.
fn sum(block: &Block) -> i64 {
    let byte = |(at, byte): (usize, &u8)| if (148..156).contains(&at) { 32 } else { i64::from(*byte) };
    block.iter().enumerate().map(byte).sum()
}

/// The type of a header whose checksum is right, and the size of its data.
pub(crate) fn check(block: &Block) -> Result<(u8, u64), ArchiveError> {
    if number(&block[148..156])? != sum(block) {
        return Err(ArchiveError::Damaged("a header with a wrong checksum"));
    }
    Ok((block[156], unsigned(&block[124..136])?))
}

/// Whether what says that it is a file is a directory: its whole name, of all extensions, ends with
/// a slash (GNU tar 1.34, manual, "Basic Tar Format").
pub(crate) fn is_directory(entry: &Entry) -> bool {
    entry.kind == Kind::File && entry.path.last() == Some(&b'/')
}

/// The entry of a header without its extensions. A directory may have the kind of a file, as before
/// POSIX: [`is_directory`] tells.
pub(crate) fn entry(block: &Block) -> Result<Entry, ArchiveError> {
    let (name, prefix) = (text(&block[..100]), text(&block[345..500]));
    let ustar = &block[257..263] == b"ustar\0" && !prefix.is_empty();
    let path = if ustar { [prefix, b"/", name].concat() } else { name.to_vec() };
    let kind = match block[156] {
        0 | b'0' | b'7' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'5' => Kind::Directory,
        b'S' => Kind::File,
        b'3' | b'4' | b'6' => Kind::Other,
        _ => return Err(ArchiveError::Damaged("an entry of an unknown type")),
    };
    let id = |field: &[u8]| owner(unsigned(field)?);
    let mode = u32::try_from(number(&block[100..108])? & 0o7777);
    Ok(Entry {
        path,
        link: text(&block[157..257]).to_vec(),
        kind,
        mode: mode.map_err(|_| ArchiveError::Damaged("an invalid mode"))?,
        uid: id(&block[108..116])?,
        gid: id(&block[116..124])?,
        mtime: number(&block[136..148])?,
        mtime_nsec: 0,
        size: unsigned(&block[124..136])?,
        extents: None,
        xattrs: Vec::new(),
    })
}

/// The number of an owner. The highest is none: chown(2) takes it for the owner that there is.
fn owner(number: u64) -> Result<u32, ArchiveError> {
    let owner = u32::try_from(number).ok().filter(|owner| *owner != u32::MAX);
    owner.ok_or(ArchiveError::Damaged("an owner out of range"))
}

/// Puts `value` into a field in octal; `false` if it does not fit.
fn octal(field: &mut [u8], value: u64) -> bool {
    let width = field.len() - 1;
    let digits = format!("{value:0width$o}");
    if digits.len() > width {
        field[..width].fill(b'0');
        return false;
    }
    field[..width].copy_from_slice(digits.as_bytes());
    true
}

/// The beginning of the map of a sparse file in a header of type S, the size of the file, and
/// whether blocks with more of the map follow.
pub(crate) fn sparse(block: &Block) -> Result<(Vec<Extent>, u64, bool), ArchiveError> {
    let mut extents = Vec::new();
    pairs(&block[386..482], &mut extents)?;
    Ok((extents, unsigned(&block[483..495])?, block[482] != 0))
}

/// A block with more of such a map; whether another follows.
pub(crate) fn more_sparse(block: &Block, extents: &mut Vec<Extent>) -> Result<bool, ArchiveError> {
    pairs(&block[..504], extents)?;
    Ok(block[504] != 0)
}

/// Pairs of offset and length; the first empty one is the end.
fn pairs(field: &[u8], extents: &mut Vec<Extent>) -> Result<(), ArchiveError> {
    for pair in field.chunks_exact(24).take_while(|pair| pair[0] != 0) {
        if extents.len() == sparse::EXTENTS_MOST {
            return Err(ArchiveError::Damaged("a map of a sparse file that is too long"));
        }
        extents.push(Extent { offset: unsigned(&pair[..12])?, length: unsigned(&pair[12..])? });
    }
    Ok(())
}

/// The header of an entry with so many bytes of data, and the pax records that it needs before it.
pub(crate) fn encode(entry: &Entry, stored: u64) -> (Block, Vec<u8>) {
    let mut block = [0; BLOCK];
    let mut records = Vec::new();
    let mut path = &entry.path[..];
    if entry.extents.is_some() {
        // Who does not know of sparse files gets a file of this name, which is not the file.
        path = b"GNUSparseFile.0/file";
        let size = entry.size.to_string();
        for (key, value) in
            [("major", &b"1"[..]), ("minor", b"0"), ("name", &entry.path), ("realsize", size.as_bytes())]
        {
            records.extend(record(&[b"GNU.sparse.", key.as_bytes()].concat(), value));
        }
    }
    let mut put = |at: usize, room: usize, value: &[u8], key: &str, block: &mut Block| {
        let short = &value[..value.len().min(room)];
        block[at..at + short.len()].copy_from_slice(short);
        if value.len() > room || !value.is_ascii() {
            records.extend(record(key.as_bytes(), value));
        }
    };
    put(0, 100, path, "path", &mut block);
    put(157, 100, &entry.link, "linkpath", &mut block);
    octal(&mut block[100..108], u64::from(entry.mode));
    for (range, value, key) in [
        (108..116, u64::from(entry.uid), "uid"),
        (116..124, u64::from(entry.gid), "gid"),
        (124..136, stored, "size"),
    ] {
        if !octal(&mut block[range], value) {
            records.extend(record(key.as_bytes(), value.to_string().as_bytes()));
        }
    }
    let fits = u64::try_from(entry.mtime).is_ok_and(|time| octal(&mut block[136..148], time));
    if !fits || entry.mtime_nsec != 0 {
        records.extend(record(b"mtime", time(entry.mtime, entry.mtime_nsec).as_bytes()));
    }
    block[156] = match entry.kind {
        Kind::File | Kind::Other => b'0',
        Kind::HardLink => b'1',
        Kind::Symlink => b'2',
        Kind::Directory => b'5',
    };
    block[257..265].copy_from_slice(b"ustar\x0000");
    for (name, value) in &entry.xattrs {
        records.extend(record(&[b"SCHILY.xattr.", &name[..]].concat(), value));
    }
    seal(&mut block);
    (block, records)
}

/// The header of pax records.
pub(crate) fn extended(length: u64) -> Block {
    let mut block = [0; BLOCK];
    block[..10].copy_from_slice(b"PaxHeaders");
    octal(&mut block[100..108], 0o644);
    octal(&mut block[124..136], length);
    octal(&mut block[136..148], 0);
    block[156] = b'x';
    block[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut block);
    block
}

fn seal(block: &mut Block) {
    let sum = u64::try_from(sum(block)).expect("a sum of bytes");
    octal(&mut block[148..155], sum);
    block[155] = b' ';
}

/// A time as decimal seconds.
fn time(seconds: i64, nanoseconds: u32) -> String {
    let all = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    let (sign, all) = if all < 0 { ("-", -all) } else { ("", all) };
    format!("{sign}{}.{:09}", all / 1_000_000_000, all % 1_000_000_000)
}

/// `length key=value\n`, where the length counts itself.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// Applies pax records to an entry. Answers what they say of a sparse file.
pub(crate) fn apply(mut records: &[u8], entry: &mut Entry) -> Result<Option<sparse::Records>, ArchiveError> {
    let mut sparse = None;
    const BAD: ArchiveError = ArchiveError::Damaged("a malformed extended header");
    let decimal = |text: &[u8]| std::str::from_utf8(text).ok().and_then(|text| text.parse::<u64>().ok());
    while !records.iter().all(|byte| *byte == 0) {
        let space = records.iter().take(20).position(|byte| *byte == b' ').ok_or(BAD)?;
        let length = decimal(&records[..space]).and_then(|length| usize::try_from(length).ok()).ok_or(BAD)?;
        if length <= space + 2 || length > records.len() || records[length - 1] != b'\n' {
            return Err(BAD);
        }
        let one = &records[space + 1..length - 1];
        records = &records[length..];
        let equals = one.iter().position(|byte| *byte == b'=').ok_or(BAD)?;
        let (key, value) = (&one[..equals], &one[equals + 1..]);
        let id = || owner(decimal(value).ok_or(BAD)?);
        match key {
            _ if value.is_empty() => {}
            b"path" => entry.path = value.to_vec(),
            b"linkpath" => entry.link = value.to_vec(),
            b"size" => entry.size = decimal(value).ok_or(BAD)?,
            b"uid" => entry.uid = id()?,
            b"gid" => entry.gid = id()?,
            b"mtime" => (entry.mtime, entry.mtime_nsec) = parse_time(value).ok_or(BAD)?,
            _ => {
                if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    sparse.get_or_insert_with(sparse::Records::default).take(key, value)?;
                } else if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    entry.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
    }
    Ok(sparse)
}

fn parse_time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |text| (true, text));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let whole: i64 = whole.parse().ok()?;
    let nanoseconds: u32 = format!("{fraction:0<9.9}").parse().ok()?;
    match (negative, nanoseconds) {
        (false, _) => Some((whole, nanoseconds)),
        (true, 0) => Some((-whole, 0)),
        (true, _) => Some((-whole - 1, 1_000_000_000 - nanoseconds)),
    }
}
