//! A process beside this one.

#![allow(unsafe_code, reason = "fork is unsafe where other threads run")]

use std::io;
use std::os::fd::OwnedFd;

/// Runs `work` in a child of this process, which has no file open but `kept`, and is ended when
/// this process ends. The child ends when `work` does.
///
/// # Errors
/// Another thread runs, which may hold locks that the child would wait for, or the system has no
/// more processes.
pub fn in_a_child(kept: &OwnedFd, work: impl FnOnce()) -> io::Result<()> {
    if !super::inherited::is_alone()? {
        return Err(io::Error::other("another thread runs"));
    }
    // SAFETY: no other thread runs, so that nothing in the child's copy of the memory is half done.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let prepared = end_with_the_parent().is_ok()
                && super::close_all_but(&[kept]).is_ok()
                && leave_standard_streams().is_ok();
            // A parent that ended before that has closed its end of `kept`.
            if prepared {
                work();
            }
            // SAFETY: it ends the child, and runs nothing that the parent has registered.
            unsafe { libc::_exit(0) }
        }
        _ => Ok(()),
    }
}

#[cfg(target_os = "linux")]
fn end_with_the_parent() -> io::Result<()> {
    use rustix::process::{Signal, set_parent_process_death_signal};
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// The child ends when the parent's end of `kept` is closed.
#[cfg(not(target_os = "linux"))]
#[expect(clippy::unnecessary_wraps, reason = "as on Linux")]
fn end_with_the_parent() -> io::Result<()> {
    Ok(())
}

/// Standard streams are copies of the parent's, which others wait to see closed.
fn leave_standard_streams() -> io::Result<()> {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(rustix::stdio::dup2_stderr(&null)?)
}
