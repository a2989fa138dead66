//! Directories and files on the host that nobody except the caller and root can change.
//!
//! The owner of a parent directory, and everybody who can write to it, can replace the files below
//! it. So a path is traversed from `/` one name at a time: each directory is opened relative to its
//! parent, without following links, and is checked through its file descriptor. Everything below
//! the last directory is opened and created relative to that descriptor.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use thiserror::Error;

use crate::num::fits;
use crate::sys;

/// Maximum number of links followed in one path, as in Linux.
const FOLLOW_MAX: u32 = 40;
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

/// A traversal of a path.
struct Walk {
    here: OwnedFd,
    path: PathBuf,
    /// The remaining names, in reverse order.
    rest: Vec<OsString>,
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
    fn new(path: &Path, make: bool) -> Result<Self, TrustError> {
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
    fn below(&self, name: &OsStr) -> PathBuf {
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
    fn arrive(&mut self) -> Result<(), TrustError> {
        self.wrong.take().map_or(Ok(()), Err)
    }

    /// Traverses the path until at most `leave` names are left. False if a directory does not
    /// exist.
    fn directories(&mut self, leave: usize) -> Result<bool, TrustError> {
        while self.rest.len() > leave {
            let Some(name) = self.rest.pop() else { break };
            let path = self.below(&name);
            let flags = sys::SEARCH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat(&self.here, &name, flags, Mode::empty()) {
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
    fn follow(&mut self, name: &OsStr, path: &Path, wanted: &'static str) -> Result<(), TrustError> {
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
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| io_error("open", path, error))?;
    let stat = rustix::fs::fstat(&fd).map_err(|error| io_error("look at", path, error))?;
    Found::new(path, &stat).on_the_way(stat.st_uid, stat.st_uid)?;
    Ok((fd, stat.st_uid))
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
        match rustix::fs::openat(&walk.here, &name, OFlags::RDONLY | FILE, Mode::empty()) {
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
        let fd = rustix::fs::openat(parent, name, DIRECTORY, Mode::empty())?;
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
    pub(crate) fn open_or_make(&self, name: &str) -> Result<File, TrustError> {
        let file = self.file(OsStr::new(name), OFlags::RDWR | OFlags::CREATE)?;
        file.ok_or_else(|| io_error("create", &self.path.join(name), Errno::NOENT))
    }

    /// Creates the file `name` with mode 0600, for reading and writing. It must not exist.
    pub(crate) fn make_new(&self, name: &str) -> Result<File, TrustError> {
        let file = self.file(OsStr::new(name), OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)?;
        file.ok_or_else(|| io_error("create", &self.path.join(name), Errno::NOENT))
    }

    fn file(&self, name: &OsStr, flags: OFlags) -> Result<Option<File>, TrustError> {
        let path = self.path.join(name);
        match rustix::fs::openat(&self.fd, name, flags | FILE, PRIVATE_FILE) {
            Ok(fd) => believed_file(fd, &path).map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::LOOP | Errno::ISDIR) => Err(TrustError::Kind { path, wanted: "a regular file" }),
            Err(error) => Err(io_error("open", &path, error)),
        }
    }

    /// Whether `name` refers to the open `file`.
    pub(crate) fn leads_to(&self, name: &str, file: &File) -> Result<bool, TrustError> {
        let own = file.metadata().map_err(|source| io_error("look at", &self.path.join(name), source))?;
        let Some(named) = self.read(name)? else { return Ok(false) };
        let named = named.metadata().map_err(|source| io_error("look at", &self.path.join(name), source))?;
        Ok((named.dev(), named.ino()) == (own.dev(), own.ino()))
    }

    /// Removes the file `name`, if it exists.
    pub(crate) fn remove(&self, name: impl AsRef<OsStr>) -> Result<(), TrustError> {
        match rustix::fs::unlinkat(&self.fd, name.as_ref(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(io_error("remove", &self.path.join(name.as_ref()), error)),
        }
    }

    /// The names of its entries.
    pub(crate) fn names(&self) -> io::Result<Vec<OsString>> {
        sys::names(&self.fd)
    }
}

impl AsFd for TrustedDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// The error of opening `path` as a directory.
    fn refusal(path: &Path) -> String {
        let error = TrustedDir::open(path).unwrap_err();
        assert_eq!(error.to_string(), TrustedDir::make(path).unwrap_err().to_string());
        error.to_string()
    }

    #[test]
    fn who_may_own_and_write_what() {
        let found = |owner, mode| Found { path: Path::new("/x"), owner, mode };
        let believed = |user, owner, mode| found(owner, mode).believed(user).is_ok();
        let passed = |user, owner, mode| found(owner, mode).on_the_way(user, 0).is_ok();
        assert!(believed(1000, 1000, 0o755) && believed(1000, 0, 0o755) && believed(0, 0, 0o700));
        assert!(!believed(0, 1000, 0o700) && !believed(1000, 1001, 0o700));
        assert!(!believed(0, 0, 0o770) && !believed(0, 0, 0o707) && !believed(0, 0, 0o1777));
        assert!(passed(1000, 0, 0o1777) && passed(1000, 1000, 0o1770) && passed(0, 0, 0o755));
        assert!(!passed(0, 0, 0o777) && !passed(1000, 1000, 0o775) && !passed(0, 1000, 0o700));
        // Inside a user namespace `/` belongs to an unmapped user, and so may parents, but not what
        // is trusted.
        assert!(found(65534, 0o755).on_the_way(1000, 65534).is_ok() && !believed(1000, 65534, 0o755));
    }

    #[test]
    fn directories_are_made_for_their_owner_alone_also_below_a_sticky_one() {
        let place = tempfile::tempdir().unwrap();
        mode(place.path(), 0o1777);
        let path = place.path().join("a/b");
        assert!(TrustedDir::open(&path).unwrap().is_none() && !place.path().join("a").exists());
        let dir = TrustedDir::make(&path).unwrap();
        for made in [&path, &place.path().join("a")] {
            assert_eq!(made.metadata().unwrap().permissions().mode() & 0o7777, 0o700);
        }
        let file = dir.open_or_make("f").unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
        assert!(dir.leads_to("f", &file).unwrap());
        assert!(dir.make_new("f").is_err());
        assert!(dir.read("f").unwrap().is_some() && dir.read("g").unwrap().is_none());
        assert_eq!(dir.names().unwrap(), ["f"]);
        dir.remove("f").unwrap();
        dir.remove("f").unwrap();
        // With `..`, and relative.
        assert_eq!(
            TrustedDir::open(&path.join("../b")).unwrap().unwrap().path(),
            fs::canonicalize(&path).unwrap()
        );
        assert!(
            TrustedDir::open(Path::new(".")).unwrap().is_some() && TrustedDir::open(Path::new("")).is_err()
        );
    }

    #[test]
    fn what_others_may_write_is_refused_with_the_cure() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("a/b");
        TrustedDir::make(&path).unwrap();
        for bad in [0o770, 0o707, 0o1777] {
            mode(&path, bad);
            let message = refusal(&path);
            assert!(
                message.contains(&format!("a/b is writable by users other than its owner (mode {bad:o}"))
            );
            assert!(message.contains("chmod go-w"), "{message}");
        }
        mode(&path, 0o700);
        mode(&place.path().join("a"), 0o777);
        assert!(refusal(&path).contains("a is writable"), "one on the way");
        // A directory that does not exist is not created below one that is not trusted.
        assert!(
            TrustedDir::open(&path.join("c")).unwrap().is_none()
                && open_file(&path.join("c")).unwrap().is_none()
        );
        assert!(TrustedDir::make(&path.join("c")).is_err() && !path.join("c").exists());
        mode(&place.path().join("a"), 0o700);
        let dir = TrustedDir::open(&path).unwrap().unwrap();
        fs::write(path.join("f"), "x").unwrap();
        fs::create_dir(path.join("d")).unwrap();
        mode(&path.join("f"), 0o666);
        mode(&path.join("d"), 0o777);
        assert!(matches!(dir.read("f"), Err(TrustError::Writable { .. })));
        assert!(matches!(open_file(&path.join("f")), Err(TrustError::Writable { .. })));
        assert!(matches!(dir.make_subdirectory("d"), Err(TrustError::Writable { .. })));
    }

    #[test]
    fn what_belongs_to_another_user_is_refused_by_his_number() {
        if !user_is_root() {
            eprintln!("not root: nothing can be given to another user");
            return;
        }
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("a/b");
        TrustedDir::make(&path).unwrap();
        fs::write(path.join("f"), "x").unwrap();
        chown(path.join("f"), Some(12345), None).unwrap();
        let dir = TrustedDir::open(&path).unwrap().unwrap();
        assert!(matches!(dir.read("f"), Err(TrustError::Owner { owner: 12345, user: 0, .. })));
        assert!(matches!(open_file(&path.join("f")), Err(TrustError::Owner { .. })));
        for theirs in [path.clone(), place.path().join("a")] {
            chown(&theirs, Some(12345), None).unwrap();
            let message = refusal(&path);
            let whose =
                format!("{} belongs to user 12345, but this program runs as user 0", theirs.display());
            assert!(message.contains(&whose) && message.contains("chown"), "{message}");
        }
        chown(&path, Some(0), None).unwrap();
        chown(place.path().join("a"), Some(0), None).unwrap();
        // A link is trusted if its owner is.
        let link = place.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(TrustedDir::open(&link).unwrap().is_some());
        std::os::unix::fs::lchown(&link, Some(12345), None).unwrap();
        assert!(refusal(&link).contains("link belongs to user 12345"));
    }

    fn user_is_root() -> bool {
        user() == 0
    }

    #[test]
    fn links_are_followed_on_the_way_and_never_below() {
        let place = tempfile::tempdir().unwrap();
        let real = place.path().join("real");
        let dir = TrustedDir::make(&real).unwrap();
        symlink("real", place.path().join("relative")).unwrap();
        symlink(&real, place.path().join("absolute")).unwrap();
        for link in ["relative", "absolute", "relative/../absolute"] {
            let opened = TrustedDir::open(&place.path().join(link)).unwrap().unwrap();
            assert_eq!(opened.path().canonicalize().unwrap(), real.canonicalize().unwrap());
        }
        // The configuration file may be a link to another file of the user.
        fs::write(real.join("f"), "x").unwrap();
        symlink("f", real.join("to-f")).unwrap();
        symlink("loop", real.join("loop")).unwrap();
        assert!(open_file(&real.join("to-f")).unwrap().is_some());
        assert!(open_file(&real.join("loop")).unwrap_err().to_string().contains("cannot follow"));
        assert!(matches!(open_file(&real), Err(TrustError::Kind { .. })));
        // Below an opened directory links are not followed.
        symlink(place.path().join("planted"), real.join("lock")).unwrap();
        symlink(place.path(), real.join("images")).unwrap();
        assert!(matches!(dir.open_or_make("lock"), Err(TrustError::Kind { .. })));
        assert!(matches!(dir.read("to-f"), Err(TrustError::Kind { .. })));
        assert!(matches!(dir.make_subdirectory("images"), Err(TrustError::Kind { .. })));
        assert!(!place.path().join("planted").exists());
        // Opening a FIFO does not block.
        rustix::fs::mkfifoat(rustix::fs::CWD, real.join("fifo"), 0o600.into()).unwrap();
        assert!(matches!(dir.read("fifo"), Err(TrustError::Kind { .. })));
        assert!(matches!(dir.subdirectory("f"), Err(TrustError::Kind { .. })));
        assert!(matches!(TrustedDir::open(&real.join("f/x")), Err(TrustError::Kind { .. })));
    }
}
