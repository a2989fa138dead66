//! The log of a user-mode network: a file that is opened here, and that its process only writes.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;

use nelly_vmm::sys::files::{self, Accept};

use super::NetworkError;
use crate::spec::network::UserNetwork;

/// Opens the log of a network, if it has one. A file that does not exist is made, for its owner
/// alone; lines are added to one that does.
///
/// # Errors
/// [`NetworkError::Log`].
pub fn open_log(network: &UserNetwork) -> Result<Option<File>, NetworkError> {
    let Some(path) = &network.log else { return Ok(None) };
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600);
    files::open(path, &options, Accept::Stream)
        .map(Some)
        .map_err(|source| NetworkError::Log { path: path.clone(), source })
}
