//! Why the state of sandboxes cannot be read or changed.

use std::io;
use std::path::{Path, PathBuf};

use nelly_image::trusted::TrustError;

use super::record::SCHEMA;
use super::{Id, Name};

/// An error of the state directory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// A file cannot be used or is not trusted.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// A system call failed.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// The action, as in "cannot read".
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The `version` file is of another version.
    #[error(
        "{} says {found:?}, which this version of nelly does not know: use the newer nelly that wrote it, \
         or choose another directory with NELLY_HOME",
        .path.display()
    )]
    Version {
        /// The `version` file.
        path: PathBuf,
        /// Its first bytes.
        found: String,
    },
    /// A file of a newer version.
    #[error(
        "{} has schema {found}, but this version of nelly reads schema {SCHEMA}: use the newer nelly that wrote it",
        .path.display()
    )]
    Schema {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: u64,
    },
    /// A status of a newer version.
    #[error(
        "{} has the status {found:?}, which this version of nelly does not know: use the newer nelly that wrote it",
        .path.display()
    )]
    Status {
        /// The file.
        path: PathBuf,
        /// The word.
        found: String,
    },
    /// A file is not what it should be.
    #[error("cannot use {}; `nelly rm` removes the damaged sandbox", .path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        source: serde_json::Error,
    },
    /// A file is not there.
    #[error("{} is missing; `nelly rm` removes the damaged sandbox", .path.display())]
    Incomplete {
        /// The file.
        path: PathBuf,
    },
    /// Another sandbox has the name.
    #[error("the name {name} is taken by sandbox {}: choose another, or remove or rename that sandbox", .id.short())]
    NameTaken {
        /// The name.
        name: Name,
        /// Who has it.
        id: Id,
    },
    /// Another process holds the sandbox.
    #[error("sandbox {} is held by another process: it runs, or another command works on it", .id.short())]
    Busy {
        /// The sandbox.
        id: Id,
    },
    /// There is no such sandbox.
    #[error("there is no sandbox {word:?}; `nelly ps -a` lists them")]
    Missing {
        /// The id, the prefix or the name.
        word: String,
    },
    /// Several ids begin like this.
    #[error("{word:?} is the beginning of several ids: {}", candidates.join(", "))]
    Ambiguous {
        /// The prefix.
        word: String,
        /// The ids, each with its name, at most eight.
        candidates: Vec<String>,
    },
    /// The lock of the whole directory does not become free.
    #[error("{} has been locked for {seconds} seconds by another nelly command, which may be stopped: continue or end it", .path.display())]
    Stuck {
        /// The lock.
        path: PathBuf,
        /// How long was waited.
        seconds: u64,
    },
    /// The sockets of a sandbox have no place.
    #[error("there is no directory for sockets: {why}")]
    NoRuntimeDir {
        /// What was tried.
        why: String,
    },
}

impl StateError {
    /// Whether a newer version wrote what cannot be used: only that knows what may be done with it.
    #[must_use]
    pub fn is_of_newer_version(&self) -> bool {
        matches!(self, Self::Version { .. } | Self::Schema { .. } | Self::Status { .. })
    }
}

pub(super) fn io_error(action: &'static str, path: &Path, source: impl Into<io::Error>) -> StateError {
    StateError::Io { action, path: path.to_owned(), source: source.into() }
}
