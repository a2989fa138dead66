//! The surroundings of a new container: root file system, mounts, devices, names.
//!
//! The order matters: the root is pivoted into first, so that every path of the spec is resolved by the container's own
//! tree and no symbolic link of an image can lead out of it. Sources of bind mounts are opened before, while the guest's
//! tree is still there.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::Path;

use nix::fcntl::{OFlag, PosixFadviseAdvice, openat, posix_fadvise};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod, umask};
use nix::unistd::{Gid, Uid, chown, sethostname};

use super::{Named, StageError};
use crate::spawn::plan::{ContainerPlan, DevicePlan, MountPlan, RootfsPlan};
use crate::sys::{self, MountAttributes};

/// Where a bind mount comes from, opened before the guest's tree is left.
struct Source {
    tree: OwnedFd,
    is_directory: bool,
}

/// Everything up to the point where the terminal can be made.
pub(super) fn prepare(plan: &ContainerPlan, cwd: &str) -> Result<(), StageError> {
    for (kind, path) in &plan.joins {
        let namespace = File::open(path).step(|| format!("open the namespace {path}"))?;
        sys::join_namespaces(namespace.as_fd(), *kind).step(|| format!("join the namespace {path}"))?;
    }
    if plan.namespaces & libc::CLONE_NEWCGROUP != 0 {
        unshare(CloneFlags::CLONE_NEWCGROUP).step(|| "make a cgroup namespace".into())?;
    }
    if plan.namespaces & libc::CLONE_NEWNET != 0 {
        sys::loopback_up().step(|| "bring the loopback interface up".into())?;
    }
    if let Some(name) = &plan.hostname {
        sethostname(name).step(|| format!("set the host name {name:?}"))?;
    }
    sys::set_propagation("/", libc::MS_PRIVATE | libc::MS_REC)
        .step(|| "detach from the guest's mounts".into())?;
    let root = mount_root(&plan.rootfs, &plan.workdir)?;
    let mut sources = Vec::with_capacity(plan.mounts.len());
    for mount in &plan.mounts {
        sources.push(open_source(mount)?);
    }
    std::env::set_current_dir(&root).step(|| format!("enter {root}"))?;
    sys::pivot_here().step(|| "make the container's root the root".into())?;

    for (mount, source) in plan.mounts.iter().zip(sources) {
        make_mount(mount, source)?;
    }
    // Devices get exactly the mode that was asked for, directories on the way the usual one.
    let usual = umask(Mode::empty());
    let own_dev = !plan.mounts.iter().any(|mount| mount.destination == "/dev" && mount.kind == "bind");
    if own_dev {
        default_devices()?;
    }
    for device in &plan.devices {
        make_device(device)?;
    }
    umask(usual);
    set_kernel_parameters(plan)?;
    fs::create_dir_all(cwd).step(|| format!("make the working directory {cwd}"))
}

/// What makes things unchangeable, after the terminal was made.
pub(super) fn seal(plan: &ContainerPlan) -> Result<(), StageError> {
    for path in &plan.readonly {
        make_read_only(path).step(|| format!("make {path} read-only"))?;
    }
    for path in &plan.masked {
        mask(path).step(|| format!("mask {path}"))?;
    }
    for mount in plan.mounts.iter().filter(|mount| deferred_read_only(mount)) {
        let read_only = MountAttributes { set: libc::MS_RDONLY, clear: 0 };
        sys::mount_attributes(&mount.destination, read_only)
            .step(|| format!("make {} read-only", mount.destination))?;
    }
    if plan.propagation != libc::MS_PRIVATE | libc::MS_REC {
        sys::set_propagation("/", plan.propagation).step(|| "set the propagation of the root".into())?;
    }
    if plan.rootfs.mount_read_only {
        sys::mount_attributes("/", MountAttributes { set: libc::MS_RDONLY, clear: 0 })
            .step(|| "make the root read-only".into())?;
    }
    Ok(())
}

/// Mounts the image read-only below a writable layer in memory; answers where. A root without a writable layer still gets
/// the layer, because mount points that the image lacks must be made somewhere: it is sealed afterwards.
fn mount_root(rootfs: &RootfsPlan, workdir: &str) -> Result<String, StageError> {
    let size = match rootfs.upper_bytes {
        0 => "50%".to_owned(),
        bytes => bytes.to_string(),
    };
    sys::mount("tmpfs", workdir, "tmpfs", 0, &format!("mode=755,size={size}"))
        .step(|| format!("mount the writable layer ({size}) on {workdir}"))?;
    let [lower, upper, work, root] =
        ["lower", "upper", "work", "root"].map(|name| format!("{workdir}/{name}"));
    for directory in [&lower, &upper, &work, &root] {
        fs::create_dir(directory).step(|| format!("make {directory}"))?;
    }
    let RootfsPlan { device, filesystem, .. } = rootfs;
    // A wish: without it the file system reads as it would.
    let disk = (filesystem == "erofs").then(|| begin_reading(device)).transpose();
    let data = if filesystem == "ext4" { "noload" } else { "" };
    sys::mount(device, &lower, filesystem, libc::MS_RDONLY, data)
        .step(|| format!("mount the image {device} as {filesystem}"))?;
    // Until here: what was read of a disk that nobody has open any more is forgotten.
    drop(disk);
    // The root directory of an overlay is that of the upper layer.
    let image = fs::metadata(&lower).step(|| "look at the image's root".into())?;
    fs::set_permissions(&upper, image.permissions()).step(|| "copy the mode of the image's root".into())?;
    chown(upper.as_str(), Some(Uid::from_raw(image.uid())), Some(Gid::from_raw(image.gid())))
        .step(|| "copy the owner of the image's root".into())?;
    let layers = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    sys::mount("overlay", &root, "overlay", 0, &layers)
        .step(|| "mount the overlay of image and writable layer".into())?;
    Ok(root)
}

/// Bytes that are read around what a program touches of its image: each read is a journey to the monitor and back.
const READ_AHEAD_BYTES: u32 = 512 << 10;

/// Bytes of an image's metadata that are read at once.
const METADATA_BYTES: u64 = 128 << 10;

/// Says how far to read ahead on a disk with an EROFS image, and begins to read its metadata, whose first block the superblock tells
/// (kernel: fs/erofs/erofs_fs.h). The file system itself asks for it block by block. What was read is kept while the disk is open.
fn begin_reading(device: &str) -> io::Result<File> {
    const META_BLOCK_AT: u64 = 1024 + 40;
    let disk = File::open(device)?;
    sys::set_read_ahead(&disk, READ_AHEAD_BYTES)?;
    let mut block = [0; 4];
    disk.read_exact_at(&mut block, META_BLOCK_AT)?;
    let offset = i64::from(u32::from_le_bytes(block)) << 12;
    let length = METADATA_BYTES.cast_signed();
    posix_fadvise(&disk, offset, length, PosixFadviseAdvice::POSIX_FADV_WILLNEED)?;
    Ok(disk)
}

fn open_source(mount: &MountPlan) -> Result<Option<Source>, StageError> {
    if mount.kind != "bind" {
        return Ok(None);
    }
    let path = &mount.source;
    let is_directory = fs::metadata(path).step(|| format!("find the source {path}"))?.is_dir();
    let tree = sys::clone_tree(path, mount.options.flags & libc::MS_REC != 0)
        .step(|| format!("open the source {path}"))?;
    Ok(Some(Source { tree, is_directory }))
}

/// A tmpfs stays writable until everything below it was made.
fn deferred_read_only(mount: &MountPlan) -> bool {
    mount.kind == "tmpfs" && mount.options.flags & libc::MS_RDONLY != 0
}

fn make_mount(mount: &MountPlan, source: Option<Source>) -> Result<(), StageError> {
    let MountPlan { destination, kind, options, .. } = mount;
    if let Some(source) = source {
        make_mount_point(destination, source.is_directory)
            .step(|| format!("make the mount point {destination}"))?;
        sys::move_tree(source.tree.as_fd(), destination)
            .step(|| format!("mount {} on {destination}", mount.source))?;
        let attributes = MountAttributes { set: options.flags, clear: options.cleared };
        sys::mount_attributes(destination, attributes)
            .step(|| format!("set the options of the mount on {destination}"))?;
    } else {
        make_mount_point(destination, true).step(|| format!("make the mount point {destination}"))?;
        let later = if deferred_read_only(mount) { libc::MS_RDONLY } else { 0 };
        let source = if mount.source.is_empty() { "none" } else { &mount.source };
        sys::mount(source, destination, kind, options.flags & !later, &options.data)
            .step(|| format!("mount {kind} ({}) on {destination}", options.data))?;
    }
    for flags in &options.propagation {
        sys::set_propagation(destination, *flags).step(|| format!("set the propagation of {destination}"))?;
    }
    Ok(())
}

fn make_mount_point(path: &str, directory: bool) -> io::Result<()> {
    if directory {
        return fs::create_dir_all(path);
    }
    if let Some(parent) = Path::new(path).parent() {
        fs::create_dir_all(parent)?;
    }
    make_file(path)
}

fn make_file(path: &str) -> io::Result<()> {
    if fs::metadata(path).is_ok() {
        return Ok(());
    }
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o644).open(path).map(drop)
}

const DEVICES: [(&str, u64, u64); 6] = [
    ("/dev/null", 1, 3),
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

/// The devices and links that the runtime spec promises.
fn default_devices() -> Result<(), StageError> {
    DirBuilder::new().recursive(true).mode(0o755).create("/dev").step(|| "make /dev".into())?;
    for (path, major, minor) in DEVICES {
        let mode = Mode::from_bits_truncate(0o666);
        match mknod(path, SFlag::S_IFCHR, mode, makedev(major, minor)) {
            Ok(()) | Err(nix::Error::EEXIST) => {}
            Err(error) => return Err(error).step(|| format!("make the device {path}")),
        }
    }
    for (path, target) in LINKS {
        match symlink(target, path) {
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
    if let Some(parent) = Path::new(path).parent() {
        let mut directories = DirBuilder::new();
        directories.recursive(true).mode(0o755);
        directories.create(parent).step(|| format!("make the directory of {path}"))?;
    }
    let (kind, mode) = (SFlag::from_bits_truncate(device.mode), Mode::from_bits_truncate(device.mode));
    match mknod(path, kind, mode, makedev(device.major.into(), device.minor.into())) {
        Ok(()) | Err(nix::Error::EEXIST) => {}
        Err(error) => return Err(error).step(|| format!("make the device {path}")),
    }
    chown(path, Some(Uid::from_raw(device.uid)), Some(Gid::from_raw(device.gid)))
        .step(|| format!("give the device {path} to its owner"))
}

/// Kernel parameters and the domain name go through a proc that no mount of the container can stand in for.
fn set_kernel_parameters(plan: &ContainerPlan) -> Result<(), StageError> {
    let domain = plan.domainname.iter().map(|name| ("kernel/domainname".to_owned(), name.clone()));
    let parameters = plan.sysctls.iter().map(|(name, value)| (parameter_path(name), value.clone()));
    let mut all = domain.chain(parameters).peekable();
    if all.peek().is_none() {
        return Ok(());
    }
    let proc = sys::open_proc().step(|| "open proc".into())?;
    for (path, value) in all {
        let open = openat(
            proc.as_fd(),
            format!("sys/{path}").as_str(),
            OFlag::O_WRONLY | OFlag::O_CLOEXEC,
            Mode::empty(),
        );
        let mut file = File::from(open.step(|| format!("open the kernel parameter {path}"))?);
        file.write_all(value.as_bytes()).step(|| format!("set the kernel parameter {path} to {value:?}"))?;
    }
    Ok(())
}

/// `net.ipv4.ip_forward` and `net/ipv4/conf/eth0.1/x` alike: the first separator tells which it is.
fn parameter_path(name: &str) -> String {
    match name.find(['.', '/']).and_then(|at| name.as_bytes().get(at)) {
        Some(b'/') => name.to_owned(),
        _ => name
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
    }
}

fn make_read_only(path: &str) -> io::Result<()> {
    if matches!(fs::metadata(path), Err(error) if error.kind() == io::ErrorKind::NotFound) {
        return Ok(());
    }
    let tree = sys::clone_tree(path, true)?;
    sys::move_tree(tree.as_fd(), path)?;
    sys::mount_attributes(path, MountAttributes { set: libc::MS_RDONLY, clear: 0 })
}

fn mask(path: &str) -> io::Result<()> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(found) if found.is_dir() => {
            // As runc masks: what can be seen of it is the same.
            let flags = libc::MS_RDONLY;
            sys::mount("tmpfs", path, "tmpfs", flags, "nr_blocks=1,nr_inodes=1")
        }
        Ok(_) => {
            let tree = sys::clone_tree("/dev/null", false)?;
            sys::move_tree(tree.as_fd(), path)
        }
    }
}

/// The container's terminal is its console.
pub(super) fn bind_console(number: u32) -> Result<(), StageError> {
    make_file("/dev/console").step(|| "make /dev/console".into())?;
    let path = format!("/dev/pts/{number}");
    let tree = sys::clone_tree(&path, false).step(|| format!("open {path}"))?;
    sys::move_tree(tree.as_fd(), "/dev/console").step(|| format!("mount {path} on /dev/console"))
}

#[cfg(test)]
mod tests {
    use super::parameter_path;

    #[test]
    fn parameters_by_dots_and_by_slashes() {
        for (name, path) in [
            ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
            ("net.ipv4.conf.eth0/1.forwarding", "net/ipv4/conf/eth0.1/forwarding"),
            ("net/ipv4/conf/eth0.1/forwarding", "net/ipv4/conf/eth0.1/forwarding"),
            ("fs", "fs"),
        ] {
            assert_eq!(parameter_path(name), path);
        }
    }
}
