//! The pre-exec stage: a copy of the agent, with one thread, already born in the new namespaces. It
//! makes the container's surroundings (or joins them), waits at the gate, and becomes the program.
//! No exec of the agent's program stands between the two: its start, and the plan written and read
//! again, would cost more than all mounts.
//!
//! It inherits, by number: 0, 1, 2 the streams; 3 the channel to the agent; 4 the pidfd of the
//! container's first process when it joins, or the program of its init. Everything else of the
//! agent is closed, and its memory goes with the exec of the program. On the channel, packets: to
//! the agent `c` with the terminal, `r` at the gate, `x` right before exec, `e` with a
//! [`StageFailure`]; from the agent `g`. Exec closes the channel: end-of-file after `x` is success.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, umask};
use thiserror::Error;

use super::plan::StagePlan;
use super::{FailureKind, StageFailure};
use crate::sys;

mod container;
mod copy;
mod files;
mod init;
mod nodes;
mod places;
mod process;
mod root;
mod storage;
mod trust;
mod volumes;

/// Number of the channel.
const CHANNEL: i32 = 3;
/// Number of the pidfd to join.
const JOIN: i32 = 4;
/// Number of the program of an init, in a stage that joins nothing.
const INIT: i32 = 4;

/// What a stage could not do.
#[derive(Debug, Error)]
enum StageError {
    /// A step of the set-up.
    #[error("cannot {0}")]
    Step(String, #[source] io::Error),
    /// A descriptor that the agent should have given is missing.
    #[error("file descriptor {0} is missing")]
    Descriptor(i32),
    /// The agent went away or said something else.
    #[error("the agent did not open the gate")]
    Gate,
    /// The user or a group is unknown.
    #[error(transparent)]
    User(#[from] super::users::UserError),
    /// No such program.
    #[error("{0}")]
    NotFound(String),
    /// A program that cannot be run.
    #[error("{0}")]
    NotExecutable(String),
}

impl StageError {
    fn failure(&self) -> StageFailure {
        let kind = match self {
            Self::NotFound(_) => FailureKind::NotFound,
            Self::NotExecutable(_) => FailureKind::NotExecutable,
            _ => FailureKind::Other,
        };
        StageFailure { kind, message: super::chain(self) }
    }
}

/// A failed step with its name.
trait Named<T> {
    fn step(self, what: impl FnOnce() -> String) -> Result<T, StageError>;
}

impl<T> Named<T> for io::Result<T> {
    fn step(self, what: impl FnOnce() -> String) -> Result<T, StageError> {
        self.map_err(|error| StageError::Step(what(), error))
    }
}

impl<T> Named<T> for nix::Result<T> {
    fn step(self, what: impl FnOnce() -> String) -> Result<T, StageError> {
        self.map_err(|error| StageError::Step(what(), error.into()))
    }
}

/// Runs the stage. Only ever returns when it failed: with the exit code, after the agent was told
/// why.
#[must_use]
pub fn main(plan: &StagePlan) -> i32 {
    // A signal acts on the stage as it would on a program that has just begun, so none is lost.
    sys::all_signals_default();
    // The agent's own hook ends the machine.
    drop(std::panic::take_hook());
    let Some(channel) = sys::inherited(CHANNEL) else { return 125 };
    let error = match run(plan, &channel) {
        Err(error) => error,
        Ok(never) => match never {},
    };
    let failure = error.failure();
    let mut packet = vec![b'e', failure.kind.letter()];
    packet.extend(failure.message.bytes().take(super::LONGEST_MESSAGE));
    // Should the agent not hear it, the exit code still tells the kind.
    let _ = sys::send(channel.as_fd(), &packet, None);
    failure.kind.exit_code()
}

fn run(plan: &StagePlan, channel: &OwnedFd) -> Result<std::convert::Infallible, StageError> {
    sys::set_not_dumpable().step(|| "make the process undumpable".into())?;
    umask(Mode::from_bits_truncate(0o022));
    nix::unistd::setsid().step(|| "start a session".into())?;
    match &plan.container {
        Some(container) => container::prepare(container, &plan.process.cwd)?,
        None if plan.stays => {}
        None => join()?,
    }
    if let Some((rows, columns)) = plan.process.terminal {
        terminal(channel, rows, columns, plan.container.is_some())?;
    }
    if let Some(container) = &plan.container {
        container::seal(container)?;
    }

    sys::send(channel.as_fd(), b"r", None).step(|| "report to the agent".into())?;
    let mut word = [0; 1];
    match sys::receive(channel.as_fd(), &mut word) {
        Ok(received) if received.length == 1 && word == *b"g" => {}
        _ => return Err(StageError::Gate),
    }
    process::become_program(&plan.process, channel)
}

/// Joins the namespaces of the container's first process; the PID namespace is joined already. Not
/// its cgroup namespace: this process was born beside the container's cgroup, and has one of its
/// own in which it sees itself at the root, as the first process does.
fn join() -> Result<(), StageError> {
    let first = sys::inherited(JOIN).ok_or(StageError::Descriptor(JOIN))?;
    let kinds = libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWNET;
    sys::join_namespaces(first.as_fd(), kinds).step(|| "join the container's namespaces".into())?;
    unshare(CloneFlags::CLONE_NEWCGROUP).step(|| "make a cgroup namespace".into())
}

fn terminal(channel: &OwnedFd, rows: u16, columns: u16, console: bool) -> Result<(), StageError> {
    let terminal = sys::open_terminal("/dev/pts/ptmx").step(|| "open a terminal by /dev/pts/ptmx".into())?;
    if rows != 0 && columns != 0 {
        sys::set_window_size(terminal.slave.as_fd(), rows, columns)
            .step(|| "set the size of the terminal".into())?;
    }
    sys::send(channel.as_fd(), b"c", Some(terminal.master.as_fd()))
        .step(|| "hand the terminal to the agent".into())?;
    if console {
        nodes::bind_console(terminal.number)?;
    }
    sys::become_standard_streams(terminal.slave.as_fd()).step(|| "use the terminal".into())?;
    sys::make_controlling(terminal.slave.as_fd()).step(|| "control the terminal".into())
}
