//! Hearing of a signal that the kernel gives nobody, by ptrace(2).
//!
//! The first process of a PID namespace gets no signal whose action is the default one. A tracer
//! hears of it before it is dropped.

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

/// How often the threads of a process are looked through for new ones. One that hands itself on
/// from thread to thread is never done.
const SCANS: usize = 8;

/// How many threads are taken from one look: the kernel's list grows while it is read.
const THREADS: usize = 1 << 16;

/// Hears of signals to any thread of process `pid` from now on, also to those that it makes later.
/// It goes on as it did.
///
/// # Errors
/// Those of ptrace(2), and of reading /proc; and when there are new threads however often one
/// looks.
pub fn trace(pid: i32) -> io::Result<()> {
    let threads = || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task"))?;
        let names = tasks.flatten().map(|thread| thread.file_name());
        Ok(names.filter_map(|name| name.to_str()?.parse().ok()).take(THREADS).collect())
    };
    let seize = |thread| match request(libc::PTRACE_SEIZE, thread, libc::PTRACE_O_TRACECLONE) {
        // Seized already, by the first of its streams or as a child of a seized thread; or gone.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::ESRCH)) => Ok(()),
        other => other,
    };
    seize_all(threads, seize)
}

/// Seizes each thread once, until a look finds no new one: a thread that was not seized yet may
/// have made another meanwhile.
fn seize_all(
    mut threads: impl FnMut() -> io::Result<Vec<i32>>,
    mut seize: impl FnMut(i32) -> io::Result<()>,
) -> io::Result<()> {
    let mut seized = HashSet::new();
    for _ in 0..SCANS {
        let before = seized.len();
        for thread in threads()? {
            if seized.insert(thread) {
                seize(thread)?;
            }
        }
        if seized.len() == before {
            return Ok(());
        }
    }
    Err(io::Error::other("the process creates threads faster than they can be traced"))
}

/// A traced thread stopped, with this status of waitpid(2). True when it is about to get the
/// SIGPIPE of a write of its own: then it waits for [`untrace`]. Otherwise it goes on.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_seized_until_there_are_no_new_ones() {
        let mut looks = [vec![1, 2], vec![2, 3], vec![2, 3]].into_iter();
        let mut seized = Vec::new();
        let listed = || Ok(looks.next().expect("no look after one without new ones"));
        seize_all(listed, |thread| {
            seized.push(thread);
            Ok(())
        })
        .expect("all are seized");
        assert_eq!(seized, [1, 2, 3]);
    }

    #[test]
    fn a_process_that_hands_itself_on_is_given_up() {
        let mut last = 0;
        let next = || {
            last += 1;
            assert!(last < 1000, "it looks forever");
            Ok(vec![last])
        };
        assert!(seize_all(next, |_| Ok(())).is_err());
        assert!(seize_all(|| Ok(vec![1]), |_| Err(io::Error::other("refused"))).is_err());
    }
}
