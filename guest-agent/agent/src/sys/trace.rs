//! Hearing of a signal that the kernel gives nobody, by ptrace(2).
//!
//! The first process of a PID namespace gets no signal whose action is the default one. A tracer hears of it before it is dropped.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::ptr::null_mut;

use super::check_long;

/// linux/ptrace.h: not a signal on its way, but a stop of the whole process, or a new thread.
const EVENT_STOP: i32 = 128;

/// One request that takes no address. The request's type differs between C libraries.
fn request(request: impl TryInto<i64>, thread: i32, data: i32) -> io::Result<()> {
    let request: i64 = request.try_into().ok().expect("requests are small numbers");
    // SAFETY: none of the requests made here reads or writes memory of ours; the data is a number.
    check_long(unsafe { libc::syscall(libc::SYS_ptrace, request, thread, 0_i64, i64::from(data)) }).map(drop)
}

/// Hears of signals to any thread of process `pid` from now on, also to those that it makes later. It goes on as it did.
///
/// # Errors
/// Those of ptrace(2), and of reading /proc.
pub fn trace(pid: i32) -> io::Result<()> {
    let mut seized = HashSet::new();
    loop {
        let before = seized.len();
        for thread in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
            let Some(thread) = thread.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            if seized.insert(thread) {
                match request(libc::PTRACE_SEIZE, thread, libc::PTRACE_O_TRACECLONE) {
                    // Seized already, by the first of its streams or as a child of a seized thread; or gone.
                    Err(error) if !matches!(error.raw_os_error(), Some(libc::EPERM | libc::ESRCH)) => {
                        return Err(error);
                    }
                    _ => {}
                }
            }
        }
        // A thread that was not seized yet may have made another meanwhile.
        if seized.len() == before {
            return Ok(());
        }
    }
}

/// A traced thread stopped, with this status of waitpid(2). True when it is about to get the SIGPIPE of a write of its own: then it
/// waits for [`untrace`]. Otherwise it goes on.
pub(super) fn stopped(thread: i32, status: i32) -> bool {
    let signal = libc::WSTOPSIG(status);
    let gone_on = match status >> 16 {
        0 if signal == libc::SIGPIPE && is_its_own(thread) => return true,
        0 => request(libc::PTRACE_CONT, thread, signal),
        EVENT_STOP if [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU].contains(&signal) => {
            request(libc::PTRACE_LISTEN, thread, 0)
        }
        _ => request(libc::PTRACE_CONT, thread, 0),
    };
    // A thread that was killed meanwhile goes nowhere.
    drop(gone_on);
    false
}

/// Whether the signal that a first process of a namespace is about to get comes from itself.
fn is_its_own(thread: i32) -> bool {
    // SAFETY: an all-zero siginfo is valid, and the pointer is to a live one.
    let info = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let read = libc::syscall(
            libc::SYS_ptrace,
            i64::from(libc::PTRACE_GETSIGINFO),
            thread,
            null_mut::<libc::c_void>(),
            &raw mut info,
        );
        (read == 0).then_some(info)
    };
    // SAFETY: a signal with this code has a sender.
    info.is_some_and(|info| info.si_code == libc::SI_USER && unsafe { info.si_pid() } == 1)
}

/// Lets a thread go on, with the signal that it is about to get, and hears no more of it.
///
/// # Errors
/// Those of ptrace(2).
pub fn untrace(thread: i32, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_DETACH, thread, signal)
}
