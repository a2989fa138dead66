//! Mounts.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::null;

use super::{c_string, check, check_long, owned_long};

/// How much of `disk`, a block device, the kernel reads around a page that a program touches, in
/// whole sectors of 512 bytes. File systems that are mounted afterwards have it too.
///
/// # Errors
/// Those of ioctl(2) BLKRASET.
pub fn set_read_ahead(disk: &File, bytes: u32) -> io::Result<()> {
    const BLKRASET: libc::Ioctl = 0x1262;
    // SAFETY: the request takes a number, no memory.
    check(unsafe { libc::ioctl(disk.as_raw_fd(), BLKRASET, libc::c_ulong::from(bytes / 512)) }).map(drop)
}

/// Makes a mounted ext4, of which `root` is a directory, `blocks` of its blocks large.
///
/// # Errors
/// Those of the ext4 driver: it cannot shrink, and needs CAP_SYS_RESOURCE.
pub fn resize_ext4(root: &File, blocks: u64) -> io::Result<()> {
    const EXT4_IOC_RESIZE_FS: libc::Ioctl = 0x4008_6610;
    // SAFETY: the request reads eight bytes, which outlive the call.
    check(unsafe { libc::ioctl(root.as_raw_fd(), EXT4_IOC_RESIZE_FS, &raw const blocks) }).map(drop)
}

/// mount(2).
///
/// # Errors
/// Those of mount(2).
pub fn mount(source: &str, target: &str, kind: &str, flags: u64, data: &str) -> io::Result<()> {
    let (source, target) = (c_string(source)?, c_string(target)?);
    let (kind, data) = (c_string(kind)?, c_string(data)?);
    // SAFETY: four C strings that outlive the call.
    let result =
        unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast()) };
    check(result).map(drop)
}

/// Changes how mount events travel between this mount and others.
///
/// # Errors
/// Those of mount(2).
pub fn set_propagation(target: &str, flags: u64) -> io::Result<()> {
    let target = c_string(target)?;
    // SAFETY: a C string that outlives the call; the others may be null.
    check(unsafe { libc::mount(null(), target.as_ptr(), null(), flags, null()) }).map(drop)
}

/// umount2(2), lazily, not following a symbolic link.
///
/// # Errors
/// Those of umount2(2).
pub fn unmount(target: &str) -> io::Result<()> {
    let target = c_string(target)?;
    // SAFETY: a C string that outlives the call.
    check(unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) }).map(drop)
}

/// Makes the current directory, a mount point, the root; the old root is gone for this mount
/// namespace.
///
/// # Errors
/// Those of pivot_root(2), umount2(2) and chdir(2).
pub fn pivot_here() -> io::Result<()> {
    // SAFETY: C strings. The old root is stacked on the new one, so that "." then names the old
    // one.
    check_long(unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) })?;
    // SAFETY: a C string.
    check(unsafe { libc::umount2(c".".as_ptr(), libc::MNT_DETACH) })?;
    // SAFETY: a C string.
    check(unsafe { libc::chdir(c"/".as_ptr()) }).map(drop)
}

/// A detached copy of the mount at a path, with those below it if asked.
///
/// # Errors
/// Those of open_tree(2).
pub fn clone_tree(path: &str, recursive: bool) -> io::Result<OwnedFd> {
    const OPEN_TREE_CLONE: libc::c_uint = 1;
    let path = c_string(path)?;
    let mut flags = OPEN_TREE_CLONE | libc::O_CLOEXEC.cast_unsigned();
    if recursive {
        flags |= libc::AT_RECURSIVE.cast_unsigned();
    }
    // SAFETY: a C string that outlives the call.
    owned_long(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })
}

/// Attaches a detached mount at a path.
///
/// # Errors
/// Those of move_mount(2).
pub fn move_tree(tree: BorrowedFd<'_>, target: &str) -> io::Result<()> {
    const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
    const MOVE_MOUNT_T_SYMLINKS: libc::c_uint = 0x10;
    let target = c_string(target)?;
    // SAFETY: C strings that outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_SYMLINKS,
        )
    };
    check_long(result).map(drop)
}

/// Attributes of a mount, as `MS_*` flags to set and to clear.
#[derive(Debug, Clone, Copy, Default)]
pub struct MountAttributes {
    /// Set these.
    pub set: u64,
    /// Clear these.
    pub clear: u64,
}

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

/// `MS_*` and `MOUNT_ATTR_*`.
const ATTRIBUTES: [(u64, u64); 5] = [
    (libc::MS_RDONLY, 1),
    (libc::MS_NOSUID, 2),
    (libc::MS_NODEV, 4),
    (libc::MS_NOEXEC, 8),
    (libc::MS_NODIRATIME, 0x80),
];
const ATTR_ATIME_MASK: u64 = 0x70;
const ATTR_NOATIME: u64 = 0x10;
const ATTR_STRICTATIME: u64 = 0x20;

/// mount_setattr(2) on the mount at a path; attributes not named stay as they are.
///
/// # Errors
/// Those of mount_setattr(2).
pub fn mount_attributes(target: &str, wanted: MountAttributes) -> io::Result<()> {
    let mut attr = MountAttr { set: 0, clear: 0, propagation: 0, userns: 0 };
    for (flag, attribute) in ATTRIBUTES {
        if wanted.set & flag != 0 {
            attr.set |= attribute;
        } else if wanted.clear & flag != 0 {
            attr.clear |= attribute;
        }
    }
    let atime = if wanted.set & libc::MS_NOATIME != 0 {
        Some(ATTR_NOATIME)
    } else if wanted.set & libc::MS_STRICTATIME != 0 {
        Some(ATTR_STRICTATIME)
    } else if wanted.set & libc::MS_RELATIME != 0 {
        Some(0)
    } else {
        None
    };
    if let Some(atime) = atime {
        attr.clear |= ATTR_ATIME_MASK;
        attr.set |= atime;
    }
    if attr.set | attr.clear == 0 {
        return Ok(());
    }
    let target = c_string(target)?;
    // SAFETY: a C string and a structure of the size given, both outliving the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            target.as_ptr(),
            0,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    check_long(result).map(drop)
}
