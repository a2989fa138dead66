//! By a queue that hears of one process's end, and by libproc.

#![allow(unsafe_code, reason = "kevent and libproc have no safe wrappers")]

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::kqueue::{Event, EventFilter, EventFlags, ProcessEvents, kevent, kqueue};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use super::ProcessUsage;
use crate::sys::fits;

/// The queue holds an event once the process has ended: nobody takes it out, so it stays readable.
#[derive(Debug)]
pub(super) struct Handle {
    number: Pid,
    end: OwnedFd,
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.end.as_fd()
    }
}

pub(super) fn open(number: Pid) -> io::Result<Handle> {
    let end = kqueue()?;
    let filter = EventFilter::Proc { pid: number, flags: ProcessEvents::EXIT };
    let change = Event::new(filter, EventFlags::ADD, std::ptr::null_mut());
    let mut none: [Event; 0] = [];
    // SAFETY: no descriptor is named.
    match unsafe { kevent(&end, &[change], &mut none, None) } {
        Ok(_) => Ok(Handle { number, end }),
        // It has ended, and perhaps nobody has collected it yet.
        Err(Errno::SRCH) if test_kill_process(number) != Err(Errno::SRCH) => {
            // A pipe without a writer is readable, as the queue would be.
            let (end, _) = rustix::pipe::pipe()?;
            rustix::io::fcntl_setfd(&end, rustix::io::FdFlags::CLOEXEC)?;
            Ok(Handle { number, end })
        }
        Err(error) => Err(error.into()),
    }
}

/// The system signals by number alone. As long as the queue has not heard of an end, the number is
/// the process's own; who collects it in between the two calls is its parent alone.
pub(super) fn signal(process: &Handle, signal: Signal) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut end = [PollFd::new(&process.end, PollFlags::IN)];
    if rustix::io::retry_on_intr(|| poll(&mut end, Some(&now)))? > 0 {
        return Err(Errno::SRCH.into());
    }
    Ok(kill_process(process.number, signal)?)
}

/// Microseconds since 1970.
pub(super) fn started(number: u32) -> io::Result<u64> {
    // SAFETY: plain numbers and bytes, of which zeros are valid.
    let mut found: libc::proc_bsdinfo = unsafe { std::mem::zeroed() };
    ask(number, libc::PROC_PIDTBSDINFO, &mut found)?;
    Ok(found.pbi_start_tvsec.saturating_mul(1_000_000).saturating_add(found.pbi_start_tvusec))
}

pub(super) fn usage(number: u32) -> Option<ProcessUsage> {
    // SAFETY: plain numbers, of which zeros are valid.
    let mut found: libc::proc_taskinfo = unsafe { std::mem::zeroed() };
    ask(number, libc::PROC_PIDTASKINFO, &mut found).ok()?;
    let ticks = u128::from(found.pti_total_user) + u128::from(found.pti_total_system);
    let (above, below) = tick()?;
    let cpu_ns = u64::try_from(ticks * u128::from(above) / u128::from(below)).ok()?;
    Some(ProcessUsage { cpu_ns, resident_bytes: found.pti_resident_size })
}

/// Asks for one of the structures that describe a process.
fn ask<T>(number: u32, kind: c_int, into: &mut T) -> io::Result<()> {
    let number = c_int::try_from(number).map_err(|_| io::ErrorKind::InvalidInput)?;
    let size = fits::<_, c_int>(size_of::<T>(), "a small structure");
    let into = std::ptr::from_mut(into).cast::<c_void>();
    // SAFETY: `into` is `size` writable bytes.
    match unsafe { libc::proc_pidinfo(number, kind, 0, into, size) } {
        all if all == size => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Nanoseconds of a tick of the system's clock, as a fraction.
#[expect(deprecated, reason = "one call is no reason for another crate")]
fn tick() -> Option<(u32, u32)> {
    let mut base = libc::mach_timebase_info { numer: 0, denom: 0 };
    // SAFETY: the pointer is to a live structure of the right type.
    let answer = unsafe { libc::mach_timebase_info(&raw mut base) };
    (answer == 0 && base.denom != 0).then_some((base.numer, base.denom))
}
