//! By descriptors of processes, and by `/proc/PID/stat`.

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::ProcessUsage;
use crate::sys::fits;

pub(super) type Handle = OwnedFd;

pub(super) fn open(number: Pid) -> io::Result<Handle> {
    Ok(pidfd_open(number, PidfdFlags::empty())?)
}

pub(super) fn signal(process: &Handle, signal: Signal) -> io::Result<()> {
    Ok(pidfd_send_signal(process, signal)?)
}

pub(super) fn started(number: u32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{number}/stat"))?;
    Ok(start_ticks(&stat).ok_or(io::ErrorKind::InvalidData)?)
}

pub(super) fn usage(number: u32) -> Option<ProcessUsage> {
    let stat = std::fs::read_to_string(format!("/proc/{number}/stat")).ok()?;
    let page = fits(rustix::param::page_size(), "a page is small");
    parse(&stat, rustix::param::clock_ticks_per_second(), page)
}

/// The fields from the third on, see proc_pid_stat(5). The second is the program's name, which may
/// hold anything.
fn fields(stat: &str) -> Option<impl Iterator<Item = &str> + Clone> {
    let (_, rest) = stat.rsplit_once(')')?;
    Some(rest.split_whitespace())
}

/// Field 22.
fn start_ticks(stat: &str) -> Option<u64> {
    fields(stat)?.nth(19)?.parse().ok()
}

/// Fields 14 and 15 (ticks in user and kernel mode) and 24 (pages).
fn parse(stat: &str, ticks_a_second: u64, page: u64) -> Option<ProcessUsage> {
    let mut after = fields(stat)?.skip(11);
    let mut next = || after.next()?.parse::<u64>().ok();
    let ticks = next()?.saturating_add(next()?);
    let pages: u64 = fields(stat)?.nth(21)?.parse().ok()?;
    let cpu_ns = u128::from(ticks) * 1_000_000_000 / u128::from(ticks_a_second.max(1));
    Some(ProcessUsage { cpu_ns: u64::try_from(cpu_ns).ok()?, resident_bytes: pages.saturating_mul(page) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_from_behind_the_name() {
        let hostile =
            "7 (a) R 1 (b) S 1 7 7 0 -1 4194304 1 2 3 4 150 50 7 8 20 0 1 0 4711 22 3 18446744073709551615";
        assert_eq!(start_ticks(hostile), Some(4711));
        let usage = ProcessUsage { cpu_ns: 2_000_000_000, resident_bytes: 3 * 4096 };
        assert_eq!(parse(hostile, 100, 4096), Some(usage));
        for bad in ["", "7 (a", "7 (a) R 1 2 3", "7 (a) R 1 2 3 4 5 6 7 8 9 10 x y"] {
            assert_eq!((parse(bad, 100, 4096), start_ticks(bad)), (None, None), "{bad}");
        }
    }
}
