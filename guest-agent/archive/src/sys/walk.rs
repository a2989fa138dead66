//! Systems that cannot resolve a path below a directory: it is walked name by name. No call gets
//! more than one name, none follows a link, and `..` goes back to a directory that the walk itself
//! came through, so that no name leads above the root. Tests on Linux hold it against the kernel's
//! own way.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, openat, readlinkat, statat};
use rustix::io::{Errno, retry_on_intr};

use super::{DIRECTORY, Seen};

/// Links that are followed in one path, as many as Linux follows.
const LINKS_MOST: usize = 40;

/// Bytes of a path, and of the target of a link, as many as Linux takes.
const PATH_MOST: usize = 4095;

/// How often a name is looked at again because it became something else meanwhile.
const TRIES_MOST: usize = 1000;

/// A walk that has come somewhere.
struct Walk<'a> {
    root: BorrowedFd<'a>,
    /// The directories below the root that it came through; the last one is where it is.
    through: Vec<OwnedFd>,
    /// Names that are left to go.
    left: VecDeque<Vec<u8>>,
    links: usize,
}

impl<'a> Walk<'a> {
    fn new(root: BorrowedFd<'a>, path: &[u8]) -> Result<Self, Errno> {
        if path.is_empty() {
            return Err(Errno::NOENT);
        }
        let mut walk = Self { root, through: Vec::new(), left: VecDeque::new(), links: 0 };
        walk.put(path)?;
        Ok(walk)
    }

    /// Puts the names of a path before those that are left.
    fn put(&mut self, path: &[u8]) -> Result<(), Errno> {
        if path.len() > PATH_MOST {
            return Err(Errno::NAMETOOLONG);
        }
        for name in path.rsplit(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            self.left.push_front(name.to_vec());
        }
        Ok(())
    }

    fn here(&self) -> BorrowedFd<'_> {
        self.through.last().map_or(self.root, AsFd::as_fd)
    }

    /// Goes on where a link leads.
    fn follow(&mut self, link: &[u8]) -> Result<(), Errno> {
        self.links += 1;
        if self.links > LINKS_MOST {
            return Err(Errno::LOOP);
        }
        if link.is_empty() {
            return Err(Errno::NOENT);
        }
        if link.starts_with(b"/") {
            self.through.clear();
        }
        self.put(link)
    }

    /// Goes through one name, which is a directory or a link.
    fn step(&mut self, name: &[u8]) -> Result<(), Errno> {
        match name {
            b"." => return Ok(()),
            b".." => {
                // Of the root it is the root.
                self.through.pop();
                return Ok(());
            }
            _ => {}
        }
        for _ in 0..TRIES_MOST {
            // A link is an error here, of two names.
            let opened = retry_on_intr(|| openat(self.here(), name, STEP, Mode::empty()));
            match opened {
                Ok(opened) => {
                    self.through.push(opened);
                    return Ok(());
                }
                Err(Errno::LOOP | Errno::NOTDIR | Errno::MLINK) => {}
                Err(error) => return Err(error),
            }
            match look(self.here(), name)? {
                Seen::Link(link) => return self.follow(link.as_bytes()),
                // It took the place of a link, or of a file, meanwhile.
                Seen::Other(FileType::Directory) => {}
                Seen::Other(_) => return Err(Errno::NOTDIR),
            }
        }
        Err(Errno::AGAIN)
    }
}

/// How a name on the way is opened.
const STEP: OFlags = DIRECTORY.union(OFlags::NOFOLLOW);

/// Opens the directory at `path`, links followed, with `root` as `/` and as `..` of itself.
pub(crate) fn directory_in(root: impl AsFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let root = root.as_fd();
    let mut walk = Walk::new(root, path)?;
    while let Some(name) = walk.left.pop_front() {
        walk.step(&name)?;
    }
    match walk.through.pop() {
        Some(here) => Ok(here),
        None => retry_on_intr(|| openat(root, ".", DIRECTORY, Mode::empty())),
    }
}

/// What is at `path`, with `root` as `/` and as `..` of itself.
pub(crate) fn look_in(root: impl AsFd, path: &[u8]) -> Result<Seen, Errno> {
    let mut walk = Walk::new(root.as_fd(), path)?;
    while let Some(name) = walk.left.pop_front() {
        // With a slash behind it the last name, too, is one to go through.
        let last = walk.left.is_empty() && !path.ends_with(b"/");
        if last && name != b"." && name != b".." {
            return look(walk.here(), &name);
        }
        walk.step(&name)?;
    }
    // It leads to where the walk has come.
    Ok(Seen::Other(FileType::Directory))
}

/// What is at `path`, from the directory `from` on.
pub(crate) fn look(from: impl AsFd, path: &[u8]) -> Result<Seen, Errno> {
    for _ in 0..TRIES_MOST {
        let found = retry_on_intr(|| statat(&from, path, AtFlags::SYMLINK_NOFOLLOW))?;
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Symlink => match readlinkat(&from, path, Vec::new()) {
                // It is no link any more.
                Err(Errno::INVAL) => {}
                link => return Ok(Seen::Link(link?)),
            },
            other => return Ok(Seen::Other(other)),
        }
    }
    Err(Errno::AGAIN)
}

/// What tells a file from all others.
#[cfg(not(target_os = "linux"))]
pub(crate) fn identity(found: &rustix::fs::Stat) -> (u64, u64) {
    (found.st_dev.cast_unsigned().into(), found.st_ino)
}

/// There are no such file systems as /proc.
#[cfg(not(target_os = "linux"))]
#[expect(clippy::unnecessary_wraps, reason = "as on Linux")]
pub(crate) fn makes_files_up(_opened: impl AsFd) -> Result<bool, Errno> {
    Ok(false)
}

#[cfg(all(test, target_os = "linux"))]
mod tests;
