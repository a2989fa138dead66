//! The small init of a container: its first process, which waits and forwards.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::ptr::null_mut;

use super::{check, owned};

/// A copy of the program of this process in memory, which nobody can change and no path leads to.
///
/// # Errors
/// Those of memfd_create(2), reading the program, and sealing.
pub fn own_program() -> io::Result<OwnedFd> {
    /// `MFD_EXEC` of linux/memfd.h; kernels before 6.3 do not know it.
    const MFD_EXEC: libc::c_uint = 0x10;
    let make = |flags| {
        // SAFETY: a C string that outlives the call.
        owned(unsafe {
            libc::memfd_create(c"nelly-init".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | flags)
        })
    };
    let mut copy = File::from(make(MFD_EXEC).or_else(|_| make(0))?);
    io::copy(&mut File::open("/proc/self/exe")?, &mut copy)?;
    copy.set_permissions(std::fs::Permissions::from_mode(0o555))?;
    let seals = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
    // SAFETY: F_ADD_SEALS takes a number.
    check(unsafe { libc::fcntl(copy.as_raw_fd(), libc::F_ADD_SEALS, seals) })?;
    // What is open for writing is not executed.
    Ok(File::open(format!("/proc/self/fd/{}", copy.as_raw_fd()))?.into())
}

/// execveat(2) of what a descriptor is open for, with an empty environment; only ever returns an
/// error.
#[must_use]
pub fn execute_open(program: BorrowedFd<'_>, args: &[CString]) -> io::Error {
    let args: Vec<_> = args.iter().map(|arg| arg.as_ptr()).chain([std::ptr::null()]).collect();
    let none = [std::ptr::null::<libc::c_char>()];
    // SAFETY: the arrays end in a null pointer, and the strings outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            args.as_ptr(),
            none.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// Keeps a descriptor open when this process executes a program, which is told its number.
///
/// # Errors
/// Those of fcntl(2).
pub fn keep_on_exec(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: F_SETFD takes a number.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) }).map(drop)
}

/// Every signal of this thread is blocked.
#[derive(Debug)]
pub struct Blocked(());

impl Blocked {
    /// Blocks every signal, before the child is made: none is lost between the two.
    ///
    /// # Errors
    /// Those of sigprocmask(2).
    pub fn all() -> io::Result<Self> {
        mask(libc::SIG_BLOCK, &full()).map(|()| Self(()))
    }

    /// Makes a copy of this process; answers its id, and in the copy, whose signals are unblocked,
    /// nothing. The copy leads a process group, which `terminal` says is that of the terminal at
    /// standard input: what is typed there interrupts it and not the init. The caller has one
    /// thread.
    ///
    /// # Errors
    /// Those of fork(2), setpgid(2), tcsetpgrp(3) and sigprocmask(2).
    pub fn fork(&self, terminal: bool) -> io::Result<Option<i32>> {
        // SAFETY: the process has one thread, so that nothing in the copy is locked or half done.
        match check(unsafe { libc::fork() })? {
            0 => {
                // SAFETY: no pointers.
                unsafe {
                    check(libc::setpgid(0, 0))?;
                    if terminal {
                        // From the background, which SIGTTOU would stop, were it not blocked.
                        check(libc::tcsetpgrp(0, libc::getpid()))?;
                    }
                }
                mask(libc::SIG_UNBLOCK, &full())?;
                Ok(None)
            }
            pid => Ok(Some(pid)),
        }
    }
}

fn full() -> libc::sigset_t {
    // SAFETY: an all-zero set is valid, and the call gets a pointer to a live one.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        set
    }
}

fn mask(how: libc::c_int, set: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: a live set; the old one is not asked for.
    check(unsafe { libc::sigprocmask(how, set, null_mut()) }).map(drop)
}

/// The short name of this process, which `ps` shows.
///
/// # Errors
/// Those of prctl(2).
pub fn name_process(name: &CStr) -> io::Result<()> {
    // SAFETY: a C string, of which the kernel reads at most 16 bytes.
    check(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) }).map(drop)
}

/// Ends this process, without anything that its original would do at its end.
pub fn end(code: i32) -> ! {
    // SAFETY: no pointer.
    unsafe { libc::_exit(code) }
}

/// Forwards every signal to `child` and reaps whatever ends, until the child has: answers its exit
/// code, or 128 and the signal that ended it.
#[must_use]
pub fn stay_as_init(_: &Blocked, child: i32) -> i32 {
    let set = full();
    loop {
        // SAFETY: a live set; what came with the signal is not asked for.
        let signal = unsafe { libc::sigwaitinfo(&raw const set, null_mut()) };
        // It may have ended with the same signal in the same moment.
        if signal > 0 && signal != libc::SIGCHLD {
            // SAFETY: no pointer. The child is not reaped yet, so the number is nobody else's.
            unsafe { libc::kill(child, signal) };
        }
        // Where a filter of system calls forbids to wait for signals, it is waited for children.
        let flags = if signal < 0 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            0
        } else {
            libc::WNOHANG
        };
        loop {
            let mut status = 0;
            // SAFETY: a pointer to a live integer.
            let ended = unsafe { libc::waitpid(-1, &raw mut status, flags) };
            if ended == child {
                return if libc::WIFSIGNALED(status) {
                    128 + libc::WTERMSIG(status)
                } else {
                    libc::WEXITSTATUS(status)
                };
            }
            if ended < 0 && flags == 0 {
                return 125;
            }
            if ended <= 0 {
                break;
            }
        }
    }
}
