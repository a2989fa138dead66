//! Reads records, from any place to the present end, as often as the log grows.

use std::fs::File;
use std::io::{self, Read};

use nelly_image::trusted::TrustedDir;

use super::record::{Record, Stream};
use super::{MAX_CONTENT, segment_name, segments};
use crate::state::StateError;
use crate::state::error::io_error;

/// How much is read at once.
const CHUNK: usize = 64 << 10;
/// A longer line is no record.
const MAX_LINE: usize = MAX_CONTENT + 256;

/// A reader of a sandbox's log.
#[derive(Debug)]
pub struct LogReader {
    dir: TrustedDir,
    /// The segment that is read, and what was read of it behind the last whole line.
    current: Option<(u64, File)>,
    rest: Vec<u8>,
    /// What is too long to be a record is passed over to its end.
    passing: bool,
    /// How many more lines of each stream are passed over.
    skip: [u64; 2],
    report: ReadReport,
}

/// What a reader could not give.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadReport {
    /// Lines of the files that are no records.
    pub damaged_lines: u64,
    /// Segments that gave way to newer ones before they were read.
    pub missed_segments: u64,
}

impl LogReader {
    /// Reads the whole log in `dir`.
    #[must_use]
    pub fn new(dir: TrustedDir) -> Self {
        let report = ReadReport::default();
        Self { dir, current: None, rest: Vec::new(), passing: false, skip: [0; 2], report }
    }

    /// Reads only the last `lines` lines that are there now, of both streams together, and what
    /// comes later. A line that is longer than a segment may begin in its middle.
    ///
    /// # Errors
    /// A segment cannot be read.
    pub fn tail(dir: TrustedDir, lines: u64) -> Result<Self, StateError> {
        let mut all = segments(&dir)?;
        let mut start = Vec::new();
        // The segments from the end, until there are enough lines, and one more, where the first of
        // them may begin.
        let mut ends: Vec<Vec<Stream>> = Vec::new();
        let mut found = 0;
        let mut enough = false;
        while let Some(number) = all.pop() {
            let lines_of = line_ends(&dir, number, ends.is_empty())?;
            found += lines_of.len();
            ends.push(lines_of);
            start.push(number);
            if std::mem::replace(&mut enough, found as u64 >= lines) {
                break;
            }
        }
        let mut reader = Self::new(dir);
        let passed = (found as u64).saturating_sub(lines);
        let in_order = ends.iter().rev().flatten();
        for stream in in_order.take(usize::try_from(passed).expect("it is at most what was counted")) {
            reader.skip[stream.index()] += 1;
        }
        if let Some(first) = start.last() {
            reader.enter(*first)?;
        }
        Ok(reader)
    }

    /// Gives all records up to the present end to `each`, in the order in which they were written.
    /// Records of a stream that was cut by [`LogReader::tail`] are left out.
    ///
    /// # Errors
    /// A segment cannot be read, or the error of `each`.
    pub fn read<E: From<StateError>>(
        &mut self,
        mut each: impl FnMut(Record<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        loop {
            // Before the segment is read to its end: whoever begins a new one has ended this one.
            let next = self.next()?;
            if self.current.is_some() {
                self.read_segment(&mut each)?;
            }
            let Some(next) = next else { return Ok(()) };
            if let Some((number, _)) = &self.current {
                self.report.missed_segments += next - number - 1;
            }
            // What is left behind the last newline was torn.
            self.report.damaged_lines += u64::from(!self.rest.is_empty());
            self.rest.clear();
            self.passing = false;
            self.enter(next)?;
        }
    }

    /// What could not be read until now.
    #[must_use]
    pub fn report(&self) -> ReadReport {
        self.report
    }

    fn next(&self) -> Result<Option<u64>, StateError> {
        let after = self.current.as_ref().map_or(0, |(number, _)| *number);
        Ok(segments(&self.dir)?.into_iter().find(|number| *number > after))
    }

    /// Opens a segment; one that gave way meanwhile is found by the next look.
    fn enter(&mut self, number: u64) -> Result<(), StateError> {
        if let Some(file) = self.dir.read(segment_name(number))? {
            self.current = Some((number, file));
        }
        Ok(())
    }

    fn read_segment<E: From<StateError>>(
        &mut self,
        each: &mut impl FnMut(Record<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut chunk = vec![0; CHUNK];
        loop {
            let Some((number, file)) = &mut self.current else { return Ok(()) };
            let read = match file.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => {
                    let path = self.dir.path().join(segment_name(*number));
                    return Err(io_error("read", &path, source).into());
                }
            };
            self.take(&chunk[..read], each)?;
        }
    }

    /// Splits what was read into lines.
    fn take<E>(&mut self, bytes: &[u8], each: &mut impl FnMut(Record<'_>) -> Result<(), E>) -> Result<(), E> {
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let ended = line.ends_with(b"\n");
            if self.rest.len() + line.len() > MAX_LINE {
                self.passing = true;
                self.rest.clear();
            }
            if !self.passing {
                self.rest.extend_from_slice(line);
            }
            if !ended {
                continue;
            }
            let line = std::mem::take(&mut self.rest);
            let passed = std::mem::take(&mut self.passing);
            match Record::parse(line.strip_suffix(b"\n").unwrap_or(&line)).filter(|_| !passed) {
                Some(record) => self.give(record, each)?,
                None => self.report.damaged_lines += 1,
            }
            // Its memory is used again.
            self.rest = line;
            self.rest.clear();
        }
        Ok(())
    }

    fn give<E>(
        &mut self,
        record: Record<'_>,
        each: &mut impl FnMut(Record<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let skip = &mut self.skip[record.stream.index()];
        if *skip == 0 {
            return each(record);
        }
        *skip -= u64::from(record.ends_line);
        Ok(())
    }
}

/// The streams of the lines that end in a segment, in order. At the end of the log an open line
/// counts, too.
fn line_ends(dir: &TrustedDir, number: u64, is_last: bool) -> Result<Vec<Stream>, StateError> {
    let name = segment_name(number);
    // One that gave way meanwhile has none.
    let Some(mut file) = dir.read(&name)? else { return Ok(Vec::new()) };
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|source| io_error("read", &dir.path().join(name), source))?;
    let mut open_line = [false; 2];
    let mut ends = Vec::new();
    for record in bytes.split(|byte| *byte == b'\n').filter_map(Record::parse) {
        open_line[record.stream.index()] = !record.ends_line;
        ends.extend(record.ends_line.then_some(record.stream));
    }
    let open = Stream::ALL.into_iter().filter(|stream| is_last && open_line[stream.index()]);
    ends.extend(open);
    Ok(ends)
}
