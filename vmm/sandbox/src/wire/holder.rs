//! Processes that hold a sandbox, told apart from others that come to have the same number.

use std::io;

use nelly_vmm::sys::ProcessHandle;
use rustix::io::Errno;

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
    Ok(HolderRecord { pid, start_ticks: ProcessHandle::started(pid)? })
}

/// A handle on the process that `holder` is; `None` if it has ended, whoever has its number now.
///
/// # Errors
/// The host has no descriptor or memory for it: whether it has ended is not known.
pub fn handle(holder: &HolderRecord) -> io::Result<Option<ProcessHandle>> {
    let Some(handle) = unless_gone(ProcessHandle::open(holder.pid))? else { return Ok(None) };
    // Looked at after it was opened: if it is this process now, it is the one of the handle.
    let now = unless_gone(of(holder.pid))?;
    Ok(now.is_some_and(|now| now == *holder).then_some(handle))
}

/// Of a process that is not there, nothing; nor of one on a system that has no such handles.
fn unless_gone<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if Errno::from_io_error(&error) == Some(Errno::SRCH) => Ok(None),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported => Ok(None),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_itself_and_no_other_of_its_number() {
        let own = own().unwrap();
        assert!(handle(&own).unwrap().is_some());
        assert!(handle(&HolderRecord { start_ticks: own.start_ticks + 1, ..own }).unwrap().is_none());
    }

    #[test]
    fn a_host_without_descriptors_does_not_end_a_process() {
        let answers = |errno: Errno| unless_gone::<()>(Err(errno.into()));
        assert!(answers(Errno::SRCH).unwrap().is_none() && answers(Errno::NOENT).unwrap().is_none());
        assert!(answers(Errno::MFILE).is_err() && answers(Errno::NOMEM).is_err());
    }
}
