//! The end of a child with what it used, by calls without a safe wrapper; the clock; a terminal.

#![allow(unsafe_code, reason = "wait4 has no safe wrapper here")]

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use rustix::pty::{OpenptFlags, openpt, unlockpt};
use rustix::time::{ClockId, clock_gettime};

/// What a process and the children it waited for used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) user_ns: u64,
    pub(crate) system_ns: u64,
    pub(crate) minor_faults: u64,
    pub(crate) major_faults: u64,
    /// Of the largest of these processes. Never less than what the process that started it held at
    /// that moment: Linux counts the memory from before the exec.
    pub(crate) peak_rss_bytes: u64,
}

/// The unit that the peak of memory is counted in.
#[cfg(target_os = "linux")]
const PEAK_UNIT: u64 = 1024;
/// The unit that the peak of memory is counted in.
#[cfg(not(target_os = "linux"))]
const PEAK_UNIT: u64 = 1;

/// Whether figures can be taken on this system: most come from /proc, and the monitors that others
/// are compared with run on KVM.
///
/// # Errors
/// They cannot.
pub fn supported() -> io::Result<()> {
    if cfg!(target_os = "linux") {
        return Ok(());
    }
    let why =
        "figures are taken on Linux hosts only: most of them are read from /proc, which this system has not";
    Err(io::Error::new(io::ErrorKind::Unsupported, why))
}

/// A count or a time of the kernel's.
fn number(value: impl Into<i64>) -> u64 {
    u64::try_from(value.into()).expect("the kernel counts from zero upwards")
}

impl Usage {
    fn of(raw: &libc::rusage) -> Self {
        let time = |time: libc::timeval| number(time.tv_sec) * 1_000_000_000 + number(time.tv_usec) * 1000;
        Self {
            user_ns: time(raw.ru_utime),
            system_ns: time(raw.ru_stime),
            minor_faults: number(raw.ru_minflt),
            major_faults: number(raw.ru_majflt),
            peak_rss_bytes: number(raw.ru_maxrss) * PEAK_UNIT,
        }
    }

    /// What was used since `before`; the peak is no difference and stays out.
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            user_ns: self.user_ns.saturating_sub(before.user_ns),
            system_ns: self.system_ns.saturating_sub(before.system_ns),
            minor_faults: self.minor_faults.saturating_sub(before.minor_faults),
            major_faults: self.major_faults.saturating_sub(before.major_faults),
            peak_rss_bytes: 0,
        }
    }
}

/// Waits for the end of the child `id`, and takes it out of the table of processes.
pub(crate) fn reap(id: u32) -> io::Result<(ExitStatus, Usage)> {
    let id = i32::try_from(id).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    loop {
        // SAFETY: both pointers are to live memory of the right types that the call fills.
        if unsafe { libc::wait4(id, &raw mut status, 0, usage.as_mut_ptr()) } == id {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    // SAFETY: zeroed at first, and a rusage is plain numbers.
    let usage = unsafe { usage.assume_init() };
    Ok((ExitStatus::from_raw(status), Usage::of(&usage)))
}

/// What all children that were waited for used so far.
pub(crate) fn children() -> Usage {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is to live memory of the right type. The call fails only for a selector
    // that is none.
    unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr()) };
    // SAFETY: zeroed at first, and a rusage is plain numbers.
    Usage::of(&unsafe { usage.assume_init() })
}

/// `CLOCK_MONOTONIC` in nanoseconds.
pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    number(now.tv_sec) * 1_000_000_000 + number(now.tv_nsec)
}

/// A terminal of nobody's: the end that keeps it, and the end for a program.
#[cfg(target_os = "linux")]
pub(crate) fn terminal() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let keeper = openpt(flags)?;
    unlockpt(&keeper)?;
    let user = rustix::pty::ioctl_tiocgptpeer(&keeper, flags)?;
    Ok((keeper, user))
}

/// As on Linux, by the terminal's name.
#[cfg(not(target_os = "linux"))]
pub(crate) fn terminal() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::fs::{Mode, OFlags};
    let keeper = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    rustix::io::fcntl_setfd(&keeper, rustix::io::FdFlags::CLOEXEC)?;
    rustix::pty::grantpt(&keeper)?;
    unlockpt(&keeper)?;
    let name = rustix::pty::ptsname(&keeper, Vec::new())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let user = rustix::fs::open(name.as_c_str(), flags, Mode::empty())?;
    Ok((keeper, user))
}

/// Sends a signal to the calling thread.
#[cfg(test)]
pub(crate) fn signal_this_thread(number: i32) {
    // SAFETY: the thread is alive, and a signal that it blocks changes nothing but its pending set.
    unsafe { libc::pthread_kill(libc::pthread_self(), number) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::zombie_processes, reason = "waiting for it by hand is what is tried")]
    fn a_child_ends_with_what_it_used() {
        let before = children();
        let child = std::process::Command::new("sh").args(["-c", "exit 3"]).spawn().unwrap();
        let (status, usage) = reap(child.id()).unwrap();
        assert_eq!(status.code(), Some(3));
        assert!(usage.minor_faults > 0 && usage.peak_rss_bytes > 0, "{usage:?}");
        assert!(children().since(&before).minor_faults >= usage.minor_faults);
        assert!(reap(child.id()).is_err());
        let earlier = now_ns();
        assert!(now_ns() >= earlier && earlier > 0);
    }
}
