//! Files, directories, links and other entries made.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::place::Source;
use super::{Answer, Result, Server};
use crate::errno::Errno;
use crate::owner::{self, Shown};
use crate::sys::{self, OpenHow, S_IFBLK, S_IFCHR, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, Stat};
use crate::wire::{Entry, Header, entry_out, open_out};

impl Server {
    /// What the guest shall see of an entry that is made in a directory: its own user and group,
    /// the directory's group where this is inherited.
    fn wanted(&self, header: &Header, dir: BorrowedFd<'_>, mode: u32, kind: u32) -> Result<Shown> {
        const SET_GID: u32 = 0o2000;
        let parent = self.shown(&sys::stat(dir)?, Source::Fd(dir));
        let own = Shown { mode, uid: header.uid, gid: header.gid };
        Ok(match (parent.mode & SET_GID != 0, kind) {
            (false, _) => own,
            (true, S_IFDIR) => Shown { gid: parent.gid, mode: mode | SET_GID, ..own },
            (true, _) => Shown { gid: parent.gid, ..own },
        })
    }

    /// Gives what was just made its owner and mode. Where owners cannot be kept (symbolic links,
    /// pipes, sockets, file systems without extended attributes) it is shown as the default
    /// owner's.
    fn keep_new(&self, fd: BorrowedFd<'_>, stat: &Stat, wanted: Shown) -> Result<()> {
        if let Some(default) = self.default_owner() {
            let (mode, record) = owner::keep(wanted, stat.kind() == S_IFDIR, default);
            if record.is_none() && stat.mode & !S_IFMT == mode {
                return Ok(());
            }
        }
        match (self.keep_shown(fd, stat, wanted), self.default_owner()) {
            (Err(Errno::PERM), Some((uid, gid))) => self.keep_shown(fd, stat, Shown { uid, gid, ..wanted }),
            (result, _) => result,
        }
    }

    /// Makes an entry of a directory with `make`, and names it to the driver. If it cannot be
    /// given its owner, it is removed again.
    fn make(
        &self,
        header: &Header,
        name: &CStr,
        (kind, mode): (u32, u32),
        make: impl Fn(BorrowedFd<'_>) -> Result<()>,
    ) -> Result<Answer> {
        let _names = self.reading_names();
        let dir = self.dir(header.node)?;
        let wanted = self.wanted(header, dir.as_fd(), mode, kind)?;
        make(dir.as_fd())?;
        let own = || {
            let fd = self.descriptor(|| sys::open_path(dir.as_fd(), name))?;
            let stat = sys::stat(fd.as_fd())?;
            // The host may have put something else there meanwhile, which is left as it is.
            if stat.kind() == kind { self.keep_new(fd.as_fd(), &stat, wanted) } else { Ok(()) }
        };
        if let Err(error) = own() {
            let _ = sys::remove(dir.as_fd(), name, kind == S_IFDIR);
            return Err(error);
        }
        Ok(entry_out(&self.entry(header.node, name)?).into())
    }

    pub(super) fn symlink(&self, header: &Header, name: &CStr, target: &CStr) -> Result<Answer> {
        self.make(header, name, (S_IFLNK, 0o777), |dir| sys::make_symlink(dir, name, target))
    }

    pub(super) fn mkdir(&self, header: &Header, name: &CStr, mode: u32) -> Result<Answer> {
        self.make(header, name, (S_IFDIR, mode), |dir| sys::make_dir(dir, name, 0o700))
    }

    /// MKNOD: files, pipes and sockets. Devices would be the host's, so that none is made but the
    /// one with number 0, with which overlay file systems mark deletions.
    pub(super) fn mknod(&self, header: &Header, name: &CStr, mode: u32, device: u32) -> Result<Answer> {
        let kind = match mode & S_IFMT {
            0 => S_IFREG,
            kind => kind,
        };
        match kind {
            S_IFCHR if device == 0 => {}
            S_IFCHR | S_IFBLK => return Err(Errno::PERM),
            S_IFDIR | S_IFLNK => return Err(Errno::INVAL),
            _ => {}
        }
        self.make(header, name, (kind, mode & !S_IFMT & 0o7777), |dir| {
            sys::make_node(dir, name, kind, 0o600, 0)
        })
    }

    /// CREATE: makes a file and opens it, or opens the one that the host made meanwhile.
    pub(super) fn create(
        &self,
        header: &Header,
        name: &CStr,
        how: OpenHow,
        mode: u32,
        kill_set_id: bool,
    ) -> Result<Answer> {
        self.check_how(how)?;
        let _names = self.reading_names();
        let dir = self.dir(header.node)?;
        let wanted = self.wanted(header, dir.as_fd(), mode, S_IFREG)?;
        let file = match self.descriptor(|| sys::create(dir.as_fd(), name, how, 0o600)) {
            Ok(file) => {
                let own = || self.keep_new(file.as_fd(), &sys::stat(file.as_fd())?, wanted);
                if let Err(error) = own() {
                    let _ = sys::remove(dir.as_fd(), name, false);
                    return Err(error);
                }
                file
            }
            Err(Errno::EXIST) if how.0 & OpenHow::EXCL == 0 => {
                let found = self.descriptor(|| sys::open_path(dir.as_fd(), name))?;
                match sys::stat(found.as_fd())?.kind() {
                    S_IFREG => {}
                    S_IFDIR => return Err(Errno::ISDIR),
                    _ => return Err(Errno::EXIST),
                }
                let file = self.descriptor(|| sys::reopen(found.as_fd(), how))?;
                if how.truncates() {
                    self.truncate(file.as_fd(), found.as_fd(), how, kill_set_id)?;
                }
                file
            }
            Err(error) => return Err(error),
        };
        // The attributes of what was opened, whatever has the name now.
        let stat = sys::stat(file.as_fd())?;
        let attr = self.attr(&stat, Source::Fd(file.as_fd()));
        let node = self.nodes.enter(stat.identity, header.node, name)?;
        self.own.note(node);
        let handle = self.keep_open(node, how, file);
        self.entry_and_handle(Entry { node, valid: self.valid(), attr }, handle)
    }

    /// TMPFILE: a file without a name, which LINK may give one.
    pub(super) fn tmpfile(&self, header: &Header, how: OpenHow, mode: u32) -> Result<Answer> {
        self.check_how(how)?;
        let _names = self.reading_names();
        let dir = self.dir(header.node)?;
        let wanted = self.wanted(header, dir.as_fd(), mode, S_IFREG)?;
        let file = self.descriptor(|| sys::create_unnamed(dir.as_fd(), how, 0o600))?;
        let stat = sys::stat(file.as_fd())?;
        self.keep_new(file.as_fd(), &stat, wanted)?;
        let attr = self.attr(&sys::stat(file.as_fd())?, Source::Fd(file.as_fd()));
        let pin = file.try_clone().map_err(Errno::from)?;
        let node = self.nodes.enter_pinned(stat.identity, Arc::new(pin))?;
        let handle = self.keep_open(node, how, file);
        self.entry_and_handle(Entry { node, valid: self.valid(), attr }, handle)
    }

    /// The answer of CREATE and TMPFILE. Without a handle the driver is not told of the inode.
    fn entry_and_handle(&self, entry: Entry, handle: Result<u64>) -> Result<Answer> {
        match handle {
            Ok(handle) => {
                let mut out = entry_out(&entry).to_vec();
                out.extend_from_slice(&open_out(handle, self.open_flags()));
                Ok(Answer::Bytes(out))
            }
            Err(error) => {
                self.gone(self.nodes.forget(entry.node, 1));
                Err(error)
            }
        }
    }

    /// LINK: another name for an inode.
    pub(super) fn link(&self, node: u64, parent: u64, name: &CStr) -> Result<Answer> {
        let _names = self.reading_names();
        let (found, stat) = self.leaf(node)?;
        if stat.kind() == S_IFDIR {
            return Err(Errno::PERM);
        }
        let dir = self.dir(parent)?;
        sys::make_link(found.as_fd(), dir.as_fd(), name)?;
        Ok(entry_out(&self.entry(parent, name)?).into())
    }
}
