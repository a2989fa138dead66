//! inotify of Linux.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};

use super::linux::OwnPath;
use super::{Change, ChangeKind};
use crate::errno::Errno;

type Result<T> = std::result::Result<T, Errno>;

/// What tells of changes, once it is told where. Reading it does not wait.
pub(crate) fn changes() -> Result<OwnedFd> {
    Ok(inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?)
}

/// Has `changes` tell of those of a directory and its entries, or of a file. The number is the same
/// as long as the inode is.
pub(crate) fn watch(changes: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> Result<i32> {
    let what = WatchFlags::CREATE
        | WatchFlags::MODIFY
        | WatchFlags::ATTRIB
        | WatchFlags::MOVED_TO
        | WatchFlags::MOVED_FROM
        | WatchFlags::DELETE
        | WatchFlags::EXCL_UNLINK;
    Ok(inotify::add_watch(changes, OwnPath::new(fd).as_c_str(), what)?)
}

/// How many directories and files the system watches for one user at most.
pub(crate) fn watches_max() -> usize {
    let limit = std::fs::read_to_string("/proc/sys/fs/inotify/max_user_watches");
    limit.ok().and_then(|limit| limit.trim().parse().ok()).unwrap_or(8192)
}

/// Ends that.
pub(crate) fn unwatch(changes: BorrowedFd<'_>, number: i32) {
    // What is not watched any more need not be ended.
    let _ = inotify::remove_watch(changes, number);
}

/// Changes that one call reads: those who make them may be faster than this reads.
const AT_ONCE: usize = 16 << 10;

/// Calls `each` with the changes that there are, and says whether there may be more.
pub(crate) fn read_changes(changes: BorrowedFd<'_>, mut each: impl FnMut(Change<'_>)) -> Result<bool> {
    let mut buffer = [MaybeUninit::uninit(); 16 << 10];
    let mut reader = Reader::new(changes, &mut buffer);
    let mut count = 0;
    loop {
        if count >= AT_ONCE && reader.is_buffer_empty() {
            return Ok(true);
        }
        count += 1;
        let event = match reader.next() {
            Ok(event) => event,
            Err(rustix::io::Errno::INTR) => continue,
            Err(rustix::io::Errno::AGAIN) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let flags = event.events();
        let kind = if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            ChangeKind::Lost
        } else if flags.contains(ReadFlags::IGNORED) {
            ChangeKind::Forgotten
        } else if flags.contains(ReadFlags::MOVED_FROM) {
            ChangeKind::Away
        } else if flags.contains(ReadFlags::DELETE) {
            ChangeKind::Gone
        } else if flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
            ChangeKind::New
        } else {
            ChangeKind::Changed
        };
        let is_dir = flags.contains(ReadFlags::ISDIR);
        let name = event.file_name().map_or(&b""[..], CStr::to_bytes);
        each(Change { watch: event.wd(), kind, is_dir, name });
    }
}
