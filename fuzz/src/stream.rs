//! A packed file that was fetched: what comes out of it is bounded, and is written to one file.

use std::fs::File;
use std::io::Write;

use nelly_unpack::stream::{StreamOrder, unpack};

use super::tarball::{entry, sealed};

/// Most bytes that may come out.
const MOST: u64 = 1 << 20;

/// How a file may be packed; the first byte of an input, its two highest bits left out, selects.
const FORMS: &[&str] = &["gz", "xz", "zst", "bz2", "zip", "tar", "tar.gz", "tar.xz", "tar.zst", "tar.bz2"];
/// In the first byte: the file `a` of an archive is wanted.
const MEMBER: u8 = 0x40;
/// In the first byte: the sums of a plain tar archive's headers are put right before, so that
/// changes reach what lies behind them.
const SEALED: u8 = 0x80;

/// Unpacks the input.
///
/// # Panics
/// More came out than may, or another number of bytes than was told.
pub fn run(data: &[u8]) {
    let _ = accepts(data);
}

/// As [`run`]; whether something came out.
///
/// # Panics
/// As [`run`].
#[must_use]
pub fn accepts(data: &[u8]) -> bool {
    let Some((choice, packed)) = data.split_first() else { return false };
    let form = FORMS[usize::from(choice & 0x3f) % FORMS.len()];
    let sound = if choice & SEALED != 0 && form == "tar" { sealed(packed) } else { packed.to_vec() };
    let member = (choice & MEMBER != 0 && (form == "zip" || form.starts_with("tar"))).then_some("a");
    let words: Vec<_> = [form, &MOST.to_string()].into_iter().chain(member).map(Into::into).collect();
    let order = StreamOrder::read(&words).expect("an order");
    let (mut from, to) = (memory(), memory());
    from.write_all(&sound).expect("memory is there");
    std::io::Seek::rewind(&mut from).expect("it has a start");
    let told = unpack(&from, &to, &order);
    let came = to.metadata().expect("it is open").len();
    assert!(came <= MOST, "{came} bytes came out");
    match told {
        Ok(bytes) => {
            assert_eq!(bytes, came);
            bytes > 0
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

fn memory() -> File {
    let file = rustix::fs::memfd_create("packed", rustix::fs::MemfdFlags::CLOEXEC);
    file.expect("a memory file").into()
}

/// A line of words by each tool, and archives of it.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let tar = [entry("d/", b'5', "", b""), entry("a", b'0', "", b"in an archive\n"), vec![0; 1024]].concat();
    let two = [entry("b", b'0', "", b"b"), entry("a", b'1', "b", b""), vec![0; 1024]].concat();
    let with = |choice: u8, bytes: &[u8]| [&[choice], bytes].concat();
    vec![
        with(0, GZIP),
        with(0, &[GZIP, GZIP].concat()),
        with(1, XZ),
        with(2, ZSTD),
        with(3, BZIP2),
        with(4, ZIP),
        with(4 | MEMBER, STORED),
        with(5 | SEALED, &tar),
        with(5 | SEALED | MEMBER, &tar),
        with(5 | SEALED | MEMBER, &two),
    ]
}

const GZIP: &[u8] = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03KTH\xc9,\xceV\xc8OSHTHK-W(\xcf/J)\xd6\x01r\xb0\x08s\x01\x00N\xffd8-\x00\x00\x00";
const XZ: &[u8] = b"\xfd7zXZ\x00\x00\x01i\"\xde6\x02\x00!\x01\x1c\x00\x00\x00\x10\xcfX\xcc\xe0\x00,\x00\x1f]\x000\x88\x08\x86\xd4L#g\x8f\xe9\x16\x88\x0b\x90\\(\xe1\xf3\x92\xebh-\x0e\xf6\x81\x19\x00\xf3\x03\x80\x00\x00\x00N\xffd8\x00\x017-jI^\xf5\x90B\x99\x0d\x01\x00\x00\x00\x00\x01YZ";
const ZSTD: &[u8] = b"(\xb5/\xfd$-\xf5\x00\x00\xc0a disk of a few words, \x0a\x01\x00\xf5\x9bM\xc9\xe3\xe6S";
const BZIP2: &[u8] = b"BZh91AY&SY*\x1a\x0c\xda\x00\x00\x07Q\x80\x00\x10@\x04'(\x98\x80 \x00 \xaa\xa6\x99\xa9\xea4\xfdB\x01\xa0\x0f\xf3j>E]\xe0\x8bF[x\xedm4\x88\xa7\x05\xdc\x91N\x14$\x0a\x86\x836\x80";
const ZIP: &[u8] = b"PK\x03\x04\x14\x00\x00\x00\x08\x00\x00\x00!\x00\x1f\xa2$G!\x00\x00\x00\x87\x00\x00\x00\x01\x00\x00\x00aKTH\xc9,\xceV\xc8OSHTHK-W(\xcf/J)\xd6\x01r\xb0\x08sa\x15\xa5\x8ab\x00PK\x01\x02\x14\x03\x14\x00\x00\x00\x08\x00\x00\x00!\x00\x1f\xa2$G!\x00\x00\x00\x87\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x80\x01\x00\x00\x00\x00aPK\x05\x06\x00\x00\x00\x00\x01\x00\x01\x00/\x00\x00\x00@\x00\x00\x00\x00\x00";
const STORED: &[u8] = b"PK\x03\x04\x14\x00\x00\x00\x00\x00\x00\x00!\x00\xf9\xef\xbeq\x01\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00bbPK\x03\x04\x14\x00\x00\x00\x00\x00\x00\x00!\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00d/PK\x03\x04\x14\x00\x00\x00\x00\x00\x00\x00!\x00\x0b\xf9CV\x06\x00\x00\x00\x06\x00\x00\x00\x01\x00\x00\x00astoredPK\x01\x02\x14\x03\x14\x00\x00\x00\x00\x00\x00\x00!\x00\xf9\xef\xbeq\x01\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x80\x01\x00\x00\x00\x00bPK\x01\x02\x14\x03\x14\x00\x00\x00\x00\x00\x00\x00!\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x80\x01 \x00\x00\x00d/PK\x01\x02\x14\x03\x14\x00\x00\x00\x00\x00\x00\x00!\x00\x0b\xf9CV\x06\x00\x00\x00\x06\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x80\x01@\x00\x00\x00aPK\x05\x06\x00\x00\x00\x00\x03\x00\x03\x00\x8e\x00\x00\x00e\x00\x00\x00\x00\x00";
