//! The 512-byte header block.

use super::pax::Pax;
use super::sparse::{MAX_SEGMENTS, SparseSegment};
use super::{BLOCK, Damage, EntryKind, TarEntry};

/// A header block.
#[derive(Clone, Copy)]
pub(super) struct TarHeader<'a>(pub(super) &'a [u8; BLOCK]);

/// A number in octal digits, or (GNU) in base 256 when the first bit is set. Empty means 0.
fn number(field: &[u8], name: &'static str) -> Result<i64, Damage> {
    let bad = Damage::Number(name);
    let Some((&first, rest)) = field.split_first() else { return Err(bad) };
    if first & 0x80 != 0 {
        // Two's complement over the whole field but its first bit.
        let mut value: i128 = if first & 0x40 != 0 { -1 } else { 0 };
        value = value << 6 | i128::from(first & 0x3f);
        for &byte in rest {
            value = value.checked_mul(256).ok_or(Damage::Number(name))? | i128::from(byte);
            if i64::try_from(value).is_err() {
                return Err(bad);
            }
        }
        return i64::try_from(value).map_err(|_| bad);
    }
    let digits = field.trim_ascii_start();
    let end = digits.iter().position(|&b| b == 0 || b == b' ').unwrap_or(digits.len());
    let mut value: i64 = 0;
    for &digit in &digits[..end] {
        if !(b'0'..=b'7').contains(&digit) {
            return Err(bad);
        }
        value = value
            .checked_mul(8)
            .and_then(|value| value.checked_add(i64::from(digit - b'0')))
            .ok_or(Damage::Number(name))?;
    }
    Ok(value)
}

fn unsigned(field: &[u8], name: &'static str) -> Result<u64, Damage> {
    u64::try_from(number(field, name)?).map_err(|_| Damage::Number(name))
}

fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    &field[..end]
}

/// The pairs of a sparse map; the first empty one ends it.
fn pairs(area: &[u8], segments: &mut Vec<SparseSegment>) -> Result<(), Damage> {
    for pair in area.chunks_exact(24) {
        if pair[0] == 0 || pair[12] == 0 {
            break;
        }
        if segments.len() >= MAX_SEGMENTS {
            return Err(Damage::Sparse);
        }
        segments.push(SparseSegment {
            offset: unsigned(&pair[..12], "sparse offset")?,
            len: unsigned(&pair[12..], "sparse size")?,
        });
    }
    Ok(())
}

/// A block that continues an old GNU sparse map; whether another follows.
pub(super) fn sparse_block(block: &[u8; BLOCK], segments: &mut Vec<SparseSegment>) -> Result<bool, Damage> {
    pairs(&block[..504], segments)?;
    Ok(block[504] != 0)
}

impl TarHeader<'_> {
    /// The sum over the block with its own field as spaces; old writers summed signed bytes.
    pub(super) fn check(self) -> Result<(), Damage> {
        let want = number(&self.0[148..156], "checksum").map_err(|_| Damage::Checksum)?;
        let byte = |(i, &b): (usize, &u8)| if (148..156).contains(&i) { b' ' } else { b };
        let plain: i64 = self.0.iter().enumerate().map(byte).map(i64::from).sum();
        if plain == want {
            return Ok(());
        }
        let signed: i64 = self.0.iter().enumerate().map(byte).map(|b| i64::from(b.cast_signed())).sum();
        if signed == want { Ok(()) } else { Err(Damage::Checksum) }
    }

    pub(super) fn kind(self) -> u8 {
        self.0[156]
    }

    pub(super) fn size(self) -> Result<u64, Damage> {
        unsigned(&self.0[124..136], "size")
    }

    fn path(self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        let prefix = text(&self.0[345..500]);
        // GNU's magic is "ustar " and has other things where ustar has the prefix.
        if &self.0[257..263] != b"ustar\0" || prefix.is_empty() {
            return name.to_vec();
        }
        [prefix, b"/", name].concat()
    }

    fn entry_kind(self, path: &[u8]) -> Result<EntryKind, Damage> {
        Ok(match self.kind() {
            // v7 had no directories: a trailing slash made one.
            0 | b'0' if path.last() == Some(&b'/') => EntryKind::Dir,
            0 | b'0' | b'7' | b'S' => EntryKind::File,
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Symlink,
            b'3' => EntryKind::Char,
            b'4' => EntryKind::Block,
            b'5' | b'D' => EntryKind::Dir,
            b'6' => EntryKind::Fifo,
            other => return Err(Damage::Type(char::from(other))),
        })
    }

    /// The entry that this header and the pax records before it describe.
    pub(super) fn entry(self, pax: &Pax) -> Result<TarEntry, Damage> {
        let path = pax.path.clone().unwrap_or_else(|| self.path());
        let kind = self.entry_kind(&path)?;
        let device = matches!(kind, EntryKind::Char | EntryKind::Block);
        let device_part = |field: &[u8], name| {
            if !device {
                return Ok(0);
            }
            u32::try_from(unsigned(field, name)?).map_err(|_| Damage::Number(name))
        };
        let id = |pax: Option<u64>, field: &[u8], name| {
            let value = match pax {
                Some(value) => value,
                None => unsigned(field, name)?,
            };
            u32::try_from(value).map_err(|_| Damage::Number(name))
        };
        let (mtime, mtime_nsec) = match pax.mtime {
            Some(time) => time,
            None => (number(&self.0[136..148], "mtime")?, 0),
        };
        let mode = number(&self.0[100..108], "mode")? & 0o7777;
        Ok(TarEntry {
            link: pax.link.clone().unwrap_or_else(|| text(&self.0[157..257]).to_vec()),
            kind,
            mode: u16::try_from(mode).map_err(|_| Damage::Number("mode"))?,
            uid: id(pax.uid, &self.0[108..116], "uid")?,
            gid: id(pax.gid, &self.0[116..124], "gid")?,
            mtime,
            mtime_nsec,
            major: device_part(&self.0[329..337], "device major")?,
            minor: device_part(&self.0[337..345], "device minor")?,
            size: match pax.size {
                Some(size) => size,
                None => self.size()?,
            },
            sparse: None,
            xattrs: pax.xattrs.clone(),
            path,
        })
    }

    /// The start of an old GNU sparse map, the file's real size, and whether blocks with more of
    /// the map follow.
    pub(super) fn sparse(self) -> Result<(Vec<SparseSegment>, u64, bool), Damage> {
        let mut segments = Vec::new();
        pairs(&self.0[386..482], &mut segments)?;
        Ok((segments, unsigned(&self.0[483..495], "real size")?, self.0[482] != 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        let ok = |field: &[u8], want: i64| assert_eq!(number(field, "n"), Ok(want), "{field:?}");
        ok(b"0000644\0", 0o644);
        ok(b"    644 ", 0o644);
        ok(b"\0\0\0\0", 0);
        ok(b"77777777777 ", 0o77_777_777_777);
        ok(&[0x80, 0, 0, 0, 0, 0, 1, 0], 256);
        ok(&[0xff; 8], -1);
        ok(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe], -2);
        ok(&[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], i64::MAX);
        let bad = |field: &[u8]| assert_eq!(number(field, "n"), Err(Damage::Number("n")), "{field:?}");
        bad(b"");
        bad(b"8");
        bad(b"-1");
        bad(b"0x10");
        bad(b"7777777777777777777777777");
        bad(&[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0]);
    }
}
