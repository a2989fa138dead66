//! A user and namespaces of a process's own: what root gives to a process that it does not trust.

use std::io;

use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;
use nix::unistd::{Gid, Uid};

/// Puts this process, which must have one thread, into namespaces of its own, and names those that
/// it has. Its network has no way out, and its IPC no peers; what is open stays as it is.
///
/// # Errors
/// The system does not have them, or not for this process.
pub fn leave_networks() -> io::Result<Vec<&'static str>> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)?;
    Ok(vec!["network", "ipc", "uts"])
}

/// Gives this process, which must have one thread, a root directory that is empty and cannot be
/// written to, in a namespace of mounts of its own. Whatever it has open stays as it is.
///
/// # Errors
/// The system does not have them, or not for this process. (A host whose root is its initramfs has
/// no way to another root. The process keeps its own then, and follows the host's unmounts.)
pub fn leave_files() -> io::Result<()> {
    /// A directory that every system has; the empty one covers it, in this namespace alone.
    const COVERED: &str = "/proc";
    let none = None::<&str>;
    nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
    nix::mount::mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
    let locked = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let empty = Some("mode=0555,size=4k,nr_inodes=1");
    nix::mount::mount(Some("empty"), COVERED, Some("tmpfs"), locked, empty)?;
    let moved = nix::unistd::chdir(COVERED).and_then(|()| nix::unistd::pivot_root(".", "."));
    if let Err(error) = moved {
        nix::unistd::chdir("/")?;
        nix::mount::umount2(COVERED, MntFlags::MNT_DETACH)?;
        return Err(error.into());
    }
    // The old root lies upon the new one.
    nix::mount::umount2(".", MntFlags::MNT_DETACH)?;
    Ok(nix::unistd::chdir("/")?)
}

/// Makes this process, which must have one thread, one of an ordinary user with a single group. The
/// capabilities that it had stay permitted and effective, for the caller to drop.
///
/// # Errors
/// The process may not (it needs the capabilities SETUID and SETGID), or the user is none of its
/// user namespace.
pub fn become_user(user: u32, group: u32) -> io::Result<()> {
    let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
    nix::unistd::setgroups(&[group])?;
    nix::unistd::setresgid(group, group, group)?;
    rustix::thread::set_keep_capabilities(true)?;
    nix::unistd::setresuid(user, user, user)?;
    let mut sets = rustix::thread::capabilities(None)?;
    sets.effective = sets.permitted;
    rustix::thread::set_capabilities(None, sets)?;
    Ok(rustix::thread::set_keep_capabilities(false)?)
}
