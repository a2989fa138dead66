//! A small init as the container's first process: the program is its child.
//!
//! It is this process, with the memory of the agent that it was copied from, with the user, the
//! capabilities and the filter of the program. It never becomes another program. It cannot be
//! dumped, so that nobody of the container may look into that memory, except a process that was
//! given CAP_SYS_PTRACE.

use super::{Named, StageError};
use crate::spawn::caps::CapabilitySets;
use crate::spawn::seccomp::SeccompFilter;
use crate::sys::{self, Blocked};

/// Returns in the child, which is to become the program. This process stays, and ends with the
/// child's exit code.
pub(super) fn stay(
    uid: u32,
    sets: CapabilitySets,
    filter: Option<&SeccompFilter>,
    terminal: bool,
) -> Result<(), StageError> {
    let blocked = Blocked::all().step(|| "block signals for the init".into())?;
    match blocked.fork(terminal).step(|| "make the process of the program, below the init".into())? {
        None => Ok(()),
        Some(child) => sys::end(match confine(uid, sets, filter) {
            Ok(()) => sys::stay_as_init(&blocked, child),
            Err(_) => 125,
        }),
    }
}

/// What the program may not do, its init may not either.
fn confine(uid: u32, sets: CapabilitySets, filter: Option<&SeccompFilter>) -> std::io::Result<()> {
    // The end of the channel to the agent tells that the child became the program: the child's must
    // be the last.
    sys::close_all_but_streams()?;
    // It never executes anything, so that this denies nothing but lets the filter in.
    sys::set_no_new_privileges()?;
    // What its exec leaves to a program of another user than root.
    let kept = |set| if uid == 0 { set } else { sets.ambient };
    sys::capabilities::apply(kept(sets.effective), kept(sets.permitted), sets.inheritable, sets.ambient)?;
    sys::name_process(c"init")?;
    filter.map_or(Ok(()), |filter| sys::install_seccomp(&filter.program, filter.flags))
}
