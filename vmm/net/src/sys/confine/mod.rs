//! What a process may still ask of the system, once it has everything open that it needs.

#[cfg(target_os = "linux")]
mod filter;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(not(target_os = "linux"))]
#[path = "elsewhere.rs"]
mod linux;
#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests;

use std::io;
use std::os::fd::BorrowedFd;

pub use linux::{DENIED_EXIT, keep_privileges_down, may_open_files};

/// What a process is for, which decides what it may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It serves a guest: sockets of the Internet, and no files.
    Network,
    /// As [`Role::Network`], and it makes pairs of streams, of which it hands one end to who has
    /// the secrets.
    Swapping,
    /// It has the secrets: it speaks on what it is handed, and makes no socket.
    Secrets,
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

/// Takes from this process, which has one thread, everything that its role does not need: all
/// capabilities, core dumps, more processes, being traced, and all system calls but those of a
/// list. A call that is not in it ends the process with [`DENIED_EXIT`], after a line on each of
/// `told` that names the call. Gives what was done, a word a step: nothing on macOS.
///
/// # Errors
/// The step that the system refuses.
pub fn confine(role: Role, told: &[BorrowedFd<'_>]) -> Result<Vec<&'static str>, ConfineError> {
    linux::confine(role, told)
}
