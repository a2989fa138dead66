//! Operating system specific calls: holes of files, and files without a name.

use std::io;
use std::os::fd::AsFd;

/// Punches a hole: the range reads as zeroes and uses no space; the length of the file is
/// unchanged. Fails with `Unsupported` if the file system does not support it.
#[cfg(target_os = "linux")]
pub fn punch_hole(file: impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    use rustix::fs::FallocateFlags;
    allocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)
}

/// Zeroes the range but keeps its space allocated; the length of the file is unchanged. Fails with
/// `Unsupported` if the file system does not support it.
#[cfg(target_os = "linux")]
pub fn zero_range(file: impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    use rustix::fs::FallocateFlags;
    allocate(file, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, offset, len)
}

#[cfg(target_os = "linux")]
fn allocate(file: impl AsFd, mode: rustix::fs::FallocateFlags, offset: u64, len: u64) -> io::Result<()> {
    use rustix::io::Errno;
    loop {
        match rustix::fs::fallocate(&file, mode, offset, len) {
            Err(Errno::INTR) => {}
            Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::NODEV) => {
                return Err(io::ErrorKind::Unsupported.into());
            }
            result => return Ok(result?),
        }
    }
}

/// Punching holes is not supported on this system.
#[cfg(not(target_os = "linux"))]
pub fn punch_hole(_file: impl AsFd, _offset: u64, _len: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Zeroing ranges is not supported on this system.
#[cfg(not(target_os = "linux"))]
pub fn zero_range(_file: impl AsFd, _offset: u64, _len: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Where the first data of a file from `offset` on is; `None`: there is none. The position of the
/// file is moved.
///
/// # Errors
/// The file system does not tell.
#[cfg(target_os = "linux")]
pub fn data_from(file: impl AsFd, offset: u64) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(offset)) {
        Ok(at) => Ok(Some(at)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Where the first hole of a file from `offset` on is, its end if there is none before. The
/// position of the file is moved.
///
/// # Errors
/// As [`data_from`].
#[cfg(target_os = "linux")]
pub fn hole_from(file: impl AsFd, offset: u64) -> io::Result<u64> {
    Ok(rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(offset))?)
}

/// Makes a file without a name in `directory`, open for reading and writing.
///
/// # Errors
/// `Unsupported`: the file system has no such files. Else the system's.
#[cfg(target_os = "linux")]
pub fn unnamed(directory: &std::path::Path) -> io::Result<std::fs::File> {
    use rustix::fs::{Mode, OFlags};
    use rustix::io::Errno;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(directory, flags, Mode::from_raw_mode(0o666)) {
        Ok(file) => Ok(file.into()),
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => Err(io::ErrorKind::Unsupported.into()),
        Err(error) => Err(error.into()),
    }
}

/// Gives a file of [`unnamed`] its name.
///
/// # Errors
/// `AlreadyExists`, or the system's.
#[cfg(target_os = "linux")]
pub fn give_name(file: impl AsFd, path: &std::path::Path) -> io::Result<()> {
    use rustix::fs::{AtFlags, CWD};
    use std::os::fd::AsRawFd;
    let own = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    Ok(rustix::fs::linkat(CWD, own, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

/// Holes are not told on this system.
#[cfg(not(target_os = "linux"))]
pub fn data_from(_file: impl AsFd, _offset: u64) -> io::Result<Option<u64>> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Holes are not told on this system.
#[cfg(not(target_os = "linux"))]
pub fn hole_from(_file: impl AsFd, _offset: u64) -> io::Result<u64> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Files without a name are not supported on this system.
#[cfg(not(target_os = "linux"))]
pub fn unnamed(_directory: &std::path::Path) -> io::Result<std::fs::File> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Files without a name are not supported on this system.
#[cfg(not(target_os = "linux"))]
pub fn give_name(_file: impl AsFd, _path: &std::path::Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
