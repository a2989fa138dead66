//! Systems without layers that are known here.

use std::io;
use std::os::fd::RawFd;

use super::{ConfineError, Confinement, Needs, Process};
use crate::config::{Confine, MachineConfig};
use crate::machine::files::Files;
use crate::machine::threads::Role;

pub(super) fn confine_process(
    done: &mut Confinement,
    config: &MachineConfig,
    _: &Files,
    _: Option<RawFd>,
) -> Result<(), ConfineError> {
    if config.monitor_user.is_some() {
        return Err(ConfineError { layer: "a user of its own here", strict: false, source: None });
    }
    match done.confine {
        Confine::Strict => {
            Err(ConfineError { layer: "any layer that is known here", strict: true, source: None })
        }
        Confine::On | Confine::Off => Ok(()),
    }
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
