//! The few system calls whose form depends on the system.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

/// A new file in `dir` without a name, open for reading and writing, mode 0600: it ends with its descriptor
/// unless [`publish`] gives it a name.
///
/// # Errors
/// `NotSupported` where the system or the file system has no such files.
#[cfg(target_os = "linux")]
pub(crate) fn nameless(dir: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR) {
        Ok(fd) => Ok(fd.into()),
        // An old kernel takes the flag for O_DIRECTORY, and a directory is not opened for writing.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => {
            Err(io::ErrorKind::Unsupported.into())
        }
        Err(error) => Err(error.into()),
    }
}

/// As on Linux, had the system such files.
#[cfg(not(target_os = "linux"))]
pub(crate) fn nameless(_dir: &Path) -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Gives a file made by [`nameless`] the name `path`, which must be free.
pub(crate) fn publish(file: &File, path: &Path) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // AT_EMPTY_PATH would need a capability.
    let from = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(rustix::fs::CWD, from, rustix::fs::CWD, path, rustix::fs::AtFlags::SYMLINK_FOLLOW)?;
    Ok(())
}

/// Another descriptor of the same file, for reading only, at offset 0.
pub(crate) fn reopen_read_only(file: &File) -> io::Result<File> {
    use std::os::fd::AsRawFd;
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Gives the bytes back to the file system; they read as zeros afterwards.
#[cfg(target_os = "linux")]
pub(crate) fn punch_hole(file: impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    use rustix::fs::FallocateFlags;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(file, flags, offset, len)?;
    Ok(())
}

/// As on Linux, had the system such a call.
#[cfg(not(target_os = "linux"))]
pub(crate) fn punch_hole(_file: impl AsFd, _offset: u64, _len: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
