//! Writes the files of an archive below a directory, and nowhere else: every name is looked up from
//! that directory on, name by name, and no link on the way is followed.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid, chownat, fchmod, fchown, fsetxattr, ftruncate,
    futimens, linkat, mkdirat, openat, renameat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use crate::error::{file, shown};
use crate::pack::is_carried;
use crate::room::Used;
use crate::sys;
use crate::{ArchiveError, Entry, Kind, Piece, Reader, Room};

/// Bytes of what is remembered of directories, whose modes and times are set at the end.
const REMEMBERED_MOST: usize = 64 << 20;

/// Bytes read at a time.
const STEP: usize = 64 << 10;

/// Zeros of this many bytes, from a multiple of it on, are not written: what is not written of a
/// file is read as zeros, and takes no room.
const BLOCK: usize = 4096;

/// How files are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Owners, set-user-id bits and extended attributes are those of the archive. Otherwise the
    /// files belong to whoever writes them, without such bits.
    pub archive: bool,
    /// How much may be written.
    pub room: Room,
}

/// What becomes of the paths of an archive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Naming {
    /// The first name of each path is taken away.
    pub strip: bool,
    /// This name is put before each path.
    pub put: Option<Vec<u8>>,
}

/// A directory whose mode and time are set when everything is in it.
struct Directory {
    path: Vec<u8>,
    mode: u32,
    times: Timestamps,
}

/// Writes files.
pub struct Unpacker<'a> {
    root: BorrowedFd<'a>,
    naming: Naming,
    options: Options,
    note: &'a mut dyn FnMut(String),
    directories: Vec<Directory>,
    remembered: usize,
    count: u64,
    used: Used,
    buffer: Vec<u8>,
}

impl<'a> Unpacker<'a> {
    /// Writes below the directory `root`. `note` is told of what is left out.
    pub fn new(
        root: BorrowedFd<'a>,
        naming: Naming,
        options: Options,
        note: &'a mut dyn FnMut(String),
    ) -> Self {
        let (used, buffer) = (Used::of(options.room), vec![0; STEP]);
        Self { root, naming, options, note, directories: Vec::new(), remembered: 0, count: 0, used, buffer }
    }

    /// Writes everything from an entry on that was read already, to the archive's end.
    ///
    /// # Errors
    /// The first file that cannot be written, or the archive is damaged. A file is there whole or
    /// not at all; those before it stay.
    pub fn all<R: Read>(mut self, first: Option<Entry>, reader: &mut Reader<R>) -> Result<(), ArchiveError> {
        let mut next = first;
        while let Some(entry) = next {
            self.entry(&entry, reader)?;
            next = reader.entry()?;
        }
        // From the last one on: it may be in one before it, which nobody can write in then.
        while let Some(Directory { path, mode, times }) = self.directories.pop() {
            let names = self.names(&path)?;
            let opened = self.open_directory(&names, false, &path)?;
            fchmod(&opened, sys::mode(mode)).map_err(file("set the mode of", &path))?;
            futimens(&opened, &times).map_err(file("set the time of", &path))?;
        }
        Ok(())
    }

    /// The names of a path below the root; none is the root itself.
    fn names(&self, path: &[u8]) -> Result<Vec<Vec<u8>>, ArchiveError> {
        let refuse = |why| Err(ArchiveError::Refused { path: shown(path), why });
        let mut names: Vec<Vec<u8>> = Vec::new();
        for name in path.split(|byte| *byte == b'/') {
            match name {
                b"" | b"." => {}
                b".." => return refuse("a path with .. is not written"),
                name if name.len() > 255 || name.contains(&0) => {
                    return refuse("a name that no file can have");
                }
                name => names.push(name.to_vec()),
            }
        }
        if names.len() > 2048 {
            return refuse("it is too deep");
        }
        if self.naming.strip && !names.is_empty() {
            names.remove(0);
        }
        if let Some(name) = &self.naming.put {
            names.insert(0, name.clone());
        }
        Ok(names)
    }

    /// Opens a directory below the root; makes what is missing if `make`.
    fn open_directory(
        &mut self,
        names: &[Vec<u8>],
        make: bool,
        path: &[u8],
    ) -> Result<OwnedFd, ArchiveError> {
        const FLAGS: OFlags =
            OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
        let mut here = openat(self.root, ".", FLAGS, Mode::empty()).map_err(file("open", path))?;
        for name in names {
            here = match openat(&here, &name[..], FLAGS, Mode::empty()) {
                Err(Errno::NOENT) if make => {
                    match mkdirat(&here, &name[..], Mode::from_raw_mode(0o755)) {
                        Ok(()) => self.used.file(path, 0)?,
                        Err(Errno::EXIST) => {}
                        Err(error) => return Err(file("make the directory of", path)(error)),
                    }
                    openat(&here, &name[..], FLAGS, Mode::empty())
                }
                opened => opened,
            }
            .map_err(|error| match error {
                Errno::LOOP | Errno::NOTDIR | Errno::MLINK => ArchiveError::Refused {
                    path: shown(path),
                    why: "a directory of its path is a link or a file at the destination",
                },
                error => file("open the directory of", path)(error),
            })?;
        }
        Ok(here)
    }

    fn entry<R: Read>(&mut self, entry: &Entry, reader: &mut Reader<R>) -> Result<(), ArchiveError> {
        let names = self.names(&entry.path)?;
        self.count += 1;
        let Some((last, above)) = names.split_last() else {
            if entry.kind == Kind::Directory {
                // The destination itself, which was there before, stays as it is.
                return Ok(());
            }
            return Err(ArchiveError::Refused { path: shown(&entry.path), why: "it has no name" });
        };
        if entry.kind == Kind::Other {
            (self.note)(format!(
                "{} is left out: it is a device, a named pipe, or a sparse file in a form that is not read",
                shown(&entry.path)
            ));
            return Ok(());
        }
        let beside = entry.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        self.used.file(&entry.path, beside as u64)?;
        let parent = self.open_directory(above, true, &entry.path)?;
        let fail = |what| file(what, &entry.path);
        // A name that nobody else has; a copy that is cut leaves no file that looks whole.
        let temporary = format!(".nelly-cp-{}-{}", std::process::id(), self.count).into_bytes();
        match entry.kind {
            Kind::Other => return Ok(()),
            Kind::Directory => {
                match mkdirat(&parent, &last[..], Mode::from_raw_mode(0o700)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(fail("make the directory")(error)),
                }
                // Not through a link.
                let opened = self.open_directory(&names, false, &entry.path)?;
                self.own(&opened, entry)?;
                self.remembered += entry.path.len() + size_of::<Directory>();
                if self.remembered > REMEMBERED_MOST {
                    return Err(ArchiveError::Damaged("it has too many directories"));
                }
                self.directories.push(Directory {
                    path: entry.path.clone(),
                    mode: self.mode(entry),
                    times: times(entry),
                });
                return Ok(());
            }
            Kind::Symlink => {
                symlinkat(&entry.link[..], &parent, &temporary[..]).map_err(fail("make the link"))?;
                let owner = self.owner(entry).map_or(Ok(()), |(uid, gid)| {
                    chownat(&parent, &temporary[..], Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                });
                let times = utimensat(&parent, &temporary[..], &times(entry), AtFlags::SYMLINK_NOFOLLOW);
                if let Err(error) = owner.and(times) {
                    let _ = unlinkat(&parent, &temporary[..], AtFlags::empty());
                    return Err(fail("set the owner and the time of")(error));
                }
            }
            Kind::HardLink => self.hard_link(entry, &parent, &temporary)?,
            Kind::File => {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let opened = openat(&parent, &temporary[..], flags, Mode::from_raw_mode(0o600))
                    .map_err(fail("make"))?;
                let written = self.contents(&opened, entry, reader);
                if let Err(error) = written.and_then(|()| self.finish(&opened, entry)) {
                    let _ = unlinkat(&parent, &temporary[..], AtFlags::empty());
                    return Err(error);
                }
            }
        }
        let renamed = renameat(&parent, &temporary[..], &parent, &last[..]);
        // Two names of one file: nothing was renamed.
        let _ = unlinkat(&parent, &temporary[..], AtFlags::empty());
        renamed.map_err(fail("replace what is at"))
    }

    /// Writes the contents of a new file; blocks of zeros stay holes.
    fn contents<R: Read>(
        &mut self,
        opened: impl AsFd,
        entry: &Entry,
        reader: &mut Reader<R>,
    ) -> Result<(), ArchiveError> {
        let (mut at, mut end) = (0_u64, 0_u64);
        loop {
            let count = match reader.piece(&mut self.buffer)? {
                Piece::Data(count) => count,
                Piece::Hole(length) => {
                    at = at.saturating_add(length);
                    continue;
                }
                Piece::End => break,
            };
            for part in filled(&self.buffer[..count], at) {
                let from = at + part.start as u64;
                end = at + part.end as u64;
                self.used.contents(&entry.path, from, end)?;
                write(&opened, &self.buffer[part], from).map_err(file("write", &entry.path))?;
            }
            at += count as u64;
        }
        if at > end {
            ftruncate(&opened, at).map_err(file("set the length of", &entry.path))?;
        }
        Ok(())
    }

    fn hard_link(&mut self, entry: &Entry, parent: &OwnedFd, temporary: &[u8]) -> Result<(), ArchiveError> {
        let target = self.names(&entry.link)?;
        let refuse = || ArchiveError::Refused { path: shown(&entry.path), why: "a link to nothing" };
        let (name, above) = target.split_last().ok_or_else(refuse)?;
        let from = self.open_directory(above, false, &entry.link)?;
        let found = statat(&from, &name[..], AtFlags::SYMLINK_NOFOLLOW).map_err(file("find", &entry.link))?;
        if rustix::fs::FileType::from_raw_mode(found.st_mode) != rustix::fs::FileType::RegularFile {
            return Err(ArchiveError::Refused { path: shown(&entry.path), why: "a link to what is no file" });
        }
        linkat(&from, &name[..], parent, temporary, AtFlags::empty()).map_err(file("link", &entry.path))
    }

    fn owner(&self, entry: &Entry) -> Option<(Uid, Gid)> {
        self.options.archive.then(|| (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid)))
    }

    /// The bits of a mode that are given.
    fn mode(&self, entry: &Entry) -> u32 {
        entry.mode & if self.options.archive { 0o7777 } else { 0o777 }
    }

    /// Sets owner and attributes.
    fn own(&mut self, opened: &OwnedFd, entry: &Entry) -> Result<(), ArchiveError> {
        if let Some((uid, gid)) = self.owner(entry) {
            fchown(opened, Some(uid), Some(gid)).map_err(file("set the owner of", &entry.path))?;
            // The owner's change takes capabilities away.
            for (name, value) in entry.xattrs.iter().filter(|(name, _)| is_carried(name)) {
                match fsetxattr(opened, &name[..], value, rustix::fs::XattrFlags::empty()) {
                    // Not every file system has them, and not everybody may set each.
                    Err(Errno::NOTSUP | Errno::PERM | Errno::NOSPC | Errno::TOOBIG) => (self.note)(format!(
                        "{} is without its attribute {}: it cannot be set here",
                        shown(&entry.path),
                        shown(name)
                    )),
                    set => set.map_err(file("set an attribute of", &entry.path))?,
                }
            }
        }
        Ok(())
    }

    /// Sets what a file has beside its contents, in this order: each of the first would take back
    /// something of the next.
    fn finish(&mut self, opened: &OwnedFd, entry: &Entry) -> Result<(), ArchiveError> {
        self.own(opened, entry)?;
        let mode = sys::mode(self.mode(entry));
        fchmod(opened, mode).map_err(file("set the mode of", &entry.path))?;
        futimens(opened, &times(entry)).map_err(file("set the time of", &entry.path))
    }
}

/// The parts of bytes from `at` on in a file that are not zeros, block by block of the file.
fn filled(bytes: &[u8], at: u64) -> Vec<std::ops::Range<usize>> {
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    let mut parts: Vec<std::ops::Range<usize>> = Vec::new();
    let within = usize::try_from(at % BLOCK as u64).expect("below a block");
    let (mut from, mut to) = (0, (BLOCK - within).min(bytes.len()));
    while from < to {
        if bytes[from..to] != ZEROS[..to - from] {
            match parts.last_mut() {
                Some(last) if last.end == from => last.end = to,
                _ => parts.push(from..to),
            }
        }
        (from, to) = (to, (to + BLOCK).min(bytes.len()));
    }
    parts
}

fn times(entry: &Entry) -> Timestamps {
    let time = Timespec { tv_sec: entry.mtime, tv_nsec: entry.mtime_nsec.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn write(opened: impl AsFd, mut bytes: &[u8], mut at: u64) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(&opened, bytes, at) {
            Err(Errno::INTR) => {}
            written => {
                let count = written?;
                (bytes, at) = (&bytes[count..], at + count as u64);
            }
        }
    }
    Ok(())
}
