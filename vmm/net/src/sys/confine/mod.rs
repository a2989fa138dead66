//! What a process may still ask of the system, once it has everything open that it needs.

#![allow(unsafe_code, reason = "capabilities beyond those that a crate knows are dropped by number")]

mod denied;
mod filter;
mod program;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{DumpableBehavior, Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

pub use denied::DENIED_EXIT;

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
    Ok(rustix::thread::set_no_new_privs(true)?)
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
    drop_capabilities().map_err(failed("capabilities"))?;
    set_limits().map_err(failed("limits"))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|e| failed("not dumpable")(e.into()))?;
    denied::tell(told).map_err(failed("a handler of denied system calls"))?;
    let program = filter::program(role).map_err(failed("seccomp"))?;
    seccompiler::apply_filter(&program).map_err(|e| failed("seccomp")(io::Error::other(e)))?;
    NO_FILES.store(role != Role::Reader, Ordering::Relaxed);
    Ok(vec!["no_new_privs", "capabilities", "limits", "undumpable", "seccomp"])
}

/// Empties all sets of capabilities. Who has none keeps none, and is refused nothing.
fn drop_capabilities() -> io::Result<()> {
    // Linux 4.3 is the first with an ambient set.
    match rustix::thread::clear_ambient_capability_set() {
        Ok(()) | Err(rustix::io::Errno::INVAL) => {}
        Err(error) => return Err(error.into()),
    }
    for number in 0..64_u64 {
        // SAFETY: the call takes numbers only.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) } == 0 {
            continue;
        }
        match io::Error::last_os_error() {
            // The system knows no more.
            error if error.raw_os_error() == Some(libc::EINVAL) => break,
            // An ordinary user may not, and runs no program that the set would bound.
            error if error.raw_os_error() == Some(libc::EPERM) => break,
            error => return Err(error),
        }
    }
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

fn set_limits() -> io::Result<()> {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    for resource in [Resource::Core, Resource::Nproc, Resource::Memlock, Resource::Msgqueue] {
        setrlimit(resource, none)?;
    }
    Ok(())
}
