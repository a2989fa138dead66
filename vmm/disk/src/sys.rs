//! Operating system specific calls: holes of files, files without a name, and locks.

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

/// Makes a file without a name in `directory`, open for reading and writing, with the permissions
/// `mode` as far as the process allows them (umask).
///
/// # Errors
/// `Unsupported`: the file system has no such files. Else the system's.
#[cfg(target_os = "linux")]
pub fn unnamed(directory: &std::path::Path, mode: u32) -> io::Result<std::fs::File> {
    use rustix::fs::{Mode, OFlags};
    use rustix::io::Errno;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::io::retry_on_intr(|| rustix::fs::open(directory, flags, Mode::from_raw_mode(mode))) {
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

/// Where QEMU's locks of what a user of an image does begin, one byte for each permission, and
/// where those of what it does not let others do.
#[cfg(target_os = "linux")]
const QEMU_DOES: i64 = 100;
#[cfg(target_os = "linux")]
const QEMU_FORBIDS: i64 = 200;
/// Permissions of QEMU: to read what nobody changes meanwhile, to write, and to change the size.
#[cfg(target_os = "linux")]
const READ: i64 = 0;
#[cfg(target_os = "linux")]
const WRITE: i64 = 1;
#[cfg(target_os = "linux")]
const RESIZE: i64 = 3;

/// Locks an image as QEMU does, for one writer or several readers: `false` when another open file
/// has it. All locks are shared ones, so that a process that may only read can take them; then each
/// side looks whether another one does what it forbids, or forbids what it does. They belong to the
/// open file, and last as long as it.
///
/// # Errors
/// `Unsupported` where there are no such locks. Else the system's.
#[cfg(target_os = "linux")]
pub fn lock_as_qemu(file: impl AsFd, read_only: bool) -> io::Result<bool> {
    use nix::fcntl::{FcntlArg, fcntl};
    let does: &[i64] = if read_only { &[READ] } else { &[READ, WRITE, RESIZE] };
    let forbids = [WRITE, RESIZE];
    for byte in does.iter().map(|what| QEMU_DOES + what).chain(forbids.map(|what| QEMU_FORBIDS + what)) {
        let lock = byte_lock(nix::libc::F_RDLCK, byte);
        match range_lock(|| fcntl(&file, FcntlArg::F_OFD_SETLK(&lock))) {
            Ok(()) => {}
            // QEMU itself takes none of these for itself alone, but another one may.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    for byte in does.iter().map(|what| QEMU_FORBIDS + what).chain(forbids.map(|what| QEMU_DOES + what)) {
        let mut lock = byte_lock(nix::libc::F_WRLCK, byte);
        range_lock(|| fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock)))?;
        if i32::from(lock.l_type) != nix::libc::F_UNLCK {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(target_os = "linux")]
fn byte_lock(kind: i32, byte: i64) -> nix::libc::flock {
    nix::libc::flock {
        l_type: i16::try_from(kind).expect("kinds of locks are small"),
        l_whence: i16::try_from(nix::libc::SEEK_SET).expect("it is 0"),
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}

#[cfg(target_os = "linux")]
fn range_lock(mut request: impl FnMut() -> nix::Result<i32>) -> io::Result<()> {
    use nix::errno::Errno;
    let answer = loop {
        match request() {
            // A file system of the network waits even where the caller does not.
            Err(Errno::EINTR) => {}
            answer => break answer,
        }
    };
    match answer {
        Ok(_) => Ok(()),
        Err(Errno::EINVAL | Errno::ENOLCK | Errno::EOPNOTSUPP | Errno::ENOSYS) => {
            Err(io::ErrorKind::Unsupported.into())
        }
        Err(Errno::EACCES) => Err(io::ErrorKind::WouldBlock.into()),
        Err(error) => Err(error.into()),
    }
}

/// Such locks are not supported on this system.
#[cfg(not(target_os = "linux"))]
pub fn lock_as_qemu(_file: impl AsFd, _read_only: bool) -> io::Result<bool> {
    Err(io::ErrorKind::Unsupported.into())
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
pub fn unnamed(_directory: &std::path::Path, _mode: u32) -> io::Result<std::fs::File> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Files without a name are not supported on this system.
#[cfg(not(target_os = "linux"))]
pub fn give_name(_file: impl AsFd, _path: &std::path::Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use nix::errno::Errno;

    use super::*;

    #[test]
    fn a_lock_that_is_interrupted_is_asked_for_again() {
        let mut answers = [Err(Errno::EINTR), Err(Errno::EINTR), Ok(0)].into_iter();
        range_lock(|| answers.next().unwrap()).unwrap();
        assert_eq!(answers.next(), None);
        for (answer, kind) in [
            (Errno::EACCES, io::ErrorKind::WouldBlock),
            (Errno::EAGAIN, io::ErrorKind::WouldBlock),
            (Errno::ENOLCK, io::ErrorKind::Unsupported),
        ] {
            assert_eq!(range_lock(|| Err(answer)).unwrap_err().kind(), kind, "{answer}");
        }
    }
}
