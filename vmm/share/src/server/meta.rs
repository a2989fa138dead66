//! Names looked up, attributes read and set.

use std::ffi::CStr;
use std::os::fd::AsFd;
use std::time::Duration;

use super::place::Source;
use super::{Answer, Result, Server};
use crate::config::CacheMode;
use crate::errno::Errno;
use crate::sys::{self, OpenHow, S_IFDIR, S_IFLNK, S_IFREG};
use crate::wire::{Entry, Header, SetAttr, attr_out, entry_out};

impl Server {
    pub(super) fn valid(&self) -> Duration {
        self.options.cache.validity()
    }

    /// LOOKUP: an inode by its name in a directory.
    pub(super) fn lookup(&self, parent: u64, name: &CStr) -> Result<Answer> {
        let _names = self.reading_names();
        let dir = self.dir(parent)?;
        match sys::stat_at(dir.as_fd(), name) {
            // Where nobody else changes the tree, that there is no such name may be kept too.
            Err(Errno::NOENT) if self.options.cache == CacheMode::Always => {
                Ok(entry_out(&Entry { valid: self.valid(), ..Entry::default() }).into())
            }
            Err(error) => Err(error),
            Ok(stat) => {
                let attr = self.attr(&stat, Source::At(dir.as_fd(), name));
                let node = self.nodes.enter(stat.identity, parent, name)?;
                Ok(entry_out(&Entry { node, valid: self.valid(), attr }).into())
            }
        }
    }

    /// The answer that names an inode which was just made.
    pub(super) fn entry(&self, parent: u64, name: &CStr) -> Result<Entry> {
        let dir = self.dir(parent)?;
        let stat = sys::stat_at(dir.as_fd(), name)?;
        let attr = self.attr(&stat, Source::At(dir.as_fd(), name));
        let node = self.nodes.enter(stat.identity, parent, name)?;
        self.own.note(node);
        Ok(Entry { node, valid: self.valid(), attr })
    }

    pub(super) fn get_attr(&self, node: u64, handle: Option<u64>) -> Result<Answer> {
        // An open file is what it was opened as, whatever has its name now.
        if let Some(number) = handle
            && let Ok(handle) = self.handle_of(number)
            && handle.node == node
            && let Some(open) = self.cache.get(crate::cache::Key::Handle(number))
        {
            let stat = sys::stat(open.as_fd())?;
            return Ok(attr_out(&self.attr(&stat, Source::Fd(open.as_fd())), self.valid()).into());
        }
        let _names = self.reading_names();
        Ok(attr_out(&self.attributes(node)?, self.valid()).into())
    }

    /// SETATTR: length, owner, mode, times, in this order, and each only if the one before worked.
    pub(super) fn set_attr(&self, node: u64, set: &SetAttr) -> Result<Answer> {
        if let Some(len) = set.size {
            self.set_len(node, set, len)?;
        }
        let _names = self.reading_names();
        let (found, stat) = self.leaf(node)?;
        let fd = found.as_fd();
        if set.mode.is_some() || set.uid.is_some() || set.gid.is_some() {
            if set.mode.is_some() && stat.kind() == S_IFLNK {
                return Err(Errno::OPNOTSUPP);
            }
            let mut wanted = self.shown(&stat, Source::Fd(fd));
            if (set.uid.is_some() || set.gid.is_some()) && stat.kind() != S_IFDIR {
                wanted = wanted.without_set_id();
            }
            wanted.mode = set.mode.unwrap_or(wanted.mode);
            wanted.uid = set.uid.unwrap_or(wanted.uid);
            wanted.gid = set.gid.unwrap_or(wanted.gid);
            self.keep_shown(fd, &stat, wanted)?;
        }
        if set.atime.is_some() || set.mtime.is_some() {
            sys::set_times(fd, set.atime, set.mtime)?;
        }
        let stat = sys::stat(fd)?;
        Ok(attr_out(&self.attr(&stat, Source::Fd(fd)), self.valid()).into())
    }

    fn set_len(&self, node: u64, set: &SetAttr, len: u64) -> Result<()> {
        if let Some(number) = set.handle {
            let handle = self.handle_of(number)?;
            if handle.node == node && handle.how.writes() && !handle.is_dir {
                let open = self.open_file(number, &handle)?;
                sys::set_len(open.as_fd(), len)?;
                return if set.kill_set_id { self.drop_set_id(open.as_fd()) } else { Ok(()) };
            }
        }
        let _names = self.reading_names();
        let (found, stat) = self.leaf(node)?;
        match stat.kind() {
            S_IFREG => {}
            S_IFDIR => return Err(Errno::ISDIR),
            _ => return Err(Errno::INVAL),
        }
        let file = self.descriptor(|| sys::reopen(found.as_fd(), OpenHow(1)))?;
        sys::set_len(file.as_fd(), len)?;
        if set.kill_set_id { self.drop_set_id(file.as_fd()) } else { Ok(()) }
    }

    /// The contents changed by who may not keep the bits for set-id. File capabilities go by
    /// themselves when the host writes.
    pub(super) fn drop_set_id(&self, fd: std::os::fd::BorrowedFd<'_>) -> Result<()> {
        let stat = sys::stat(fd)?;
        let before = self.shown(&stat, Source::Fd(fd));
        let after = before.without_set_id();
        if before == after { Ok(()) } else { self.keep_shown(fd, &stat, after) }
    }

    pub(super) fn read_link(&self, node: u64) -> Result<Answer> {
        let _names = self.reading_names();
        let (found, stat) = self.leaf(node)?;
        if stat.kind() != S_IFLNK {
            return Err(Errno::INVAL);
        }
        Ok(Answer::Bytes(sys::read_link(found.as_fd())?))
    }

    /// ACCESS, which drivers that check permissions themselves do not send: by owner and mode as
    /// they are shown, without further groups. A user 0 may everything but execute what nobody
    /// may.
    pub(super) fn access(&self, header: &Header, mask: u32) -> Result<Answer> {
        let _names = self.reading_names();
        let attr = self.attributes(header.node)?;
        if mask & 2 != 0 && self.options.read_only {
            return Err(Errno::ROFS);
        }
        let granted = match (header.uid, header.gid) {
            (0, _) if attr.mode & 0o111 != 0 || attr.mode & sys::S_IFMT == S_IFDIR => 7,
            (0, _) => 6,
            (uid, _) if uid == attr.uid => attr.mode >> 6,
            (_, gid) if gid == attr.gid => attr.mode >> 3,
            _ => attr.mode,
        };
        if mask & 7 & !granted == 0 { Ok(Answer::Done) } else { Err(Errno::ACCES) }
    }

    pub(super) fn stat_fs(&self, node: u64) -> Result<Answer> {
        let _names = self.reading_names();
        let (found, _) = self.leaf(node)?;
        Ok(sys::stat_fs(found.as_fd())?.encode().into())
    }

    /// SYNCFS: the host's file system of the root.
    pub(super) fn sync_fs(&self) -> Result<Answer> {
        let file = match &self.file {
            Some(file) => self.descriptor(|| sys::reopen(file.as_fd(), OpenHow(0)))?,
            None => {
                let root = self.dir(crate::nodes::ROOT)?;
                self.descriptor(|| sys::open_dir(root.as_fd()))?
            }
        };
        sys::sync_all(file.as_fd())?;
        Ok(Answer::Done)
    }
}
