//! The measuring: processes and machines are started, watched and ended, one at a time.

mod boot;
mod child;
mod console;
mod density;
mod sandbox;
mod syscalls;

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use nelly_image::ImageError;
use nelly_sandbox::agent::AgentError;
use nelly_sandbox::instance::SandboxError;
use nelly_sandbox::spec::SpecError;
use nelly_vmm::config::ConfigError;
use nelly_vmm::text;

pub use boot::{boot, run};
pub use density::density;
pub use sandbox::{exec, ready};

/// Why nothing, or nothing more, was measured.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// The host failed.
    #[error("{what}")]
    Host {
        /// What was tried.
        what: String,
        /// The answer.
        #[source]
        source: io::Error,
    },
    /// SIGINT, SIGTERM or SIGHUP: everything that was started was ended.
    #[error("interrupted by signal {0}")]
    Interrupted(i32),
    /// A program cannot be started.
    #[error("cannot start {program}")]
    Spawn {
        /// Which.
        program: String,
        /// The answer.
        #[source]
        source: io::Error,
    },
    /// The marker did not come in time.
    #[error("no {what} within {} s{tail}", .limit.as_secs_f32())]
    Late {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
        /// What the program said last, introduced.
        tail: String,
    },
    /// The program ended before it was to.
    #[error("the process ended ({status}) {before}{tail}")]
    Died {
        /// How.
        status: ExitStatus,
        /// Before what, or `with an error`.
        before: String,
        /// What it said last, introduced.
        tail: String,
    },
    /// The built-in image cannot be used.
    #[error("cannot use the built-in image")]
    Image(#[from] ImageError),
    /// The sandbox failed.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The agent failed a call.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The process cannot be described.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The machine cannot be described.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A command that was measured failed in the container.
    #[error("{command} in the container: {how}")]
    Command {
        /// Its words.
        command: String,
        /// What happened.
        how: String,
    },
}

impl RunnerError {
    fn host(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Host { what, source }
    }

    /// The error and its causes in one sentence, and what a guest said last.
    fn chain(&self) -> String {
        let sentence = text::chain(self);
        match self {
            Self::Sandbox(SandboxError::Guest { console, .. }) if !console.is_empty() => {
                format!("{sentence}\nthe last lines on the guest's console:\n{console}")
            }
            _ => sentence,
        }
    }
}

/// Told what is going on: one line, for a person who waits.
pub type Progress<'a> = &'a mut dyn FnMut(&str);
