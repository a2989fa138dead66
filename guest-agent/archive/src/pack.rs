//! Writes a tree of files as an archive.

use std::collections::HashMap;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, SeekFrom, Stat, fgetxattr, flistxattr, fstat, openat, readlinkat,
    seek, statat,
};
use rustix::io::Errno;

use crate::error::{file, shown};
use crate::sparse::{self, Extent};
use crate::sys;
use crate::{ArchiveError, Entry, Kind, Writer};

/// Files with several names that are remembered; of more each name becomes a file.
const LINKS_MOST: usize = 1 << 16;

/// Deepest directory. Each one above takes a descriptor, of which a process has 1024.
const DEPTH_MOST: usize = 500;

/// Bytes of the extended attributes of one file; a reader takes a megabyte.
const XATTRS_MOST: usize = 512 << 10;

/// Bytes of a file that the kernel makes, such as those of /proc.
const MADE_MOST: usize = 4 << 20;

/// Bytes read at a time.
const STEP: usize = 64 << 10;

/// What is written of files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Extended attributes, too.
    pub xattrs: bool,
    /// Holes are left out, in GNU's form 1.0, which not everything reads; otherwise they are zeros.
    pub sparse: bool,
}

/// Writes trees.
pub struct Packer<'a, W> {
    writer: &'a mut Writer<W>,
    /// Told of what is left out.
    note: &'a mut dyn FnMut(String),
    choice: Choice,
    links: HashMap<(u64, u64), Vec<u8>>,
    buffer: Vec<u8>,
}

impl<'a, W: Write> Packer<'a, W> {
    /// Writes to `writer`; `note` is told of what is left out.
    pub fn new(writer: &'a mut Writer<W>, choice: Choice, note: &'a mut dyn FnMut(String)) -> Self {
        Self { writer, note, choice, links: HashMap::new(), buffer: vec![0; STEP] }
    }

    /// Writes what is named `name` in the directory `parent`, without following it if it is a link,
    /// as `path` in the archive, and everything below it.
    ///
    /// # Errors
    /// The first file that cannot be read, or the archive cannot be written.
    pub fn tree(&mut self, parent: impl AsFd, name: &[u8], path: &[u8]) -> Result<(), ArchiveError> {
        self.entry(parent, name, path, 0)
    }

    fn entry(
        &mut self,
        parent: impl AsFd,
        name: &[u8],
        path: &[u8],
        depth: usize,
    ) -> Result<(), ArchiveError> {
        let parent = parent.as_fd();
        let found = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(file("look at", path))?;
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let opened =
                    openat(parent, name, flags, Mode::empty()).map_err(file("open the directory", path))?;
                self.directory(opened, path, depth)
            }
            FileType::Symlink => {
                let link = readlinkat(parent, name, Vec::new()).map_err(file("read the link", path))?;
                let entry = Entry { link: link.into_bytes(), ..entry(&found, path, Kind::Symlink) };
                self.writer.begin(&entry)
            }
            FileType::RegularFile => {
                // A pipe that took its place would make a blocking open wait.
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let opened = openat(parent, name, flags, Mode::empty()).map_err(file("open", path))?;
                self.file(&opened, path, depth)
            }
            other if depth == 0 => Err(ArchiveError::Refused { path: shown(path), why: word(other) }),
            other => {
                (self.note)(format!("{} is left out: {}", shown(path), word(other)));
                Ok(())
            }
        }
    }

    fn file(&mut self, opened: &OwnedFd, path: &[u8], depth: usize) -> Result<(), ArchiveError> {
        let found = fstat(opened).map_err(file("look at", path))?;
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
            (self.note)(format!("{} is left out: it is no file any more", shown(path)));
            return Ok(());
        }
        if found.st_nlink > 1 {
            let id = sys::identity(&found);
            if let Some(first) = self.links.get(&id) {
                let entry = Entry { link: first.clone(), size: 0, ..entry(&found, path, Kind::HardLink) };
                return self.writer.begin(&entry);
            }
            if self.links.len() < LINKS_MOST {
                self.links.insert(id, path.to_vec());
            }
        }
        if depth == 0 && sys::makes_files_up(opened).map_err(file("look at the file system of", path))? {
            return self.made(opened, &found, path);
        }
        let size = u64::try_from(found.st_size).expect("a file's size");
        let xattrs = self.xattrs(opened);
        let parts = parts(opened, &found, size);
        let extents = parts.clone().filter(|_| self.choice.sparse);
        let holes = extents.is_none();
        self.writer.begin(&Entry { size, extents, xattrs, ..entry(&found, path, Kind::File) })?;
        let mut at = 0;
        for Extent { offset, length } in parts.unwrap_or_else(|| sparse::whole(size)) {
            if holes {
                self.zeros(offset - at)?;
            }
            self.contents(opened, path, Extent { offset, length })?;
            at = offset + length;
        }
        if holes { self.zeros(size - at) } else { Ok(()) }
    }

    /// Writes a part of a file.
    fn contents(&mut self, opened: &OwnedFd, path: &[u8], part: Extent) -> Result<(), ArchiveError> {
        let (mut at, mut left) = (part.offset, part.length);
        while left > 0 {
            let most = at_most(left, self.buffer.len());
            let count = match rustix::io::pread(opened, &mut self.buffer[..most], at) {
                Err(Errno::INTR) => continue,
                read => read.map_err(file("read", path))?,
            };
            if count == 0 {
                // The archive has said how long it is.
                (self.note)(format!("{} became shorter while it was read; zeros fill it up", shown(path)));
                return self.zeros(left);
            }
            self.writer.data(&self.buffer[..count])?;
            (at, left) = (at + count as u64, left - count as u64);
        }
        Ok(())
    }

    /// Writes zeros.
    fn zeros(&mut self, mut count: u64) -> Result<(), ArchiveError> {
        if count > 0 {
            self.buffer.fill(0);
        }
        while count > 0 {
            let most = at_most(count, self.buffer.len());
            self.writer.data(&self.buffer[..most])?;
            count -= most as u64;
        }
        Ok(())
    }

    /// A file whose size is known only when it was read.
    fn made(&mut self, opened: &OwnedFd, found: &Stat, path: &[u8]) -> Result<(), ArchiveError> {
        let mut all = Vec::new();
        while all.len() <= MADE_MOST {
            match rustix::io::read(opened, &mut *self.buffer) {
                Err(Errno::INTR) => {}
                read => match read.map_err(file("read", path))? {
                    0 => break,
                    count => all.extend_from_slice(&self.buffer[..count]),
                },
            }
        }
        if all.len() > MADE_MOST {
            return Err(ArchiveError::Refused {
                path: shown(path),
                why: "the kernel makes it, and it has no end below 4 MiB",
            });
        }
        self.writer.begin(&Entry { size: all.len() as u64, ..entry(found, path, Kind::File) })?;
        self.writer.data(&all)
    }

    fn directory(&mut self, opened: OwnedFd, path: &[u8], depth: usize) -> Result<(), ArchiveError> {
        let fail = |what| file(what, path);
        let no_files = sys::makes_files_up(&opened).map_err(fail("look at the file system of"))?;
        let found = fstat(&opened).map_err(fail("look at"))?;
        let xattrs = self.xattrs(&opened);
        self.writer.begin(&Entry { size: 0, xattrs, ..entry(&found, path, Kind::Directory) })?;
        if no_files {
            (self.note)(format!("what is in {} is left out: the kernel makes it", shown(path)));
            return Ok(());
        }
        if depth >= DEPTH_MOST {
            (self.note)(format!("what is in {} is left out: it is too deep", shown(path)));
            return Ok(());
        }
        let mut names = Vec::new();
        for found in Dir::read_from(&opened).map_err(fail("read the directory"))? {
            let found = found.map_err(fail("read the directory"))?;
            let name = found.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        names.sort_unstable();
        for name in names {
            let below = [path, b"/", &name].concat();
            match self.entry(&opened, &name, &below, depth + 1) {
                // It was removed meanwhile.
                Err(ArchiveError::File { what: "look at", source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound => {}
                done => done?,
            }
        }
        Ok(())
    }

    /// The attributes that mean something elsewhere: capabilities, and those of users.
    fn xattrs(&self, opened: &OwnedFd) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut names = vec![0_u8; 64 << 10];
        let count = if self.choice.xattrs { flistxattr(opened, &mut names).unwrap_or(0) } else { 0 };
        let (mut all, mut bytes) = (Vec::new(), 0);
        for name in names[..count].split(|byte| *byte == 0).filter(|name| is_carried(name)) {
            let mut value = vec![0_u8; 64 << 10];
            if let Ok(count) = fgetxattr(opened, name, &mut value) {
                value.truncate(count);
                bytes += name.len() + count;
                if bytes > XATTRS_MOST {
                    break;
                }
                all.push((name.to_vec(), value));
            }
        }
        all
    }
}

/// The parts of a file that are no holes, if it has holes.
fn parts(opened: &OwnedFd, found: &Stat, size: u64) -> Option<Vec<Extent>> {
    let stored = u64::try_from(found.st_blocks).ok()?.saturating_mul(512);
    if stored >= size {
        return None;
    }
    let (mut parts, mut at) = (Vec::new(), 0);
    while at < size {
        let begin = match seek(opened, SeekFrom::Data(at)) {
            // Nothing but a hole follows.
            Err(Errno::NXIO) => break,
            // The file system does not say.
            found => found.ok()?,
        };
        let end = seek(opened, SeekFrom::Hole(begin)).ok()?.min(size);
        if begin < at || end <= begin || parts.len() == sparse::EXTENTS_MOST {
            return None;
        }
        parts.push(Extent { offset: begin, length: end - begin });
        at = end;
    }
    (parts != sparse::whole(size)).then_some(parts)
}

/// A number of bytes for a buffer of this length.
fn at_most(count: u64, room: usize) -> usize {
    usize::try_from(count.min(room as u64)).expect("no more than the buffer has")
}

/// Whether an extended attribute is copied.
pub(crate) fn is_carried(name: &[u8]) -> bool {
    name == b"security.capability" || name.starts_with(b"user.")
}

fn entry(found: &Stat, path: &[u8], kind: Kind) -> Entry {
    Entry {
        path: path.to_vec(),
        link: Vec::new(),
        kind,
        mode: sys::bits(found),
        uid: found.st_uid,
        gid: found.st_gid,
        mtime: found.st_mtime,
        mtime_nsec: u32::try_from(found.st_mtime_nsec).expect("below a second"),
        size: 0,
        extents: None,
        xattrs: Vec::new(),
    }
}

fn word(kind: FileType) -> &'static str {
    match kind {
        FileType::Fifo => "it is a named pipe",
        FileType::Socket => "it is a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "it is a device",
        _ => "it is a file of an unknown kind",
    }
}
