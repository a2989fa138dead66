//! clone3(2) of a process that has one thread: the child has a copy of everything and goes on in
//! it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{check_long, join_namespaces, open_pidfd};

/// How a child comes to be.
pub struct CloneRequest<'a> {
    /// `CLONE_NEW*` flags.
    pub namespaces: libc::c_int,
    /// The cgroup (version 2) directory in which it is born.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// A PID namespace (or a pidfd of a member) to be born in.
    pub pid_namespace: Option<BorrowedFd<'a>>,
    /// Descriptors that become 0, 1, 2, ... of the child; it gets no others.
    pub descriptors: &'a [BorrowedFd<'a>],
}

/// More descriptors than any request has.
const MOST: usize = 16;

/// Makes a child that does `work` and ends with the code that it answers, unless it has become a
/// program by then. Answers its process id (in our PID namespace) and a pidfd. The child is ours to
/// reap. It starts with every signal unblocked and with the descriptors of the request alone: what
/// `work` captured of others is closed, and must not be used.
///
/// # Errors
/// Those of setns(2), pidfd_open(2) and clone3(2), and `EDEADLK` when this process has more than
/// one thread.
///
/// # Panics
/// When our own PID namespace cannot be set again, after which no child would be where it belongs.
pub fn clone_child(request: &CloneRequest<'_>, work: impl FnOnce() -> i32) -> io::Result<(i32, OwnedFd)> {
    let count = request.descriptors.len();
    if count > MOST {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    one_thread()?;
    let mut descriptors: [RawFd; MOST] = [-1; MOST];
    for (slot, fd) in descriptors.iter_mut().zip(request.descriptors) {
        *slot = fd.as_raw_fd();
    }

    let own = match request.pid_namespace {
        Some(target) => {
            let own = open_pidfd(i32::try_from(std::process::id()).map_err(io::Error::other)?)?;
            join_namespaces(target, libc::CLONE_NEWPID)?;
            Some(own)
        }
        None => None,
    };
    let mut pidfd: RawFd = -1;
    // SAFETY: an all-zero clone_args is valid.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    let flags = request.namespaces | libc::CLONE_PIDFD;
    args.flags = u64::from(flags.cast_unsigned());
    args.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
    args.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
    if let Some(cgroup) = request.cgroup {
        args.flags |= 0x2_0000_0000; // CLONE_INTO_CGROUP
        args.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    }
    // SAFETY: args is valid for its size. Without CLONE_VM the child has a copy of everything, and
    // as there is no other thread, nothing in it is locked or half done: it may do what any program
    // may. It never returns from here.
    let result = unsafe {
        let result = libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>());
        if result == 0 {
            take_only(&descriptors, count);
            // A panic must not run into what the parent was doing. Nothing that runs at an exit is
            // the child's business.
            libc::_exit(catch_unwind(AssertUnwindSafe(work)).unwrap_or(125));
        }
        result
    };
    let result = check_long(result);
    if let Some(own) = own {
        use std::os::fd::AsFd;
        if let Err(error) = join_namespaces(own.as_fd(), libc::CLONE_NEWPID) {
            panic!("cannot return to the agent's own PID namespace: {error}");
        }
    }
    let pid = i32::try_from(result?).map_err(io::Error::other)?;
    // SAFETY: CLONE_PIDFD made this descriptor for us.
    Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// First number for the descriptors while they are moved, above every target.
const AWAY: libc::c_int = 64;

/// A lock that another thread holds would stay locked in the child for ever.
fn one_thread() -> io::Result<()> {
    // Two links of the directory itself, and one a thread.
    let links = std::fs::metadata("/proc/self/task")?.nlink();
    if links == 3 { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EDEADLK)) }
}

/// Makes the descriptors 0, 1, 2, ... and closes all others; unblocks every signal.
///
/// # Safety
/// To be called in a fresh child only: nothing that owns a descriptor may be used or dropped
/// afterwards.
unsafe fn take_only(descriptors: &[RawFd; MOST], count: usize) {
    // SAFETY: system calls on descriptors that the child has for itself, and on a set that outlives
    // the call.
    unsafe {
        let mut away = [-1; MOST];
        for (slot, fd) in away.iter_mut().zip(descriptors).take(count) {
            *slot = libc::fcntl(*fd, libc::F_DUPFD, AWAY);
            if *slot < 0 {
                libc::_exit(125);
            }
        }
        let mut target = 0;
        for fd in away.iter().take(count) {
            if libc::dup2(*fd, target) < 0 {
                libc::_exit(125);
            }
            target += 1;
        }
        libc::syscall(libc::SYS_close_range, target, libc::c_uint::MAX, 0);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}
