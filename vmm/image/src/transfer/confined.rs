//! An archive that is read by a process of its own, which is confined: it finds the files of the
//! tar archive, which it decompresses before if need be, and says where they are. It has the
//! archive open, and the file for what comes out of it, and reaches nothing else.
//!
//! What it says is believed as little as the archive is. Documents and layers are read out of the
//! archive by whoever asked, where the process said that they are, and none goes into the store
//! without its digest.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use serde::{Deserialize, Serialize};

use super::TransferError;
use super::load::{Whole, opened};
use crate::blob::{Blob, Bytes, Compression, read_start};
use crate::error::{Told, UnpackerError};
use crate::limits::Limits;
use crate::progress::{ImageStage, Progress};
use crate::source::{Archive, FILES_MAX, NAMES_MAX, SourceError};
use crate::unpacker::{GRACE, Line, PATIENCE, Report, Running, Unpacker, VERSION, words};

/// The word before the order of an archive.
pub const ARCHIVE: &str = "archive";
/// Bytes that are handed on at a time.
const CHUNK: usize = 64 << 10;
/// Longest line of the process: a name has at most some thousand bytes, each of which is written
/// as six at most.
const LINE_MAX: usize = 1 << 20;

/// What the process is to find the files of: its standard input. Its standard output gets what
/// comes out of it, and its standard error hears what it finds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchiveOrder {
    version: u32,
    /// For messages.
    name: String,
    /// It comes through a pipe, and is kept.
    stream: bool,
    /// Most bytes that may come out of it.
    most: u64,
    limits: Limits,
}

impl ArchiveOrder {
    /// Reads an order from its word, for the process.
    ///
    /// # Errors
    /// It is none, or one of another version.
    pub fn read(word: &str) -> io::Result<Self> {
        let order: Self = serde_json::from_str(word)?;
        if order.version != VERSION {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the order is of another version"));
        }
        Ok(order)
    }

    /// Most bytes that are written.
    #[must_use]
    pub fn most_written(&self) -> u64 {
        self.most
    }

    /// Finds the files of `from`, with `to` for what comes out of it, and tells them. Whether it
    /// could be read.
    ///
    /// # Errors
    /// Nobody hears it.
    pub fn carry_out(&self, from: File, to: File, out: &mut dyn Write) -> io::Result<bool> {
        let found = self.find(from, to, &mut Telling(&mut *out));
        match &found {
            Ok(archive) => {
                let mut count = 0;
                // Many lines at once.
                let mut lines = io::BufWriter::with_capacity(CHUNK, &mut *out);
                for (name, offset, size) in archive.files() {
                    Report::File { name: name.to_owned(), offset, size }.tell(&mut lines)?;
                    count += 1;
                }
                Report::Files(count).tell(&mut lines)?;
                lines.flush()?;
            }
            Err(error) => {
                let words = words(error).join("\n");
                Report::Failed { code: error.code().to_owned(), words }.tell(out)?;
            }
        }
        Ok(found.is_ok())
    }

    fn find(&self, from: File, to: File, progress: &mut dyn Progress) -> Result<Archive, TransferError> {
        let mut from_pipe = &from;
        let whole = if self.stream {
            Whole::Stream(&mut from_pipe)
        } else {
            let file = from.try_clone().map_err(TransferError::Read)?;
            let size = file.metadata().map_err(TransferError::Read)?.len();
            Whole::File { file, size }
        };
        let mut spool = || to.try_clone().map_err(TransferError::Spool);
        opened(whole, &self.name, &mut spool, self.most, &self.limits, progress)
    }
}

/// Tells how far it is. Nobody is asked whether it is still wanted: who does not want it any more
/// ends it.
struct Telling<'a>(&'a mut dyn Write);

impl Progress for Telling<'_> {
    fn update(&mut self, stage: ImageStage, done: u64, total: Option<u64>) {
        // Nobody hears it: it is ended soon.
        let _unheard = Report::Stage { stage, done, total }.tell(self.0);
    }
}

/// Bytes that go to the process as it takes them.
struct Feed<'a> {
    from: &'a mut dyn Read,
    to: io::PipeWriter,
    chunk: Vec<u8>,
    at: usize,
    len: usize,
}

impl<'a> Feed<'a> {
    /// It never waits for the process.
    fn new(from: &'a mut dyn Read, to: io::PipeWriter) -> io::Result<Self> {
        fcntl_setfl(&to, fcntl_getfl(&to)? | OFlags::NONBLOCK)?;
        Ok(Self { from, to, chunk: vec![0; CHUNK], at: 0, len: 0 })
    }

    /// Hands on what there is. Whether there may be more that is wanted.
    fn give(&mut self) -> io::Result<bool> {
        if self.at == self.len {
            (self.at, self.len) = (0, 0);
            self.len = match self.from.read(&mut self.chunk) {
                Ok(0) => return Ok(false),
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
                Err(error) => return Err(error),
            };
        }
        match self.to.write(&self.chunk[self.at..self.len]) {
            Ok(given) => self.at += given,
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => {}
                // It has ended, and says why.
                io::ErrorKind::BrokenPipe => return Ok(false),
                _ => return Err(error),
            },
        }
        Ok(true)
    }
}

/// Has the process read an archive; `spool` makes a file without a name, of at most `room` bytes,
/// for what comes out of it.
pub(super) fn read(
    unpacker: &Unpacker,
    whole: Whole<'_>,
    name: &str,
    spool: &mut dyn FnMut() -> Result<File, TransferError>,
    room: u64,
    limits: &Limits,
    progress: &mut dyn Progress,
) -> Result<Archive, TransferError> {
    let program = unpacker.find().map_err(TransferError::Unpacker)?;
    let talk = |source| TransferError::Unpacker(UnpackerError::Talk { program: program.to_owned(), source });
    let order = ArchiveOrder {
        version: VERSION,
        name: name.to_owned(),
        stream: matches!(whole, Whole::Stream(_)),
        most: room.min(limits.unpacked_bytes),
        limits: *limits,
    };
    let word = serde_json::to_string(&order).map_err(|error| talk(error.into()))?;
    let (reports, errors) = io::pipe().map_err(talk)?;
    let mut command = Command::new(program);
    command.args([ARCHIVE, &word]).current_dir("/").stderr(errors);
    // Where the files are that it finds, and what it takes.
    let (plain, feed) = match whole {
        Whole::File { file, size } => {
            command.stdin(file.as_fd().try_clone_to_owned().map_err(talk)?);
            let plain = if is_plain(&file, size, name)? { None } else { Some(spool()?) };
            match &plain {
                Some(plain) => command.stdout(plain.as_fd().try_clone_to_owned().map_err(talk)?),
                // It has nothing to write.
                None => command.stdout(nothing().map_err(talk)?),
            };
            (plain.unwrap_or(file), None)
        }
        Whole::Stream(stream) => {
            let plain = spool()?;
            let (input, to) = io::pipe().map_err(talk)?;
            command.stdin(input).stdout(plain.as_fd().try_clone_to_owned().map_err(talk)?);
            (plain, Some(Feed::new(stream, to).map_err(talk)?))
        }
    };
    let running = Running::of(command, program, reports, LINE_MAX).map_err(TransferError::Unpacker)?;
    let mut hearing = Hearing { running, files: Vec::new(), names: 0, result: None };
    hearing.hear(feed, progress, &talk)?;
    let Hearing { mut running, files, result, .. } = hearing;
    // Nobody else has the file when it has ended.
    let status = running.end(Instant::now() + GRACE).map_err(talk)?;
    match result {
        Some(Ok(count)) if status.is_none_or(|status| status.success()) && count == files.len() => {
            let lied = |how| TransferError::Unpacker(UnpackerError::Lied(how));
            Archive::of_members(plain, name.to_owned(), limits, files).map_err(lied)
        }
        Some(Err(told)) => Err(TransferError::told(told)),
        _ => Err(TransferError::Unpacker(running.ended(program, status))),
    }
}

/// Whether an archive is not compressed.
fn is_plain(file: &File, size: u64, name: &str) -> Result<bool, TransferError> {
    let file = file.try_clone().map_err(TransferError::Read)?;
    let bytes = Bytes::File { file: file.into(), offset: 0, size };
    let start = read_start(&mut Blob { name: name.to_owned(), bytes }.reader())
        .map_err(|source| SourceError::Io { name: name.to_owned(), source })?;
    // What it refuses, it says.
    Ok(!matches!(Compression::of(&start), Ok(Compression::Gzip | Compression::Zstd)))
}

fn nothing() -> io::Result<Stdio> {
    Ok(OpenOptions::new().write(true).open("/dev/null")?.into())
}

/// What was heard of an archive.
struct Hearing {
    running: Running,
    files: Vec<(String, u64, u64)>,
    /// Bytes of all names.
    names: usize,
    result: Option<Result<usize, Told>>,
}

impl Hearing {
    /// Hears what the process says to its end, and hands on to it what it is to read.
    fn hear(
        &mut self,
        mut feed: Option<Feed<'_>>,
        progress: &mut dyn Progress,
        talk: &dyn Fn(io::Error) -> TransferError,
    ) -> Result<(), TransferError> {
        loop {
            if progress.cancelled() {
                return Err(TransferError::Cancelled);
            }
            self.running.patience = PATIENCE;
            if let Some(feeding) = &mut feed {
                // Whichever goes.
                let patience = Timespec::try_from(PATIENCE).map_err(|error| talk(io::Error::other(error)))?;
                let (takes, says) = (
                    PollFd::new(&feeding.to, PollFlags::OUT),
                    PollFd::new(&self.running.reports, PollFlags::IN),
                );
                let mut both = [takes, says];
                match poll(&mut both, Some(&patience)) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(talk(error.into())),
                }
                let takes = !both[0].revents().is_empty();
                if takes && !feeding.give().map_err(TransferError::Read)? {
                    feed = None;
                }
                self.running.patience = Duration::ZERO;
            }
            match self.running.line(None).map_err(talk)? {
                None => return Ok(()),
                Some(Line::None) => {}
                Some(Line::Report(report)) => self.understand(report, progress)?,
            }
        }
    }

    fn understand(&mut self, report: Report, progress: &mut dyn Progress) -> Result<(), TransferError> {
        match report {
            Report::Stage { stage, done, total } => progress.update(stage, done, total),
            Report::File { name, offset, size } => {
                self.names = self.names.saturating_add(name.len());
                if self.files.len() >= FILES_MAX || self.names > NAMES_MAX {
                    return Err(TransferError::Unpacker(UnpackerError::Lied("it has too many files")));
                }
                self.files.push((name, offset, size));
            }
            Report::Files(count) => self.result = Some(Ok(count)),
            Report::Failed { code, words } => self.result = Some(Err(Told::new(&code, &words))),
            // Of images.
            Report::Done { .. } => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
