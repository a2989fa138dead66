//! A tar archive as the files of an image, read in place: plain archives by seeking, compressed
//! ones by going through them once for the names and the JSON, and once more into a spool if layers
//! are needed.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use super::layout::open_regular;
use super::{ImageFiles, SourceError, json_too_large};
use crate::blob::{Blob, BlobReader, Bytes, Compression, read_start};
use crate::erofs::no_room;
use crate::limits::Limits;
use crate::num::to_u64;
use crate::tar::{EntryKind, TarError, TarInput, TarReader};

/// Files in an archive. An image with the most layers has a few thousand.
pub(crate) const FILES_MAX: usize = 100_000;
/// Bytes of all names and links of an archive.
pub(crate) const NAMES_MAX: usize = 32 << 20;
/// Bytes of JSON kept in memory from a compressed archive.
const KEPT_MAX: u64 = 64 << 20;
/// Symbolic links followed inside an archive.
const FOLLOW_MAX: usize = 16;
/// Bytes read at a time where mostly headers are wanted.
const HEADERS: usize = 4096;
/// Bytes read at a time of a compressed archive.
const STREAM: usize = 256 << 10;

/// Something under a name in the archive.
#[derive(Clone, Debug)]
enum Member {
    File { offset: u64, size: u64, kept: Option<Arc<[u8]>> },
    Link(String),
}

/// Offset, size, and the bytes if they were kept.
type Found<'a> = (u64, u64, Option<&'a Arc<[u8]>>);

/// An archive whose names are known.
#[derive(Debug)]
pub(crate) struct Archive {
    name: String,
    whole: Blob,
    compression: Compression,
    json_bytes: u64,
    members: HashMap<String, Member>,
    /// The uncompressed archive, where layers are read from; `None` while it is not there.
    plain: Option<Arc<File>>,
}

/// A reader with a buffer, as input of the tar reader.
struct Buffered<R> {
    reader: R,
    buffer: Vec<u8>,
    at: usize,
    len: usize,
    /// Bytes that may still be read.
    left: u64,
}

impl<R: Read> Buffered<R> {
    fn new(reader: R, size: usize, limit: u64) -> Self {
        Self { reader, buffer: vec![0; size], at: 0, len: 0, left: limit }
    }

    fn refill(&mut self) -> io::Result<&[u8]> {
        while self.at == self.len {
            self.at = 0;
            self.len = match self.reader.read(&mut self.buffer) {
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    self.len = 0;
                    continue;
                }
                Err(error) => {
                    self.len = 0;
                    return Err(error);
                }
            };
            self.left = self.left.checked_sub(to_u64(self.len)).ok_or(io::ErrorKind::FileTooLarge)?;
            break;
        }
        Ok(&self.buffer[self.at..self.len])
    }

    fn advance(&mut self, n: usize) {
        self.at = self.len.min(self.at + n);
    }
}

/// A reader that asks before every read whether it is still wanted.
struct Asking<'a, R> {
    reader: R,
    cancelled: &'a mut dyn FnMut() -> bool,
}

/// What a read says that is not wanted any more.
#[derive(Debug, thiserror::Error)]
#[error("cancelled")]
struct Unwanted;

impl<R: Read> Read for Asking<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if (self.cancelled)() { Err(io::Error::other(Unwanted)) } else { self.reader.read(out) }
    }
}

/// Input from a compressed archive.
struct Streamed<R>(Buffered<R>);

impl<R: Read> TarInput for Streamed<R> {
    fn fill(&mut self) -> io::Result<&[u8]> {
        self.0.refill()
    }

    fn consume(&mut self, n: usize) {
        self.0.advance(n);
    }
}

/// Input from a plain archive, which can seek.
struct Seeking<'a>(Buffered<Asking<'a, BlobReader>>);

impl TarInput for Seeking<'_> {
    fn fill(&mut self) -> io::Result<&[u8]> {
        self.0.refill()
    }

    fn consume(&mut self, n: usize) {
        self.0.advance(n);
    }

    fn skip(&mut self, n: u64) -> io::Result<bool> {
        let buffered = self.0.len - self.0.at;
        if let Ok(few) = usize::try_from(n)
            && few <= buffered
        {
            self.0.advance(few);
            return Ok(true);
        }
        self.0.advance(buffered);
        Ok(self.0.reader.reader.seek_forward(n - to_u64(buffered)))
    }
}

/// A path inside the archive with `.`, `..` and double slashes resolved; `None` if it leaves the
/// archive.
fn normal(path: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

impl Archive {
    /// Opens an archive and reads its names. Nothing is written. `cancelled` is asked before every
    /// read.
    ///
    /// # Errors
    /// If it is no archive, damaged as far as names go, or over a limit.
    pub(crate) fn open(
        path: &Path,
        limits: &Limits,
        cancelled: &mut dyn FnMut() -> bool,
    ) -> Result<Self, SourceError> {
        let (file, size) = open_regular(path)?;
        Self::of_file(file, size, path.display().to_string(), limits, cancelled)
    }

    /// As [`Archive::open`], of an open file of `size` bytes that messages call `name`.
    pub(crate) fn of_file(
        file: File,
        size: u64,
        name: String,
        limits: &Limits,
        cancelled: &mut dyn FnMut() -> bool,
    ) -> Result<Self, SourceError> {
        if size == 0 {
            return Err(SourceError::corrupt(name, "is empty"));
        }
        let file = Arc::new(file);
        let whole = Blob { name: name.clone(), bytes: Bytes::File { file: file.clone(), offset: 0, size } };
        let io_error = |source| SourceError::Io { name: name.clone(), source };
        let start = read_start(&mut whole.reader()).map_err(io_error)?;
        let compression = Compression::of(&start)
            .map_err(|method| SourceError::unsupported(&name, unsupported_compression(method)))?;
        let plain = (compression == Compression::None).then(|| file.clone());
        let (members, json_bytes) = (HashMap::new(), limits.json_bytes);
        let mut archive = Self { name: name.clone(), whole, compression, json_bytes, members, plain };
        if compression == Compression::None {
            let reader = Asking { reader: archive.whole.reader(), cancelled };
            let input = Seeking(Buffered::new(reader, HEADERS, u64::MAX));
            archive.members = archive.index(input, limits, false)?;
        } else {
            let mut reader = archive.whole.reader();
            let start = read_start(&mut reader).map_err(io_error)?;
            let decoder = compression.decoder(start, reader).map_err(io_error)?;
            let reader = Asking { reader: decoder, cancelled };
            let input = Streamed(Buffered::new(reader, STREAM, limits.unpacked_bytes));
            archive.members = archive.index(input, limits, true)?;
        }
        Ok(archive)
    }

    fn index(
        &self,
        input: impl TarInput,
        limits: &Limits,
        keep_json: bool,
    ) -> Result<HashMap<String, Member>, SourceError> {
        let damaged = |source| match source {
            TarError::Read { source, .. } if source.get_ref().is_some_and(|why| why.is::<Unwanted>()) => {
                SourceError::Cancelled
            }
            source => SourceError::Archive { name: self.name.clone(), source },
        };
        let mut members = HashMap::new();
        let (mut kept_left, mut names_left) = (KEPT_MAX, NAMES_MAX);
        let mut tar = TarReader::new(input);
        while let Some(entry) = tar.next().map_err(damaged)? {
            if members.len() >= FILES_MAX {
                let (name, limit) = (self.name.clone(), FILES_MAX.to_string());
                return Err(SourceError::TooLarge { name, found: "more files".to_owned(), limit });
            }
            let names = entry.path.len().saturating_add(entry.link.len());
            names_left = names_left.checked_sub(names).ok_or_else(|| SourceError::TooLarge {
                name: self.name.clone(),
                found: "longer names".to_owned(),
                limit: format!("{NAMES_MAX} bytes of all names"),
            })?;
            // Names of an image are plain; others are not looked up.
            let (Ok(path), Ok(link)) = (String::from_utf8(entry.path), String::from_utf8(entry.link)) else {
                continue;
            };
            let Some(path) = normal(&path) else { continue };
            let member = match entry.kind {
                EntryKind::File if entry.sparse.is_none() => {
                    let (offset, size) = (tar.position(), entry.size);
                    let mut kept = None;
                    if keep_json && size <= limits.json_bytes.min(kept_left) {
                        kept = keep(&mut tar).map_err(damaged)?;
                        kept_left -= if kept.is_some() { size } else { 0 };
                    }
                    Member::File { offset, size, kept }
                }
                EntryKind::HardLink => match normal(&link) {
                    Some(link) => Member::Link(link),
                    None => continue,
                },
                EntryKind::Symlink => {
                    let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
                    match normal(&format!("{dir}/{link}")) {
                        Some(link) if !link.is_empty() => Member::Link(link),
                        _ => continue,
                    }
                }
                _ => continue,
            };
            members.insert(path, member);
        }
        Ok(members)
    }

    /// Whether a file of this name is there.
    pub(crate) fn has(&self, path: &str) -> bool {
        self.find(path).is_ok()
    }

    /// Whether layers can be read only after [`Archive::spool`].
    pub(crate) fn needs_spool(&self) -> bool {
        self.plain.is_none()
    }

    /// Decompresses the archive into `file`, an empty one, of at most `room` bytes. `tick` hears of
    /// compressed bytes done and in all; `false` ends it, with `Ok(false)`.
    ///
    /// # Errors
    /// [`SpoolError`]: what reading the archive or writing the file failed with.
    pub(crate) fn spool(
        &mut self,
        file: File,
        room: u64,
        tick: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<bool, SpoolError> {
        use io::Write as _;
        let source = |source| SpoolError::Source(SourceError::Io { name: self.name.clone(), source });
        let total = self.whole.size();
        let done = std::cell::Cell::new(0);
        let mut reader = self.whole.reader();
        let start = read_start(&mut reader).map_err(source)?;
        let mut decoder =
            self.compression.decoder(start, Counting { reader, done: &done }).map_err(source)?;
        let mut buffer = vec![0; 1 << 20];
        let mut out = &file;
        let mut left = room;
        loop {
            let got = match decoder.read(&mut buffer) {
                Ok(0) => break,
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(source(error)),
            };
            left = left.checked_sub(to_u64(got)).ok_or_else(|| SpoolError::Write(no_room(room)))?;
            out.write_all(&buffer[..got]).map_err(SpoolError::Write)?;
            if !tick(done.get(), total) {
                return Ok(false);
            }
        }
        drop(decoder);
        self.plain = Some(Arc::new(file));
        Ok(true)
    }

    /// What is known of an archive that another process has read: its files, by their names, in
    /// `file`, which is not compressed.
    ///
    /// # Errors
    /// What cannot be.
    pub(crate) fn of_members(
        file: File,
        name: String,
        limits: &Limits,
        members: impl IntoIterator<Item = (String, u64, u64)>,
    ) -> Result<Self, &'static str> {
        let bytes = file.metadata().map_err(|_unseen| "the archive cannot be looked at")?.len();
        let mut files = HashMap::new();
        for (path, offset, size) in members {
            if offset.checked_add(size).is_none_or(|end| end > bytes) {
                return Err("it has a file that lies beyond its end");
            }
            files.insert(path, Member::File { offset, size, kept: None });
        }
        let file = Arc::new(file);
        let whole =
            Blob { name: name.clone(), bytes: Bytes::File { file: file.clone(), offset: 0, size: bytes } };
        let (compression, json_bytes) = (Compression::None, limits.json_bytes);
        Ok(Self { name, whole, compression, json_bytes, members: files, plain: Some(file) })
    }

    /// All files, with the names of those that lead to them: name, offset in the archive when it is
    /// not compressed, and size.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&str, u64, u64)> {
        self.members.keys().filter_map(|name| {
            let (offset, size, _) = self.find(name).ok()?;
            Some((name.as_str(), offset, size))
        })
    }

    /// Follows links to a file.
    fn find(&self, path: &str) -> Result<Found<'_>, SourceError> {
        let missing = || SourceError::missing(format!("`{path}` in {}", self.name));
        let mut here = normal(path).ok_or_else(missing)?;
        for _ in 0..FOLLOW_MAX {
            match self.members.get(&here).ok_or_else(missing)? {
                Member::File { offset, size, kept } => return Ok((*offset, *size, kept.as_ref())),
                Member::Link(target) => here.clone_from(target),
            }
        }
        Err(missing())
    }
}

/// Why an archive could not be decompressed.
#[derive(Debug)]
pub(crate) enum SpoolError {
    Source(SourceError),
    Write(io::Error),
}

fn unsupported_compression(method: &str) -> String {
    format!("is compressed with {method}; only gzip, zstd and no compression are supported")
}

/// Counts what was read.
struct Counting<'a, R> {
    reader: R,
    done: &'a std::cell::Cell<u64>,
}

impl<R: Read> Read for Counting<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let got = self.reader.read(out)?;
        self.done.set(self.done.get() + to_u64(got));
        Ok(got)
    }
}

/// The present entry's data if it looks like JSON.
fn keep<I: TarInput>(tar: &mut TarReader<I>) -> Result<Option<Arc<[u8]>>, TarError> {
    if !matches!(tar.data()?.first(), Some(b'{' | b'[' | b' ' | b'\n')) {
        return Ok(None);
    }
    let mut data = Vec::new();
    loop {
        let more = tar.data()?;
        if more.is_empty() {
            return Ok(Some(data.into()));
        }
        data.extend_from_slice(more);
        let used = more.len();
        tar.consume(used);
    }
}

impl ImageFiles for Archive {
    fn open(&self, path: &str) -> Result<Blob, SourceError> {
        let (offset, size, kept) = self.find(path)?;
        let name = format!("`{path}` in {}", self.name);
        let bytes = match (kept, &self.plain) {
            (Some(kept), _) => Bytes::Memory(kept.clone()),
            (None, Some(file)) => Bytes::File { file: file.clone(), offset, size },
            (None, None) if size == 0 => Bytes::Memory(Arc::new([])),
            (None, None) if size > self.json_bytes => {
                return Err(json_too_large(name, size, self.json_bytes));
            }
            // It was of a size to be JSON, and did not look like it or came after too much of it.
            (None, None) => return Err(SourceError::NotA { name, wanted: "JSON" }),
        };
        Ok(Blob { name, bytes })
    }

    fn size(&self, path: &str) -> Result<u64, SourceError> {
        Ok(self.find(path)?.1)
    }
}
