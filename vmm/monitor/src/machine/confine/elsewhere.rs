//! Systems without the layers of Linux. On macOS a process is confined by Seatbelt.

use std::io;
use std::os::fd::RawFd;

use super::{ConfineError, Confinement, Needs, Process};
use crate::config::{Confine, MachineConfig};
use crate::machine::files::Files;
use crate::machine::threads::Role;

pub(super) fn confine_process(
    done: &mut Confinement,
    config: &MachineConfig,
    files: &Files,
    _: Option<RawFd>,
) -> Result<(), ConfineError> {
    if config.monitor_user.is_some() {
        return Err(ConfineError { layer: "a user of its own here", strict: false, source: None });
    }
    let strict = done.confine == Confine::Strict;
    if done.confine == Confine::Off {
        return Ok(());
    }
    match seatbelt(config, files) {
        Ok(is_there) if is_there || !strict => {
            done.seatbelt = is_there;
            Ok(())
        }
        Ok(_) => Err(ConfineError { layer: "any layer that is known here", strict, source: None }),
        Err(source) => Err(ConfineError { layer: "Seatbelt", strict, source: Some(source) }),
    }
}

/// Whether this system has it, and it is in force.
#[cfg(target_os = "macos")]
fn seatbelt(config: &MachineConfig, files: &Files) -> io::Result<bool> {
    use std::os::unix::ffi::OsStringExt;
    let log = |source: &crate::config::FileSource| {
        let (directory, name) = files.log_place(source)?;
        let directory = rustix::fs::getpath(&directory).ok()?.into_bytes();
        Some(std::path::PathBuf::from(std::ffi::OsString::from_vec(directory)).join(name))
    };
    let reached = super::seatbelt::Reached::of(config, log, |path| path.canonicalize())?;
    let profile = std::ffi::CString::new(reached.profile()?)?;
    crate::sys::seatbelt::enter(&profile)?;
    Ok(true)
}

#[cfg(not(target_os = "macos"))]
#[expect(clippy::unnecessary_wraps, reason = "as on macOS")]
fn seatbelt(_: &MachineConfig, _: &Files) -> io::Result<bool> {
    Ok(false)
}

pub(super) fn has_filters() -> bool {
    false
}

pub(super) fn confine_thread(_: Role, _: Needs, _: Process) -> io::Result<()> {
    Ok(())
}

pub(super) fn confine_threads(_: Needs) -> io::Result<()> {
    Ok(())
}

pub(super) fn version() -> u32 {
    0
}
