//! What a process may still ask of the system, once it has everything open that it needs.

mod filter;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use nelly_confine::denied;
pub use nelly_confine::denied::DENIED_EXIT;
use nelly_confine::privilege::{self, CapabilitySet};
use nelly_confine::program::{self, Speculation, Threads};
use rustix::process::Resource;

/// What a process is for, which decides what it may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It serves a guest: sockets of the Internet, and no files.
    Network,
    /// It reads one file again and again, and says on a socket that it has what it holds.
    Reader,
    /// It passes on what those say who connect to a socket that it has, and removes that at its
    /// end.
    Switch,
}

/// A step of the confinement that the system refuses.
#[derive(Debug, thiserror::Error)]
#[error("cannot confine this process: {step}; \"confine\": \"off\" in the configuration goes on without")]
pub struct ConfineError {
    step: &'static str,
    #[source]
    source: io::Error,
}

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

/// Takes from this process, which has one thread, everything that its role does not need: all
/// capabilities, core dumps, more processes, being traced, and all system calls but those of a
/// list. A call that is not in it ends the process with [`DENIED_EXIT`], after a line on each of
/// `told` that names the call. Gives what was done, a word a step.
///
/// # Errors
/// The step that the system refuses.
pub fn confine(role: Role, told: &[BorrowedFd<'_>]) -> Result<Vec<&'static str>, ConfineError> {
    let failed = |step| move |source: io::Error| ConfineError { step, source };
    keep_privileges_down().map_err(failed("no_new_privs"))?;
    privilege::drop_capabilities(CapabilitySet::empty()).map_err(failed("capabilities"))?;
    privilege::set_to_nothing(&[Resource::Nproc, Resource::Memlock, Resource::Msgqueue])
        .map_err(failed("limits"))?;
    privilege::hide().map_err(failed("not dumpable"))?;
    denied::tell("nelly-usernet", told, None).map_err(failed("a handler of denied system calls"))?;
    let filter = filter::program(role).map_err(failed("seccomp"))?;
    program::install(&filter, Threads::This, Speculation::AsTheSystemHasIt).map_err(failed("seccomp"))?;
    NO_FILES.store(role != Role::Reader, Ordering::Relaxed);
    Ok(vec!["no_new_privs", "capabilities", "limits", "undumpable", "seccomp"])
}
