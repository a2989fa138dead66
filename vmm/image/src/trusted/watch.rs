//! Waits for changes in directories.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::TrustedDir;
use crate::sys;

/// A watch on the files of some directories. What changes between two waits ends the second one at
/// once.
#[derive(Debug)]
pub struct Watch(sys::Changes);

impl Watch {
    /// Watches the files of `directories`, not those of directories below.
    ///
    /// # Errors
    /// The system's, for example that the user has too many watches.
    pub fn new(directories: &[&TrustedDir]) -> io::Result<Self> {
        let changes = sys::Changes::new()?;
        for directory in directories {
            changes.add(&sys::path_in(directory.as_fd(), OsStr::new("."), directory.path()))?;
        }
        Ok(Self(changes))
    }

    /// Waits until a file was created, written, closed after writing, or renamed, or until
    /// `longest` is over. True if something happened. A signal ends no wait.
    ///
    /// # Errors
    /// The system's.
    pub fn wait(&self, longest: Duration) -> io::Result<bool> {
        let end = Instant::now() + longest;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.0.wait(left) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                waited => return waited,
            }
        }
    }
}
