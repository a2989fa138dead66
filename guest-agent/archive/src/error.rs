//! Why a copy failed.

use std::io;

use crate::Room;

/// Why a copy failed.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// A file could not be read or written.
    #[error("cannot {what} {path}")]
    File {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The archive could not be read or written.
    #[error("cannot {0} the archive")]
    Stream(&'static str, #[source] io::Error),
    /// The archive ends too early.
    #[error("the archive ends in the middle: the copy is not complete")]
    Truncated,
    /// The archive is damaged.
    #[error("the archive is damaged: {0}")]
    Damaged(&'static str),
    /// The room at the destination is used up.
    #[error("cannot write {path}: {room}, and the copy needs more")]
    Full {
        /// The entry.
        path: String,
        /// How much room there was.
        room: Room,
    },
    /// What is not copied.
    #[error("{path}: {why}")]
    Refused {
        /// The entry.
        path: String,
        /// Why.
        why: &'static str,
    },
    /// The paths do not fit each other.
    #[error("{0}")]
    Place(String),
}

pub(crate) fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

pub(crate) fn file(what: &'static str, path: &[u8]) -> impl FnOnce(rustix::io::Errno) -> ArchiveError {
    let path = shown(path);
    move |error| ArchiveError::File { what, path, source: error.into() }
}
