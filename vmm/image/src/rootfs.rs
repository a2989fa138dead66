//! Reads a directory of the host as an image.
//!
//! The directory may change while it is read, possibly with bad intent. So it is opened once, and
//! everything else is accessed through file descriptors: directories below it without following
//! links, and files relative to their directory. Each opened file must be the one that was
//! examined, by device and inode. So no file from outside of the directory can be included.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use thiserror::Error;

use crate::erofs::{DataSink, WriteError, keeps_xattr};
use crate::num::{fits, to_u64};
use crate::sys;
use crate::tree::{Attr, Directory, NodeKind, Tree, TreeError, Xattrs};

/// Buffer size in bytes.
const BUFFER: usize = 1 << 20;
/// Maximum size of an extended attribute's value, or of all names, in Linux.
const XATTR_MAX: usize = 65536;

/// Why a directory cannot be used as an image.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RootfsError {
    /// A system call on a file of the directory failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The action, as in "cannot open".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The path is not a directory.
    #[error("{} is not a directory", path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// A file was changed while it was being read.
    #[error("{} was changed while it was being read", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A file that cannot be part of an image.
    #[error("{} cannot be part of an image", path.display())]
    Entry {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: TreeError,
    },
    /// The file system image could not be written.
    #[error("{} cannot be stored", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: WriteError,
    },
    /// The caller cancelled.
    #[error("cancelled")]
    Cancelled,
}

/// Device and inode, which identify a file regardless of its name.
type Identity = (u64, u64);

fn identity(stat: &Stat) -> Identity {
    (fits(stat.st_dev, "a device number has at most 64 bits"), stat.st_ino)
}

/// The state of a traversal.
struct Walk<'a, S> {
    root: &'a File,
    /// The path of the root, for messages.
    name: &'a Path,
    tree: &'a mut Tree,
    sink: &'a mut S,
    /// Files with several names, with their first path in the image.
    linked: HashMap<Identity, Vec<u8>>,
    buffer: Vec<u8>,
    done: u64,
    tick: &'a mut dyn FnMut(u64) -> bool,
}

/// An entry of a directory.
struct Item<'a> {
    dir: &'a OwnedFd,
    name: &'a OsStr,
    /// Its path on the host, for messages.
    path: PathBuf,
    stat: Stat,
}

/// Opens `dir`, following links, because the caller named it.
pub(crate) fn open(dir: &Path) -> Result<File, RootfsError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::io::retry_on_intr(|| rustix::fs::open(dir, flags, Mode::empty())) {
        Ok(fd) => Ok(fd.into()),
        Err(Errno::NOTDIR) => Err(RootfsError::NotADirectory { path: dir.to_owned() }),
        Err(error) => Err(io_error("open", dir, error)),
    }
}

/// Reads the directory `root`, which was opened from `name`, into `tree`; contents are written to
/// `sink`. `tick` is called for every entry and with the bytes read; if it returns `false`, the
/// traversal ends with [`RootfsError::Cancelled`]. Entries are processed in the order of their
/// names.
pub(crate) fn read(
    root: &File,
    name: &Path,
    tree: &mut Tree,
    sink: &mut impl DataSink,
    tick: &mut dyn FnMut(u64) -> bool,
) -> Result<(), RootfsError> {
    let stat = rustix::fs::fstat(root).map_err(|error| io_error("look at", name, error))?;
    let (linked, buffer, root_is) = (HashMap::new(), vec![0; BUFFER], identity(&stat));
    let mut walk = Walk { root, name, tree, sink, linked, buffer, done: 0, tick };
    let dir = walk.enter(Path::new(""), root_is)?;
    walk.add(&Item { dir: &dir, name: OsStr::new("."), path: name.to_owned(), stat }, b"")?;
    let mut dirs = vec![(PathBuf::new(), root_is)];
    while let Some((inside, is)) = dirs.pop() {
        let mut below = walk.entries(&inside, is)?;
        // Mount points are included as empty directories.
        below.retain(|(_, is)| is.0 == root_is.0);
        // A stack: the last one is processed next.
        below.reverse();
        dirs.append(&mut below);
    }
    Ok(())
}

fn io_error(action: &'static str, path: &Path, source: impl Into<io::Error>) -> RootfsError {
    RootfsError::Io { action, path: path.to_owned(), source: source.into() }
}

impl<S: DataSink> Walk<'_, S> {
    /// Opens the directory `inside`, relative to the root, which must be the one that was examined.
    fn enter(&self, inside: &Path, is: Identity) -> Result<OwnedFd, RootfsError> {
        let path = self.name.join(inside);
        let below = if inside.as_os_str().is_empty() { Path::new(".") } else { inside };
        let dir = match sys::directory_beneath(self.root, below) {
            Ok(dir) => dir,
            Err(error) => {
                return Err(match Errno::from_io_error(&error) {
                    Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => {
                        RootfsError::Changed { path }
                    }
                    _ => io_error("open", &path, error),
                });
            }
        };
        let opened = rustix::fs::fstat(&dir).map_err(|error| io_error("look at", &path, error))?;
        if identity(&opened) == is { Ok(dir) } else { Err(RootfsError::Changed { path }) }
    }

    /// Adds the entries of a directory, and returns those that are directories.
    fn entries(&mut self, inside: &Path, is: Identity) -> Result<Vec<(PathBuf, Identity)>, RootfsError> {
        let dir = self.enter(inside, is)?;
        let host = self.name.join(inside);
        let mut names: Vec<OsString> = sys::names(&dir).map_err(|source| io_error("list", &host, source))?;
        names.sort_unstable_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
        let mut dirs = Vec::new();
        for name in &names {
            let path = host.join(name);
            let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| io_error("look at", &path, error))?;
            let below = inside.join(name);
            let item = Item { dir: &dir, name, path, stat };
            self.add(&item, below.as_os_str().as_bytes())?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                dirs.push((below, identity(&stat)));
            }
            if !(self.tick)(self.done) {
                return Err(RootfsError::Cancelled);
            }
        }
        Ok(dirs)
    }

    fn add(&mut self, item: &Item<'_>, image: &[u8]) -> Result<(), RootfsError> {
        let entry_error = |source| RootfsError::Entry { path: item.path.clone(), source };
        let (stat, kind) = (&item.stat, FileType::from_raw_mode(item.stat.st_mode));
        let several = stat.st_nlink > 1 && kind != FileType::Directory;
        if several && let Some(first) = self.linked.get(&identity(stat)) {
            return self.tree.link(image, first).map_err(entry_error);
        }
        // The attributes of a file are read from its descriptor; other types are not opened.
        let file = if kind == FileType::RegularFile { Some(item.open()?) } else { None };
        let xattrs = item.xattrs(file.as_ref())?;
        let mode: u32 = fits(stat.st_mode, "a mode has 16 bits");
        let mode = if kind == FileType::Symlink { 0o777 } else { mode & 0o7777 };
        let bad_time = |_| io_error("understand the time of", &item.path, io::ErrorKind::InvalidData);
        let attr = Attr {
            mode: fits(mode, "permissions have twelve bits"),
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: stat.st_mtime,
            mtime_nsec: u32::try_from(stat.st_mtime_nsec).map_err(bad_time)?,
            xattrs: (!xattrs.is_empty()).then(|| Box::new(xattrs)),
        };
        let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        let kind = match kind {
            FileType::Directory => NodeKind::Directory(Directory::default()),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(item.dir, item.name, Vec::new())
                    .map_err(|error| io_error("read the link", &item.path, error))?;
                NodeKind::Symlink(target.as_bytes().into())
            }
            FileType::CharacterDevice => NodeKind::Char { major, minor },
            FileType::BlockDevice => NodeKind::Block { major, minor },
            FileType::Fifo => NodeKind::Fifo,
            FileType::Socket => NodeKind::Socket,
            _ => {
                self.tree.check_add(image, &attr).map_err(entry_error)?;
                let Some(file) = file else { return Err(RootfsError::Changed { path: item.path.clone() }) };
                self.copy(&item.path, file)?
            }
        };
        self.tree.add(image, attr, kind).map_err(entry_error)?;
        if several {
            self.linked.insert(identity(stat), image.to_vec());
        }
        Ok(())
    }

    fn copy(&mut self, host: &Path, mut file: File) -> Result<NodeKind, RootfsError> {
        let write_error = |source| match source {
            WriteError::Cancelled => RootfsError::Cancelled,
            source => RootfsError::Write { path: host.to_owned(), source },
        };
        let changed = || RootfsError::Changed { path: host.to_owned() };
        let size = file.metadata().map_err(|source| io_error("look at", host, source))?.size();
        self.sink.begin(size).map_err(write_error)?;
        let mut left = size;
        loop {
            let got = match file.read(&mut self.buffer) {
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(io_error("read", host, source)),
            };
            if got == 0 {
                break;
            }
            left = left.checked_sub(to_u64(got)).ok_or_else(changed)?;
            self.sink.write(&self.buffer[..got]).map_err(write_error)?;
            self.done += to_u64(got);
            if !(self.tick)(self.done) {
                return Err(RootfsError::Cancelled);
            }
        }
        if left > 0 {
            return Err(changed());
        }
        Ok(NodeKind::File(self.sink.finish().map_err(write_error)?))
    }
}

impl Item<'_> {
    /// Opens the file, which must be the one that was examined.
    fn open(&self) -> Result<File, RootfsError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY;
        let changed = || RootfsError::Changed { path: self.path.clone() };
        let open = || rustix::fs::openat(self.dir, self.name, flags, Mode::empty());
        let file = match rustix::io::retry_on_intr(open) {
            Ok(file) => file,
            Err(Errno::LOOP | Errno::NOENT) => return Err(changed()),
            Err(error) => return Err(io_error("open", &self.path, error)),
        };
        let opened = rustix::fs::fstat(&file).map_err(|error| io_error("look at", &self.path, error))?;
        if identity(&opened) == identity(&self.stat) { Ok(file.into()) } else { Err(changed()) }
    }

    /// The extended attributes that an image keeps: of `file`, or by name for other types.
    fn xattrs(&self, file: Option<&File>) -> Result<Xattrs, RootfsError> {
        let failed = |error: Errno| io_error("read the extended attributes of", &self.path, error);
        let path = sys::path_in(self.dir, self.name, &self.path);
        let mut xattrs = Xattrs::new();
        let mut names = [0u8; XATTR_MAX];
        let listed = match file {
            Some(file) => rustix::fs::flistxattr(file.as_fd(), &mut names[..]),
            None => rustix::fs::llistxattr(&path, &mut names[..]),
        };
        let len = match listed {
            Ok(len) => len,
            Err(Errno::NOTSUP) => 0,
            Err(error) => return Err(failed(error)),
        };
        for name in names[..len].split(|&b| b == 0).filter(|name| keeps_xattr(name)) {
            let mut value = vec![0u8; XATTR_MAX];
            let key = OsStr::from_bytes(name);
            let got = match file {
                Some(file) => rustix::fs::fgetxattr(file.as_fd(), key, &mut value[..]),
                None => rustix::fs::lgetxattr(&path, key, &mut value[..]),
            };
            match got {
                Ok(len) => {
                    value.truncate(len);
                    xattrs.insert(name.into(), value.into());
                }
                // Removed since it was listed.
                Err(Errno::NODATA) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(xattrs)
    }
}
