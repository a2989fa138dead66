//! Files into a container and out of it, as `docker cp` has it. The guest is not trusted: what
//! comes from it is written below the destination and nowhere else, without devices, and
//! without owners and set-user-id bits unless they are asked for.

use std::ffi::OsStr;
use std::io::{self, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nelly_archive::pack::{Choice, Packer};
use nelly_archive::place::{self, Files, Source};
use nelly_archive::unpack::{Naming, Options, Unpacker};
use nelly_archive::{ArchiveError, Kind, Reader, Room, Writer};
use nelly_protocol::archive::{ArchiveReader, ArchiveWriter};
use nelly_protocol::{Message, messages};

use crate::agent::{CopyTarget, sentence};

/// Why a copy failed.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// What the guest could not do, in its words, cut to 4 KiB.
    #[error("{0}")]
    Guest(String),
    /// The stream from or to the guest ended in the middle.
    #[error("the stream of the guest ended in the middle: the container may have ended")]
    Cut,
    /// The guest neither took nor gave anything within its time.
    #[error("the guest neither takes nor gives anything more: it may be paused, or hang")]
    Silent,
    /// The destination itself is a link, which an earlier copy may have brought from the guest.
    #[error(
        "{} is a symbolic link, which is not followed: write the path that it leads to, or a / at its end for the directory there",
        .0.display()
    )]
    Link(PathBuf),
    /// A file of this host, or the archive.
    #[error(transparent)]
    Archive(ArchiveError),
}

impl From<ArchiveError> for CopyError {
    fn from(error: ArchiveError) -> Self {
        let source = match error {
            ArchiveError::Stream(what, source) => (what, source),
            error => return Self::Archive(error),
        };
        match (source.1.get_ref().and_then(|inner| inner.downcast_ref::<Self>()), source.1.kind()) {
            (Some(Self::Guest(sentence)), _) => Self::Guest(sentence.clone()),
            (Some(Self::Cut), _) => Self::Cut,
            (Some(Self::Silent), _) => Self::Silent,
            _ => Self::Archive(ArchiveError::Stream(source.0, source.1)),
        }
    }
}

fn is_cut(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe | NotConnected)
}

/// The error of a stream, such that a reader or writer in the middle passes it on.
fn broken(error: io::Error) -> io::Error {
    match &error {
        // The kind would be taken for the archive's own end.
        error if is_cut(error) => io::Error::other(CopyError::Cut),
        error if is_silent(error) => io::Error::other(CopyError::Silent),
        _ => error,
    }
}

/// Whether a limit of the stream's was reached.
fn is_silent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// What the guest's last frame says.
fn result(frames: &ArchiveReader<BufReader<UnixStream>>) -> io::Result<()> {
    let result = frames.result().map(messages::InspectResult::parse_from_bytes);
    match result {
        Some(Ok(result)) if result.code == 0 => Ok(()),
        Some(Ok(result)) => Err(io::Error::other(CopyError::Guest(sentence(result.message)))),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the guest's result is none")),
    }
}

/// The guest's sentences about what was left out, each cut to 4 KiB.
fn notes(frames: &ArchiveReader<BufReader<UnixStream>>) -> Vec<String> {
    frames.notes().iter().cloned().map(sentence).collect()
}

/// Ends a copy from another thread.
#[derive(Debug)]
pub struct Interrupt(UnixStream);

impl Interrupt {
    /// Ends it: its thread gets [`CopyError::Cut`], and removes the file that is not whole.
    pub fn end(&self) {
        // It may have ended.
        let _ended = self.0.shutdown(Shutdown::Both);
    }
}

/// An archive that comes out of a container: a tar stream, read to its end, where it is certain
/// that it is whole. Reading blocks.
#[derive(Debug)]
pub struct CopyOut(ArchiveReader<BufReader<UnixStream>>);

impl CopyOut {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self(ArchiveReader::new(BufReader::with_capacity(128 << 10, stream)))
    }

    /// Sentences of the guest about what it left out, after the end.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        notes(&self.0)
    }

    /// A handle that ends the copy.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn interrupt(&self) -> io::Result<Interrupt> {
        self.0.stream().get_ref().try_clone().map(Interrupt)
    }
}

impl Read for CopyOut {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        match self.0.read(buffer) {
            Ok(0) => result(&self.0).map(|()| 0),
            read => read.map_err(broken),
        }
    }
}

/// An archive that goes into a container. Writing blocks, and fails early where the guest cannot
/// write.
#[derive(Debug)]
pub struct CopyIn(ArchiveWriter<UnixStream>);

impl CopyIn {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self(ArchiveWriter::new(stream))
    }

    /// A handle that ends the copy.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn interrupt(&self) -> io::Result<Interrupt> {
        self.0.stream().try_clone().map(Interrupt)
    }

    /// Says that this was all, and waits until it is written. Returns sentences about what was left
    /// out.
    ///
    /// # Errors
    /// The guest could not write it, or the stream broke.
    pub fn finish(self) -> Result<Vec<String>, CopyError> {
        let stream = self.0.stream().try_clone();
        let written = self.0.finish(&[], &[]);
        // Who takes nothing says nothing either.
        let answered = match &written {
            Err(error) if is_silent(error) => Err(io::ErrorKind::WouldBlock.into()),
            _ => stream.and_then(answer),
        };
        // The answer tells why it could not be written.
        let told = match (written, answered) {
            (Err(error), Err(cut)) if is_cut(&cut) => Err(broken(error)),
            (_, answered) => answered.map_err(broken),
        };
        told.map_err(|error| CopyError::from(ArchiveError::Stream("write", error)))
    }
}

/// The guest's answer.
fn answer(stream: UnixStream) -> io::Result<Vec<String>> {
    let mut frames = ArchiveReader::new(BufReader::new(stream));
    if frames.read(&mut [0])? > 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the guest answers with an archive"));
    }
    result(&frames)?;
    Ok(notes(&frames))
}

impl Write for CopyIn {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(|error| {
            if is_silent(&error) {
                return broken(error);
            }
            match self.0.stream().try_clone().and_then(answer) {
                Err(why) if !is_cut(&why) => broken(why),
                _ => broken(error),
            }
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(broken)
    }
}

/// Writes what comes out of a container to the path `destination` of this host, by the rules of
/// `docker cp`. `source` is the path that it has in the container. `archive`: owners, set-user-id
/// bits and extended attributes are set. `note` is told of what is left out.
///
/// # Errors
/// [`CopyError`]. Each file is whole or not there; those before it stay. What needs more than
/// fifteen sixteenths of the free space there is an error, before it is used up.
pub fn to_host(
    archive_of: impl Read,
    source: &[u8],
    destination: &[u8],
    archive: bool,
    note: &mut dyn FnMut(String),
) -> Result<(), CopyError> {
    let source = place::source(source);
    let mut reader = Reader::new(archive_of);
    let first = reader.entry()?;
    let Some(entry) = &first else {
        return Err(ArchiveError::Damaged("there is nothing in it").into());
    };
    let directory = entry.kind == Kind::Directory;
    if source.directory && !directory {
        return Err(ArchiveError::Damaged("its first entry is not the directory that was asked for").into());
    }
    let path = Path::new(OsStr::from_bytes(destination));
    let directly = !destination.ends_with(b"/") && !destination.ends_with(b"/.");
    if directly && path.is_symlink() {
        return Err(CopyError::Link(path.to_owned()));
    }
    let found = Files::All.look(destination)?;
    let target = place::target(destination, &found, &source.name, directory, source.contents)?;
    let parent = Files::All.directory(&target.parent)?;
    let put = (!target.name.is_empty()).then_some(target.name);
    let naming = Naming { strip: !source.name.is_empty(), put };
    let options = Options { archive, room: room(&parent, &target.parent)? };
    Unpacker::new(parent.as_fd(), naming, options, note).all(first, &mut reader)?;
    Ok(reader.drain()?)
}

/// What a guest may fill of the file system of a directory, which is what images may.
fn room(directory: &OwnedFd, path: &[u8]) -> Result<Room, ArchiveError> {
    let room = nelly_image::Room::of(directory).map_err(|source| ArchiveError::File {
        what: "look at the file system of",
        path: String::from_utf8_lossy(path).into_owned(),
        source,
    })?;
    Ok(Room { bytes: room.bytes, files: room.files })
}

/// What of this host is copied into a container.
#[derive(Debug)]
pub struct FromHost {
    source: Source,
    parent: OwnedFd,
    name: Vec<u8>,
    directory: bool,
}

impl FromHost {
    /// Looks at the path `source` of this host. With `follow`, of a link what it leads to is meant.
    ///
    /// # Errors
    /// It is not there, or not what its path says.
    pub fn open(source: &[u8], follow: bool) -> Result<Self, CopyError> {
        let source = place::source(source);
        let (parent, name) = source.open(&Files::All, follow)?;
        let directory = place::is_directory(&parent, &name)?;
        Ok(Self { source, parent, name, directory })
    }

    /// What the container is asked for, to write it at `path`.
    #[must_use]
    pub fn target(&self, path: &[u8], archive: bool) -> CopyTarget {
        CopyTarget {
            path: path.to_vec(),
            name: self.source.name.clone(),
            directory: self.directory,
            contents: self.source.contents,
            archive,
            tar: false,
        }
    }

    /// Writes it as an archive, such as [`CopyIn`]. `note` is told of what is left out.
    ///
    /// # Errors
    /// The first file that cannot be read, or the archive cannot be written.
    pub fn write(
        &self,
        archive: impl Write,
        attributes: bool,
        note: &mut dyn FnMut(String),
    ) -> Result<(), CopyError> {
        let mut writer = Writer::new(archive);
        // An agent of before does not read holes.
        let choice = Choice { xattrs: attributes, sparse: false };
        let mut packer = Packer::new(&mut writer, choice, note);
        packer.tree(&self.parent, &self.name, self.source.archived())?;
        writer.finish()?;
        Ok(())
    }
}

/// Whether bytes are the beginning of a compressed file, and the program that takes one apart.
#[must_use]
pub fn compressed(beginning: &[u8]) -> Option<&'static str> {
    const MAGIC: [(&[u8], &str); 4] =
        [(b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"\xfd7zXZ\0", "xz"), (b"BZh", "bzip2")];
    MAGIC.into_iter().find(|(magic, _)| beginning.starts_with(magic)).map(|(_, program)| program)
}

#[cfg(test)]
mod tests;
