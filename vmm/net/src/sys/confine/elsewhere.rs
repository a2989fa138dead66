//! Systems whose layers are not used.

use std::io;
use std::os::fd::BorrowedFd;

use super::{ConfineError, Role};

/// As on Linux, were a call denied.
pub const DENIED_EXIT: u8 = 159;

#[expect(clippy::unnecessary_wraps, reason = "as on Linux")]
pub(super) fn confine(_: Role, _: &[BorrowedFd<'_>]) -> Result<Vec<&'static str>, ConfineError> {
    Ok(Vec::new())
}

/// As on Linux, had the system it.
///
/// # Errors
/// None.
#[expect(clippy::unnecessary_wraps, reason = "as on Linux")]
pub fn keep_privileges_down() -> io::Result<()> {
    Ok(())
}

/// Whether files may be opened still.
#[must_use]
pub fn may_open_files() -> bool {
    true
}
