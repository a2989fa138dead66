//! Processes that hold a sandbox, told apart from others that come to have the same number.

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::state::record::HolderRecord;

/// This process.
///
/// # Errors
/// The system does not show it.
pub fn own() -> io::Result<HolderRecord> {
    of(std::process::id())
}

/// The process that has this number now.
///
/// # Errors
/// There is none.
pub fn of(pid: u32) -> io::Result<HolderRecord> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let start_ticks = start_ticks(&stat).ok_or(io::ErrorKind::InvalidData)?;
    Ok(HolderRecord { pid, start_ticks })
}

/// A handle on the process that `holder` is; `None` if it has ended, whoever has its number now.
#[must_use]
pub fn handle(holder: &HolderRecord) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(holder.pid).ok()?)?;
    let handle = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    // Looked at after it was opened: if it is this process now, it is the one of the handle.
    (of(holder.pid).ok()? == *holder).then_some(handle)
}

/// The 22nd word of `/proc/PID/stat`. The second is the program's name, which may hold anything.
fn start_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_itself_and_no_other_of_its_number() {
        let own = own().unwrap();
        assert!(handle(&own).is_some());
        assert!(handle(&HolderRecord { start_ticks: own.start_ticks + 1, ..own }).is_none());
        let hostile = "7 (a) R 1 (b) S 1 7 7 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 4711 22";
        assert_eq!(start_ticks(hostile), Some(4711));
        assert_eq!(start_ticks("7 (a"), None);
    }
}
