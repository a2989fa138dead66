//! One file of a tar archive. The archive is read to its end: a later file of the same name takes
//! the place of an earlier one, as where archives are unpacked whole, and checksums are at the end.

use std::fs::File;
use std::io::{self, Read};

use nelly_archive::{ArchiveError, Kind, Piece, Reader};

use super::{BLOCK, SHOWN, StreamError, has, put};

/// Bytes of an archive that are no file's: headers, names and padding. More of them than this, and
/// than there may be bytes of files, are no archive of disks or kernels.
const AROUND_MOST: u64 = 64 << 20;

/// Ends with an error behind so many bytes, since what is passed over costs time, too.
struct Bounded<R> {
    from: R,
    left: u64,
    over: bool,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.from.read(buffer)?;
        match self.left.checked_sub(got as u64) {
            Some(left) => self.left = left,
            None => {
                self.over = true;
                return Err(io::Error::other("more comes out of it than may"));
            }
        }
        Ok(got)
    }
}

/// Writes the file `member`, or else the only file, to `to`; how many bytes it has.
pub(super) fn member_of(
    from: impl Read,
    member: Option<&str>,
    to: &File,
    most: u64,
) -> Result<u64, StreamError> {
    let mut bounded = Bounded { from, left: most.saturating_add(AROUND_MOST), over: false };
    let taken = take(&mut bounded, member, to, most);
    if bounded.over { Err(StreamError::TooLarge(most)) } else { taken }
}

fn take(from: impl Read, member: Option<&str>, to: &File, most: u64) -> Result<u64, StreamError> {
    let mut archive = Reader::new(from);
    let wanted = member.map(|name| plain(name.as_bytes()).to_vec());
    // Of all files the first names, and how many there are; of the wanted one its bytes.
    let (mut names, mut count) = (Vec::new(), 0_usize);
    let (mut only, mut several, mut found, mut other) = (None::<Vec<u8>>, false, None, None);
    while let Some(entry) = archive.entry().map_err(of_archive)? {
        let name = plain(&entry.path);
        let is_wanted = wanted.as_deref().is_none_or(|wanted| wanted == name);
        if entry.kind != Kind::File {
            if wanted.is_some() && is_wanted {
                (found, other) = (None, Some(what(entry.kind)));
            }
            continue;
        }
        count += 1;
        if names.len() < SHOWN {
            names.push(String::from_utf8_lossy(name).into_owned());
        }
        several |= wanted.is_none() && only.as_ref().is_some_and(|only| only != name);
        // Of several files none of which is named, none is taken; they are counted to their end.
        if !is_wanted || several {
            continue;
        }
        only = Some(name.to_vec());
        to.set_len(0).map_err(StreamError::Write)?;
        found = Some(contents(&mut archive, to, most)?);
        other = None;
    }
    archive.drain().map_err(of_archive)?;
    match (found, other, member) {
        (Some(bytes), ..) if !several => Ok(bytes),
        (_, Some(what), Some(member)) => Err(StreamError::NoFile { wanted: member.to_owned(), what }),
        (_, None, Some(member)) => {
            let has = has(names.iter().map(String::as_str), count);
            Err(StreamError::NoMember { wanted: member.to_owned(), has })
        }
        (_, _, None) => Err(StreamError::Several(has(names.iter().map(String::as_str), count))),
    }
}

/// Writes the contents of the present file.
fn contents(archive: &mut Reader<impl Read>, to: &File, most: u64) -> Result<u64, StreamError> {
    let (mut block, mut filled, mut at) = (vec![0; BLOCK], 0, 0_u64);
    loop {
        match archive.piece(&mut block[filled..]).map_err(of_archive)? {
            Piece::Data(got) => {
                filled += got;
                if filled == BLOCK {
                    at = put(&block, to, at, most)?;
                    filled = 0;
                }
            }
            Piece::Hole(bytes) => {
                at = put(&block[..filled], to, at, most)?.saturating_add(bytes);
                filled = 0;
                if at > most {
                    return Err(StreamError::TooLarge(most));
                }
            }
            Piece::End => {
                at = put(&block[..filled], to, at, most)?;
                // A hole at its end, too.
                to.set_len(at).map_err(StreamError::Write)?;
                return Ok(at);
            }
        }
    }
}

/// A name without what `tar -c .` writes before it.
fn plain(mut name: &[u8]) -> &[u8] {
    while let Some(rest) = name.strip_prefix(b"./") {
        name = rest;
    }
    name
}

fn what(kind: Kind) -> &'static str {
    match kind {
        Kind::HardLink => "another name of a file",
        Kind::Symlink => "a symbolic link",
        Kind::Directory => "a directory",
        Kind::File | Kind::Other => "a device, a pipe or a form of sparse file that is not read",
    }
}

/// An error of what the archive is packed in is that one's.
fn of_archive(error: ArchiveError) -> StreamError {
    match error {
        ArchiveError::Stream(_, source) => StreamError::Damaged(source),
        error => StreamError::Tar(error),
    }
}
