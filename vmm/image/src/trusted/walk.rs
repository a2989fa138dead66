//! Traversing a path from `/`, one name at a time.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

use super::{Found, TrustError, io_error, make_directory, user};
use crate::sys;

/// Maximum number of links followed in one path, as in Linux.
const FOLLOW_MAX: u32 = 40;

/// A traversal of a path.
pub(super) struct Walk {
    pub(super) here: OwnedFd,
    pub(super) path: PathBuf,
    /// The remaining names, in reverse order.
    pub(super) rest: Vec<OsString>,
    followed: u32,
    user: u32,
    /// The owner of `/`.
    root: u32,
    /// Whether missing directories are created.
    make: bool,
    /// The first failed check of a parent. It is only reported if the file at the end exists and
    /// would be trusted.
    wrong: Option<TrustError>,
}

impl Walk {
    pub(super) fn new(path: &Path, make: bool) -> Result<Self, TrustError> {
        let whole = std::path::absolute(path).map_err(|source| io_error("find", path, source))?;
        let (here, root) = root_directory()?;
        let (rest, followed, wrong) = (Vec::new(), 0, None);
        let mut walk = Self { here, path: "/".into(), rest, followed, user: user(), root, make, wrong };
        walk.push(&whole);
        Ok(walk)
    }

    /// Adds the names of `path` before the remaining ones.
    fn push(&mut self, path: &Path) {
        let names = path.components().rev().filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        });
        self.rest.extend(names);
    }

    /// The path of `name` in the current directory, for messages.
    pub(super) fn below(&self, name: &OsStr) -> PathBuf {
        match self.path.parent() {
            Some(parent) if name == ".." => parent.to_owned(),
            None if name == ".." => self.path.clone(),
            _ => self.path.join(name),
        }
    }

    /// If directories are to be created, a failed check is an error at once, otherwise it is kept
    /// for later.
    fn judge(&mut self, verdict: Result<(), TrustError>) -> Result<(), TrustError> {
        if self.make {
            return verdict;
        }
        self.wrong = self.wrong.take().or(verdict.err());
        Ok(())
    }

    /// Called at the end of the path: returns the failed check of a parent, if any.
    pub(super) fn arrive(&mut self) -> Result<(), TrustError> {
        self.wrong.take().map_or(Ok(()), Err)
    }

    /// Traverses the path until at most `leave` names are left. False if a directory does not
    /// exist.
    pub(super) fn directories(&mut self, leave: usize) -> Result<bool, TrustError> {
        while self.rest.len() > leave {
            let Some(name) = self.rest.pop() else { break };
            let path = self.below(&name);
            let flags = sys::SEARCH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match retry_on_intr(|| rustix::fs::openat(&self.here, &name, flags, Mode::empty())) {
                Ok(fd) => {
                    let stat = rustix::fs::fstat(&fd).map_err(|error| io_error("look at", &path, error))?;
                    self.judge(Found::new(&path, &stat).on_the_way(self.user, self.root))?;
                    (self.here, self.path) = (fd, path);
                }
                Err(Errno::NOENT) if self.make => {
                    make_directory(&self.here, &name, &path)?;
                    self.rest.push(name);
                }
                Err(Errno::NOENT) => return Ok(false),
                Err(Errno::NOTDIR | Errno::LOOP) => self.follow(&name, &path, "a directory")?,
                Err(error) => return Err(io_error("open", &path, error)),
            }
        }
        Ok(true)
    }

    /// Adds the target of a link before the remaining names. The link must belong to the caller or
    /// root, like everything else.
    pub(super) fn follow(
        &mut self,
        name: &OsStr,
        path: &Path,
        wanted: &'static str,
    ) -> Result<(), TrustError> {
        let stat = rustix::fs::statat(&self.here, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| io_error("look at", path, error))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            return Err(TrustError::Kind { path: path.to_owned(), wanted });
        }
        self.judge(Found::new(path, &stat).owned_by(self.user, self.root))?;
        self.followed += 1;
        if self.followed > FOLLOW_MAX {
            return Err(io_error("follow", path, Errno::LOOP));
        }
        let target = rustix::fs::readlinkat(&self.here, name, Vec::new())
            .map_err(|error| io_error("read the link", path, error))?;
        let target = Path::new(OsStr::from_bytes(target.as_bytes()));
        if target.is_absolute() {
            (self.here, self.path) = (root_directory()?.0, "/".into());
        }
        self.push(target);
        Ok(())
    }
}

/// `/` and its owner.
fn root_directory() -> Result<(OwnedFd, u32), TrustError> {
    let path = Path::new("/");
    let flags = sys::SEARCH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty()))
        .map_err(|error| io_error("open", path, error))?;
    let stat = rustix::fs::fstat(&fd).map_err(|error| io_error("look at", path, error))?;
    Found::new(path, &stat).on_the_way(stat.st_uid, stat.st_uid)?;
    Ok((fd, stat.st_uid))
}
