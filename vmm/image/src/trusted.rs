//! Directories and files of the host that nobody can change but the caller and root.
//!
//! Whoever owns a directory on the way to a file, or may write into it, can put another file there.
//! So a path is walked from `/` one name at a time: each directory is opened below the one before,
//! without following links, and looked at through its descriptor. What lies below the last one is
//! opened and made through that descriptor only.

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

/// Links followed in one walk, as in Linux.
const FOLLOW_MAX: u32 = 40;
/// The flags of every directory that is opened to be read.
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// The flags of every file: no link is followed, and no fifo or terminal is waited for or acquired.
const FILE: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);
const PRIVATE_FILE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Why a directory or a file cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TrustError {
    /// A system call failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as in "cannot open".
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// Something is not the kind of file that is needed.
    #[error("{} is not {wanted}", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
        /// As in "is not a directory".
        wanted: &'static str,
    },
    /// It belongs to somebody who could put anything there.
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
        /// Who this process is.
        user: u32,
    },
    /// Others may write to it.
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

/// What was found under a path.
struct Found<'a> {
    path: &'a Path,
    owner: u32,
    mode: u32,
}

impl<'a> Found<'a> {
    fn new(path: &'a Path, stat: &Stat) -> Self {
        Self { path, owner: stat.st_uid, mode: fits(stat.st_mode, "a mode has 16 bits") }
    }

    /// Whether it belongs to `user`, to root, or to whom `/` belongs: the last can change
    /// everything anyway, and is shown as somebody else inside a user namespace.
    fn owned_by(&self, user: u32, root: u32) -> Result<(), TrustError> {
        if [user, 0, root].contains(&self.owner) {
            return Ok(());
        }
        Err(TrustError::Owner { path: self.path.to_owned(), owner: self.owner, user })
    }

    fn writable(&self) -> TrustError {
        TrustError::Writable { path: self.path.to_owned(), owner: self.owner, mode: self.mode & 0o7777 }
    }

    /// A directory on the way. Of one with the sticky bit, as `/tmp`, others cannot remove or
    /// rename what is not theirs; what they put there first is theirs, and refused for that.
    fn on_the_way(&self, user: u32, root: u32) -> Result<(), TrustError> {
        self.owned_by(user, root)?;
        if self.mode & 0o022 != 0 && self.mode & 0o1000 == 0 { Err(self.writable()) } else { Ok(()) }
    }

    /// A directory or a file whose contents are believed.
    fn believed(&self, user: u32) -> Result<(), TrustError> {
        self.owned_by(user, 0)?;
        if self.mode & 0o022 == 0 { Ok(()) } else { Err(self.writable()) }
    }
}

fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// A walk along a path, from directory to directory.
struct Walk {
    here: OwnedFd,
    path: PathBuf,
    /// The names still to come, the next one last.
    rest: Vec<OsString>,
    followed: u32,
    user: u32,
    /// The owner of `/`.
    root: u32,
    /// Whether what is missing is made.
    make: bool,
    /// What was found wrong on the way: of no interest until there is something at its end that
    /// would be believed.
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

    /// Puts the names of `path` before the rest.
    fn push(&mut self, path: &Path) {
        let names = path.components().rev().filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        });
        self.rest.extend(names);
    }

    /// The path of `name` here, for messages.
    fn below(&self, name: &OsStr) -> PathBuf {
        match self.path.parent() {
            Some(parent) if name == ".." => parent.to_owned(),
            None if name == ".." => self.path.clone(),
            _ => self.path.join(name),
        }
    }

    /// Nothing is made where others may do the same; what is only looked for may as well not be
    /// there.
    fn judge(&mut self, verdict: Result<(), TrustError>) -> Result<(), TrustError> {
        if self.make {
            return verdict;
        }
        self.wrong = self.wrong.take().or(verdict.err());
        Ok(())
    }

    /// The end: whatever was wrong on the way counts now.
    fn arrive(&mut self) -> Result<(), TrustError> {
        self.wrong.take().map_or(Ok(()), Err)
    }

    /// Walks until at most `leave` names are left; whether all directories were there, or made.
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

    /// Puts a link's target before the rest. The link must be the caller's or root's, as everything
    /// else.
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

/// Makes a directory for its owner alone. That it is there already is as good; who made it shows
/// when it is opened.
fn make_directory(parent: impl AsFd, name: &OsStr, path: &Path) -> Result<(), TrustError> {
    match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(io_error("create", path, error)),
    }
}

/// A regular file that is believed, or an error.
fn believed_file(fd: OwnedFd, path: &Path) -> Result<File, TrustError> {
    let stat = rustix::fs::fstat(&fd).map_err(|error| io_error("look at", path, error))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(TrustError::Kind { path: path.to_owned(), wanted: "a regular file" });
    }
    Found::new(path, &stat).believed(user())?;
    Ok(fd.into())
}

/// Opens the file at `path` for reading; `None` if it does not exist. Links on the way, and the
/// file itself as one, are followed if they and everything on their way are the caller's or root's.
///
/// # Errors
/// [`TrustError`]: the file, or a directory on the way, is somebody else's or can be written by
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

/// A directory that nobody can change but the caller and root, and what lies below it, reached
/// through its descriptor.
#[derive(Debug)]
pub struct TrustedDir {
    fd: OwnedFd,
    path: PathBuf,
}

impl TrustedDir {
    /// Opens the directory at `path`; `None` if it does not exist.
    ///
    /// # Errors
    /// [`TrustError`]: it, or a directory on the way, is somebody else's or can be written by
    /// others.
    pub fn open(path: &Path) -> Result<Option<Self>, TrustError> {
        let mut walk = Walk::new(path, false)?;
        if walk.directories(0)? { Self::arrived(walk).map(Some) } else { Ok(None) }
    }

    /// Opens the directory at `path` and makes it, and those on the way, with mode 0700 where they
    /// are missing.
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

    /// Opens a directory below another; the outer error is that of the system.
    fn below(parent: impl AsFd, name: &OsStr, path: PathBuf) -> Result<Result<Self, TrustError>, Errno> {
        let fd = rustix::fs::openat(parent, name, DIRECTORY, Mode::empty())?;
        let stat = rustix::fs::fstat(&fd)?;
        Ok(Found::new(&path, &stat).believed(user()).map(|()| Self { fd, path }))
    }

    /// Where it lies, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory `name` in this one; `None` if it does not exist.
    ///
    /// # Errors
    /// As [`TrustedDir::open`]; a link is none.
    pub fn subdirectory(&self, name: &str) -> Result<Option<Self>, TrustError> {
        let path = self.path.join(name);
        match Self::below(&self.fd, OsStr::new(name), path.clone()) {
            Ok(dir) => dir.map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::NOTDIR | Errno::LOOP) => Err(TrustError::Kind { path, wanted: "a directory" }),
            Err(error) => Err(io_error("open", &path, error)),
        }
    }

    /// The directory `name` in this one, made with mode 0700 if it is missing.
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
    /// [`TrustError`]: it is no regular file (a link is none), somebody else's, or can be written
    /// by others.
    pub fn read(&self, name: impl AsRef<OsStr>) -> Result<Option<File>, TrustError> {
        self.file(name.as_ref(), OFlags::RDONLY)
    }

    /// Opens the file `name` for reading and writing, and makes it with mode 0600 if it is missing.
    pub(crate) fn open_or_make(&self, name: &str) -> Result<File, TrustError> {
        let file = self.file(OsStr::new(name), OFlags::RDWR | OFlags::CREATE)?;
        file.ok_or_else(|| io_error("create", &self.path.join(name), Errno::NOENT))
    }

    /// Makes the file `name`, which must be missing, with mode 0600, for reading and writing.
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

    /// Whether `name` leads to `file`.
    pub(crate) fn leads_to(&self, name: &str, file: &File) -> Result<bool, TrustError> {
        let own = file.metadata().map_err(|source| io_error("look at", &self.path.join(name), source))?;
        let Some(named) = self.read(name)? else { return Ok(false) };
        let named = named.metadata().map_err(|source| io_error("look at", &self.path.join(name), source))?;
        Ok((named.dev(), named.ino()) == (own.dev(), own.ino()))
    }

    /// Removes the file `name`, which may be missing.
    pub(crate) fn remove(&self, name: impl AsRef<OsStr>) -> Result<(), TrustError> {
        match rustix::fs::unlinkat(&self.fd, name.as_ref(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(io_error("remove", &self.path.join(name.as_ref()), error)),
        }
    }

    /// The names in it.
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

    /// What opening `path` as a directory is refused with.
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
        // Inside a user namespace `/` belongs to nobody, and so may what lies on the way, but not
        // what is believed.
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
        // By way of `..`, and relative.
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
        // What is not there is not believed, and not made there either.
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
        // A link is as good as who made it.
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
        // The configuration may be a link into one's other files.
        fs::write(real.join("f"), "x").unwrap();
        symlink("f", real.join("to-f")).unwrap();
        symlink("loop", real.join("loop")).unwrap();
        assert!(open_file(&real.join("to-f")).unwrap().is_some());
        assert!(open_file(&real.join("loop")).unwrap_err().to_string().contains("cannot follow"));
        assert!(matches!(open_file(&real), Err(TrustError::Kind { .. })));
        // Below an opened directory there is no link.
        symlink(place.path().join("planted"), real.join("lock")).unwrap();
        symlink(place.path(), real.join("images")).unwrap();
        assert!(matches!(dir.open_or_make("lock"), Err(TrustError::Kind { .. })));
        assert!(matches!(dir.read("to-f"), Err(TrustError::Kind { .. })));
        assert!(matches!(dir.make_subdirectory("images"), Err(TrustError::Kind { .. })));
        assert!(!place.path().join("planted").exists());
        // A fifo is not waited for.
        rustix::fs::mkfifoat(rustix::fs::CWD, real.join("fifo"), 0o600.into()).unwrap();
        assert!(matches!(dir.read("fifo"), Err(TrustError::Kind { .. })));
        assert!(matches!(dir.subdirectory("f"), Err(TrustError::Kind { .. })));
        assert!(matches!(TrustedDir::open(&real.join("f/x")), Err(TrustError::Kind { .. })));
    }
}
