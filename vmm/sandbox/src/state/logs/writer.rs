//! Writes records. It never fails: what cannot be written is lost and counted, and the log says so
//! as soon as it can be written again.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use nelly_image::trusted::TrustedDir;
use nelly_vmm::sys::fits;

use super::record::{Record, Stream};
use super::{MAX_CONTENT, MIN_CAP_BYTES, SEGMENTS, segment_name, segments};
use crate::state::error::io_error;
use crate::state::{StateError, Timestamp};

/// The only writer of a sandbox's log.
#[derive(Debug)]
pub struct LogWriter {
    dir: TrustedDir,
    cap_bytes: u64,
    /// The numbers and sizes of the segments that are full, ascending.
    full: Vec<(u64, u64)>,
    newest: Segment,
    /// Whether a stream's last record is partial, and whether the last one in the file is.
    open_line: [bool; 2],
    open_in_file: [bool; 2],
    /// Records that are not yet in the file.
    waiting: Vec<u8>,
    /// Of the records that are being made.
    time: String,
    lost: Lost,
}

/// The segment that is written.
#[derive(Debug)]
struct Segment {
    number: u64,
    file: File,
    /// The bytes that are whole records; behind them may be a piece of one that did not fit.
    bytes: u64,
}

/// Output that is in no log.
#[derive(Debug, Default)]
struct Lost {
    /// Since the log last told of it.
    untold_bytes: u64,
    /// Of these, what the records that are waiting tell.
    telling_bytes: u64,
    all_bytes: u64,
    /// Of the output whose records are waiting.
    waiting_bytes: u64,
    why: Option<io::Error>,
}

impl LogWriter {
    /// Continues the log in `dir` with at most `cap_bytes`, which is raised to [`MIN_CAP_BYTES`].
    /// What a killed writer left is mended: a torn record is cut off, and open lines are ended.
    ///
    /// # Errors
    /// The directory cannot be read, or no segment can be opened.
    pub fn open(dir: TrustedDir, cap_bytes: u64, now: Timestamp) -> Result<Self, StateError> {
        let numbers = segments(&dir)?;
        let (newest, older) = match numbers.split_last() {
            Some((newest, older)) => (*newest, older),
            None => (1, &[][..]),
        };
        let size = |number: u64| -> Result<(u64, u64), StateError> {
            let name = segment_name(number);
            let bytes = dir.read(&name)?.map_or(Ok(0), |file| file.metadata().map(|meta| meta.len()));
            Ok((number, bytes.map_err(|source| io_error("look at", &dir.path().join(name), source))?))
        };
        let full = older.iter().map(|number| size(*number)).collect::<Result<_, _>>()?;
        let name = segment_name(newest);
        let file = dir.open_or_make(&name)?;
        let mut segment = Segment { number: newest, file, bytes: 0 };
        let open_line = segment.mend().map_err(|source| io_error("read", &dir.path().join(name), source))?;
        let mut writer = Self {
            dir,
            cap_bytes: cap_bytes.max(MIN_CAP_BYTES),
            full,
            newest: segment,
            open_line,
            open_in_file: open_line,
            waiting: Vec::new(),
            time: now.to_string(),
            lost: Lost::default(),
        };
        for stream in Stream::ALL {
            writer.finish(stream, now);
        }
        Ok(writer)
    }

    /// Records output of `stream`, which came at `now`.
    pub fn write(&mut self, stream: Stream, bytes: &[u8], now: Timestamp) {
        self.time = now.to_string();
        self.tell_lost();
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (content, ended) = match line.strip_suffix(b"\n") {
                Some(content) => (content, true),
                None => (line, false),
            };
            let mut rest = content;
            while let Some((piece, later)) =
                rest.split_at_checked(MAX_CONTENT).filter(|_| rest.len() > MAX_CONTENT)
            {
                self.add(stream, false, piece, piece.len());
                rest = later;
            }
            self.add(stream, ended, rest, rest.len() + usize::from(ended));
        }
        self.flush();
    }

    /// Ends the last line of `stream`, at the stream's end.
    pub fn finish(&mut self, stream: Stream, now: Timestamp) {
        self.time = now.to_string();
        self.tell_lost();
        self.end_line(stream);
        self.flush();
    }

    /// How many bytes of output are in no log because the log could not be written.
    #[must_use]
    pub fn lost_bytes(&self) -> u64 {
        self.lost.all_bytes
    }

    fn end_line(&mut self, stream: Stream) {
        if self.open_line[stream.index()] {
            self.add(stream, true, b"", 0);
        }
    }

    /// Says how much was lost, if something was, together with what comes next: a disk that is full
    /// to the last block is not filled with such sentences. Lines are ended first: what came before
    /// and what comes after do not belong together.
    fn tell_lost(&mut self) {
        let untold = self.lost.untold_bytes;
        let Some(why) = self.lost.why.as_ref().filter(|_| untold > 0) else { return };
        let sentence =
            format!("nelly: {untold} bytes of output were lost, because the log could not be written: {why}");
        for stream in Stream::ALL {
            self.end_line(stream);
        }
        self.add(Stream::Stderr, true, sentence.as_bytes(), 0);
        self.lost.telling_bytes = untold;
    }

    /// Adds a record to those that wait; `output_bytes` is what is lost if it cannot be written.
    fn add(&mut self, stream: Stream, ends_line: bool, content: &[u8], output_bytes: usize) {
        let time = self.time.clone();
        let record = Record { time: &time, stream, ends_line, content };
        let waiting = length(self.waiting.len() + record.bytes());
        if self.newest.bytes + waiting > self.segment_bytes() {
            self.flush();
            // Without room for a new segment, the next flush fails.
            let _ = self.rotate();
        }
        record.append_to(&mut self.waiting);
        self.lost.waiting_bytes += length(output_bytes);
        self.open_line[stream.index()] = !ends_line;
    }

    fn segment_bytes(&self) -> u64 {
        self.cap_bytes / SEGMENTS
    }

    /// Writes what waits, or loses it.
    fn flush(&mut self) {
        let output_bytes = std::mem::take(&mut self.lost.waiting_bytes);
        let told_bytes = std::mem::take(&mut self.lost.telling_bytes);
        let waiting = length(self.waiting.len());
        let written = if self.newest.bytes + waiting > self.segment_bytes() {
            // There was no room for a new segment: the old one does not grow instead.
            self.rotate().and_then(|()| self.newest.append(&self.waiting))
        } else {
            self.newest.append(&self.waiting)
        };
        self.waiting.clear();
        match written {
            Ok(()) => {
                self.open_in_file = self.open_line;
                self.lost.untold_bytes -= told_bytes;
            }
            Err(error) => {
                self.open_line = self.open_in_file;
                self.lost.all_bytes += output_bytes;
                self.lost.untold_bytes += output_bytes;
                self.lost.why = Some(error);
            }
        }
    }

    /// Begins a new segment, and removes the oldest ones until there is room for it.
    fn rotate(&mut self) -> io::Result<()> {
        if self.newest.bytes == 0 {
            return Ok(());
        }
        let mut bytes: u64 = self.full.iter().map(|(_, bytes)| bytes).sum::<u64>() + self.newest.bytes;
        while bytes + self.segment_bytes() > self.cap_bytes && !self.full.is_empty() {
            self.dir.remove(segment_name(self.full[0].0)).map_err(io::Error::other)?;
            bytes -= self.full.remove(0).1;
        }
        let number = self.newest.number + 1;
        let name = segment_name(number);
        // One with this number would be none of ours.
        self.dir.remove(&name).map_err(io::Error::other)?;
        let file = self.dir.make_new(&name).map_err(io::Error::other)?;
        let before = std::mem::replace(&mut self.newest, Segment { number, file, bytes: 0 });
        self.full.push((before.number, before.bytes));
        // Every segment says by itself which lines are open: a killed writer's successor ends them.
        let mut open = Vec::new();
        for stream in Stream::ALL.into_iter().filter(|stream| self.open_in_file[stream.index()]) {
            Record { time: &self.time, stream, ends_line: false, content: b"" }.append_to(&mut open);
        }
        self.newest.append(&open)
    }
}

impl Segment {
    /// Cuts off a torn record, and says which streams have an open line.
    fn mend(&mut self) -> io::Result<[bool; 2]> {
        let mut bytes = Vec::new();
        self.file.read_to_end(&mut bytes)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        bytes.truncate(whole);
        self.bytes = length(whole);
        let mut open_line = [false; 2];
        for record in bytes.split(|byte| *byte == b'\n').filter_map(Record::parse) {
            open_line[record.stream.index()] = !record.ends_line;
        }
        Ok(open_line)
    }

    fn append(&mut self, records: &[u8]) -> io::Result<()> {
        // A piece of a record may be behind the whole ones, from a write that failed in the middle.
        if self.file.metadata()?.len() != self.bytes {
            self.file.set_len(self.bytes)?;
        }
        self.file.write_all_at(records, self.bytes)?;
        self.bytes += length(records.len());
        Ok(())
    }
}

fn length(bytes: usize) -> u64 {
    fits(bytes, "memory is addressed with at most 64 bits")
}
