//! Removal of directories with everything below them.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use super::{DIRECTORY, TrustError, io_error};
use crate::sys;

/// Removes `name` in `parent`; see [`super::TrustedDir::remove_tree`].
pub(super) fn remove(parent: BorrowedFd<'_>, name: &OsStr, path: &Path) -> Result<(), TrustError> {
    let open = || rustix::fs::openat(parent, name, DIRECTORY, Mode::empty());
    let fd = match rustix::io::retry_on_intr(open) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(io_error("open", path, error)),
    };
    for entry in sys::names(&fd).map_err(|source| io_error("list", path, source))? {
        match rustix::fs::unlinkat(&fd, &entry, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            // Linux says EISDIR of a directory, POSIX EPERM.
            Err(Errno::ISDIR | Errno::PERM) => remove(fd.as_fd(), &entry, &path.join(&entry))?,
            Err(error) => return Err(io_error("remove", &path.join(&entry), error)),
        }
    }
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(io_error("remove", path, error)),
    }
}
