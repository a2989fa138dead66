//! The end of a process that asked for what it may not: it says which system call that was.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicI32, Ordering};

/// How a process ends that made a system call which its filter denies: as a shell has it of a
/// process that SIGSYS ended.
pub const DENIED_EXIT: u8 = 128 + 31;

/// Where it is told; -1: nowhere.
static TOLD: [AtomicI32; 3] = [const { AtomicI32::new(-1) }; 3];

/// Has denied calls told on these files, of which three are heeded, and the process ended.
pub(super) fn tell(told: &[BorrowedFd<'_>]) -> io::Result<()> {
    for (place, file) in TOLD.iter().zip(told) {
        place.store(file.as_raw_fd(), Ordering::Relaxed);
    }
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: all zeros are an action without flags, mask and restorer; the handler has the type
    // that SA_SIGINFO asks for, and calls only what may be called in a handler.
    unsafe {
        let action = action.assume_init_mut();
        let handler: extern "C" fn(libc::c_int, *const libc::siginfo_t, *mut libc::c_void) = ended;
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO;
        match libc::sigaction(libc::SIGSYS, action, std::ptr::null_mut()) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Where `struct siginfo` of a SIGSYS has the number of the call, in bytes: behind three numbers,
/// a gap, and the address of the call (64-bit Linux).
const NUMBER_AT: usize = 24;

extern "C" fn ended(_: libc::c_int, info: *const libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the system gives a whole `siginfo`, of 128 bytes, in which the number is aligned.
    let number = unsafe { info.byte_add(NUMBER_AT).cast::<libc::c_int>().read() };
    let mut line = Line { bytes: [0; 160], len: 0 };
    line.add(b"nelly-usernet: ended: the system call ");
    match name(number.into()) {
        Some(name) => line.add(name.as_bytes()),
        None => line.add(b"number"),
    }
    line.add(b" (");
    line.number(number.unsigned_abs());
    line.add(b"), with these arguments, is not one that it may make\n");
    for place in &TOLD {
        let file = place.load(Ordering::Relaxed);
        let mut ready = libc::pollfd { fd: file, events: libc::POLLOUT, revents: 0 };
        // SAFETY: one `pollfd` and as many bytes as there are, are handed over; nothing waits.
        unsafe {
            if file >= 0 && libc::poll(&raw mut ready, 1, 0) == 1 {
                libc::write(file, line.bytes.as_ptr().cast(), line.len);
            }
        }
    }
    // SAFETY: it ends the process at once.
    unsafe { libc::_exit(DENIED_EXIT.into()) }
}

/// A line that takes no memory.
struct Line {
    bytes: [u8; 160],
    len: usize,
}

impl Line {
    fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if let Some(place) = self.bytes.get_mut(self.len) {
                *place = byte;
                self.len += 1;
            }
        }
    }

    fn number(&mut self, number: u32) {
        let mut unit = 1_000_000_000;
        while unit > number.max(1) {
            unit /= 10;
        }
        while unit > 0 {
            let digit = number / unit % 10;
            self.add(&[b'0' + digit.to_le_bytes()[0]]);
            unit /= 10;
        }
    }
}

/// The names of calls that are denied, wholly or with some arguments, and that somebody may try.
macro_rules! names {
    ($($call:ident $name:literal),* $(,)?) => {
        fn name(number: i64) -> Option<&'static str> {
            match number {
                $(libc::$call => Some($name),)*
                other => name_of_this_machine(other),
            }
        }
    };
}

names! {
    SYS_bind "bind", SYS_bpf "bpf", SYS_chdir "chdir", SYS_clone "clone", SYS_clone3 "clone3", SYS_connect "connect", SYS_dup "dup", SYS_execve "execve",
    SYS_execveat "execveat", SYS_fchmod "fchmod", SYS_fchmodat "fchmodat", SYS_fcntl "fcntl", SYS_fstat "fstat",
    SYS_ftruncate "ftruncate", SYS_getdents64 "getdents64", SYS_getsockopt "getsockopt", SYS_io_uring_setup "io_uring_setup",
    SYS_ioctl "ioctl", SYS_kill "kill", SYS_linkat "linkat", SYS_listen "listen", SYS_lseek "lseek", SYS_memfd_create "memfd_create",
    SYS_mkdirat "mkdirat", SYS_mmap "mmap", SYS_mount "mount", SYS_mprotect "mprotect", SYS_newfstatat "newfstatat",
    SYS_openat "openat", SYS_openat2 "openat2", SYS_perf_event_open "perf_event_open", SYS_pidfd_getfd "pidfd_getfd",
    SYS_pidfd_open "pidfd_open", SYS_prctl "prctl", SYS_prlimit64 "prlimit64", SYS_process_vm_readv "process_vm_readv",
    SYS_process_vm_writev "process_vm_writev", SYS_ptrace "ptrace", SYS_readlinkat "readlinkat",
    SYS_renameat2 "renameat2", SYS_seccomp "seccomp", SYS_sendmmsg "sendmmsg", SYS_setns "setns",
    SYS_setresuid "setresuid", SYS_setsockopt "setsockopt", SYS_setuid "setuid", SYS_socket "socket",
    SYS_socketpair "socketpair", SYS_statx "statx", SYS_tgkill "tgkill", SYS_unlinkat "unlinkat",
    SYS_unshare "unshare", SYS_userfaultfd "userfaultfd",
}

#[cfg(target_arch = "x86_64")]
fn name_of_this_machine(number: i64) -> Option<&'static str> {
    match number {
        libc::SYS_access => Some("access"),
        libc::SYS_fork => Some("fork"),
        libc::SYS_lstat => Some("lstat"),
        libc::SYS_open => Some("open"),
        libc::SYS_readlink => Some("readlink"),
        libc::SYS_rename => Some("rename"),
        libc::SYS_stat => Some("stat"),
        libc::SYS_unlink => Some("unlink"),
        libc::SYS_vfork => Some("vfork"),
        _ => None,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn name_of_this_machine(_: i64) -> Option<&'static str> {
    None
}
