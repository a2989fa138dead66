//! Devices of a container, and what is put over paths that it must not read.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};

use nix::sys::stat::{Mode, SFlag, makedev, mknod, umask};
use nix::unistd::{Gid, Uid, chown};

use super::places::{self, ROOT, TargetKind};
use super::{Named, StageError};
use crate::spawn::plan::{ContainerPlan, DevicePlan};
use crate::sys;

const NULL: (&str, u64, u64) = ("/dev/null", 1, 3);

const DEVICES: [(&str, u64, u64); 6] = [
    NULL,
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

/// The devices and links that the runtime spec promises, and those of the plan.
pub(super) fn make(plan: &ContainerPlan) -> Result<(), StageError> {
    // Devices get exactly the mode that was asked for.
    let usual = umask(Mode::empty());
    let bound = plan.mounts.iter().find(|mount| mount.destination == "/dev" && mount.kind == "bind");
    if bound.is_none() {
        default_devices()?;
    }
    // The guest's own /dev has the devices and no links.
    if bound.is_none_or(|mount| mount.source == "/dev") {
        default_links()?;
    }
    for device in &plan.devices {
        make_device(device)?;
    }
    umask(usual);
    Ok(())
}

fn default_devices() -> Result<(), StageError> {
    for (path, major, minor) in DEVICES {
        let mode = Mode::from_bits_truncate(0o666);
        node(path, SFlag::S_IFCHR, mode, makedev(major, minor)).step(|| format!("make the device {path}"))?;
    }
    Ok(())
}

fn default_links() -> Result<(), StageError> {
    for (path, target) in LINKS {
        match inside(path).and_then(|place| symlink(target, place)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).step(|| format!("make the link {path}"));
            }
            _ => {}
        }
    }
    Ok(())
}

fn make_device(device: &DevicePlan) -> Result<(), StageError> {
    let path = device.path.as_str();
    let (kind, mode) = (SFlag::from_bits_truncate(device.mode), Mode::from_bits_truncate(device.mode));
    let made = node(path, kind, mode, makedev(device.major.into(), device.minor.into()));
    let place = made.step(|| format!("make the device {path}"))?;
    chown(place.as_str(), Some(Uid::from_raw(device.uid)), Some(Gid::from_raw(device.gid)))
        .step(|| format!("set the owner of the device {path}"))
}

/// Where a node of this path goes: its directory is made when it is missing.
fn inside(path: &str) -> io::Result<String> {
    let (directory, name) = path.trim_end_matches('/').rsplit_once('/').unwrap_or_default();
    if ["", ".", ".."].contains(&name) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    Ok(format!("{}/{name}", places::make(ROOT, directory, TargetKind::Directory)?))
}

/// Makes a node. What an image has in its place is believed only when it is the same: anything
/// else, a link to another file as well, would be what the container's programs take for the
/// device.
fn node(path: &str, kind: SFlag, mode: Mode, device: libc::dev_t) -> io::Result<String> {
    let place = inside(path)?;
    match mknod(place.as_str(), kind, mode, device) {
        Err(nix::Error::EEXIST) => {}
        made => return made.map(|()| place).map_err(io::Error::from),
    }
    let found = fs::symlink_metadata(&place)?;
    let same =
        found.mode() & libc::S_IFMT == kind.bits() && (found.rdev() == device || kind == SFlag::S_IFIFO);
    if !same {
        fs::remove_file(&place)?;
        mknod(place.as_str(), kind, mode, device)?;
    }
    Ok(place)
}

/// The container's terminal is its console.
pub(super) fn bind_console(number: u32) -> Result<(), StageError> {
    let place = places::make(ROOT, "/dev/console", TargetKind::File);
    let place = place.step(|| "make /dev/console".into())?;
    let path = format!("/dev/pts/{number}");
    let tree = sys::clone_tree(&path, false).step(|| format!("open {path}"))?;
    sys::move_tree(tree.as_fd(), &place).step(|| format!("mount {path} on /dev/console"))
}

/// Makes a path unreadable. One that leads nowhere is so already.
pub(super) fn mask(path: &str) -> io::Result<()> {
    let found = match fs::metadata(path) {
        Ok(found) => found,
        Err(error) => {
            let nowhere = [libc::ENOENT, libc::ENOTDIR, libc::ELOOP];
            return if error.raw_os_error().is_some_and(|code| nowhere.contains(&code)) {
                Ok(())
            } else {
                Err(error)
            };
        }
    };
    if found.is_dir() {
        // As runc masks: what can be seen of it is the same.
        return sys::mount("tmpfs", path, "tmpfs", libc::MS_RDONLY, "nr_blocks=1,nr_inodes=1");
    }
    let (null, major, minor) = NULL;
    let node = fs::symlink_metadata(null)?;
    if !node.file_type().is_char_device() || node.rdev() != makedev(major, minor) {
        return Err(io::Error::other(format!("{null} in the container is not the null device")));
    }
    let tree = sys::clone_tree(null, false)?;
    sys::move_tree(tree.as_fd(), path)
}
