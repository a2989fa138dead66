//! Processes that hold a sandbox, told apart from others that come to have the same number.

use std::io;

use nelly_vmm::sys::ProcessHandle;

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
#[must_use]
pub fn handle(holder: &HolderRecord) -> Option<ProcessHandle> {
    let handle = ProcessHandle::open(holder.pid).ok()?;
    // Looked at after it was opened: if it is this process now, it is the one of the handle.
    (of(holder.pid).ok()? == *holder).then_some(handle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_itself_and_no_other_of_its_number() {
        let own = own().unwrap();
        assert!(handle(&own).is_some());
        assert!(handle(&HolderRecord { start_ticks: own.start_ticks + 1, ..own }).is_none());
    }
}
