//! The few system calls whose form depends on the system.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

/// How a directory is opened only to reach what is below it: that needs no permission to list it.
#[cfg(target_os = "linux")]
pub(crate) const SEARCH: OFlags = OFlags::PATH;
/// As on Linux, had the system such descriptors.
#[cfg(not(target_os = "linux"))]
pub(crate) const SEARCH: OFlags = OFlags::RDONLY;

/// A new file in `dir` without a name, open for reading and writing whatever `mode`
/// says of those who open it later: it ends with its descriptor unless [`publish`] gives it a name.
///
/// # Errors
/// `Unsupported` where the system or the file system has no such files.
#[cfg(target_os = "linux")]
pub(crate) fn nameless(dir: impl AsFd, mode: Mode) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match retry_on_intr(|| rustix::fs::openat(&dir, ".", flags, mode)) {
        Ok(fd) => Ok(fd.into()),
        // An old kernel takes the flag for O_DIRECTORY, and a directory is not opened for writing.
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => Err(io::ErrorKind::Unsupported.into()),
        Err(error) => Err(error.into()),
    }
}

/// As on Linux, had the system such files.
#[cfg(not(target_os = "linux"))]
pub(crate) fn nameless(_dir: impl AsFd, _mode: Mode) -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Gives a file made by [`nameless`] the name `name` in `dir`, which must be free.
pub(crate) fn publish(file: &File, dir: impl AsFd, name: &str) -> io::Result<()> {
    // AT_EMPTY_PATH would need a capability.
    let from = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(rustix::fs::CWD, from, dir, name, AtFlags::SYMLINK_FOLLOW)?;
    Ok(())
}

/// Another descriptor of the same file, for reading only, at offset 0.
pub(crate) fn reopen_read_only(file: &File) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// The names in a directory, in no order.
pub(crate) fn names(dir: impl AsFd) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}

/// Opens the directory at `path`, relative and without `..`, below `root`: no name on the way may
/// be a symbolic link.
#[cfg(target_os = "linux")]
pub(crate) fn directory_beneath(root: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    use rustix::fs::ResolveFlags;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(retry_on_intr(|| rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve))?)
}

/// As on Linux, one name after the other.
#[cfg(not(target_os = "linux"))]
pub(crate) fn directory_beneath(root: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut here = retry_on_intr(|| rustix::fs::openat(&root, ".", flags, Mode::empty()))?;
    for name in path.components() {
        here = retry_on_intr(|| rustix::fs::openat(&here, name.as_os_str(), flags, Mode::empty()))?;
    }
    Ok(here)
}

/// A path that leads to `name` in the directory `dir` by its descriptor, for the calls that take no
/// descriptor.
#[cfg(target_os = "linux")]
pub(crate) fn path_in(dir: impl AsFd, name: &OsStr, _whole: &Path) -> PathBuf {
    Path::new("/proc/self/fd").join(dir.as_fd().as_raw_fd().to_string()).join(name)
}

/// The whole path, where the system has no other.
#[cfg(not(target_os = "linux"))]
pub(crate) fn path_in(_dir: impl AsFd, _name: &OsStr, whole: &Path) -> PathBuf {
    whole.to_owned()
}

/// Bytes that may still be written to the file system of `file`; `None` where it has no bound of
/// its own.
///
/// # Errors
/// The file system does not say.
pub fn free_bytes(file: impl AsFd) -> io::Result<Option<u64>> {
    let found = retry_on_intr(|| rustix::fs::fstatvfs(&file))?;
    Ok((found.f_blocks > 0).then(|| found.f_bavail.saturating_mul(found.f_frsize)))
}

/// How much may be written to a file system by what it does not know the size of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes.
    pub bytes: u64,
    /// Files.
    pub files: u64,
}

impl Room {
    /// All but a sixteenth of what is free on the file system of `file`, for a user without
    /// privileges; `u64::MAX` of what it has no bound for.
    ///
    /// # Errors
    /// The file system cannot be asked.
    pub fn of(file: impl AsFd) -> io::Result<Self> {
        let found = retry_on_intr(|| rustix::fs::fstatvfs(&file))?;
        let all = |bounded: bool, free: u64| if bounded { free - free / 16 } else { u64::MAX };
        let bytes = all(found.f_blocks > 0, found.f_bavail.saturating_mul(found.f_frsize));
        Ok(Self { bytes, files: all(found.f_files > 0, found.f_favail) })
    }
}

/// Locks the whole of `file` for this open file alone, without waiting: the lock is held as long
/// as any descriptor of this open file is, in whatever process. False if it is locked through
/// another.
///
/// # Errors
/// The file system has no locks, or the file is not open for writing.
#[cfg(target_os = "linux")]
pub fn try_lock(file: impl AsFd) -> io::Result<bool> {
    use nix::fcntl::{FcntlArg, fcntl};
    loop {
        return match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file())) {
            Ok(_) => Ok(true),
            Err(nix::Error::EINTR) => continue,
            Err(nix::Error::EAGAIN | nix::Error::EACCES) => Ok(false),
            Err(error) => Err(error.into()),
        };
    }
}

/// Whether `file` is locked ([`try_lock`]) through another open file. Asking takes no lock, not
/// even for a moment, so it never disturbs those who lock.
///
/// # Errors
/// The file system has no locks.
#[cfg(target_os = "linux")]
pub fn is_locked(file: impl AsFd) -> io::Result<bool> {
    use nix::fcntl::{FcntlArg, fcntl};
    let mut found = whole_file();
    while let Err(error) = fcntl(&file, FcntlArg::F_OFD_GETLK(&mut found)) {
        if error != nix::Error::EINTR {
            return Err(error.into());
        }
    }
    Ok(i32::from(found.l_type) != nix::libc::F_UNLCK)
}

#[cfg(target_os = "linux")]
fn whole_file() -> nix::libc::flock {
    use nelly_disk::number::fits;
    use nix::libc::{F_WRLCK, SEEK_SET, flock};
    let (l_type, l_whence) = (fits(F_WRLCK, "a small constant"), fits(SEEK_SET, "a small constant"));
    flock { l_type, l_whence, l_start: 0, l_len: 0, l_pid: 0 }
}

/// As on Linux, had the system such locks: one of the whole file that descriptors share.
#[cfg(not(target_os = "linux"))]
pub fn try_lock(file: impl AsFd) -> io::Result<bool> {
    let how = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    match retry_on_intr(|| rustix::fs::flock(&file, how)) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// As on Linux, but the lock is taken for a moment to find out.
#[cfg(not(target_os = "linux"))]
pub fn is_locked(file: impl AsFd) -> io::Result<bool> {
    let free = rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockShared).is_ok();
    if free {
        rustix::fs::flock(file, rustix::fs::FlockOperation::Unlock)?;
    }
    Ok(!free)
}

/// Tells of changes in directories.
#[cfg(target_os = "linux")]
#[derive(Debug)]
pub(crate) struct Changes(OwnedFd);

#[cfg(target_os = "linux")]
impl Changes {
    pub(crate) fn new() -> io::Result<Self> {
        use rustix::fs::inotify::{CreateFlags, init};
        Ok(Self(init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?))
    }

    pub(crate) fn add(&self, directory: &Path) -> io::Result<()> {
        use rustix::fs::inotify::{WatchFlags, add_watch};
        let what = WatchFlags::CREATE | WatchFlags::MODIFY | WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO;
        add_watch(&self.0, directory, what)?;
        Ok(())
    }

    /// Waits for a change and takes all that are known. False if there was none.
    pub(crate) fn wait(&self, longest: std::time::Duration) -> io::Result<bool> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let longest =
            Timespec::try_from(longest).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        if poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&longest))? == 0 {
            return Ok(false);
        }
        let mut events = [0; 4096];
        loop {
            match rustix::io::read(&self.0, &mut events) {
                Ok(_) => {}
                Err(Errno::AGAIN) => return Ok(true),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// As on Linux, but it says at short intervals that there may be one.
#[cfg(not(target_os = "linux"))]
#[derive(Debug)]
pub(crate) struct Changes(());

#[cfg(not(target_os = "linux"))]
impl Changes {
    #[expect(clippy::unnecessary_wraps, reason = "as on Linux")]
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(()))
    }

    #[expect(clippy::unnecessary_wraps, clippy::unused_self, reason = "as on Linux")]
    pub(crate) fn add(&self, _directory: &Path) -> io::Result<()> {
        Ok(())
    }

    #[expect(clippy::unnecessary_wraps, clippy::unused_self, reason = "as on Linux")]
    pub(crate) fn wait(&self, longest: std::time::Duration) -> io::Result<bool> {
        std::thread::sleep(longest.min(std::time::Duration::from_millis(100)));
        Ok(true)
    }
}
