//! Files of a container, out of it and into it, as a tar archive. The work is done below the
//! container's root, where every path is looked up without a way out, whatever the container's
//! processes do to its directories and links meanwhile.

use std::fs::File;
use std::io::{self, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nelly_archive::pack::{Choice, Packer};
use nelly_archive::place::{self, Files, Found, There};
use nelly_archive::unpack::{Naming, Options, Unpacker};
use nelly_archive::{ArchiveError, Kind, Reader, Room, Writer};
use nelly_protocol::archive::{ArchiveReader, ArchiveWriter};
use nelly_protocol::{Message, messages as m};

use super::report::Notes;
use crate::spawn::chain;
use crate::sys;

/// CAP_DAC_READ_SEARCH: all that reading needs.
const READ: u64 = 1 << 2;

/// CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_FSETID and CAP_SETFCAP: what
/// writing files of any owner needs. None of them makes a device.
const WRITE: u64 = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 31;

/// Moves this process into the container and gives up all rights but `capabilities`. Answers the
/// container's files.
fn enter(first: BorrowedFd<'_>, capabilities: u64) -> io::Result<Files> {
    let joined = sys::join_namespaces(first, libc::CLONE_NEWNS);
    joined.map_err(|error| {
        io::Error::new(error.kind(), format!("cannot join the container's mounts: {error}"))
    })?;
    sys::capabilities::apply(capabilities, capabilities, 0, 0)?;
    Ok(Files::Below(File::open("/")?.into()))
}

/// The result frame's payload.
fn result(done: Result<(), String>) -> io::Result<Vec<u8>> {
    let mut result = m::InspectResult::new();
    if let Err(sentence) = done {
        (result.code, result.message) = (1, super::report::cut(&sentence).to_owned());
    }
    result.write_to_bytes().map_err(io::Error::other)
}

/// What went wrong, for the host.
fn sentence(error: &ArchiveError, path: &[u8]) -> String {
    if let ArchiveError::File { source, .. } = error
        && source.raw_os_error() == Some(libc::EROFS)
    {
        return format!(
            "{} is on a read-only file system of the container; a copy can go to a volume or a tmpfs",
            String::from_utf8_lossy(path)
        );
    }
    chain(error)
}

/// Writes the archive of what is at a path.
pub(super) fn out(request: &m::CopyOutRequest, first: BorrowedFd<'_>, stream: OwnedFd) -> io::Result<()> {
    let mut output = ArchiveWriter::new(File::from(stream));
    let mut notes = Notes::default();
    let done = enter(first, READ).map_err(|error| error.to_string()).and_then(|files| {
        let packed = pack(request, &files, &mut output, &mut notes);
        packed.map_err(|error| sentence(&error, &request.path))
    });
    output.finish(&notes.all(), &result(done)?).map(drop)
}

fn pack(
    request: &m::CopyOutRequest,
    files: &Files,
    output: &mut impl Write,
    notes: &mut Notes,
) -> Result<(), ArchiveError> {
    let source = place::source(&rooted(&request.path));
    let (parent, name) = source.open(files, request.follow)?;
    let mut writer = Writer::new(output);
    let choice = Choice { xattrs: true, sparse: request.sparse };
    let mut note = |note: String| notes.add(&note);
    Packer::new(&mut writer, choice, &mut note).tree(&parent, &name, source.archived())?;
    writer.finish().map(drop)
}

/// A path from the container's root on.
fn rooted(path: &[u8]) -> Vec<u8> {
    if path.starts_with(b"/") { path.to_vec() } else { [b"/", path].concat() }
}

/// Writes the files of the archive that comes.
pub(super) fn into(request: &m::CopyInRequest, first: BorrowedFd<'_>, stream: OwnedFd) -> io::Result<()> {
    let stream = File::from(stream);
    let mut notes = Notes::default();
    let done = enter(first, WRITE).map_err(|error| error.to_string()).and_then(|files| {
        let unpacked = unpack(request, &files, &stream, &mut notes);
        unpacked.map_err(|error| sentence(&error, &request.path))
    });
    ArchiveWriter::new(stream).finish(&notes.all(), &result(done)?).map(drop)
}

fn unpack(
    request: &m::CopyInRequest,
    files: &Files,
    stream: &File,
    notes: &mut Notes,
) -> Result<(), ArchiveError> {
    let path = rooted(&request.path);
    let found = files.look(&path)?;
    let (parent, naming) = if request.tar {
        if found.there != There::Directory {
            let path = String::from_utf8_lossy(&path).into_owned();
            return Err(ArchiveError::Place(format!(
                "{path} is no directory that exists, which an archive needs"
            )));
        }
        (found.path, Naming::default())
    } else {
        let target = target(request, &path, &found)?;
        let put = (!target.name.is_empty()).then_some(target.name);
        (target.parent, Naming { strip: !request.name.is_empty() && !request.contents, put })
    };
    let parent = files.directory(&parent)?;
    // The guest's disks are the guest's to fill.
    let options = Options { archive: request.archive, room: Room::ALL };
    let mut note = |note: String| notes.add(&note);
    let unpacker = Unpacker::new(parent.as_fd(), naming, options, &mut note);
    let mut reader = Reader::new(ArchiveReader::new(BufReader::with_capacity(128 << 10, stream)));
    let entry = reader.entry()?;
    if !request.tar
        && entry.as_ref().is_some_and(|entry| (entry.kind == Kind::Directory) != request.directory)
    {
        return Err(ArchiveError::Damaged("it does not begin with what was announced"));
    }
    unpacker.all(entry, &mut reader)?;
    // The host says that this was all.
    reader.drain()
}

fn target(request: &m::CopyInRequest, path: &[u8], found: &Found) -> Result<place::Target, ArchiveError> {
    if request.name.contains(&b'/') || request.name.contains(&0) || request.name == b".." {
        return Err(ArchiveError::Damaged("the name of its source is none"));
    }
    place::target(path, found, &request.name, request.directory, request.contents)
}
