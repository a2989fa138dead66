//! Extended headers of POSIX pax, with the records of GNU (sparse files) and star (extended
//! attributes).

use super::Damage;
use super::sparse::{MAX_SEGMENTS, SparseSegment};
use crate::tree::Xattrs;

/// What a pax header says about the entry after it. Records not named here change nothing we keep.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Xattrs,
    pub(super) sparse: Option<Sparse>,
}

/// GNU's sparse files in pax clothes: versions 0.0, 0.1 and 1.0.
#[derive(Debug, Default)]
pub(super) struct Sparse {
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    /// Version 1.0: the map stands at the start of the data.
    pub(super) map_in_data: bool,
    pub(super) segments: Vec<SparseSegment>,
}

/// A decimal number of ASCII digits.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds with a fraction, rounded down to nanoseconds.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut halves = text.splitn(2, |&b| b == b'.');
    let seconds = i64::try_from(decimal(halves.next()?)?).ok()?;
    let mut nanos: u32 = 0;
    let mut cut = false;
    if let Some(fraction) = halves.next() {
        if !fraction.iter().all(u8::is_ascii_digit) {
            return None;
        }
        for i in 0..9 {
            nanos = nanos * 10 + fraction.get(i).map_or(0, |digit| u32::from(digit - b'0'));
        }
        cut = fraction.iter().skip(9).any(|&digit| digit != b'0');
    }
    if !negative {
        return Some((seconds, nanos));
    }
    // -1.25 is -2 seconds and 750 million nanoseconds.
    let nanos = nanos + u32::from(cut);
    if nanos == 0 { Some((-seconds, 0)) } else { Some((-seconds - 1, 1_000_000_000 - nanos)) }
}

/// Parses `length key=value\n` records.
pub(super) fn parse(mut data: &[u8]) -> Result<Pax, Damage> {
    let mut pax = Pax::default();
    while !data.is_empty() {
        // Some writers pad with NULs.
        if data.iter().all(|&b| b == 0) {
            break;
        }
        let space = data.iter().take(20).position(|&b| b == b' ').ok_or(Damage::Pax)?;
        let len = decimal(&data[..space]).and_then(|len| usize::try_from(len).ok()).ok_or(Damage::Pax)?;
        if len <= space + 2 || len > data.len() || data[len - 1] != b'\n' {
            return Err(Damage::Pax);
        }
        let record = &data[space + 1..len - 1];
        data = &data[len..];
        let equals = record.iter().position(|&b| b == b'=').ok_or(Damage::Pax)?;
        pax.record(&record[..equals], &record[equals + 1..])?;
    }
    if let Some(sparse) = &pax.sparse {
        // A half pair means that the map is damaged.
        if sparse.segments.last().is_some_and(|segment| segment.len == u64::MAX) {
            return Err(Damage::Sparse);
        }
    }
    Ok(pax)
}

impl Pax {
    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), Damage> {
        // An empty value takes back what an earlier record said.
        let text = || (!value.is_empty()).then(|| value.to_vec());
        let count = |name| match value {
            [] => Ok(None),
            digits => decimal(digits).map(Some).ok_or(Damage::Number(name)),
        };
        match key {
            b"path" => self.path = text(),
            b"linkpath" => self.link = text(),
            b"size" => self.size = count("size")?,
            b"uid" => self.uid = count("uid")?,
            b"gid" => self.gid = count("gid")?,
            b"mtime" => {
                self.mtime = match value {
                    [] => None,
                    digits => Some(time(digits).ok_or(Damage::Number("mtime"))?),
                }
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    if name.is_empty() || name.contains(&0) || name.len() > 255 || value.len() > 65535 {
                        return Err(Damage::Xattr);
                    }
                    // So an attribute without a value is none, for other readers of layers, too.
                    match value {
                        [] => drop(self.xattrs.remove(name)),
                        value => drop(self.xattrs.insert(name.into(), value.into())),
                    }
                } else if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.get_or_insert_default().record(name, value)?;
                }
            }
        }
        Ok(())
    }
}

impl Sparse {
    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), Damage> {
        let number = || decimal(value).ok_or(Damage::Sparse);
        match key {
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.real_size = Some(number()?),
            b"major" => self.map_in_data = number()? >= 1,
            // 0.0: a record for each number, in turn. The length is not known until its own record.
            b"offset" => self.push(SparseSegment { offset: number()?, len: u64::MAX })?,
            b"numbytes" => {
                let len = number()?;
                match self.segments.last_mut() {
                    Some(segment) if segment.len == u64::MAX => segment.len = len,
                    _ => return Err(Damage::Sparse),
                }
            }
            b"map" => {
                let mut numbers = value.split(|&b| b == b',').map(decimal);
                while let Some(offset) = numbers.next() {
                    match (offset, numbers.next().flatten()) {
                        (Some(offset), Some(len)) => self.push(SparseSegment { offset, len })?,
                        _ => return Err(Damage::Sparse),
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn push(&mut self, segment: SparseSegment) -> Result<(), Damage> {
        if self.segments.len() >= MAX_SEGMENTS {
            return Err(Damage::Sparse);
        }
        self.segments.push(segment);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, want) in [
            ("0", Some((0, 0))),
            ("12.5", Some((12, 500_000_000))),
            ("1700000000.123456789", Some((1_700_000_000, 123_456_789))),
            ("1.0000000019", Some((1, 1))),
            ("-1.25", Some((-2, 750_000_000))),
            ("-3", Some((-3, 0))),
            ("-0.0000000001", Some((-1, 999_999_999))),
            ("", None),
            ("x", None),
            ("1.x", None),
            ("1e9", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(time(text.as_bytes()), want, "{text}");
        }
    }

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let mut len = key.len() + value.len() + 3;
        while len != key.len() + value.len() + 3 + len.to_string().len() {
            len = key.len() + value.len() + 3 + len.to_string().len();
        }
        [len.to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat()
    }

    #[test]
    fn records() {
        let data = [
            record("path", "näme=\n".as_bytes()),
            record("SCHILY.xattr.security.capability", b"\x01\0\0\x02 =\n\xff"),
            record("uid", b"4000000000"),
            record("SCHILY.xattr.user.taken-back", b"x"),
            record("SCHILY.xattr.user.taken-back", b""),
            record("SCHILY.xattr.user.empty", b""),
            record("comment", b"ignored"),
        ]
        .concat();
        let pax = parse(&data).unwrap();
        assert_eq!(pax.path.as_deref(), Some("näme=\n".as_bytes()));
        assert_eq!(pax.uid, Some(4_000_000_000));
        assert_eq!(
            pax.xattrs.get(&b"security.capability"[..]).map(|v| &v[..]),
            Some(&b"\x01\0\0\x02 =\n\xff"[..])
        );
        assert_eq!(pax.xattrs.len(), 1);
    }

    #[test]
    fn damage() {
        for data in [
            &b"x"[..],
            b"5 a=b\n",
            b"100 a=b\n",
            b"6 a=bX",
            b"6 abb\n",
            b"3 \n",
            b"99999999999999999999999 a=b\n",
            b"18446744073709551615 a=b\n",
        ] {
            assert!(parse(data).is_err(), "{data:?}");
        }
        assert!(matches!(parse(&record("size", b"-1")), Err(Damage::Number("size"))));
        assert!(matches!(parse(&record("GNU.sparse.map", b"0,1,2")), Err(Damage::Sparse)));
        assert!(matches!(parse(&record("GNU.sparse.offset", b"7")), Err(Damage::Sparse)));
        assert!(matches!(parse(&record("GNU.sparse.numbytes", b"7")), Err(Damage::Sparse)));
        assert!(matches!(parse(&record("SCHILY.xattr.", b"7")), Err(Damage::Xattr)));
    }
}
