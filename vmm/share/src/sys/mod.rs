//! Calls of the host's system. Every one takes a descriptor and at most one name in it, which is
//! checked elsewhere to be one ([`crate::wire::Name`]), and follows no symbolic link, so that none
//! leads out of the directory.

use rustix::io::Errno as HostErrno;

use crate::errno::Errno;

#[cfg(target_os = "linux")]
mod changes;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(not(target_os = "linux"))]
mod other;

#[cfg(target_os = "linux")]
pub(crate) use changes::*;
#[cfg(target_os = "linux")]
pub(crate) use linux::*;
#[cfg(not(target_os = "linux"))]
pub(crate) use other::*;

/// What tells one file from every other that there is or was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Identity {
    /// The file system.
    pub(crate) device: u64,
    /// Its number of the file, which it uses again when the file is gone.
    pub(crate) inode: u64,
    /// When the file was made, in nanoseconds; 0 where the file system does not tell.
    pub(crate) birth: u64,
    /// What it is (S_IFMT).
    pub(crate) kind: u32,
}

/// Attributes of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stat {
    pub(crate) identity: Identity,
    /// Kind and permissions.
    pub(crate) mode: u32,
    pub(crate) nlink: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The device that it stands for, as FUSE writes it.
    pub(crate) rdev: u32,
    pub(crate) size: u64,
    pub(crate) blocks: u64,
    pub(crate) block_size: u32,
    pub(crate) atime: (i64, u32),
    pub(crate) mtime: (i64, u32),
    pub(crate) ctime: (i64, u32),
}

/// A change that the system tells of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change<'a> {
    /// The number of the directory or file that is watched.
    pub(crate) watch: i32,
    pub(crate) kind: ChangeKind,
    /// It is a directory that has changed.
    pub(crate) is_dir: bool,
    /// Its name in the directory; empty for what is watched itself.
    pub(crate) name: &'a [u8],
}

/// What has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "nothing is told there"))]
pub(crate) enum ChangeKind {
    /// There were too many changes.
    Lost,
    /// It is watched no longer.
    Forgotten,
    /// It has this name no longer.
    Gone,
    /// The same, and it may have another one.
    Away,
    /// It has this name now.
    New,
    /// Contents or attributes.
    Changed,
}

/// Bits of a mode that say what a file is.
pub(crate) const S_IFMT: u32 = 0o170_000;
/// A directory.
pub(crate) const S_IFDIR: u32 = 0o040_000;
/// A regular file.
pub(crate) const S_IFREG: u32 = 0o100_000;
/// A symbolic link.
pub(crate) const S_IFLNK: u32 = 0o120_000;
/// A character device.
pub(crate) const S_IFCHR: u32 = 0o020_000;
/// A block device.
pub(crate) const S_IFBLK: u32 = 0o060_000;

impl Stat {
    /// What it is.
    pub(crate) fn kind(&self) -> u32 {
        self.identity.kind
    }
}

/// How a file is opened for its data, in Linux's numbers as the driver sends them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OpenHow(pub(crate) u32);

impl OpenHow {
    const ACCESS: u32 = 0o3;
    pub(crate) const EXCL: u32 = 0o200;
    pub(crate) const TRUNC: u32 = 0o1000;
    const APPEND: u32 = 0o2000;
    const SYNC: u32 = 0o4_010_000;

    /// For writing alone, at any place.
    pub(crate) const WRITE_ONLY: Self = Self(1);

    /// Whether all that is written goes to the end.
    pub(crate) fn appends(self) -> bool {
        self.0 & Self::APPEND != 0
    }

    /// Whether it can be read.
    pub(crate) fn reads(self) -> bool {
        matches!(self.0 & Self::ACCESS, 0 | 2)
    }

    /// Whether it can be written.
    pub(crate) fn writes(self) -> bool {
        matches!(self.0 & Self::ACCESS, 1 | 2)
    }

    /// Whether its contents go.
    pub(crate) fn truncates(self) -> bool {
        self.0 & Self::TRUNC != 0
    }

    /// What the host is asked for: access, append and synchronous writes. Everything else is the
    /// driver's business (O_DIRECT, O_NONBLOCK, O_NOFOLLOW, O_DIRECTORY) or done apart (O_CREAT,
    /// O_TRUNC).
    pub(crate) fn kept(self) -> Self {
        Self(self.0 & (Self::ACCESS | Self::APPEND | Self::SYNC))
    }

    /// Whether it is for reading, writing or both.
    pub(crate) fn is_sound(self) -> bool {
        self.0 & Self::ACCESS != 3
    }
}

/// The error of a call of the host.
impl From<HostErrno> for Errno {
    fn from(error: HostErrno) -> Self {
        linux_number(error)
    }
}

impl From<std::io::Error> for Errno {
    fn from(error: std::io::Error) -> Self {
        HostErrno::from_io_error(&error).map_or(Self::IO, linux_number)
    }
}

/// Linux's number of an error of the host.
#[cfg(target_os = "linux")]
fn linux_number(error: HostErrno) -> Errno {
    Errno::linux(error.raw_os_error())
}

/// Linux's number of an error of the host.
#[cfg(not(target_os = "linux"))]
fn linux_number(error: HostErrno) -> Errno {
    match error {
        HostErrno::PERM => Errno::PERM,
        HostErrno::NOENT => Errno::NOENT,
        HostErrno::INTR => Errno::INTR,
        HostErrno::BADF => Errno::BADF,
        HostErrno::AGAIN => Errno::AGAIN,
        HostErrno::NOMEM => Errno::NOMEM,
        HostErrno::ACCESS => Errno::ACCES,
        HostErrno::EXIST => Errno::EXIST,
        HostErrno::XDEV => Errno::XDEV,
        HostErrno::NOTDIR => Errno::NOTDIR,
        HostErrno::ISDIR => Errno::ISDIR,
        HostErrno::INVAL => Errno::INVAL,
        HostErrno::NFILE => Errno::NFILE,
        HostErrno::MFILE => Errno::MFILE,
        HostErrno::FBIG => Errno::FBIG,
        HostErrno::NOSPC => Errno::NOSPC,
        HostErrno::ROFS => Errno::ROFS,
        HostErrno::RANGE => Errno::RANGE,
        HostErrno::NAMETOOLONG => Errno::NAMETOOLONG,
        HostErrno::NOLCK => Errno::NOLCK,
        HostErrno::NOSYS => Errno::NOSYS,
        HostErrno::NOTEMPTY => Errno::NOTEMPTY,
        HostErrno::OPNOTSUPP => Errno::OPNOTSUPP,
        HostErrno::STALE => Errno::STALE,
        _ => Errno::IO,
    }
}

/// How many descriptors this process may have.
pub(crate) fn descriptors_max() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_host_keep_their_meaning() {
        assert_eq!(Errno::from(std::io::Error::other("something")), Errno::IO);
        assert_eq!(Errno::from(std::io::Error::from(HostErrno::NOTEMPTY)), Errno::NOTEMPTY);
        assert_eq!(Errno::from(HostErrno::STALE), Errno::STALE);
    }

    #[test]
    fn little_of_what_a_driver_asks_for_reaches_the_host() {
        let how = OpenHow(!1);
        assert!(how.is_sound() && how.reads() && how.writes() && how.truncates());
        assert_eq!(how.kept().0, 0o2 | 0o2000 | 0o4_010_000);
        assert!(!OpenHow(3).is_sound());
        assert!(OpenHow(0).reads() && !OpenHow(0).writes() && !OpenHow(1).reads());
    }
}
