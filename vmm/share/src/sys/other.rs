//! Systems other than Linux: nothing is shared there yet. `supported` says so before a server is
//! made, and every call would too.

use std::ffi::CStr;
use std::os::fd::{BorrowedFd, OwnedFd};

use super::{Change, OpenHow, Stat};
use crate::errno::Errno;
use crate::wire::{LockRange, SetTime, StatFs};

type Result<T> = std::result::Result<T, Errno>;

/// Whether this system can share trees.
pub(crate) fn supported() -> std::io::Result<()> {
    Err(std::io::Error::new(
        std::io::ErrorKind::Unsupported,
        "directories can be shared on Linux only: this system lacks what keeps a guest inside of them",
    ))
}

/// Declares the calls of the other room, none of which exists here.
macro_rules! missing {
    ($($name:ident($($argument:ty),*) -> $result:ty;)*) => {
        $(pub(crate) fn $name($(_: $argument),*) -> Result<$result> {
            Err(Errno::NOSYS)
        })*
    };
}

missing! {
    stat_at(BorrowedFd<'_>, &CStr) -> Stat;
    stat(BorrowedFd<'_>) -> Stat;
    open_path(BorrowedFd<'_>, &CStr) -> OwnedFd;
    reopen(BorrowedFd<'_>, OpenHow) -> OwnedFd;
    open_dir(BorrowedFd<'_>) -> OwnedFd;
    create(BorrowedFd<'_>, &CStr, OpenHow, u32) -> OwnedFd;
    create_unnamed(BorrowedFd<'_>, OpenHow, u32) -> OwnedFd;
    make_dir(BorrowedFd<'_>, &CStr, u32) -> ();
    make_node(BorrowedFd<'_>, &CStr, u32, u32, u32) -> ();
    make_symlink(BorrowedFd<'_>, &CStr, &CStr) -> ();
    make_link(BorrowedFd<'_>, BorrowedFd<'_>, &CStr) -> ();
    remove(BorrowedFd<'_>, &CStr, bool) -> ();
    rename(BorrowedFd<'_>, &CStr, BorrowedFd<'_>, &CStr, u32) -> ();
    read_link(BorrowedFd<'_>) -> Vec<u8>;
    set_owner(BorrowedFd<'_>, Option<u32>, Option<u32>) -> ();
    set_mode(BorrowedFd<'_>, u32) -> ();
    set_times(BorrowedFd<'_>, Option<SetTime>, Option<SetTime>) -> ();
    set_len(BorrowedFd<'_>, u64) -> ();
    xattr_at(BorrowedFd<'_>, &CStr, &CStr, &mut [u8]) -> usize;
    xattr(BorrowedFd<'_>, &CStr, &mut [u8]) -> usize;
    xattr_len(BorrowedFd<'_>, &CStr) -> usize;
    xattr_names(BorrowedFd<'_>) -> Vec<u8>;
    set_xattr(BorrowedFd<'_>, &CStr, &[u8], u32) -> ();
    remove_xattr(BorrowedFd<'_>, &CStr) -> ();
    sync(BorrowedFd<'_>, bool) -> ();
    sync_all(BorrowedFd<'_>) -> ();
    stat_fs(BorrowedFd<'_>) -> StatFs;
    allocate(BorrowedFd<'_>, u32, u64, u64) -> ();
    seek(BorrowedFd<'_>, u64, bool) -> u64;
    copy_range(BorrowedFd<'_>, u64, BorrowedFd<'_>, u64, usize) -> usize;
    seek_dir(BorrowedFd<'_>, u64) -> ();
    read_dir(BorrowedFd<'_>, impl FnMut(u64, u64, u8, &CStr)) -> ();
    changes() -> OwnedFd;
    watch(BorrowedFd<'_>, BorrowedFd<'_>) -> i32;
    read_changes(BorrowedFd<'_>, impl FnMut(Change<'_>)) -> bool;
    set_lock(BorrowedFd<'_>, &LockRange) -> ();
    lock_in_the_way(BorrowedFd<'_>, &LockRange) -> Option<LockRange>;
}

/// See Linux.
pub(crate) fn watches_max() -> usize {
    0
}

/// See Linux.
pub(crate) fn unwatch(_changes: BorrowedFd<'_>, _number: i32) {}
