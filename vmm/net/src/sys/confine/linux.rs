//! The layers of Linux.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use nelly_confine::denied;
pub use nelly_confine::denied::DENIED_EXIT;
use nelly_confine::privilege::{self, CapabilitySet};
use nelly_confine::program::{self, Speculation, Threads};
use rustix::process::Resource;

use super::{ConfineError, Role, filter};

/// Whether a filter of this process denies opening files.
static NO_FILES: AtomicBool = AtomicBool::new(false);

/// Takes from this process the way to more rights by running another program.
///
/// # Errors
/// The system does not have the call.
pub fn keep_privileges_down() -> io::Result<()> {
    privilege::keep_down()
}

/// Whether files may be opened still.
#[must_use]
pub fn may_open_files() -> bool {
    !NO_FILES.load(Ordering::Relaxed)
}

pub(super) fn confine(role: Role, told: &[BorrowedFd<'_>]) -> Result<Vec<&'static str>, ConfineError> {
    let failed = |step| move |source: io::Error| ConfineError { step, source };
    keep_privileges_down().map_err(failed("no_new_privs"))?;
    privilege::drop_capabilities(CapabilitySet::empty()).map_err(failed("capabilities"))?;
    privilege::set_to_nothing(&[Resource::Nproc, Resource::Memlock, Resource::Msgqueue])
        .map_err(failed("limits"))?;
    privilege::hide().map_err(failed("not dumpable"))?;
    let program = if role == Role::Secrets { "nelly-secrets" } else { "nelly-usernet" };
    denied::tell(program, told, None).map_err(failed("a handler of denied system calls"))?;
    let filter = filter::program(role).map_err(failed("seccomp"))?;
    program::install(&filter, Threads::This, Speculation::AsTheSystemHasIt).map_err(failed("seccomp"))?;
    NO_FILES.store(role != Role::Reader, Ordering::Relaxed);
    Ok(vec!["no_new_privs", "capabilities", "limits", "undumpable", "seccomp"])
}
