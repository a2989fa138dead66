//! Extended attributes, of the inode itself: that of a symbolic link is the link's.

use std::ffi::CStr;
use std::os::fd::AsFd;

use nelly_disk::number::{at_most, fits};

use super::{Answer, Result, Server, TOUCH};
use crate::config::Owners;
use crate::errno::Errno;
use crate::owner::is_ours;
use crate::sys;

/// Most bytes of a value (XATTR_SIZE_MAX of Linux).
const VALUE_MAX: usize = 64 << 10;

/// What a guest may do with an attribute of this name.
enum Access {
    /// It is the host's file's.
    Real,
    /// There is none, and none can be made.
    Missing(Errno),
}

impl Server {
    fn xattr_access(&self, name: &CStr) -> Access {
        let name = name.to_bytes();
        let of = |prefix: &[u8]| name.starts_with(prefix);
        if is_ours(name) {
            return Access::Missing(Errno::PERM);
        }
        match self.options.owners {
            _ if of(b"user.") => Access::Real,
            // Access lists name users of the host, and the driver has not agreed to them.
            _ if of(b"system.") => Access::Missing(Errno::OPNOTSUPP),
            Owners::Kept if of(b"security.") || of(b"trusted.") => Access::Real,
            _ => Access::Missing(Errno::OPNOTSUPP),
        }
    }

    pub(super) fn set_xattr(&self, node: u64, name: &CStr, value: &[u8], flags: u32) -> Result<Answer> {
        if name == TOUCH {
            return self.touch(node);
        }
        if self.options.read_only {
            return Err(Errno::ROFS);
        }
        if let Access::Missing(error) = self.xattr_access(name) {
            return Err(error);
        }
        // XATTR_CREATE and XATTR_REPLACE.
        if flags & !3 != 0 {
            return Err(Errno::INVAL);
        }
        let _names = self.reading_names();
        let (found, _) = self.leaf(node)?;
        sys::set_xattr(found.as_fd(), name, value, flags).map_err(|error| match error {
            // As on a file system that does not have them: this process may lack the rights.
            Errno::PERM if !name.to_bytes().starts_with(b"user.") => Errno::OPNOTSUPP,
            error => error,
        })?;
        self.own.note(node);
        Ok(Answer::Done)
    }

    /// [`TOUCH`]: changes nothing.
    fn touch(&self, node: u64) -> Result<Answer> {
        let _names = self.reading_names();
        let (_, stat) = self.leaf(node)?;
        if self.own.was_last(node, stat.ctime) { Err(Errno::AGAIN) } else { Ok(Answer::Done) }
    }

    pub(super) fn get_xattr(&self, node: u64, name: &CStr, size: u32) -> Result<Answer> {
        if let Access::Missing(error) = self.xattr_access(name) {
            // The kernel asks for file capabilities at each start of a program.
            let system = name.to_bytes().starts_with(b"system.");
            return Err(if system { error } else { Errno::NODATA });
        }
        let _names = self.reading_names();
        let (found, _) = self.leaf(node)?;
        if size == 0 {
            return Ok(size_out(sys::xattr_len(found.as_fd(), name)?));
        }
        let mut value = vec![0; at_most(size, VALUE_MAX)];
        let len = sys::xattr(found.as_fd(), name, &mut value)?;
        value.truncate(len);
        Ok(Answer::Bytes(value))
    }

    pub(super) fn list_xattr(&self, node: u64, size: u32) -> Result<Answer> {
        let _names = self.reading_names();
        let (found, _) = self.leaf(node)?;
        let mut names = Vec::new();
        for name in sys::xattr_names(found.as_fd())?.split_inclusive(|byte| *byte == 0) {
            let visible = CStr::from_bytes_with_nul(name)
                .is_ok_and(|name| matches!(self.xattr_access(name), Access::Real));
            if visible {
                names.extend_from_slice(name);
            }
        }
        match at_most::<u32, usize>(size, usize::MAX) {
            0 => Ok(size_out(names.len())),
            size if size < names.len() => Err(Errno::RANGE),
            _ => Ok(Answer::Bytes(names)),
        }
    }

    pub(super) fn remove_xattr(&self, node: u64, name: &CStr) -> Result<Answer> {
        if let Access::Missing(error) = self.xattr_access(name) {
            return Err(if is_ours(name.to_bytes()) { Errno::NODATA } else { error });
        }
        let _names = self.reading_names();
        let (found, _) = self.leaf(node)?;
        sys::remove_xattr(found.as_fd(), name)?;
        Ok(Answer::Done)
    }
}

/// `fuse_getxattr_out`.
fn size_out(size: usize) -> Answer {
    let mut out = [0; 8];
    let size: u32 = fits(size, "attributes have at most 64 KiB");
    out[..4].copy_from_slice(&size.to_le_bytes());
    out.into()
}
