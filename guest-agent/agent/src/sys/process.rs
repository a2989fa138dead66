//! Processes: signals, reaping, credentials, limits.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::{null, null_mut};

use super::{check, check_long, owned, owned_long, trace};
/// pidfd_open(2).
///
/// # Errors
/// Those of pidfd_open(2).
pub fn open_pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointer.
    owned_long(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// pidfd_send_signal(2): never another process that happens to have the same number by now.
///
/// # Errors
/// Those of pidfd_send_signal(2); `ESRCH` when the process ended.
pub fn signal_pidfd(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    send_signal(pidfd, signal, 0)
}

/// The same for the process group that the process leads (Linux 6.9).
///
/// # Errors
/// As [`signal_pidfd`].
pub fn signal_pidfd_group(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    /// `PIDFD_SIGNAL_PROCESS_GROUP` of linux/pidfd.h.
    const PROCESS_GROUP: u32 = 1 << 2;
    send_signal(pidfd, signal, PROCESS_GROUP)
}

fn send_signal(pidfd: BorrowedFd<'_>, signal: i32, flags: u32) -> io::Result<()> {
    // SAFETY: the siginfo pointer may be null.
    check_long(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            null::<libc::siginfo_t>(),
            flags,
        )
    })
    .map(drop)
}

/// A child that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reaped {
    /// Its process id.
    pub pid: i32,
    /// Exit code, 0 to 255; 0 when a signal ended it.
    pub code: u8,
    /// The signal that ended it, else 0.
    pub signal: u8,
}

/// What there is to hear of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// It ended.
    Ended(Reaped),
    /// This traced thread wrote to a pipe or socket that nobody reads, and waits for
    /// [`super::untrace`] with the signal for it.
    BrokenPipe(i32),
}

/// Reaps one child that ended, or hears of one that is traced, if there is one.
#[must_use]
pub fn reap() -> Option<News> {
    let mut status = 0;
    let pid = loop {
        // SAFETY: the pointer is to a live integer.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        if pid <= 0 {
            return None;
        }
        if !libc::WIFSTOPPED(status) {
            break pid;
        }
        if trace::stopped(pid, status) {
            return Some(News::BrokenPipe(pid));
        }
    };
    let (code, signal) =
        if libc::WIFSIGNALED(status) { (0, libc::WTERMSIG(status)) } else { (libc::WEXITSTATUS(status), 0) };
    let byte = |value: i32| u8::try_from(value).expect("the kernel's exit codes and signals are of one byte");
    Some(News::Ended(Reaped { pid, code: byte(code), signal: byte(signal) }))
}

/// Blocks SIGCHLD and answers a descriptor that becomes readable when one comes; it does not block.
///
/// # Errors
/// Those of sigprocmask(2) and signalfd(2).
pub fn signal_fd() -> io::Result<OwnedFd> {
    // SAFETY: an all-zero set is valid, and the calls get pointers to live sets.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        check(libc::sigemptyset(&raw mut set))?;
        check(libc::sigaddset(&raw mut set, libc::SIGCHLD))?;
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, null_mut()))?;
        owned(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))
    }
}

/// Gives every signal its default action again; an ignored one would stay ignored across exec.
pub fn all_signals_default() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL installs no handler; SIGKILL, SIGSTOP and the C library's own two refuse,
        // which is fine.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Marks every descriptor above the standard streams to be closed by exec.
///
/// # Errors
/// Those of close_range(2).
pub fn mark_all_close_on_exec() -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: no pointer.
    check_long(unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) })
        .map(drop)
}

/// keyctl(2) with a session keyring that is new and has no name: what is in another's cannot be
/// found from it. A kernel without keys has none to part with.
///
/// # Errors
/// Those of keyctl(2).
pub fn join_new_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: the name may be null.
    let joined =
        unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, null::<libc::c_char>()) };
    match check_long(joined) {
        Err(error) if error.raw_os_error() != Some(libc::ENOSYS) => Err(error),
        _ => Ok(()),
    }
}

/// Memory that the kernel has to give, in bytes.
///
/// # Errors
/// Those of sysinfo(2).
pub fn memory_bytes() -> io::Result<u64> {
    // SAFETY: an all-zero structure is valid, and the call gets a pointer to a live one.
    let info = unsafe {
        let mut info: libc::sysinfo = std::mem::zeroed();
        check(libc::sysinfo(&raw mut info))?;
        info
    };
    Ok(info.totalram * u64::from(info.mem_unit))
}

/// `PR_SET_NO_NEW_PRIVS`.
///
/// # Errors
/// Those of prctl(2).
pub fn set_no_new_privileges() -> io::Result<()> {
    // SAFETY: no pointer.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }).map(drop)
}

/// Keeps other processes of the container from looking into the stage before it becomes one of
/// them.
///
/// # Errors
/// Those of prctl(2).
pub fn set_not_dumpable() -> io::Result<()> {
    // SAFETY: no pointer.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }).map(drop)
}

/// Permitted capabilities survive the next change of user.
///
/// # Errors
/// Those of prctl(2).
pub fn keep_capabilities() -> io::Result<()> {
    // SAFETY: no pointer.
    check(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) }).map(drop)
}

/// Supplementary groups, group and user, in this order, of the calling thread.
///
/// # Errors
/// Those of setgroups(2), setresgid(2) and setresuid(2).
pub fn set_ids(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    // SAFETY: the pointer and the count are those of a live slice. Raw calls: the stage has one
    // thread.
    unsafe {
        check_long(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()))?;
        check_long(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        check_long(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
    }
    Ok(())
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: libc::c_int,
}

#[repr(C)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Capabilities of the calling thread, sets as bits.
pub mod capabilities {
    use super::{CapData, CapHeader, check, check_long, io};

    /// Those of this process that are permitted.
    ///
    /// # Errors
    /// `/proc` cannot be read, or tells nothing of them.
    pub fn own() -> io::Result<u64> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("CapPrm:"));
        line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).ok_or(io::ErrorKind::InvalidData.into())
    }

    /// Drops everything outside of the bounding set. Needs CAP_SETPCAP, so it comes before the
    /// change of user.
    ///
    /// # Errors
    /// Those of prctl(2).
    pub fn limit_bounding(bounding: u64) -> io::Result<()> {
        for number in 0..64u32 {
            // SAFETY: no pointer.
            let has = unsafe { libc::prctl(libc::PR_CAPBSET_READ, number, 0, 0, 0) };
            if has < 0 {
                break; // the kernel knows no more
            }
            if has == 1 && bounding & 1 << number == 0 {
                // SAFETY: no pointer.
                check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) })?;
            }
        }
        Ok(())
    }

    /// Sets effective, permitted and inheritable, then ambient.
    ///
    /// # Errors
    /// Those of capset(2) and prctl(2); `EPERM` for a capability that the guest's kernel does not
    /// have.
    pub fn apply(effective: u64, permitted: u64, inheritable: u64, ambient: u64) -> io::Result<()> {
        let header = CapHeader { version: 0x2008_0522, pid: 0 };
        let half = |set: u64, high: bool| {
            let [a, b, c, d, e, f, g, h] = set.to_le_bytes();
            u32::from_le_bytes(if high { [e, f, g, h] } else { [a, b, c, d] })
        };
        let data = [false, true].map(|high| CapData {
            effective: half(effective, high),
            permitted: half(permitted, high),
            inheritable: half(inheritable, high),
        });
        // SAFETY: a header and two data elements, as version 3 of the interface wants.
        check_long(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })?;
        // SAFETY: no pointer.
        check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) })?;
        for number in (0..64u32).filter(|number| ambient & 1 << number != 0) {
            // SAFETY: no pointer.
            check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, number, 0, 0) })?;
        }
        Ok(())
    }
}

/// setrlimit(2) by number.
///
/// # Errors
/// Those of prlimit64(2).
pub fn set_resource_limit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the pointer is to a live structure; the old value is not asked for.
    check_long(unsafe {
        libc::syscall(libc::SYS_prlimit64, 0, resource, &raw const limit, null_mut::<libc::rlimit64>())
    })
    .map(drop)
}

/// getrlimit(2) by number: soft and hard.
///
/// # Errors
/// Those of prlimit64(2).
pub fn resource_limit(resource: u32) -> io::Result<(u64, u64)> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live structure; no new value is given.
    check_long(unsafe {
        libc::syscall(libc::SYS_prlimit64, 0, resource, null::<libc::rlimit64>(), &raw mut limit)
    })?;
    Ok((limit.rlim_cur, limit.rlim_max))
}
