//! What can fail.

use std::io;
use std::time::Duration;

use nelly_image::ImageError;
use nelly_image::trusted::TrustError;

use super::Output;
use crate::agent::StartFailure;
use crate::connect::ConnectError;
use crate::connect::launch::LaunchError;
use crate::instance::SandboxError;
use crate::network::{MemberError, NetworkError, PortError};
use crate::spec::installation::InstallationError;
use crate::state::StateError;
use crate::state::outcome::{NOT_EXECUTABLE, NOT_FOUND};
use crate::state::places::NoHome;
use crate::state::storage::StorageError;

/// Why something failed. Each says what was tried; its chain of sources says the rest, down to the
/// system's error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nelly's own files are not where they were looked for.
    #[error(transparent)]
    Installation(#[from] InstallationError),
    /// The environment does not say where the user's directories are.
    #[error(transparent)]
    Places(#[from] NoHome),
    /// A value of the caller's is wrong.
    #[error("invalid {what}")]
    Invalid {
        /// The method that took it.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The image is not in the local store, or cannot be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The state directory cannot be used, or has no such sandbox.
    #[error(transparent)]
    State(#[from] StateError),
    /// The disk of the writable layer cannot be made.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A machine that this process holds did not start, ended, or does not answer.
    #[error(transparent)]
    Machine(#[from] SandboxError),
    /// The keeper of a sandbox cannot be asked, or refused.
    #[error(transparent)]
    Keeper(#[from] ConnectError),
    /// A keeper was not started, or its sandbox did not start.
    #[error(transparent)]
    Launch(LaunchError),
    /// A port of a machine that this process holds is not published, or still is.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The program in the container was not started. Nothing runs.
    #[error("{message}")]
    Program {
        /// 126 when it cannot be executed, 127 when there is none, else 125.
        code: u8,
        /// What was tried, on which path, and the error.
        message: String,
    },
    /// The time that the caller gave was over. The process was ended.
    #[error("the process did not end within {} ms", .limit.as_millis())]
    TimedOut {
        /// The caller's time.
        limit: Duration,
        /// What it had written until then, and how it ended.
        output: Box<Output>,
    },
    /// The host failed.
    #[error("cannot {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

impl Error {
    pub(super) fn invalid(
        what: &'static str,
    ) -> impl FnOnce(Box<dyn std::error::Error + Send + Sync>) -> Self {
        move |source| Self::Invalid { what, source }
    }

    pub(super) fn host(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { what, source }
    }
}

impl From<NetworkError> for Error {
    fn from(error: NetworkError) -> Self {
        Self::Machine(error.into())
    }
}

impl From<MemberError> for Error {
    fn from(error: MemberError) -> Self {
        NetworkError::from(Box::new(error)).into()
    }
}

impl From<TrustError> for Error {
    fn from(error: TrustError) -> Self {
        Self::State(error.into())
    }
}

impl From<StartFailure> for Error {
    fn from(StartFailure { code, message }: StartFailure) -> Self {
        Self::Program { code, message }
    }
}

impl From<LaunchError> for Error {
    fn from(error: LaunchError) -> Self {
        match error {
            LaunchError::Refused { code: code @ (NOT_EXECUTABLE | NOT_FOUND), message } => {
                Self::Program { code, message }
            }
            error => Self::Launch(error),
        }
    }
}
