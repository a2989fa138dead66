//! Linux.

use std::ffi::CStr;
use std::fmt::Write as _;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nelly_disk::number::{at_most, fits};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Gid, Mode, OFlags, RawDir, RenameFlags, ResolveFlags, SeekFrom,
    StatxFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid, XattrFlags,
};

use super::{Identity, OpenHow, S_IFMT, Stat};
use crate::errno::Errno;
use crate::wire::{LockKind, LockRange, SetTime, StatFs};

type Result<T> = std::result::Result<T, Errno>;

/// Whether this system can share trees: it has what [`reopen`] needs.
pub(crate) fn supported() -> std::io::Result<()> {
    let open = || rustix::fs::open(c"/proc/self/fd", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    rustix::io::retry_on_intr(open).map(drop).map_err(|error| {
        let error = std::io::Error::from(error);
        std::io::Error::new(
            error.kind(),
            format!("/proc/self/fd cannot be used, which a share needs: {error}"),
        )
    })
}

fn stat_of(fd: BorrowedFd<'_>, name: &CStr, flags: AtFlags) -> Result<Stat> {
    let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let flags = flags | AtFlags::SYMLINK_NOFOLLOW;
    let found = rustix::io::retry_on_intr(|| rustix::fs::statx(fd, name, flags, mask))?;
    let time = |time: rustix::fs::StatxTimestamp| (time.tv_sec, time.tv_nsec);
    let birth = if found.stx_mask & StatxFlags::BTIME.bits() == 0 {
        0
    } else {
        let seconds = found.stx_btime.tv_sec.cast_unsigned();
        seconds.wrapping_mul(1_000_000_000).wrapping_add(u64::from(found.stx_btime.tv_nsec))
    };
    let mode = u32::from(found.stx_mode);
    Ok(Stat {
        identity: Identity {
            device: rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor),
            inode: found.stx_ino,
            birth,
            kind: mode & S_IFMT,
        },
        mode,
        nlink: found.stx_nlink,
        uid: found.stx_uid,
        gid: found.stx_gid,
        rdev: encode_device(found.stx_rdev_major, found.stx_rdev_minor),
        size: found.stx_size,
        blocks: found.stx_blocks,
        block_size: found.stx_blksize,
        atime: time(found.stx_atime),
        mtime: time(found.stx_mtime),
        ctime: time(found.stx_ctime),
    })
}

/// `new_encode_dev` of Linux.
fn encode_device(major: u32, minor: u32) -> u32 {
    minor & 0xff | (major & 0xfff) << 8 | (minor & !0xff) << 12
}

/// `new_decode_dev` of Linux.
fn decode_device(device: u32) -> u64 {
    rustix::fs::makedev((device & 0xf_ff00) >> 8, device & 0xff | device >> 12 & 0xf_ff00)
}

/// Attributes of an entry of a directory.
pub(crate) fn stat_at(dir: BorrowedFd<'_>, name: &CStr) -> Result<Stat> {
    stat_of(dir, name, AtFlags::empty())
}

/// Attributes of what a descriptor stands for.
pub(crate) fn stat(fd: BorrowedFd<'_>) -> Result<Stat> {
    stat_of(fd, c"", AtFlags::EMPTY_PATH)
}

/// A descriptor of an entry that stands for it without opening it, symbolic links and devices
/// included. RESOLVE_BENEATH and its like are a second wall: one name without `/` leads nowhere
/// else in any case, which is what holds where the call does not exist.
pub(crate) fn open_path(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(dir, name, flags, Mode::empty(), resolve) {
        Err(
            rustix::io::Errno::NOSYS
            | rustix::io::Errno::PERM
            | rustix::io::Errno::AGAIN
            | rustix::io::Errno::INTR,
        ) => Ok(rustix::io::retry_on_intr(|| rustix::fs::openat(dir, name, flags, Mode::empty()))?),
        opened => Ok(opened?),
    }
}

/// The path of a descriptor of this process.
pub(super) struct OwnPath {
    bytes: [u8; 320],
    len: usize,
}

impl OwnPath {
    pub(super) fn new(fd: BorrowedFd<'_>) -> Self {
        let mut path = Self { bytes: [0; 320], len: 0 };
        write!(path, "/proc/self/fd/{}", fd.as_raw_fd()).expect("there is room for a number");
        path
    }

    fn entry(dir: BorrowedFd<'_>, name: &CStr) -> Self {
        let mut path = Self::new(dir);
        path.push(b"/");
        path.push(name.to_bytes());
        path
    }

    /// As much as there is room for: all names in use are short enough.
    fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(self.bytes.len() - 1 - self.len)];
        self.bytes[self.len..][..bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    pub(super) fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).expect("what follows the path is zero")
    }
}

impl std::fmt::Write for OwnPath {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.push(text.as_bytes());
        Ok(())
    }
}

/// Whether what `fd` stands for is a file of procfs. Some of these are regular files by their kind,
/// and the memory of a process by what they hold.
pub(crate) fn is_of_processes(fd: BorrowedFd<'_>) -> Result<bool> {
    Ok(rustix::io::retry_on_intr(|| rustix::fs::fstatfs(fd))?.f_type == rustix::fs::PROC_SUPER_MAGIC)
}

/// Opens what `fd` stands for. It must be a regular file: opening a device may act, opening a pipe
/// may wait. Files of procfs are refused.
pub(crate) fn reopen(fd: BorrowedFd<'_>, how: OpenHow) -> Result<OwnedFd> {
    if is_of_processes(fd)? {
        return Err(Errno::ACCES);
    }
    let flags = OFlags::from_bits_retain(how.kept().0) | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let path = OwnPath::new(fd);
    Ok(rustix::io::retry_on_intr(|| rustix::fs::open(path.as_c_str(), flags, Mode::empty()))?)
}

/// Opens a directory for its entries.
pub(crate) fn open_dir(dir: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::io::retry_on_intr(|| rustix::fs::openat(dir, c".", flags, Mode::empty()))?)
}

/// Makes and opens a regular file that must not exist.
pub(crate) fn create(dir: BorrowedFd<'_>, name: &CStr, how: OpenHow, mode: u32) -> Result<OwnedFd> {
    let flags = OFlags::from_bits_retain(how.kept().0)
        | (OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY);
    Ok(rustix::io::retry_on_intr(|| rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(mode)))?)
}

/// Makes and opens a file without a name, which may be given one.
pub(crate) fn create_unnamed(dir: BorrowedFd<'_>, how: OpenHow, mode: u32) -> Result<OwnedFd> {
    let flags = OFlags::from_bits_retain(how.kept().0) | OFlags::TMPFILE | OFlags::CLOEXEC;
    match rustix::io::retry_on_intr(|| rustix::fs::openat(dir, c".", flags, Mode::from_raw_mode(mode))) {
        Err(rustix::io::Errno::ISDIR | rustix::io::Errno::NOENT) => Err(Errno::OPNOTSUPP),
        opened => Ok(opened?),
    }
}

/// Makes a directory.
pub(crate) fn make_dir(dir: BorrowedFd<'_>, name: &CStr, mode: u32) -> Result<()> {
    Ok(rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(mode))?)
}

/// Makes a file, a pipe, a socket or a device; `kind` is S_IFMT's bits, `device` as FUSE has it.
pub(crate) fn make_node(dir: BorrowedFd<'_>, name: &CStr, kind: u32, mode: u32, device: u32) -> Result<()> {
    let kind = FileType::from_raw_mode(kind);
    Ok(rustix::fs::mknodat(dir, name, kind, Mode::from_raw_mode(mode), decode_device(device))?)
}

/// Makes a symbolic link.
pub(crate) fn make_symlink(dir: BorrowedFd<'_>, name: &CStr, target: &CStr) -> Result<()> {
    Ok(rustix::fs::symlinkat(target, dir, name)?)
}

/// Gives what `fd` stands for another name.
pub(crate) fn make_link(fd: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    Ok(rustix::fs::linkat(CWD, OwnPath::new(fd).as_c_str(), dir, name, AtFlags::SYMLINK_FOLLOW)?)
}

/// Removes a name, of a directory if `is_dir`.
pub(crate) fn remove(dir: BorrowedFd<'_>, name: &CStr, is_dir: bool) -> Result<()> {
    let flags = if is_dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    Ok(rustix::fs::unlinkat(dir, name, flags)?)
}

/// Moves a name; `flags` are those of renameat2.
pub(crate) fn rename(
    from: BorrowedFd<'_>,
    name: &CStr,
    to: BorrowedFd<'_>,
    new_name: &CStr,
    flags: u32,
) -> Result<()> {
    if flags == 0 {
        return Ok(rustix::fs::renameat(from, name, to, new_name)?);
    }
    Ok(rustix::fs::renameat_with(from, name, to, new_name, RenameFlags::from_bits_retain(flags))?)
}

/// Where a symbolic link points, `fd` being the link.
pub(crate) fn read_link(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    Ok(rustix::fs::readlinkat(fd, c"", Vec::with_capacity(256))?.into_bytes())
}

/// Sets owner and group of what `fd` stands for, links included.
pub(crate) fn set_owner(fd: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
    let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
    Ok(rustix::fs::chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Sets permissions of what `fd` stands for, which is no symbolic link.
pub(crate) fn set_mode(fd: BorrowedFd<'_>, mode: u32) -> Result<()> {
    Ok(rustix::fs::chmodat(CWD, OwnPath::new(fd).as_c_str(), Mode::from_raw_mode(mode), AtFlags::empty())?)
}

/// Sets times of what `fd` stands for.
pub(crate) fn set_times(fd: BorrowedFd<'_>, atime: Option<SetTime>, mtime: Option<SetTime>) -> Result<()> {
    let time = |time: Option<SetTime>| match time {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(SetTime::At(seconds, nanos)) => Timespec { tv_sec: seconds, tv_nsec: i64::from(nanos) },
    };
    let times = Timestamps { last_access: time(atime), last_modification: time(mtime) };
    Ok(rustix::fs::utimensat(CWD, OwnPath::new(fd).as_c_str(), &times, AtFlags::empty())?)
}

/// Sets the length of an open file.
pub(crate) fn set_len(fd: BorrowedFd<'_>, len: u64) -> Result<()> {
    if i64::try_from(len).is_err() {
        return Err(Errno::FBIG);
    }
    Ok(rustix::io::retry_on_intr(|| rustix::fs::ftruncate(fd, len))?)
}

/// Reads an extended attribute of an entry into `buffer`; how many bytes it has.
pub(crate) fn xattr_at(dir: BorrowedFd<'_>, name: &CStr, xattr: &CStr, buffer: &mut [u8]) -> Result<usize> {
    Ok(rustix::fs::lgetxattr(OwnPath::entry(dir, name).as_c_str(), xattr, buffer)?)
}

/// Reads an extended attribute of what `fd` stands for; how many bytes it has.
pub(crate) fn xattr(fd: BorrowedFd<'_>, name: &CStr, buffer: &mut [u8]) -> Result<usize> {
    Ok(rustix::fs::getxattr(OwnPath::new(fd).as_c_str(), name, buffer)?)
}

/// Bytes of an extended attribute.
pub(crate) fn xattr_len(fd: BorrowedFd<'_>, name: &CStr) -> Result<usize> {
    Ok(rustix::fs::getxattr_query(OwnPath::new(fd).as_c_str(), name)?)
}

/// Names of all extended attributes, each ended by a NUL.
pub(crate) fn xattr_names(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let path = OwnPath::new(fd);
    // As many as one call can tell; a list that grows meanwhile is asked for again.
    for room in [4 << 10, 64 << 10] {
        let mut names = vec![0; room];
        match rustix::fs::listxattr(path.as_c_str(), &mut names[..]) {
            Ok(len) => {
                names.truncate(len);
                return Ok(names);
            }
            Err(rustix::io::Errno::RANGE) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Errno::linux(7))
}

/// Sets an extended attribute; `flags` are XATTR_CREATE and XATTR_REPLACE.
pub(crate) fn set_xattr(fd: BorrowedFd<'_>, name: &CStr, value: &[u8], flags: u32) -> Result<()> {
    let flags = XattrFlags::from_bits_retain(flags);
    Ok(rustix::fs::setxattr(OwnPath::new(fd).as_c_str(), name, value, flags)?)
}

/// Removes an extended attribute.
pub(crate) fn remove_xattr(fd: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    Ok(rustix::fs::removexattr(OwnPath::new(fd).as_c_str(), name)?)
}

/// Writes what was written to the disk.
pub(crate) fn sync(fd: BorrowedFd<'_>, data_only: bool) -> Result<()> {
    let sync = || if data_only { rustix::fs::fdatasync(fd) } else { rustix::fs::fsync(fd) };
    Ok(rustix::io::retry_on_intr(sync)?)
}

/// Writes everything of the file system to the disk. `fd` is open, not only a path.
pub(crate) fn sync_all(fd: BorrowedFd<'_>) -> Result<()> {
    Ok(rustix::io::retry_on_intr(|| rustix::fs::syncfs(fd))?)
}

/// Space of the file system.
pub(crate) fn stat_fs(fd: BorrowedFd<'_>) -> Result<StatFs> {
    let found = rustix::io::retry_on_intr(|| rustix::fs::fstatvfs(fd))?;
    Ok(StatFs {
        blocks: found.f_blocks,
        free: found.f_bfree,
        available: found.f_bavail,
        files: found.f_files,
        files_free: found.f_ffree,
        block_size: at_most(found.f_bsize, 1 << 30),
        fragment: at_most(found.f_frsize, 1 << 30),
    })
}

/// Reserves, frees or zeroes space of an open file; `mode` is that of fallocate.
pub(crate) fn allocate(fd: BorrowedFd<'_>, mode: u32, offset: u64, len: u64) -> Result<()> {
    // Collapsing and inserting move data under the driver's cache.
    let known = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
    let mode = FallocateFlags::from_bits_retain(mode);
    if !known.contains(mode) {
        return Err(Errno::OPNOTSUPP);
    }
    if offset.checked_add(len).is_none_or(|end| i64::try_from(end).is_err()) {
        return Err(Errno::FBIG);
    }
    Ok(rustix::io::retry_on_intr(|| rustix::fs::fallocate(fd, mode, offset, len))?)
}

/// The first data (`data`) or the first hole of an open file from `offset` on.
pub(crate) fn seek(fd: BorrowedFd<'_>, offset: u64, data: bool) -> Result<u64> {
    if i64::try_from(offset).is_err() {
        return Err(Errno::linux(6));
    }
    Ok(rustix::fs::seek(fd, if data { SeekFrom::Data(offset) } else { SeekFrom::Hole(offset) })?)
}

/// Copies between open files; how many bytes.
pub(crate) fn copy_range(
    from: BorrowedFd<'_>,
    mut from_offset: u64,
    to: BorrowedFd<'_>,
    mut to_offset: u64,
    len: usize,
) -> Result<usize> {
    let copied = rustix::fs::copy_file_range(from, Some(&mut from_offset), to, Some(&mut to_offset), len);
    Ok(copied?)
}

/// Moves an open directory to the place that an entry's `next` says.
pub(crate) fn seek_dir(fd: BorrowedFd<'_>, place: u64) -> Result<()> {
    let place = i64::try_from(place).map_err(|_| Errno::INVAL)?;
    rustix::fs::seek(fd, SeekFrom::Start(place.cast_unsigned()))?;
    Ok(())
}

/// Calls `each` with the next entries of an open directory, as many as one call of the system
/// returns: number of the inode, place of the next entry, DT_ number, name. None: it is at its end.
pub(crate) fn read_dir(fd: BorrowedFd<'_>, mut each: impl FnMut(u64, u64, u8, &CStr)) -> Result<()> {
    let mut buffer = [MaybeUninit::uninit(); 8 << 10];
    let mut entries = RawDir::new(fd, &mut buffer);
    loop {
        match entries.next() {
            None => return Ok(()),
            Some(Err(rustix::io::Errno::INTR)) => continue,
            Some(entry) => {
                let entry = entry?;
                let kind = kind_number(entry.file_type());
                each(entry.ino(), entry.next_entry_cookie(), kind, entry.file_name());
            }
        }
        if entries.is_buffer_empty() {
            return Ok(());
        }
    }
}

/// DT_ numbers are the kind's bits of a mode.
fn kind_number(kind: FileType) -> u8 {
    match kind {
        FileType::Fifo => 1,
        FileType::CharacterDevice => 2,
        FileType::Directory => 4,
        FileType::BlockDevice => 6,
        FileType::RegularFile => 8,
        FileType::Symlink => 10,
        FileType::Socket => 12,
        FileType::Unknown => 0,
    }
}

/// `struct flock` of a lock.
fn flock_of(lock: &LockRange) -> Result<nix::libc::flock> {
    let kind = match lock.kind {
        LockKind::Read => nix::libc::F_RDLCK,
        LockKind::Write => nix::libc::F_WRLCK,
        LockKind::Unlock => nix::libc::F_UNLCK,
    };
    let start = i64::try_from(lock.start).map_err(|_| Errno::INVAL)?;
    // Length 0: to the end, wherever that will be.
    let last = i64::try_from(lock.end).ok().filter(|end| *end != i64::MAX);
    Ok(nix::libc::flock {
        l_type: fits(kind, "three small numbers"),
        l_whence: fits(nix::libc::SEEK_SET, "three small numbers"),
        l_start: start,
        l_len: last.map_or(0, |last| last - start + 1),
        l_pid: 0,
    })
}

/// Sets or removes a lock of the open file `fd`, which no other descriptor shares, without waiting:
/// `EAGAIN` when another is in the way.
pub(crate) fn set_lock(fd: BorrowedFd<'_>, lock: &LockRange) -> Result<()> {
    use rustix::fs::FlockOperation;
    if lock.flock {
        let operation = match lock.kind {
            LockKind::Read => FlockOperation::NonBlockingLockShared,
            LockKind::Write => FlockOperation::NonBlockingLockExclusive,
            LockKind::Unlock => FlockOperation::NonBlockingUnlock,
        };
        return Ok(rustix::io::retry_on_intr(|| rustix::fs::flock(fd, operation))?);
    }
    let wanted = flock_of(lock)?;
    match nix::fcntl::fcntl(fd.as_fd(), nix::fcntl::FcntlArg::F_OFD_SETLK(&wanted)) {
        Ok(_) => Ok(()),
        Err(nix::errno::Errno::EACCES) => Err(Errno::AGAIN),
        Err(error) => Err(Errno::linux(error as i32)),
    }
}

/// The first lock that is in the way of `lock`; `None`: it could be set.
pub(crate) fn lock_in_the_way(fd: BorrowedFd<'_>, lock: &LockRange) -> Result<Option<LockRange>> {
    let mut found = flock_of(lock)?;
    nix::fcntl::fcntl(fd.as_fd(), nix::fcntl::FcntlArg::F_OFD_GETLK(&mut found))
        .map_err(|error| Errno::linux(error as i32))?;
    let kind = match i32::from(found.l_type) {
        nix::libc::F_RDLCK => LockKind::Read,
        nix::libc::F_WRLCK => LockKind::Write,
        _ => return Ok(None),
    };
    let end = if found.l_len == 0 { i64::MAX } else { found.l_start.saturating_add(found.l_len - 1) };
    let (start, end) = (found.l_start.cast_unsigned(), end.cast_unsigned());
    Ok(Some(LockRange { start, end, kind, ..*lock }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_numbered_as_linux_does() {
        for (major, minor) in [(1, 3), (8, 0x1_2345), (0xfff, 0xf_ffff), (0, 0)] {
            let encoded = encode_device(major, minor);
            assert_eq!(decode_device(encoded), rustix::fs::makedev(major, minor), "{major}:{minor}");
        }
        assert_eq!(encode_device(1, 3), 0x103);
    }

    #[test]
    fn the_longest_name_has_room_behind_the_largest_descriptor() {
        let name = std::ffi::CString::new(vec![b'n'; 255]).unwrap();
        let dir = rustix::fs::open(c"/", OFlags::PATH, Mode::empty()).unwrap();
        let path = OwnPath::entry(dir.as_fd(), &name);
        assert!(path.as_c_str().count_bytes() > 255 + "/proc/self/fd/".len());
        assert!("/proc/self/fd/2147483647/".len() + 255 < 320);
    }
}
