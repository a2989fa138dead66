//! A directory of the host as the tree of an image.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::erofs::{DataSink, WriteError, keeps_xattr, xattr_bytes};
use crate::tar::to_u64;
use crate::tree::{Attr, Dir, Kind, Tree, TreeError, Xattrs};

/// Bytes read at a time.
const BUFFER: usize = 1 << 20;

/// Why a directory cannot be an image.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RootfsError {
    /// A system call on a file of the directory failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// As in "cannot open".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The path is no directory.
    #[error("{} is not a directory", path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// A file changed while it was read.
    #[error("{} changed while it was read", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A file that cannot be part of an image.
    #[error("{} cannot be part of an image", path.display())]
    Entry {
        /// The file.
        path: PathBuf,
        /// Why.
        source: TreeError,
    },
    /// The file system image could not be written.
    #[error("{} cannot be stored", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: WriteError,
    },
    /// The caller gave up.
    #[error("cancelled")]
    Cancelled,
}

/// The state of a walk.
struct Walk<'a, S> {
    tree: &'a mut Tree,
    sink: &'a mut S,
    /// Files with several names: where the first stands in the image.
    linked: HashMap<(u64, u64), Vec<u8>>,
    /// The file system of the root: what is mounted inside stays out, as an empty directory.
    device: u64,
    buffer: Vec<u8>,
    done: u64,
    tick: &'a mut dyn FnMut(u64) -> bool,
}

/// Reads `dir` into `tree`, contents going to `sink`. `tick` hears of the bytes read; `false` ends it with
/// [`RootfsError::Cancelled`]. Entries are taken in the order of their names.
pub(crate) fn read(
    dir: &Path,
    tree: &mut Tree,
    sink: &mut impl DataSink,
    tick: &mut dyn FnMut(u64) -> bool,
) -> Result<(), RootfsError> {
    let metadata = check(dir)?;
    let mut walk = Walk {
        tree,
        sink,
        linked: HashMap::new(),
        device: metadata.dev(),
        buffer: vec![0; BUFFER],
        done: 0,
        tick,
    };
    let root = fs::canonicalize(dir).map_err(|source| io_error("open", dir, source))?;
    walk.add(&root, b"", &metadata)?;
    let mut dirs = vec![(root, Vec::new())];
    while let Some((host, image)) = dirs.pop() {
        let mut below = walk.entries(&host, &image)?;
        // The last one pushed is the next one read.
        below.reverse();
        dirs.append(&mut below);
    }
    Ok(())
}

/// Whether `dir` is a directory.
pub(crate) fn check(dir: &Path) -> Result<Metadata, RootfsError> {
    let metadata = fs::metadata(dir).map_err(|source| io_error("open", dir, source))?;
    if metadata.is_dir() { Ok(metadata) } else { Err(RootfsError::NotADirectory { path: dir.to_owned() }) }
}

fn io_error(action: &'static str, path: &Path, source: io::Error) -> RootfsError {
    RootfsError::Io { action, path: path.to_owned(), source }
}

impl<S: DataSink> Walk<'_, S> {
    /// Adds what is in a directory, and tells which of it are directories to be read.
    fn entries(&mut self, host: &Path, image: &[u8]) -> Result<Vec<(PathBuf, Vec<u8>)>, RootfsError> {
        let list = fs::read_dir(host).map_err(|source| io_error("list", host, source))?;
        let mut names = Vec::new();
        for entry in list {
            names.push(entry.map_err(|source| io_error("list", host, source))?.file_name());
        }
        names.sort_unstable_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
        let mut dirs = Vec::new();
        for name in names {
            let path = host.join(&name);
            let inside = [image, b"/", name.as_bytes()].concat();
            let metadata =
                fs::symlink_metadata(&path).map_err(|source| io_error("look at", &path, source))?;
            self.add(&path, &inside, &metadata)?;
            if metadata.is_dir() && metadata.dev() == self.device {
                dirs.push((path, inside));
            }
            if !(self.tick)(self.done) {
                return Err(RootfsError::Cancelled);
            }
        }
        Ok(dirs)
    }

    fn add(&mut self, host: &Path, image: &[u8], metadata: &Metadata) -> Result<(), RootfsError> {
        let entry_error = |source| RootfsError::Entry { path: host.to_owned(), source };
        let identity = (metadata.dev(), metadata.ino());
        let several = metadata.nlink() > 1 && !metadata.is_dir();
        if several && let Some(first) = self.linked.get(&identity) {
            return self.tree.link(image, first).map_err(entry_error);
        }
        let kind = metadata.file_type();
        let xattrs = xattrs(host)?;
        let mode = if kind.is_symlink() { 0o777 } else { metadata.mode() & 0o7777 };
        let attr = Attr {
            mode: u16::try_from(mode).unwrap_or(0o7777),
            uid: metadata.uid(),
            gid: metadata.gid(),
            mtime: metadata.mtime(),
            mtime_nsec: u32::try_from(metadata.mtime_nsec()).unwrap_or(0),
            xattrs: (!xattrs.is_empty()).then(|| Box::new(xattrs)),
        };
        let (major, minor) = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
        let kind = if kind.is_dir() {
            Kind::Dir(Dir::default())
        } else if kind.is_symlink() {
            let target = fs::read_link(host).map_err(|source| io_error("read the link", host, source))?;
            Kind::Symlink(target.as_os_str().as_bytes().into())
        } else if kind.is_char_device() {
            Kind::Char { major, minor }
        } else if kind.is_block_device() {
            Kind::Block { major, minor }
        } else if kind.is_fifo() {
            Kind::Fifo
        } else if kind.is_socket() {
            Kind::Socket
        } else {
            self.tree.check_add(image, &attr).map_err(entry_error)?;
            self.copy(host, metadata, &attr)?
        };
        self.tree.add(image, attr, kind).map_err(entry_error)?;
        if several {
            self.linked.insert(identity, image.to_vec());
        }
        Ok(())
    }

    fn copy(&mut self, host: &Path, metadata: &Metadata, attr: &Attr) -> Result<Kind, RootfsError> {
        use rustix::fs::{Mode, OFlags};
        let write_error = |source| match source {
            WriteError::Cancelled => RootfsError::Cancelled,
            source => RootfsError::Write { path: host.to_owned(), source },
        };
        let changed = || RootfsError::Changed { path: host.to_owned() };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY;
        let file = rustix::fs::open(host, flags, Mode::empty());
        let mut file: File = file.map_err(|error| io_error("open", host, error.into()))?.into();
        let opened = file.metadata().map_err(|source| io_error("look at", host, source))?;
        if (opened.dev(), opened.ino()) != (metadata.dev(), metadata.ino()) {
            return Err(changed());
        }
        let size = opened.len();
        self.sink.begin(size, attr.xattrs.as_deref().map_or(0, xattr_bytes)).map_err(write_error)?;
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
        Ok(Kind::File(self.sink.finish().map_err(write_error)?))
    }
}

/// The extended attributes that an image keeps.
fn xattrs(path: &Path) -> Result<Xattrs, RootfsError> {
    use rustix::io::Errno;
    let failed = |error: Errno| io_error("read the extended attributes of", path, error.into());
    let mut xattrs = Xattrs::new();
    let mut names = [0u8; 65536];
    let len = match rustix::fs::llistxattr(path, &mut names[..]) {
        Ok(len) => len,
        Err(Errno::NOTSUP) => 0,
        Err(error) => return Err(failed(error)),
    };
    for name in names[..len].split(|&b| b == 0).filter(|name| keeps_xattr(name)) {
        let mut value = vec![0u8; 65536];
        match rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]) {
            Ok(len) => {
                value.truncate(len);
                xattrs.insert(name.into(), value.into());
            }
            // Gone since it was listed.
            Err(Errno::NODATA) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(xattrs)
}
