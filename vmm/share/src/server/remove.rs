//! Names removed and moved.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::{Answer, Result, Server};
use crate::errno::Errno;
use crate::sys;

/// Flags of renameat2.
const RENAME_NOREPLACE: u32 = 1;
const RENAME_EXCHANGE: u32 = 2;
const RENAME_WHITEOUT: u32 = 4;

/// An inode that loses its name, with a descriptor if it still needs to be reached.
type Losing = Option<(u64, Option<Arc<OwnedFd>>)>;

impl Server {
    /// UNLINK and RMDIR. What is open stays usable.
    pub(super) fn unlink(&self, parent: u64, name: &CStr, is_dir: bool) -> Result<Answer> {
        let names = self.changing_names();
        let dir = self.dir(parent)?;
        let losing = self.losing(parent, dir.as_fd(), name)?;
        sys::remove(dir.as_fd(), name, is_dir)?;
        if let Some((number, pin)) = losing {
            self.nodes.lost(number, pin);
        }
        drop(names);
        Ok(Answer::Done)
    }

    /// The inode that has a name now, if the driver knows it by this one. Its descriptor is made
    /// before the name goes: afterwards there is no way to it.
    fn losing(&self, parent: u64, dir: BorrowedFd<'_>, name: &CStr) -> Result<Losing> {
        let stat = match sys::stat_at(dir, name) {
            Err(Errno::NOENT) => return Ok(None),
            stat => stat?,
        };
        let Some(number) = self.nodes.find(stat.identity) else { return Ok(None) };
        match self.nodes.may_lose(number, parent, name)? {
            None => Ok(None),
            Some(false) => Ok(Some((number, None))),
            Some(true) => {
                let fd = self.descriptor(|| sys::open_path(dir, name))?;
                let same = sys::stat(fd.as_fd())?.identity == stat.identity;
                Ok(Some((number, same.then(|| Arc::new(fd)))))
            }
        }
    }

    /// RENAME and RENAME2.
    pub(super) fn rename(
        &self,
        parent: u64,
        name: &CStr,
        new_parent: u64,
        new_name: &CStr,
        flags: u32,
    ) -> Result<Answer> {
        if flags & !(RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT) != 0 {
            return Err(Errno::INVAL);
        }
        let names = self.changing_names();
        let from = self.dir(parent)?;
        let to = self.dir(new_parent)?;
        let exchange = flags & RENAME_EXCHANGE != 0;
        let replaced = if exchange { None } else { self.losing(new_parent, to.as_fd(), new_name)? };
        let moved = sys::stat_at(from.as_fd(), name)?.identity;
        sys::rename(from.as_fd(), name, to.as_fd(), new_name, flags)?;
        let find = |dir: BorrowedFd<'_>, name| {
            sys::stat_at(dir, name)
                .ok()
                .and_then(|stat| Some((stat.identity, self.nodes.find(stat.identity)?)))
        };
        let now = find(to.as_fd(), new_name);
        // Two names of one file: the host leaves both.
        let unchanged = !exchange && find(from.as_fd(), name).is_some_and(|(identity, _)| identity == moved);
        if let Some((number, pin)) = replaced
            && !unchanged
        {
            self.nodes.lost(number, pin);
        }
        if let Some((identity, number)) = now
            && identity == moved
        {
            self.nodes.moved(number, new_parent, new_name);
            self.own.note(number);
        }
        if exchange && let Some((_, number)) = find(from.as_fd(), name) {
            self.nodes.moved(number, parent, name);
            self.own.note(number);
        }
        self.own.note(new_parent);
        drop(names);
        Ok(Answer::Done)
    }
}
