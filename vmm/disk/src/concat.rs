//! Many readers one after the other, as one. The disk of an image is
//! one: its metadata, then the contents of its layers.

use std::io;

use crate::buffer::{ReadBuffer, Within, wide};
use crate::number::at_most;
use crate::traits::{BYTES_MAX, Mappable, ReadAt, SECTOR};

/// Readers one after the other, each from a multiple of an alignment on. What lies between them,
/// and holes that were asked for, read as zeros; so does what follows the last up to a multiple of
/// the alignment. With [`ReadOnly`](crate::ReadOnly) it is a disk.
pub struct Concat {
    /// By rising start; none is empty and no two overlap.
    parts: Vec<Part>,
    len: u64,
}

struct Part {
    start: u64,
    /// What the reader said when it was added.
    len: u64,
    bytes: Box<dyn ReadAt>,
}

impl Part {
    fn end(&self) -> u64 {
        self.start + self.len
    }
}

/// Why readers cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum ConcatError {
    /// A disk has whole sectors.
    #[error("the alignment of {0} bytes is not a power of two of at least 512")]
    Alignment(u64),
    /// The sum is more than a file's size can be.
    #[error("a part of {len} bytes at offset {start} exceeds the largest possible disk")]
    TooLarge {
        /// Where it would begin.
        start: u64,
        /// Its bytes.
        len: u64,
    },
}

/// A [`Concat`] to which parts are added.
pub struct ConcatBuilder {
    alignment: u64,
    /// A multiple of the alignment, at most [`BYTES_MAX`].
    end: u64,
    parts: Vec<Part>,
}

impl ConcatBuilder {
    /// Appends all bytes of `bytes`; returns where they begin.
    ///
    /// # Errors
    /// [`ConcatError::TooLarge`]: nothing was appended.
    pub fn part(&mut self, bytes: Box<dyn ReadAt>) -> Result<u64, ConcatError> {
        let len = bytes.len();
        let start = self.hole(len)?;
        if len > 0 {
            self.parts.push(Part { start, len, bytes });
        }
        Ok(start)
    }

    /// Appends at least `len` zeros; returns where they begin.
    ///
    /// # Errors
    /// As [`ConcatBuilder::part`].
    pub fn hole(&mut self, len: u64) -> Result<u64, ConcatError> {
        let start = self.end;
        let end = start.checked_add(len).and_then(|end| end.checked_next_multiple_of(self.alignment));
        match end.filter(|end| *end <= BYTES_MAX) {
            Some(end) => self.end = end,
            None => return Err(ConcatError::TooLarge { start, len }),
        }
        Ok(start)
    }

    /// All of it.
    #[must_use]
    pub fn build(self) -> Concat {
        Concat { parts: self.parts, len: self.end }
    }
}

impl Concat {
    /// Nothing, to which parts are added that begin at multiples of `alignment` bytes.
    ///
    /// # Errors
    /// [`ConcatError::Alignment`]: no power of two, or less than a sector.
    pub fn builder(alignment: u64) -> Result<ConcatBuilder, ConcatError> {
        if !alignment.is_power_of_two() || alignment < SECTOR {
            return Err(ConcatError::Alignment(alignment));
        }
        Ok(ConcatBuilder { alignment, end: 0, parts: Vec::new() })
    }

    /// The index of the first part that ends behind `offset`.
    fn index(&self, offset: u64) -> usize {
        self.parts.partition_point(|part| part.end() <= offset)
    }
}

impl ReadAt for Concat {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, into: &mut dyn ReadBuffer, offset: u64) -> io::Result<usize> {
        let size = at_most(self.len.saturating_sub(offset), into.size());
        let mut parts = self.parts[self.index(offset)..].iter().peekable();
        let mut done = 0;
        while done < size {
            let (at, left) = (offset + wide(done), size - done);
            match parts.peek() {
                Some(part) if part.start <= at => {
                    let inside = at - part.start;
                    let end = done + at_most(part.len - inside, left);
                    let read = part.bytes.read_at(&mut Within::new(into, done..end), inside)?;
                    if read == 0 {
                        // It had these bytes when it was added.
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    assert!(read <= end - done, "a bug: no more is read than was asked for");
                    done += read;
                    if offset + wide(done) == part.end() {
                        parts.next();
                    }
                }
                next => {
                    let end = next.map_or(self.len, |part| part.start);
                    let zeros = at_most(end - at, left);
                    into.zero(done..done + zeros);
                    done += zeros;
                }
            }
        }
        Ok(size)
    }

    fn mappable(&self, offset: u64, len: u64) -> Option<Mappable<'_>> {
        let part = self.parts.get(self.index(offset))?;
        let inside = offset.checked_sub(part.start)?;
        (len <= part.len - inside).then(|| part.bytes.mappable(inside, len))?
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;
    use crate::file::FileReader;
    use crate::testing::{Endless, Slow};

    fn reader_of(bytes: &[u8]) -> (File, FileReader<File>) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        (file.try_clone().unwrap(), FileReader::new(file).unwrap())
    }

    #[test]
    fn parts_begin_aligned_and_what_is_between_them_is_zero() {
        let mut builder = Concat::builder(1024).unwrap();
        assert_eq!(builder.part(Box::new(reader_of(&[1; 1500]).1)).unwrap(), 0);
        assert_eq!(builder.part(Box::new(Vec::new())).unwrap(), 2048);
        assert_eq!(builder.part(Box::new(vec![2; 1024])).unwrap(), 2048);
        assert_eq!(builder.hole(1).unwrap(), 3072);
        assert_eq!(builder.part(Box::new(vec![3; 10])).unwrap(), 4096);
        let concat = builder.build();
        assert_eq!(concat.len(), 5120);
        let mut model = vec![0; 5120];
        model[..1500].fill(1);
        model[2048..3072].fill(2);
        model[4096..4106].fill(3);
        let mut all = vec![0xff; 6000];
        assert_eq!(concat.read_at(&mut all, 0).unwrap(), 5120, "one request across all parts");
        assert!(all[..5120] == model && all[5120..] == [0xff; 880]);
        for offset in [5120, 5121, u64::MAX] {
            assert_eq!(concat.read_at(&mut all, offset).unwrap(), 0);
        }
    }

    #[test]
    fn impossible_alignments_and_sums_are_refused() {
        for alignment in [0, 1, 256, 513, 1536, u64::MAX] {
            assert!(matches!(Concat::builder(alignment), Err(ConcatError::Alignment(_))), "{alignment}");
        }
        let table: [(u64, &[u64], bool); 8] = [
            (512, &[BYTES_MAX], true),
            (512, &[BYTES_MAX, 0], true),
            (512, &[BYTES_MAX, 1], false),
            (512, &[1 << 62, 1 << 62], false),
            (512, &[1, u64::MAX], false),
            (512, &[u64::MAX], false),
            (1 << 63, &[1], false),
            (4096, &[BYTES_MAX], false),
        ];
        for (alignment, parts, fits) in table {
            let mut builder = Concat::builder(alignment).unwrap();
            let added = parts.iter().try_for_each(|len| builder.part(Box::new(Endless(*len))).map(drop));
            assert_eq!(added.is_ok(), fits, "{alignment} {parts:?}");
            let len = builder.build().len();
            assert!(len <= BYTES_MAX && len.is_multiple_of(alignment));
        }
        // The last bytes of the largest disk.
        let mut builder = Concat::builder(512).unwrap();
        builder.hole(BYTES_MAX - 1024).unwrap();
        builder.part(Box::new(Endless(1024))).unwrap();
        let concat = builder.build();
        let mut buffer = [0xff; 1024];
        assert_eq!(concat.read_at(&mut buffer, BYTES_MAX - 512).unwrap(), 512);
        assert_eq!((buffer[0], buffer[511], buffer[512]), (0, 0xff, 0xff));
    }

    #[test]
    fn thousands_of_parts_are_found() {
        let mut builder = Concat::builder(512).unwrap();
        for n in 0..5000_u16 {
            builder.part(Box::new(n.to_le_bytes().to_vec())).unwrap();
        }
        let concat = builder.build();
        for n in (0..5000_u16).step_by(7) {
            let mut number = [0; 2];
            concat.read_exact_at(&mut number, u64::from(n) * 512).unwrap();
            assert_eq!(u16::from_le_bytes(number), n);
        }
        let mut all = vec![0; 5000 * 512];
        assert_eq!(concat.read_at(&mut all, 0).unwrap(), all.len());
        assert!(all.chunks(512).zip(0..5000_u16).all(|(part, n)| part[..2] == n.to_le_bytes()));
    }

    #[test]
    fn a_part_that_shrank_is_an_error_and_no_zeros() {
        let (file, reader) = reader_of(&[1; 2048]);
        let mut builder = Concat::builder(512).unwrap();
        builder.part(Box::new(vec![9; 512])).unwrap();
        builder.part(Box::new(reader)).unwrap();
        let concat = builder.build();
        file.set_len(1000).unwrap();
        let mut buffer = [0; 2560];
        for offset in [0, 512, 1600, 2500] {
            let error = concat.read_at(&mut buffer, offset).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{offset}");
        }
        assert_eq!(concat.read_at(&mut buffer[..1000].to_vec(), 0).unwrap(), 1000);
        // One that grew stays as long as it was.
        file.set_len(8192).unwrap();
        concat.read_exact_at(&mut buffer, 0).unwrap();
        assert_eq!(buffer[2559], 0);
    }

    #[test]
    fn what_lies_in_one_immutable_file_is_mappable() {
        let mut builder = Concat::builder(4096).unwrap();
        builder.part(Box::new(reader_of(&[1; 5000]).1.immutable())).unwrap();
        builder.part(Box::new(reader_of(&[2; 8192]).1.immutable())).unwrap();
        builder.part(Box::new(reader_of(&[3; 4096]).1)).unwrap();
        let concat = builder.build();
        let table = [
            (0, 5000, Some(0)),
            (0, 5001, None),
            (5000, 1, None),
            (8192, 8192, Some(0)),
            (12288, 4096, Some(4096)),
            (12288, 4097, None),
            (16384, 4096, None),
            (20480, 0, None),
            (u64::MAX, u64::MAX, None),
        ];
        for (offset, len, found) in table {
            assert_eq!(concat.mappable(offset, len).map(|place| place.offset), found, "{offset} {len}");
        }
    }

    /// A part: bytes of memory, of a file, or of a file that gives few at a time; or a hole.
    fn parts() -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
        prop::collection::vec((0..4_u8, prop::collection::vec(1..=255_u8, 0..3000)), 0..12)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn reads_as_its_parts_written_out(
            parts in parts(),
            shift in 9..13_u32,
            requests in prop::collection::vec((0..40_000_u64, 0..9000_usize), 1..20),
        ) {
            let alignment = 1_usize << shift;
            let (mut builder, mut model) = (Concat::builder(1 << shift).unwrap(), Vec::new());
            for (kind, bytes) in &parts {
                let start = match kind {
                    0 => builder.part(Box::new(bytes.clone())),
                    1 => builder.part(Box::new(reader_of(bytes).1)),
                    2 => builder.part(Box::new(Slow(reader_of(bytes).1, 700))),
                    _ => builder.hole(bytes.len() as u64),
                };
                prop_assert_eq!(start.unwrap(), model.len() as u64);
                let filled = if *kind == 3 { vec![0; bytes.len()] } else { bytes.clone() };
                model.extend(filled);
                model.resize(model.len().next_multiple_of(alignment), 0);
            }
            let concat = builder.build();
            prop_assert_eq!(concat.len(), model.len() as u64);
            for (offset, room) in requests {
                let mut buffer = vec![0xee; room];
                let read = concat.read_at(&mut buffer, offset).unwrap();
                let from = usize::try_from(offset).unwrap().min(model.len());
                let want = room.min(model.len() - from);
                prop_assert_eq!(read, want);
                prop_assert!(buffer[..read] == model[from..from + read]);
                prop_assert!(buffer[read..].iter().all(|byte| *byte == 0xee));
            }
        }
    }
}
