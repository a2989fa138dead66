//! Directories and files on the host that nobody except the caller and root can change.
//!
//! The owner of a parent directory, and everybody who can write to it, can replace the files below
//! it. So a path is traversed from `/` one name at a time: each directory is opened relative to its
//! parent, without following links, and is checked through its file descriptor. Everything below
//! the last directory is opened and created relative to that descriptor.

mod tree;
mod walk;
mod watch;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use thiserror::Error;

use self::walk::Walk;
pub use self::watch::Watch;
use crate::num::fits;
use crate::sys;
pub use crate::sys::{free_bytes, is_locked, try_lock};

/// Flags for opening directories.
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Flags for opening files: links are not followed, and FIFOs and terminals neither block nor
/// become the controlling terminal.
const FILE: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);
const PRIVATE_FILE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Why a directory or a file cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TrustError {
    /// A system call failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The action, as in "cannot open".
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file has the wrong type.
    #[error("{} is not {wanted}", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
        /// The expected type, as in "is not a directory".
        wanted: &'static str,
    },
    /// It belongs to a user who is not trusted.
    #[error(
        "{} belongs to user {owner}, but this program runs as user {user} and trusts only its own files and root's; \
         choose another directory with NELLY_HOME, or change the owner to user {user} with `chown`",
        path.display()
    )]
    Owner {
        /// The directory, file or link.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The user id of this process.
        user: u32,
    },
    /// Users other than its owner can write to it.
    #[error(
        "{} is writable by users other than its owner (mode {mode:o}, owner {owner}); \
         run `chmod go-w` on it, or choose another directory with NELLY_HOME",
        path.display()
    )]
    Writable {
        /// The directory or file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Its permissions.
        mode: u32,
    },
}

pub(crate) fn io_error(action: &'static str, path: &Path, source: impl Into<io::Error>) -> TrustError {
    TrustError::Io { action, path: path.to_owned(), source: source.into() }
}

/// Owner and mode of a file or directory.
struct Found<'a> {
    path: &'a Path,
    owner: u32,
    mode: u32,
}

impl<'a> Found<'a> {
    fn new(path: &'a Path, stat: &Stat) -> Self {
        Self { path, owner: stat.st_uid, mode: fits(stat.st_mode, "a mode has 16 bits") }
    }

    /// Whether it belongs to `user`, to root, or to the owner of `/`, who can change everything
    /// anyway, and has a different user id inside a user namespace.
    fn owned_by(&self, user: u32, root: u32) -> Result<(), TrustError> {
        if [user, 0, root].contains(&self.owner) {
            return Ok(());
        }
        Err(TrustError::Owner { path: self.path.to_owned(), owner: self.owner, user })
    }

    fn writable(&self) -> TrustError {
        TrustError::Writable { path: self.path.to_owned(), owner: self.owner, mode: self.mode & 0o7777 }
    }

    /// Checks a parent directory. If it has the sticky bit, like `/tmp`, other users cannot remove
    /// or rename entries that are not theirs, and entries of theirs are refused because of their
    /// owner.
    fn on_the_way(&self, user: u32, root: u32) -> Result<(), TrustError> {
        self.owned_by(user, root)?;
        if self.mode & 0o022 != 0 && self.mode & 0o1000 == 0 { Err(self.writable()) } else { Ok(()) }
    }

    /// Checks a directory or file whose contents are trusted.
    fn believed(&self, user: u32) -> Result<(), TrustError> {
        self.owned_by(user, 0)?;
        if self.mode & 0o022 == 0 { Ok(()) } else { Err(self.writable()) }
    }
}

fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Creates a directory with mode 0700. It may already exist: its owner is checked when it is
/// opened.
fn make_directory(parent: impl AsFd, name: &OsStr, path: &Path) -> Result<(), TrustError> {
    match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(io_error("create", path, error)),
    }
}

/// Checks that an open file is a trusted regular file.
fn believed_file(fd: OwnedFd, path: &Path) -> Result<File, TrustError> {
    let stat = rustix::fs::fstat(&fd).map_err(|error| io_error("look at", path, error))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(TrustError::Kind { path: path.to_owned(), wanted: "a regular file" });
    }
    Found::new(path, &stat).believed(user())?;
    Ok(fd.into())
}

/// Opens the file at `path` for reading; `None` if it does not exist. Links are followed, also as
/// the last name, if they and all their parents belong to the caller or root.
///
/// # Errors
/// [`TrustError`]: the file or a parent belongs to another user or is writable by others.
/// others.
pub fn open_file(path: &Path) -> Result<Option<File>, TrustError> {
    let mut walk = Walk::new(path, false)?;
    loop {
        if !walk.directories(1)? {
            return Ok(None);
        }
        let Some(name) = walk.rest.pop() else {
            return Err(TrustError::Kind { path: path.to_owned(), wanted: "a regular file" });
        };
        let path = walk.below(&name);
        let open = || rustix::fs::openat(&walk.here, &name, OFlags::RDONLY | FILE, Mode::empty());
        match rustix::io::retry_on_intr(open) {
            Ok(fd) => {
                walk.arrive()?;
                return believed_file(fd, &path).map(Some);
            }
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => walk.follow(&name, &path, "a regular file")?,
            Err(error) => return Err(io_error("open", &path, error)),
        }
    }
}

/// A directory that nobody except the caller and root can change. Everything below it is accessed
/// through its file descriptor.
#[derive(Debug)]
pub struct TrustedDir {
    fd: OwnedFd,
    path: PathBuf,
}

impl TrustedDir {
    /// Opens the directory at `path`; `None` if it does not exist.
    ///
    /// # Errors
    /// [`TrustError`]: it, or a parent, belongs to another user or is writable by others.
    pub fn open(path: &Path) -> Result<Option<Self>, TrustError> {
        let mut walk = Walk::new(path, false)?;
        if walk.directories(0)? { Self::arrived(walk).map(Some) } else { Ok(None) }
    }

    /// Opens the directory at `path`, and creates it and its parents with mode 0700 if they do not
    /// exist.
    ///
    /// # Errors
    /// As [`TrustedDir::open`].
    pub fn make(path: &Path) -> Result<Self, TrustError> {
        let mut walk = Walk::new(path, true)?;
        walk.directories(0)?;
        Self::arrived(walk)
    }

    fn arrived(mut walk: Walk) -> Result<Self, TrustError> {
        walk.arrive()?;
        Self::below(&walk.here, OsStr::new("."), walk.path.clone())
            .map_err(|error| io_error("open", &walk.path, error))?
    }

    /// Opens a directory below another; the outer error is an error of the system.
    fn below(parent: impl AsFd, name: &OsStr, path: PathBuf) -> Result<Result<Self, TrustError>, Errno> {
        let open = || rustix::fs::openat(&parent, name, DIRECTORY, Mode::empty());
        let fd = rustix::io::retry_on_intr(open)?;
        let stat = rustix::fs::fstat(&fd)?;
        Ok(Found::new(&path, &stat).believed(user()).map(|()| Self { fd, path }))
    }

    /// Its path, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the directory `name` in this one; `None` if it does not exist.
    ///
    /// # Errors
    /// As [`TrustedDir::open`]; links are not followed.
    pub fn subdirectory(&self, name: &str) -> Result<Option<Self>, TrustError> {
        let path = self.path.join(name);
        match Self::below(&self.fd, OsStr::new(name), path.clone()) {
            Ok(dir) => dir.map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::NOTDIR | Errno::LOOP) => Err(TrustError::Kind { path, wanted: "a directory" }),
            Err(error) => Err(io_error("open", &path, error)),
        }
    }

    /// Opens the directory `name` in this one, and creates it with mode 0700 if it does not exist.
    ///
    /// # Errors
    /// As [`TrustedDir::subdirectory`].
    pub fn make_subdirectory(&self, name: &str) -> Result<Self, TrustError> {
        let path = self.path.join(name);
        make_directory(&self.fd, OsStr::new(name), &path)?;
        self.subdirectory(name)?.ok_or_else(|| io_error("open", &path, Errno::NOENT))
    }

    /// Opens the file `name` for reading; `None` if it does not exist.
    ///
    /// # Errors
    /// [`TrustError`]: it is not a regular file (links are not followed), belongs to another user,
    /// or is writable by others.
    pub fn read(&self, name: impl AsRef<OsStr>) -> Result<Option<File>, TrustError> {
        self.file(name.as_ref(), OFlags::RDONLY)
    }

    /// Opens the file `name` for reading and writing, and creates it with mode 0600 if it does not
    /// exist.
    ///
    /// # Errors
    /// As [`TrustedDir::read`].
    pub fn open_or_make(&self, name: &str) -> Result<File, TrustError> {
        let file = self.file(OsStr::new(name), OFlags::RDWR | OFlags::CREATE)?;
        file.ok_or_else(|| io_error("create", &self.path.join(name), Errno::NOENT))
    }

    /// Creates the file `name` with mode 0600, for reading and writing. It must not exist.
    ///
    /// # Errors
    /// It exists, or as [`TrustedDir::read`].
    pub fn make_new(&self, name: &str) -> Result<File, TrustError> {
        let file = self.file(OsStr::new(name), OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)?;
        file.ok_or_else(|| io_error("create", &self.path.join(name), Errno::NOENT))
    }

    /// As [`TrustedDir::make_new`], with another mode: what is returned writes to it all the same.
    pub(crate) fn make_new_as(&self, name: &str, mode: Mode) -> Result<File, TrustError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let file = self.file_as(OsStr::new(name), flags, mode)?;
        file.ok_or_else(|| io_error("create", &self.path.join(name), Errno::NOENT))
    }

    fn file(&self, name: &OsStr, flags: OFlags) -> Result<Option<File>, TrustError> {
        self.file_as(name, flags, PRIVATE_FILE)
    }

    fn file_as(&self, name: &OsStr, flags: OFlags, mode: Mode) -> Result<Option<File>, TrustError> {
        let path = self.path.join(name);
        let open = || rustix::fs::openat(&self.fd, name, flags | FILE, mode);
        match rustix::io::retry_on_intr(open) {
            Ok(fd) => believed_file(fd, &path).map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::LOOP | Errno::ISDIR) => Err(TrustError::Kind { path, wanted: "a regular file" }),
            Err(error) => Err(io_error("open", &path, error)),
        }
    }

    /// Whether `name` refers to the open `file`.
    ///
    /// # Errors
    /// As [`TrustedDir::read`].
    pub fn leads_to(&self, name: &str, file: &File) -> Result<bool, TrustError> {
        let own = file.metadata().map_err(|source| io_error("look at", &self.path.join(name), source))?;
        let Some(named) = self.read(name)? else { return Ok(false) };
        let named = named.metadata().map_err(|source| io_error("look at", &self.path.join(name), source))?;
        Ok((named.dev(), named.ino()) == (own.dev(), own.ino()))
    }

    /// Removes the file `name`, if it exists.
    ///
    /// # Errors
    /// The system's.
    pub fn remove(&self, name: impl AsRef<OsStr>) -> Result<(), TrustError> {
        match rustix::fs::unlinkat(&self.fd, name.as_ref(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(io_error("remove", &self.path.join(name.as_ref()), error)),
        }
    }

    /// Gives the file `from` of this directory the name `to` in `dir`, in place of the file that
    /// may have it.
    pub(crate) fn rename(&self, from: &str, dir: &Self, to: &str) -> Result<(), TrustError> {
        rustix::fs::renameat(&self.fd, from, &dir.fd, to)
            .map_err(|error| io_error("create", &dir.path.join(to), error))
    }

    /// Waits until the names in it are on the disk.
    pub(crate) fn sync(&self) -> Result<(), TrustError> {
        rustix::io::retry_on_intr(|| rustix::fs::fsync(&self.fd))
            .map_err(|error| io_error("sync", &self.path, error))
    }

    /// A path to the entry `name` that leads through this descriptor, for the calls that take only
    /// paths: it is short, however long the directory's own path is, and valid while `self` lives.
    #[must_use]
    pub fn reach(&self, name: &str) -> PathBuf {
        sys::path_in(&self.fd, OsStr::new(name), &self.path.join(name))
    }

    /// Removes the directory `name` with everything below it, if it exists. Links are removed, not
    /// followed. Several may do so at once.
    ///
    /// # Errors
    /// Something in it cannot be removed.
    pub fn remove_tree(&self, name: &str) -> Result<(), TrustError> {
        tree::remove(self.fd.as_fd(), OsStr::new(name), &self.path.join(name))
    }

    /// The names of its entries.
    ///
    /// # Errors
    /// The system's.
    pub fn names(&self) -> io::Result<Vec<OsString>> {
        sys::names(&self.fd)
    }
}

impl AsFd for TrustedDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests;
