//! The files of a machine: paths, and descriptors that it was given.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;

use crate::config::FileSource;
use crate::sys;
use crate::sys::files::Accept;

/// Where [`FileSource::Fd`] leads.
#[derive(Debug)]
pub(super) enum Files {
    /// To what the holder sent, in order.
    Sent(Vec<OwnedFd>),
    /// To what this process was started with, by number.
    Inherited,
}

/// A file that cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    #[error("{field}: cannot open {source_name}")]
    Open {
        field: String,
        source_name: FileSource,
        #[source]
        error: io::Error,
    },
    #[error("{field}: {source_name} was not handed in")]
    Missing { field: String, source_name: FileSource },
}

impl Files {
    /// Opens `source` for the config's `field`, without waiting for it. A descriptor is duplicated, so that a machine can start again
    /// with it.
    pub(super) fn open(
        &self,
        field: &str,
        source: &FileSource,
        options: &OpenOptions,
        accept: Accept,
    ) -> Result<File, FileError> {
        let failed = |error| FileError::Open { field: field.to_owned(), source_name: source.clone(), error };
        match (source, self) {
            (FileSource::Path(path), _) => sys::files::open(path, options, accept).map_err(failed),
            (FileSource::Fd(number), Self::Inherited) => Ok(sys::inherited(*number).map_err(failed)?.into()),
            (FileSource::Fd(number), Self::Sent(sent)) => {
                let sent = usize::try_from(*number).ok().and_then(|number| sent.get(number));
                match sent {
                    Some(fd) => Ok(fd.try_clone().map_err(failed)?.into()),
                    None => Err(FileError::Missing { field: field.to_owned(), source_name: source.clone() }),
                }
            }
        }
    }

    /// For reading only.
    pub(super) fn read(&self, field: &str, source: &FileSource, accept: Accept) -> Result<File, FileError> {
        self.open(field, source, OpenOptions::new().read(true), accept)
    }
}
