//! From inodes to files, and what guests are shown of them.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, PoisonError, RwLockReadGuard, RwLockWriteGuard};

use nelly_disk::number::fits;

use super::{Handle, Result, Server};
use crate::cache::{Key, Open};
use crate::config::Owners;
use crate::errno::Errno;
use crate::nodes::Place;
use crate::owner::{self, RECORD_MAX, Record, Shown};
use crate::sys::{self, Identity, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, Stat};
use crate::wire::Attr;

/// Most directories between an inode and one whose descriptor is at hand.
const DEPTH_MAX: usize = 16_384;

/// Where the extended attributes of a file are read.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// An entry of a directory.
    At(BorrowedFd<'a>, &'a CStr),
    /// A descriptor.
    Fd(BorrowedFd<'a>),
}

/// A descriptor of an inode.
#[derive(Clone)]
pub(super) enum Found {
    Pinned(Arc<OwnedFd>),
    Cached(Arc<Open>),
}

impl AsFd for Found {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Pinned(fd) => fd.as_fd(),
            Self::Cached(open) => open.as_fd(),
        }
    }
}

impl Server {
    /// Held by who goes from inodes to files by their names.
    pub(super) fn reading_names(&self) -> RwLockReadGuard<'_, ()> {
        self.names.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held by who changes names.
    pub(super) fn changing_names(&self) -> RwLockWriteGuard<'_, ()> {
        self.names.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a descriptor; when the process has no more, once again after some of ours are closed.
    pub(super) fn descriptor<T>(&self, make: impl Fn() -> Result<T>) -> Result<T> {
        match make() {
            Err(Errno::MFILE | Errno::NFILE) => {
                self.cache.halve();
                make()
            }
            made => made,
        }
    }

    /// Opens an entry without following it, if it is still the inode with this identity.
    fn open_known(&self, dir: BorrowedFd<'_>, name: &CStr, identity: Identity) -> Result<(OwnedFd, Stat)> {
        let fd = match self.descriptor(|| sys::open_path(dir, name)) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(Errno::STALE),
            opened => opened?,
        };
        let stat = sys::stat(fd.as_fd())?;
        if stat.identity == identity { Ok((fd, stat)) } else { Err(Errno::STALE) }
    }

    /// A descriptor of a directory: one at hand, or one by the names from there down.
    pub(super) fn dir(&self, number: u64) -> Result<Found> {
        let mut way = Vec::new();
        let mut at = number;
        let mut found = loop {
            if let Some(open) = self.cache.get(Key::Node(at)) {
                break Found::Cached(open);
            }
            match self.nodes.place(at)? {
                (Place::Pinned(fd), identity) if identity.kind == S_IFDIR => break Found::Pinned(fd),
                (Place::Named(parent, name), identity) if identity.kind == S_IFDIR => {
                    if way.len() >= DEPTH_MAX {
                        return Err(Errno::STALE);
                    }
                    way.push((at, name, identity));
                    at = parent;
                }
                _ => return Err(Errno::NOTDIR),
            }
        };
        while let Some((number, name, identity)) = way.pop() {
            let (fd, _) = self.open_known(found.as_fd(), &name, identity)?;
            found = Found::Cached(self.cache.put(Key::Node(number), Open::new(fd)));
        }
        Ok(found)
    }

    /// A descriptor of an inode of any kind, which stands for it without having opened it, and its
    /// attributes. One that has another place than it had is reached by an open file of it.
    pub(super) fn leaf(&self, number: u64) -> Result<(Found, Stat)> {
        match self.leaf_in_place(number) {
            Err(Errno::STALE) => {
                let handle = self.nodes.handle(number).ok_or(Errno::STALE)?;
                let open = self.cache.get(Key::Handle(handle)).ok_or(Errno::STALE)?;
                let stat = sys::stat(open.as_fd())?;
                Ok((Found::Cached(open), stat))
            }
            found => found,
        }
    }

    /// The same only for one that is where it was: when the host replaced it, `ESTALE` has the
    /// driver find what is there now.
    pub(super) fn leaf_in_place(&self, number: u64) -> Result<(Found, Stat)> {
        let (place, identity) = self.nodes.place(number)?;
        let found = match place {
            Place::Pinned(fd) => Found::Pinned(fd),
            Place::Named(..) if identity.kind == S_IFDIR => self.dir(number)?,
            Place::Named(parent, name) => {
                let dir = self.dir(parent)?;
                let (fd, stat) = self.open_known(dir.as_fd(), &name, identity)?;
                return Ok((Found::Cached(Open::new(fd)), stat));
            }
        };
        let stat = sys::stat(found.as_fd())?;
        Ok((found, stat))
    }

    /// Attributes of an inode, as the guest is shown them.
    pub(super) fn attributes(&self, number: u64) -> Result<Attr> {
        let (place, identity) = self.nodes.place(number)?;
        if let Place::Named(parent, name) = place
            && identity.kind != S_IFDIR
        {
            let dir = self.dir(parent)?;
            match sys::stat_at(dir.as_fd(), &name) {
                Ok(stat) if stat.identity == identity => {
                    return Ok(self.attr(&stat, Source::At(dir.as_fd(), &name)));
                }
                Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(error) => return Err(error),
            }
        }
        let (found, stat) = self.leaf(number)?;
        Ok(self.attr(&stat, Source::Fd(found.as_fd())))
    }

    /// The descriptor of an open file or directory.
    pub(super) fn open_file(&self, number: u64, handle: &Handle) -> Result<Arc<Open>> {
        if let Some(open) = self.cache.get(Key::Handle(number)) {
            return Ok(open);
        }
        let _names = self.reading_names();
        let fd = if handle.is_dir {
            let dir = self.dir(handle.node)?;
            self.descriptor(|| sys::open_dir(dir.as_fd()))?
        } else {
            let (leaf, _) = self.leaf(handle.node)?;
            self.descriptor(|| sys::reopen(leaf.as_fd(), handle.how))?
        };
        Ok(self.cache.put(Key::Handle(number), Open::new(fd)))
    }

    /// The owner of files without a record; `None`: files have their own.
    pub(super) fn default_owner(&self) -> Option<(u32, u32)> {
        match self.options.owners {
            Owners::Mapped { uid, gid } => Some((uid, gid)),
            Owners::Kept => None,
        }
    }

    /// What the guest is shown of a file's owner and mode.
    pub(super) fn shown(&self, stat: &Stat, source: Source<'_>) -> Shown {
        let Some(default) = self.default_owner() else {
            return Shown { mode: stat.mode & !S_IFMT, uid: stat.uid, gid: stat.gid };
        };
        // Linux has attributes of users on these alone.
        let record = if matches!(stat.kind(), S_IFREG | S_IFDIR) { record_of(source) } else { None };
        owner::shown(stat.mode, record, default)
    }

    /// Attributes as the guest is shown them.
    pub(super) fn attr(&self, stat: &Stat, source: Source<'_>) -> Attr {
        let Shown { mode, uid, gid } = self.shown(stat, source);
        Attr {
            ino: self.ino(&stat.identity),
            size: stat.size,
            blocks: stat.blocks,
            atime: stat.atime,
            mtime: stat.mtime,
            ctime: stat.ctime,
            mode: stat.kind() | mode,
            nlink: stat.nlink,
            uid,
            gid,
            rdev: stat.rdev,
            block_size: stat.block_size,
        }
    }

    /// The number that programs of the guest see. A share is one device to them: files of other
    /// file systems below the root must not look like links of one another.
    pub(super) fn ino(&self, identity: &Identity) -> u64 {
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        let index = devices.iter().position(|device| *device == identity.device).unwrap_or_else(|| {
            if devices.len() < 1 << 15 {
                devices.push(identity.device);
            }
            devices.len() - 1
        });
        let index: u64 = fits(index, "less than 65536 devices");
        // Never 0, which programs take for a deleted entry.
        (identity.inode ^ index << 48).max(1)
    }

    /// Sets owner and mode of what `fd` stands for to what the guest shall see.
    pub(super) fn keep_shown(&self, fd: BorrowedFd<'_>, stat: &Stat, wanted: Shown) -> Result<()> {
        let Some(default) = self.default_owner() else {
            if (stat.uid, stat.gid) != (wanted.uid, wanted.gid) {
                sys::set_owner(fd, Some(wanted.uid), Some(wanted.gid))?;
            }
            // A change of the owner may have changed the mode.
            return if stat.kind() == S_IFLNK { Ok(()) } else { sys::set_mode(fd, wanted.mode) };
        };
        let is_dir = stat.kind() == S_IFDIR;
        let (mode, record) = owner::keep(wanted, is_dir, default);
        // The owner of a link gives no right to anybody: it stays as it is shown.
        if stat.kind() == S_IFLNK {
            return Ok(());
        }
        if !matches!(stat.kind(), S_IFREG | S_IFDIR) {
            // No attribute can be kept here: only what the file shows by itself can be set.
            if record.is_some() && (wanted.uid, wanted.gid) != default {
                return Err(Errno::PERM);
            }
            return sys::set_mode(fd, mode);
        }
        // The attribute needs the right to write, which the file's owner can give himself.
        if stat.mode & 0o200 == 0 {
            sys::set_mode(fd, mode)?;
        }
        let kept = match record {
            Some(record) => sys::set_xattr(fd, owner::ATTRIBUTE, record.encode().as_bytes(), 0),
            None => match sys::remove_xattr(fd, owner::ATTRIBUTE) {
                Err(Errno::NODATA) => Ok(()),
                result => result,
            },
        };
        match kept {
            Ok(()) => sys::set_mode(fd, mode),
            // A file system without such attributes: the file's own mode is as near as may be, and
            // the driver is told that one; owners cannot be kept.
            Err(Errno::OPNOTSUPP) if (wanted.uid, wanted.gid) == default => sys::set_mode(fd, mode),
            Err(Errno::OPNOTSUPP) => Err(Errno::PERM),
            Err(error) => Err(error),
        }
    }
}

fn record_of(source: Source<'_>) -> Option<Record> {
    let mut value = [0; RECORD_MAX];
    let len = match source {
        Source::At(dir, name) => sys::xattr_at(dir, name, owner::ATTRIBUTE, &mut value),
        Source::Fd(fd) => sys::xattr(fd, owner::ATTRIBUTE, &mut value),
    };
    Record::decode(value.get(..len.ok()?)?)
}
