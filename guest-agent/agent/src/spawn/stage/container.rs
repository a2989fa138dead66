//! The surroundings of a new container: namespaces, root file system, mounts.
//!
//! The order matters: the root is pivoted into first, so that every path of the spec is resolved by
//! the container's own tree and no symbolic link of an image can lead out of it. Sources of bind
//! mounts are opened before, while the guest's tree is still there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use nix::sched::{CloneFlags, unshare};
use nix::unistd::sethostname;

use super::places::{self, ROOT, TargetKind};
use super::volumes::{self, Turn};
use super::{Named, StageError, files, nodes, root, trust};
use crate::spawn::plan::{ContainerPlan, MountPlan};
use crate::spawn::shares;
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
    set_kernel_parameters(plan)?;
    if let Some(name) = &plan.hostname {
        sethostname(name).step(|| format!("set the host name {name:?}"))?;
    }
    sys::set_propagation("/", libc::MS_PRIVATE | libc::MS_REC)
        .step(|| "detach from the guest's mounts".into())?;
    let total = sys::memory_bytes().step(|| "find the size of memory".into())?;
    let shares = shares::divide(total, plan.rootfs.upper_bytes, &plan.mounts);
    let (root, volumes) = root::mount(&plan.rootfs, &plan.workdir, shares.root)?;
    let mut sources = Vec::with_capacity(plan.mounts.len());
    for mount in &plan.mounts {
        sources.push(open_source(mount)?);
    }
    std::env::set_current_dir(&root).step(|| format!("enter {root}"))?;
    sys::pivot_here().step(|| "make the container's root the root".into())?;

    files::write_names(ROOT, plan.hostname.as_deref(), &plan.hosts, &plan.names)?;
    trust::write_authorities(ROOT, &plan.names.authorities)?;
    let mut mounts = plan.mounts.iter().zip(sources).zip(shares.mounts);
    for turn in volumes::turns(&plan.rootfs.volumes, &plan.mounts) {
        match turn {
            Turn::Mount => {
                let ((mount, source), share) = mounts.next().expect("as many turns as mounts");
                make_mount(mount, source, share)?;
            }
            Turn::Volume(index) => volumes::mount(&plan.rootfs.volumes[index], volumes[index].as_fd())?,
        }
    }
    nodes::make(plan)?;
    places::make(ROOT, cwd, TargetKind::Directory)
        .step(|| format!("make the working directory {cwd}"))
        .map(drop)
}

/// What makes things unchangeable, after the terminal was made.
pub(super) fn seal(plan: &ContainerPlan) -> Result<(), StageError> {
    for path in &plan.readonly {
        make_read_only(path).step(|| format!("make {path} read-only"))?;
    }
    for path in &plan.masked {
        nodes::mask(path).step(|| format!("mask {path}"))?;
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

/// `share` is the size of a tmpfs that does not say its own.
fn make_mount(mount: &MountPlan, source: Option<Source>, share: Option<u64>) -> Result<(), StageError> {
    let MountPlan { destination, kind, options, .. } = mount;
    let end = match &source {
        Some(Source { is_directory: false, .. }) => TargetKind::File,
        _ => TargetKind::Directory,
    };
    let place =
        places::make(ROOT, destination, end).step(|| format!("make the mount point {destination}"))?;
    if let Some(source) = source {
        sys::move_tree(source.tree.as_fd(), &place)
            .step(|| format!("mount {} on {destination}", mount.source))?;
        let attributes = MountAttributes { set: options.flags, clear: options.cleared };
        sys::mount_attributes(&place, attributes)
            .step(|| format!("set the options of the mount on {destination}"))?;
    } else {
        let later = if deferred_read_only(mount) { libc::MS_RDONLY } else { 0 };
        let source = if mount.source.is_empty() { "none" } else { &mount.source };
        let size = share.map(|bytes| format!("size={bytes}"));
        let data = [Some(options.data.clone()).filter(|data| !data.is_empty()), size];
        let data = data.into_iter().flatten().collect::<Vec<_>>().join(",");
        sys::mount(source, &place, kind, options.flags & !later, &data)
            .step(|| format!("mount {kind} ({data}) on {destination}"))?;
    }
    for flags in &options.propagation {
        sys::set_propagation(&place, *flags).step(|| format!("set the propagation of {destination}"))?;
    }
    Ok(())
}

/// Kernel parameters and the domain name. Which namespaces they are of, the guest's proc knows by
/// who asks; nothing of the container stands in its way yet.
fn set_kernel_parameters(plan: &ContainerPlan) -> Result<(), StageError> {
    let domain = plan.domainname.iter().map(|name| ("kernel/domainname".to_owned(), name.as_str()));
    let parameters = plan.sysctls.iter().map(|(name, value)| (parameter_path(name), value.as_str()));
    for (path, value) in domain.chain(parameters) {
        let file = OpenOptions::new().write(true).open(format!("/proc/sys/{path}"));
        let mut file = file.step(|| format!("open the kernel parameter {path}"))?;
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
