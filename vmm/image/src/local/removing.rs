//! Who uses images and who removes them: the lock `adding`, which those who use them share.

use std::fs::File;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use super::{LocalError, LocalStore};
use crate::lock::{holder, lock};
use crate::trusted::TrustedDir;

/// How long a removal waits for those who use images: a command that makes a sandbox is done by
/// How long a wait for a removal goes on without a word.
const SILENT: Duration = Duration::from_secs(1);

/// then, a download is not.
const PATIENCE: Duration = Duration::from_secs(2);

/// While it lives, nobody removes blobs of the store, nor files of the cache: what was just found
/// stays, until a record says that it is used.
#[derive(Debug)]
pub struct Hold {
    _lock: File,
}

/// The wish to remove what nothing uses. What is used has to be looked up after it was made: what
/// was being made before is known by then, and nobody makes anything while it lives.
#[derive(Debug)]
pub struct Removing {
    /// None while others use the store.
    lock: Option<File>,
}

impl Removing {
    /// Whether nobody else uses the store. Otherwise names may be removed, and no files.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.lock.is_some()
    }
}

fn open(store: &LocalStore) -> Result<(TrustedDir, File), LocalError> {
    let dir = TrustedDir::make(&store.path)?;
    let file = dir.open_or_make("adding")?;
    Ok((dir, file))
}

impl LocalStore {
    /// Keeps all blobs and files of the cache where they are. This waits for a removal that goes
    /// on, and after a second calls `waits`, once, with the process that removes, where the system
    /// tells it. The directory is created if it does not exist.
    ///
    /// # Errors
    /// [`LocalError`]: the directory cannot be used or written.
    pub fn hold(&self, waits: &mut dyn FnMut(Option<u32>)) -> Result<Hold, LocalError> {
        let (dir, file) = open(self)?;
        let mut tell_at = Some(Instant::now() + SILENT);
        let mut go_on = || {
            if tell_at.take_if(|at| Instant::now() >= *at).is_some() {
                waits(holder(&file));
            }
            false
        };
        lock(&file, &dir, "adding", FlockOperation::NonBlockingLockShared, &mut go_on)?;
        Ok(Hold { _lock: file })
    }

    /// Begins a removal. Others who use the store are waited for, two seconds at most. The
    /// directory is created if it does not exist.
    ///
    /// # Errors
    /// [`LocalError`]: the directory cannot be used or written.
    pub fn removing(&self) -> Result<Removing, LocalError> {
        let (dir, file) = open(self)?;
        let until = Instant::now() + PATIENCE;
        let mut late = || Instant::now() > until;
        let alone = lock(&file, &dir, "adding", FlockOperation::NonBlockingLockExclusive, &mut late)?;
        Ok(Removing { lock: alone.then_some(file) })
    }
}
