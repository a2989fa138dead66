//! The end of a process that asked for what it may not: it says which system call that was.

#![allow(unsafe_code, reason = "a signal's handler may call few functions, and those of the C library")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

/// How a process ends that made a system call which its filter denies: as a shell has it of a
/// process that SIGSYS ended.
pub const DENIED_EXIT: u8 = 128 + 31;

/// Where it is told; -1: nowhere.
static TOLD: [AtomicI32; 3] = [const { AtomicI32::new(-1) }; 3];

/// What the program calls itself, and where it tells as a message, and how.
static SAID: OnceLock<(&'static str, Option<Framed>)> = OnceLock::new();

/// A socket that hears of a denied call in a message: the number of bytes behind it in four
/// (little-endian), what comes before the sentence, the sentence, and what comes after.
#[derive(Clone, Copy, Debug)]
pub struct Framed {
    /// The socket, which stays open.
    pub socket: RawFd,
    /// Before the sentence.
    pub before: &'static str,
    /// Behind it.
    pub behind: &'static str,
}

/// Has denied calls told on these files, of which three are heeded, and the process ended.
/// `program` is what it calls itself. To be called by a program, once: it sets what SIGSYS does.
///
/// # Errors
/// The system's refusal.
pub fn tell(program: &'static str, told: &[BorrowedFd<'_>], framed: Option<Framed>) -> io::Result<()> {
    for (place, file) in TOLD.iter().zip(told) {
        place.store(file.as_raw_fd(), Ordering::Relaxed);
    }
    let _first = SAID.set((program, framed));
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: all zeros are an action without flags, mask and restorer, and an empty set; the
    // handler has the type that SA_SIGINFO asks for, and calls only what a handler may call.
    unsafe {
        let action = action.assume_init_mut();
        let handler: extern "C" fn(libc::c_int, *const libc::siginfo_t, *mut libc::c_void) = ended;
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO;
        if libc::sigaction(libc::SIGSYS, action, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        // A signal that is blocked ends the process without a word; whoever started it may have
        // left it so.
        let mut own = MaybeUninit::<libc::sigset_t>::zeroed();
        libc::sigemptyset(own.as_mut_ptr());
        libc::sigaddset(own.as_mut_ptr(), libc::SIGSYS);
        match libc::pthread_sigmask(libc::SIG_UNBLOCK, own.as_ptr(), std::ptr::null_mut()) {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// Where `struct siginfo` of a SIGSYS has the number of the call, in bytes: behind three numbers,
/// a gap, and the address of the call (64-bit Linux).
const NUMBER_AT: usize = 24;

extern "C" fn ended(_: libc::c_int, info: *const libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the system gives a whole `siginfo`, of 128 bytes, in which the number is aligned.
    let number = unsafe { info.byte_add(NUMBER_AT).cast::<libc::c_int>().read() };
    let mut thread = [0_u8; 16];
    // SAFETY: the system writes a name of at most 16 bytes, its NUL among them.
    unsafe { libc::prctl(libc::PR_GET_NAME, thread.as_mut_ptr()) };
    let thread = thread.split(|byte| *byte == 0).next().unwrap_or_default();
    let (program, framed) = SAID.get().copied().unwrap_or(("nelly", None));
    let mut sentence = Line::default();
    sentence.add(b"ended: the system call ");
    match name(number.into()) {
        Some(name) => sentence.add(name.as_bytes()),
        None => sentence.add(b"number"),
    }
    sentence.add(b" (");
    sentence.number(number.unsigned_abs());
    sentence.add(b"), with these arguments, is not one that it may make");
    if thread != program.as_bytes().get(..15).unwrap_or(program.as_bytes()) {
        sentence.add(b" in its thread ");
        // It is part of a message: a name is of letters, digits and these.
        thread.iter().filter(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(byte)).for_each(|byte| {
            sentence.add(&[*byte]);
        });
    }
    let mut line = Line::default();
    for part in [program.as_bytes(), b": ", sentence.bytes(), b"\n"] {
        line.add(part);
    }
    for place in &TOLD {
        write(place.load(Ordering::Relaxed), &line);
    }
    if let Some(Framed { socket, before, behind }) = framed {
        let mut message = Line::default();
        // Shorter than a line, so that nothing of it is cut.
        if let Ok(len) = u32::try_from(before.len() + sentence.len + behind.len()) {
            message.add(&len.to_le_bytes());
        }
        for part in [before.as_bytes(), sentence.bytes(), behind.as_bytes()] {
            message.add(part);
        }
        write(socket, &message);
    }
    // SAFETY: it ends the process at once.
    unsafe { libc::_exit(DENIED_EXIT.into()) }
}

/// Writes a line, if that need not wait.
fn write(file: RawFd, line: &Line) {
    let mut ready = libc::pollfd { fd: file, events: libc::POLLOUT, revents: 0 };
    // SAFETY: one `pollfd` and as many bytes as there are, are handed over; nothing waits.
    unsafe {
        if file >= 0 && libc::poll(&raw mut ready, 1, 0) == 1 {
            libc::write(file, line.bytes.as_ptr().cast(), line.len);
        }
    }
}

/// A line that takes no memory.
struct Line {
    bytes: [u8; 320],
    len: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self { bytes: [0; 320], len: 0 }
    }
}

impl Line {
    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

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
    SYS_renameat2 "renameat2", SYS_seccomp "seccomp", SYS_sendmmsg "sendmmsg", SYS_sendmsg "sendmsg", SYS_setns "setns",
    SYS_setresuid "setresuid", SYS_setsockopt "setsockopt", SYS_setuid "setuid", SYS_socket "socket",
    SYS_socketpair "socketpair", SYS_statx "statx", SYS_tgkill "tgkill", SYS_unlinkat "unlinkat",
    SYS_unshare "unshare", SYS_userfaultfd "userfaultfd", SYS_keyctl "keyctl", SYS_add_key "add_key", SYS_request_key "request_key",
    SYS_accept4 "accept4", SYS_pipe2 "pipe2", SYS_umount2 "umount2", SYS_chroot "chroot",
    SYS_capset "capset", SYS_mknodat "mknodat", SYS_symlinkat "symlinkat", SYS_fchownat "fchownat", SYS_eventfd2 "eventfd2",
    SYS_fallocate "fallocate", SYS_dup3 "dup3", SYS_io_uring_enter "io_uring_enter", SYS_io_uring_register "io_uring_register",
    SYS_memfd_secret "memfd_secret", SYS_shmat "shmat", SYS_mlock "mlock", SYS_sched_setaffinity "sched_setaffinity",
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
