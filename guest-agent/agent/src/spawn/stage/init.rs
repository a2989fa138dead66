//! A small init as the container's first process: the program is its child.
//!
//! This process makes the child and becomes the init ([`crate::spawn::init`]), with the user, the
//! capabilities and the filter of the program. Only when it is one the child goes on: what it
//! becomes may be allowed to look into the init's memory, in which nothing of the agent's is.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use super::{INIT, Named, StageError};
use crate::spawn::caps::CapabilitySets;
use crate::spawn::init;
use crate::spawn::seccomp::SeccompFilter;
use crate::sys::{self, Blocked};

/// Longest sentence about why there is no init, in bytes.
const SENTENCE: u64 = 1024;

/// Returns in the child, which is to become the program. This process becomes its init, and ends
/// with the child's exit code.
pub(super) fn stay(
    uid: u32,
    sets: CapabilitySets,
    filter: Option<&SeccompFilter>,
    terminal: bool,
) -> Result<(), StageError> {
    let program = sys::inherited(INIT).ok_or(StageError::Descriptor(INIT))?;
    let (told, tell) = sys::pipe().step(|| "make a pipe for the init".into())?;
    let blocked = Blocked::all().step(|| "block signals for the init".into())?;
    let child = blocked.fork(terminal).step(|| "make the process of the program, below the init".into())?;
    if let Some(child) = child {
        drop(told);
        let error = match become_init(&program, child, &tell, uid, sets, filter) {
            Err(error) => error,
            Ok(never) => match never {},
        };
        let _unheard = File::from(tell).write_all(error.to_string().as_bytes());
        sys::end(125);
    }
    drop((tell, program));
    let mut sentence = String::new();
    let heard = File::from(told).take(SENTENCE).read_to_string(&mut sentence);
    heard.step(|| "hear from the init".into())?;
    if sentence.is_empty() {
        return Ok(());
    }
    Err(io::Error::other(sentence)).step(|| "execute the init".into())
}

/// What the program may not do, its init may not either.
fn become_init(
    program: &OwnedFd,
    child: i32,
    tell: &OwnedFd,
    uid: u32,
    sets: CapabilitySets,
    filter: Option<&SeccompFilter>,
) -> io::Result<Infallible> {
    let (read, write) = sys::pipe()?;
    // Nobody reads yet: a filter that does not fit the pipe is an error, not a wait.
    sys::set_nonblocking(write.as_fd(), true)?;
    if let Some(filter) = filter {
        File::from(write).write_all(&init::encoded(filter))?;
    } else {
        drop(write);
    }
    // Everything else is closed by exec, the channel to the agent, too, whose end tells that the
    // child became the program: the child's must be the last.
    sys::keep_on_exec(read.as_fd())?;
    sys::keep_on_exec(tell.as_fd())?;
    // It never executes anything after this, so that this denies nothing but lets the filter in.
    sys::set_no_new_privileges()?;
    // What its exec leaves to a program of another user than root.
    let kept = |set| if uid == 0 { set } else { sets.ambient };
    sys::capabilities::apply(kept(sets.effective), kept(sets.permitted), sets.inheritable, sets.ambient)?;
    let mut words = vec![sys::c_string(init::NAME)?];
    for number in [child, read.as_raw_fd(), tell.as_raw_fd()] {
        words.push(sys::c_string(&number.to_string())?);
    }
    Err(sys::execute_open(program.as_fd(), &words))
}
