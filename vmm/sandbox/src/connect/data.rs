//! What is asked of a keeper, and what it answers: plain data.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nelly_protocol::sandbox::messages as wire;

use super::find;
use crate::agent::CallError;
use crate::instance::Streams;
use crate::spec::ContainerSpec;
use crate::state::record::{ExitRecord, ImageRecord};
use crate::state::{Condition, Id, Name, StateError};

/// Why a keeper could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody serves the sandbox.
    #[error("cannot reach the process that holds the sandbox")]
    Reach(#[from] StateError),
    /// The connection cannot be used.
    #[error("cannot use the connection to the process that holds the sandbox")]
    Use(#[source] io::Error),
    /// It does not run.
    #[error("sandbox {} does not run: it is {}", .id.short(), find::shown(*.condition))]
    NotRunning {
        /// The sandbox.
        id: Id,
        /// What is the case.
        condition: Condition,
    },
    /// Its keeper lives and has not written down where its sockets are.
    #[error("the process that holds sandbox {} has no sockets yet", .0.short())]
    NoSockets(Id),
    /// Its state cannot be read.
    #[error(transparent)]
    State(StateError),
    /// Its runtime directory is gone.
    #[error("the directory of the sandbox's sockets, {}, is gone", .0.display())]
    Gone(PathBuf),
    /// The keeper is there and says nothing.
    #[error("the process that holds the sandbox does not answer; `nelly stop --time 0s` ends it")]
    Silent,
    /// The keeper refused the call, or ended in the middle of it.
    #[error("{0}")]
    Call(#[from] CallError),
    /// The streams of a process did not come.
    #[error("cannot get the process's streams")]
    Streams(#[source] io::Error),
}

/// How an exec or a sandbox ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndReport {
    /// Code and reason.
    pub exit: ExitRecord,
    /// A sentence, where those do not tell.
    pub detail: String,
}

/// A process that is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecSpec {
    /// Program and arguments.
    pub args: Vec<String>,
    /// NAME=VALUE, over those of the container.
    pub env: Vec<String>,
    /// Working directory; the container's if empty.
    pub cwd: String,
    /// User; the container's if empty.
    pub user: String,
    /// It has a terminal.
    pub terminal: bool,
    /// It has an input.
    pub stdin: bool,
    /// First size of its terminal, rows and columns; 0 is the kernel's.
    pub size: (u16, u16),
    /// It has no streams, and outlives its client.
    pub detach: bool,
    /// It outlives its client, and can be attached again: its stream is an attachment, in the place
    /// of standard input. Not with `detach`.
    pub session: bool,
}

impl ExecSpec {
    /// As it is asked for, in the first container.
    pub(crate) fn request(&self) -> wire::ExecRequest {
        wire::ExecRequest {
            args: self.args.clone(),
            env: self.env.clone(),
            cwd: self.cwd.clone(),
            user: self.user.clone(),
            terminal: self.terminal,
            stdin: self.stdin,
            rows: self.size.0.into(),
            columns: self.size.1.into(),
            detach: self.detach,
            session: self.session,
            ..Default::default()
        }
    }
}

/// An attachment to the container or to a session.
#[derive(Debug)]
pub struct Attached {
    /// Its stream, in the place of standard input, carries what [`crate::wire::frames`] reads.
    pub claimed: Claimed,
    /// The process has a terminal.
    pub terminal: bool,
    /// What is written is read.
    pub stdin: bool,
    /// The whole id of the session; empty of the container.
    pub exec: String,
}

/// Streams that were claimed. Of an exec they are bound to `connection`: the process ends when that
/// is closed.
#[derive(Debug)]
pub struct Claimed {
    /// The streams. Of an attachment there is one, in the place of standard input.
    pub streams: Streams,
    /// Proves that the client lives.
    pub connection: UnixStream,
}

/// An exec that started.
#[derive(Debug)]
pub struct Exec {
    /// Its id.
    pub id: String,
    /// Its streams; none of a detached one.
    pub claimed: Option<Claimed>,
}

/// A further container that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunSpec {
    /// Its name; two words if absent.
    pub name: Option<Name>,
    /// Its image. The keeper opens the files of its disk, whose paths are absolute.
    pub image: ImageRecord,
    /// The container.
    pub container: ContainerSpec,
    /// First size of its terminal, rows and columns; 0 is the kernel's.
    pub size: (u16, u16),
    /// It has no streams, and outlives its client.
    pub detach: bool,
}

/// A further container that runs.
#[derive(Debug)]
pub struct Run {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its streams; none of a detached one.
    pub claimed: Option<Claimed>,
}
