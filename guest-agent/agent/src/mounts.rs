//! The guest's own mounts. The agent first moves to a new root, because pivot_root(2), which every
//! container needs, cannot leave an initramfs.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};
use thiserror::Error;

use crate::cgroup::{self, CgroupError};
use crate::sys;

/// An empty directory on which new containers are mounted, each in its own mount namespace.
pub const WORKDIR: &str = "/mnt";

/// Mount point of cgroup v2.
pub const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// `nsdelegate`: processes cannot be moved out of a cgroup namespace, nor the limits at its root be
/// changed. `memory_recursiveprot`: memory protection of a container applies to its descendants.
pub const CGROUP_OPTIONS: &str = "nsdelegate,memory_recursiveprot";

/// Without capabilities, BPF programs cannot be loaded and the kernel log cannot be read. The file
/// does not exist if the kernel lacks the feature.
const KERNEL_PARAMETERS: [(&str, &str); 2] =
    [("kernel/unprivileged_bpf_disabled", "1"), ("kernel/dmesg_restrict", "1")];

/// linux/magic.h.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

/// Why the set-up failed.
#[derive(Debug, Error)]
pub enum MountError {
    /// The root is neither an initramfs nor a tmpfs, so its files must not be deleted.
    #[error("the root file system is not an initramfs (file system type {0:#x})")]
    NotInitramfs(i64),
    /// A step failed; the text says what was tried.
    #[error("cannot {0}")]
    Step(String, #[source] io::Error),
    /// The cgroup controllers cannot be enabled.
    #[error("cannot set up cgroups")]
    Cgroup(#[source] CgroupError),
}

fn step(what: impl Into<String>) -> impl FnOnce(io::Error) -> MountError {
    let what = what.into();
    move |error| MountError::Step(what, error)
}

const NEW_ROOT: &str = "/.root";

/// Moves the agent from the initramfs to a new root file system, and mounts what a guest needs. The
/// agent's program is deleted with the rest of the initramfs. It stays in memory without a name,
/// because it is running, and the kernel does not allow writes to it.
///
/// # Errors
/// [`MountError`]; the guest is then unusable.
pub fn take_over() -> Result<(), MountError> {
    leave_initramfs()?;
    let flags = libc::MS_NOSUID | libc::MS_NOEXEC;
    let nodev = flags | libc::MS_NODEV;
    fs::create_dir_all("/dev/pts").map_err(step("make /dev/pts"))?;
    for (kind, target, flags, data) in [
        ("devpts", "/dev/pts", flags, "mode=620,gid=5,ptmxmode=666"),
        ("cgroup2", CGROUP_ROOT, nodev, CGROUP_OPTIONS),
    ] {
        sys::mount(kind, target, kind, flags, data).map_err(step(format!("mount {kind} on {target}")))?;
    }
    for (parameter, value) in KERNEL_PARAMETERS {
        let file = OpenOptions::new().write(true).open(format!("/proc/sys/{parameter}"));
        match file.and_then(|mut file| file.write_all(value.as_bytes())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(step(format!("set the kernel parameter {parameter} to {value}"))(error));
            }
            _ => {}
        }
    }
    cgroup::delegate_controllers(Path::new(CGROUP_ROOT)).map_err(MountError::Cgroup)
}

fn leave_initramfs() -> Result<(), MountError> {
    let kind = statfs("/").map_err(io::Error::from).map_err(step("look at the root"))?.filesystem_type();
    if kind != RAMFS_MAGIC && kind != TMPFS_MAGIC {
        return Err(MountError::NotInitramfs(kind.0));
    }
    fs::create_dir_all(NEW_ROOT).map_err(step("make the new root"))?;
    sys::mount("tmpfs", NEW_ROOT, "tmpfs", libc::MS_NOSUID, "mode=755")
        .map_err(step("mount the new root"))?;
    let at = |path: &str| format!("{NEW_ROOT}{path}");
    for directory in ["/proc", "/sys", "/dev", "/run", "/tmp", WORKDIR] {
        fs::create_dir(at(directory)).map_err(step(format!("make {directory}")))?;
    }
    fs::set_permissions(at("/tmp"), fs::Permissions::from_mode(0o1777))
        .map_err(step("open /tmp to everybody"))?;

    let flags = libc::MS_NOSUID | libc::MS_NOEXEC;
    let nodev = flags | libc::MS_NODEV;
    for (kind, target, flags) in
        [("proc", "/proc", nodev), ("sysfs", "/sys", nodev), ("devtmpfs", "/dev", flags)]
    {
        sys::mount(kind, &at(target), kind, flags, "").map_err(step(format!("mount {kind} on {target}")))?;
    }
    free_initramfs();
    std::env::set_current_dir(NEW_ROOT).map_err(step("enter the new root"))?;
    sys::mount(".", "/", "", libc::MS_MOVE, "").map_err(step("move the new root"))?;
    nix::unistd::chroot(".").map_err(io::Error::from).map_err(step("make the new root the root"))?;
    std::env::set_current_dir("/").map_err(step("enter the root"))
}

/// Deletes the other files of the initramfs, which are unreachable but would stay in memory. Errors
/// are harmless.
fn free_initramfs() {
    let Ok(root) = fs::metadata("/") else { return };
    delete_below(Path::new("/"), root.dev(), 0);
}

/// Deeper directories of the initramfs are not deleted.
const DEEPEST: usize = 64;

fn delete_below(directory: &Path, device: u64, depth: usize) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(found) = fs::symlink_metadata(&path) else { continue };
        if found.dev() != device {
            continue;
        }
        if !found.is_dir() {
            let _ = fs::remove_file(&path);
        } else if depth < DEEPEST {
            delete_below(&path, device, depth + 1);
            let _ = fs::remove_dir(&path);
        }
    }
}
