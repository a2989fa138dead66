//! Maps of sparse files: which parts of a file an archive has.

use crate::ArchiveError;

/// Parts of a file that are told. A file of more is read and written as if it had no holes.
pub(crate) const EXTENTS_MOST: usize = 1 << 16;

const BAD: ArchiveError = ArchiveError::Damaged("a map of a sparse file that does not fit");

/// A part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its bytes.
    pub length: u64,
}

/// A file of `size` bytes as one part.
pub(crate) fn whole(size: u64) -> Vec<Extent> {
    vec![Extent { offset: 0, length: size }]
}

/// Bytes of all parts together.
pub(crate) fn stored(extents: &[Extent]) -> u64 {
    extents.iter().map(|extent| extent.length).sum()
}

/// Refuses parts that are not in order, overlap, or are not those of `stored` bytes of a file of
/// `size` bytes.
pub(crate) fn check(extents: &[Extent], size: u64, stored: u64) -> Result<(), ArchiveError> {
    let (mut end, mut sum) = (0_u64, 0_u64);
    for Extent { offset, length } in extents.iter().copied() {
        if offset < end {
            return Err(BAD);
        }
        end = offset.checked_add(length).ok_or(BAD)?;
        sum = sum.checked_add(length).ok_or(BAD)?;
    }
    if end <= size && sum == stored { Ok(()) } else { Err(BAD) }
}

/// What the pax records of a sparse file say: GNU's versions 0.0, 0.1 and 1.0.
#[derive(Debug, Default)]
pub(crate) struct Records {
    version: [u64; 2],
    size: Option<u64>,
    /// The file's own name; that of the entry is another.
    pub(crate) name: Option<Vec<u8>>,
    offset: Option<u64>,
    extents: Vec<Extent>,
}

impl Records {
    /// Takes the record whose key is this behind `GNU.sparse.`.
    pub(crate) fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), ArchiveError> {
        match key {
            b"major" => self.version[0] = number(value)?,
            b"minor" => self.version[1] = number(value)?,
            b"name" => self.name = Some(value.to_vec()),
            b"realsize" | b"size" => self.size = Some(number(value)?),
            b"offset" => self.offset = Some(number(value)?),
            b"numbytes" => self.push(self.offset.ok_or(BAD)?, number(value)?)?,
            b"map" => {
                let mut numbers = value.split(|byte| *byte == b',');
                while let Some(offset) = numbers.next() {
                    self.push(number(offset)?, number(numbers.next().ok_or(BAD)?)?)?;
                }
            }
            // How many parts there are, the map itself tells.
            _ => {}
        }
        Ok(())
    }

    fn push(&mut self, offset: u64, length: u64) -> Result<(), ArchiveError> {
        if self.extents.len() == EXTENTS_MOST {
            return Err(ArchiveError::Damaged("a map of a sparse file that is too long"));
        }
        self.extents.push(Extent { offset, length });
        Ok(())
    }

    /// The size of the file, and its map; `None` of the map: it stands before the contents.
    pub(crate) fn finish(self) -> Result<(u64, Option<Vec<Extent>>), ArchiveError> {
        let size = self.size.ok_or(BAD)?;
        match self.version {
            [0, 0 | 1] => Ok((size, Some(self.extents))),
            [1, 0] => Ok((size, None)),
            _ => Err(BAD),
        }
    }

    /// Whether it is in a form that is read.
    pub(crate) fn is_known(&self) -> bool {
        matches!(self.version, [0, 0 | 1] | [1, 0])
    }
}

fn number(text: &[u8]) -> Result<u64, ArchiveError> {
    let digits = std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    digits.and_then(|digits| digits.parse().ok()).ok_or(BAD)
}

/// The map of version 1.0 as it stands before the contents: lines of decimal numbers, filled up to
/// whole blocks.
pub(crate) fn written(extents: &[Extent]) -> Vec<u8> {
    let mut map = format!("{}\n", extents.len());
    for Extent { offset, length } in extents {
        map.push_str(&format!("{offset}\n{length}\n"));
    }
    let mut map = map.into_bytes();
    map.resize(map.len().next_multiple_of(512), 0);
    map
}

/// Reads such a map, block by block.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    line: Vec<u8>,
    /// Numbers that are still to come; `None` before their count.
    left: Option<usize>,
    offset: Option<u64>,
    extents: Vec<Extent>,
}

impl Parser {
    /// Takes the next block; the map, when it is whole.
    pub(crate) fn block(&mut self, block: &[u8]) -> Result<Option<Vec<Extent>>, ArchiveError> {
        for byte in block {
            if *byte != b'\n' {
                if self.line.len() == 20 {
                    return Err(BAD);
                }
                self.line.push(*byte);
                continue;
            }
            let number = number(&std::mem::take(&mut self.line))?;
            let left = match self.left {
                None => {
                    let count = usize::try_from(number).ok().filter(|count| *count <= EXTENTS_MOST);
                    count.ok_or(ArchiveError::Damaged("a map of a sparse file that is too long"))? * 2
                }
                Some(left) => {
                    match self.offset.take() {
                        None => self.offset = Some(number),
                        Some(offset) => self.extents.push(Extent { offset, length: number }),
                    }
                    left - 1
                }
            };
            if left == 0 {
                return Ok(Some(std::mem::take(&mut self.extents)));
            }
            self.left = Some(left);
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extents(of: &[(u64, u64)]) -> Vec<Extent> {
        of.iter().map(|(offset, length)| Extent { offset: *offset, length: *length }).collect()
    }

    fn parsed(map: &[u8]) -> Result<Option<Vec<Extent>>, ArchiveError> {
        let mut parser = Parser::default();
        for block in map.chunks(512) {
            if let Some(map) = parser.block(block)? {
                return Ok(Some(map));
            }
        }
        Ok(None)
    }

    #[test]
    fn a_map_comes_out_as_it_went_in() {
        for count in [0, 1, 3, 200] {
            let map: Vec<_> = (0..count).map(|at| Extent { offset: at << 40, length: at }).collect();
            let bytes = written(&map);
            assert_eq!(bytes.len() % 512, 0);
            assert_eq!(parsed(&bytes).unwrap(), Some(map));
        }
        for bad in [
            "x\n",
            "\n",
            "-1\n",
            "1\n0\n\n",
            "99999999\n",
            "184467440737095516150\n",
            "1\n18446744073709551616\n",
        ] {
            assert!(parsed(bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(parsed(b"2\n0\n5\n").unwrap(), None);
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        assert!(check(&extents(&[(0, 5), (5, 0), (9, 1)]), 10, 6).is_ok());
        assert!(check(&[], 10, 0).is_ok());
        for (bad, size, stored) in [
            (extents(&[(5, 5), (0, 5)]), 10, 10),
            (extents(&[(0, 5), (4, 5)]), 10, 10),
            (extents(&[(0, 11)]), 10, 11),
            (extents(&[(0, 5)]), 10, 6),
            (extents(&[(u64::MAX, 1)]), u64::MAX, 1),
            (extents(&[(0, u64::MAX), (u64::MAX, 0)]), 10, 1),
        ] {
            assert!(check(&bad, size, stored).is_err(), "{bad:?}");
        }
    }
}
