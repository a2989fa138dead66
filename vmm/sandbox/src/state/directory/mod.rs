//! The state directory, `$XDG_DATA_HOME/nelly/sandboxes`: the truth about all sandboxes.
//!
//! ```text
//! version         the layout of this directory
//! lock            held for a moment by whoever makes, renames or removes
//! names/NAME      a symbolic link to ../ID
//! ID/             a sandbox
//!   lock          held by whoever holds the machine: a sandbox lives if and only if it is held
//!   sandbox.json  the record, changed only under the lock of the whole directory
//!   state.json    the state, written only by the holder of the sandbox's lock
//!   logs/         its output
//! new-ID/         a sandbox in the making, held by its maker
//! gone-ID/        one that is being removed
//! ```
//!
//! Both files are replaced by renaming, so a reader finds a whole one without any lock. A record
//! says what its sandbox is called; a link with another name, or to nothing, is what a killed
//! command left, and stale. A lock belongs to an open file, not to a process: it is passed on with
//! the descriptor, and ends with the last copy, however its holder ended.

mod clean;
mod draft;
mod find;
mod sandbox;

use std::ffi::OsStr;
use std::io::Read;
use std::ops::Not;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nelly_image::trusted::{self, TrustedDir};
use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;

pub use clean::Cleaned;
pub use draft::Draft;
pub use find::{Details, Listed};
pub(super) use sandbox::replace;
pub use sandbox::{SandboxDir, SandboxLock};

use super::error::io_error;
use super::runtime::RuntimeDir;
use super::{Id, Name, SandboxRecord, StateError, Status};

/// The contents of the `version` file.
const VERSION: &str = "nelly-sandboxes 1\n";
/// What stands before the id of a sandbox that is being made.
const DRAFT: &str = "new-";
/// What stands before the id of a sandbox that is being removed.
const REMAINS: &str = "gone-";
/// How long a command waits for the lock of the whole directory.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it asks.
const ASK: Duration = Duration::from_millis(2);
/// How often it asks for that of a sandbox whose keeper is about to be gone.
const ASK_ENDED: Duration = Duration::from_millis(20);

/// The state directory.
#[derive(Debug)]
pub struct Sandboxes {
    dir: TrustedDir,
    names: TrustedDir,
}

/// The lock of the whole directory.
struct Guard {
    _file: std::fs::File,
}

impl Sandboxes {
    /// Opens the state directory at `path`; `None` if there is none.
    ///
    /// # Errors
    /// It is of a newer version, or belongs to another user or is writable by others.
    pub fn open(path: &Path) -> Result<Option<Self>, StateError> {
        let Some(dir) = TrustedDir::open(path)? else { return Ok(None) };
        // One that is just being made has no version yet, and nothing else.
        if !check_version(&dir)? {
            return Ok(None);
        }
        let names = dir.make_subdirectory("names")?;
        Ok(Some(Self { dir, names }))
    }

    /// Opens the state directory at `path`, and makes it if there is none. What killed commands
    /// left is removed.
    ///
    /// # Errors
    /// As [`Sandboxes::open`].
    pub fn make(path: &Path) -> Result<Self, StateError> {
        let dir = TrustedDir::make(path)?;
        if !check_version(&dir)? {
            let names = dir.make_subdirectory("names")?;
            let made = Self { dir, names };
            let _guard = made.guard()?;
            if !check_version(&made.dir)? {
                sandbox::replace(&made.dir, "version", VERSION.as_bytes())?;
            }
        }
        let made = Self::open(path)?.ok_or_else(|| io_error("open", path, Errno::NOENT))?;
        made.tidy();
        Ok(made)
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Bytes that may still be written here; `None` if the file system has no bound, or does not
    /// say.
    #[must_use]
    pub fn free_bytes(&self) -> Option<u64> {
        trusted::free_bytes(&self.dir).ok().flatten()
    }

    /// The directory itself, to be watched.
    pub(super) fn dir(&self) -> &TrustedDir {
        &self.dir
    }

    /// Waits for the lock of the whole directory.
    fn guard(&self) -> Result<Guard, StateError> {
        let start = Instant::now();
        loop {
            if let Some(guard) = self.try_guard()? {
                return Ok(guard);
            }
            if start.elapsed() > PATIENCE {
                return Err(StateError::Stuck {
                    path: self.path().join("lock"),
                    seconds: PATIENCE.as_secs(),
                });
            }
            std::thread::sleep(ASK);
        }
    }

    /// Takes the lock of the whole directory, if it is free.
    fn try_guard(&self) -> Result<Option<Guard>, StateError> {
        let file = self.dir.open_or_make("lock")?;
        let locked =
            trusted::try_lock(&file).map_err(|source| io_error("lock", &self.path().join("lock"), source))?;
        Ok(locked.then_some(Guard { _file: file }))
    }

    /// Begins a sandbox under a temporary name, with its lock held and `state.json` saying created.
    /// [`Draft::publish`] makes it visible; dropping the draft removes it.
    ///
    /// # Errors
    /// The name is taken, or the file system refuses.
    pub fn draft(&self, record: SandboxRecord) -> Result<Draft<'_>, StateError> {
        Draft::begin(self, record)
    }

    /// Takes the lock of `sandbox` without waiting.
    ///
    /// # Errors
    /// [`StateError::Busy`]: it is held by another process. [`StateError::Missing`]: the sandbox
    /// was removed meanwhile.
    pub fn lock(&self, sandbox: &SandboxDir) -> Result<SandboxLock, StateError> {
        let lock = sandbox.try_lock();
        // With the lock held this cannot change any more: whoever removes it holds the lock, too.
        if !self.is_at(&sandbox.id().to_string(), sandbox)? {
            return Err(StateError::Missing { word: sandbox.id().short() });
        }
        lock?.ok_or(StateError::Busy { id: sandbox.id() })
    }

    /// Takes the lock of a sandbox that does not run. Of one whose keeper has said its last word
    /// and is not gone yet, that is waited for, at most for `patience`. Blocks.
    ///
    /// # Errors
    /// As [`Sandboxes::lock`]: it runs.
    pub fn lock_ended(&self, sandbox: &SandboxDir, patience: Duration) -> Result<SandboxLock, StateError> {
        let mut left = patience;
        loop {
            let ended = || {
                let at_rest = |status| matches!(status, Status::Exited | Status::Created);
                sandbox.state().is_ok_and(|state| at_rest(state.status))
            };
            match self.lock(sandbox) {
                Err(StateError::Busy { .. }) if !left.is_zero() && ended() => {
                    std::thread::sleep(ASK_ENDED);
                    left = left.saturating_sub(ASK_ENDED);
                }
                locked => return locked,
            }
        }
    }

    /// Whether `name` in this directory is the directory of `sandbox`.
    fn is_at(&self, name: &str, sandbox: &SandboxDir) -> Result<bool, StateError> {
        let path = self.path().join(name);
        let own = rustix::fs::fstat(sandbox.dir()).map_err(|error| io_error("look at", &path, error))?;
        match rustix::fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok((stat.st_dev, stat.st_ino) == (own.st_dev, own.st_ino)),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(io_error("look at", &path, error)),
        }
    }

    /// Gives `sandbox` another name, whether it lives or not.
    ///
    /// # Errors
    /// The name is taken, the sandbox was removed, or its record cannot be used, or a newer version
    /// wrote it.
    pub fn rename(&self, sandbox: &SandboxDir, name: &Name) -> Result<(), StateError> {
        let guard = self.guard()?;
        let mut record = self.record_of(sandbox)?;
        self.take_name(&guard, name, sandbox.id())?;
        let old = std::mem::replace(&mut record.name, name.clone());
        sandbox.write_record(&record)?;
        self.drop_name(&guard, &old, sandbox.id())
    }

    /// Changes the record of `sandbox`, whether it lives or not. Id and name stay as they are.
    ///
    /// # Errors
    /// The sandbox was removed, or its record cannot be used, or a newer version wrote it.
    pub fn update(
        &self,
        sandbox: &SandboxDir,
        change: impl FnOnce(&mut SandboxRecord),
    ) -> Result<SandboxRecord, StateError> {
        let _guard = self.guard()?;
        let found = self.record_of(sandbox)?;
        let mut record = found.clone();
        change(&mut record);
        (record.id, record.name) = (found.id, found.name);
        sandbox.write_record(&record)?;
        Ok(record)
    }

    /// The record of a sandbox that is still there. Under the lock of the whole directory.
    fn record_of(&self, sandbox: &SandboxDir) -> Result<SandboxRecord, StateError> {
        if self.is_at(&sandbox.id().to_string(), sandbox)? {
            sandbox.refuse_newer()?;
            sandbox.record()
        } else {
            Err(StateError::Missing { word: sandbox.id().short() })
        }
    }

    /// Removes a sandbox whose lock the caller holds, with all its files. It is first renamed, so
    /// that nobody sees one that is half removed.
    ///
    /// # Errors
    /// A newer version wrote it, or a file cannot be removed: then the sandbox is gone from lists
    /// nevertheless, and cleaning goes on with it.
    pub fn remove(&self, sandbox: &SandboxDir, lock: SandboxLock) -> Result<(), StateError> {
        self.remove_under(self.guard()?, sandbox, lock)
    }

    fn remove_under(&self, guard: Guard, sandbox: &SandboxDir, lock: SandboxLock) -> Result<(), StateError> {
        let id = sandbox.id();
        assert_eq!(lock.id(), id, "the lock of this sandbox, and not of another, permits its removal");
        if !self.is_at(&id.to_string(), sandbox)? {
            return Err(StateError::Missing { word: id.short() });
        }
        sandbox.refuse_newer()?;
        // Nothing leads to what its killed keeper left there any more; it is no reason to keep it.
        if let Some(sockets) = sandbox.state().ok().and_then(|state| state.runtime_dir) {
            let _kept = RuntimeDir::clean(&sockets, id);
        }
        let remains = format!("{REMAINS}{id}");
        rustix::fs::renameat_with(&self.dir, id.to_string(), &self.dir, &remains, RenameFlags::NOREPLACE)
            .map_err(|error| io_error("rename", sandbox.dir().path(), error))?;
        for (name, _) in self.links()?.iter().filter(|(_, target)| *target == Some(id)) {
            self.drop_name(&guard, name, id)?;
        }
        drop(guard);
        self.dir.remove_tree(&remains)?;
        drop(lock);
        Ok(())
    }

    /// Makes the link from `name` to `id`.
    fn take_name(&self, _guard: &Guard, name: &Name, id: Id) -> Result<(), StateError> {
        if let Some(owner) = self.owner(name)? {
            return Err(StateError::NameTaken { name: name.clone(), id: owner });
        }
        let path = self.names.path().join(name.as_str());
        // What is there is stale.
        self.names.remove(name.as_str())?;
        rustix::fs::symlinkat(format!("../{id}"), &self.names, name.as_str())
            .map_err(|error| io_error("create the link", &path, error))
    }

    /// Removes the link from `name`, if it leads to `id`.
    fn drop_name(&self, _guard: &Guard, name: &Name, id: Id) -> Result<(), StateError> {
        if self.target(name)? == Some(id) {
            self.names.remove(name.as_str())?;
        }
        Ok(())
    }

    /// The sandbox that the link `name` leads to, whether or not it is there.
    fn target(&self, name: &Name) -> Result<Option<Id>, StateError> {
        match rustix::fs::readlinkat(&self.names, name.as_str(), Vec::new()) {
            Ok(target) => {
                Ok(target.to_str().ok().and_then(|target| target.strip_prefix("../")?.parse().ok()))
            }
            // No link at all is as good as one to nowhere.
            Err(Errno::NOENT | Errno::INVAL) => Ok(None),
            Err(error) => Err(io_error("read the link", &self.names.path().join(name.as_str()), error)),
        }
    }

    /// Whether a new sandbox may have `name`. One that has it and was to be removed at its end, but
    /// whose holder was killed, is removed.
    ///
    /// # Errors
    /// [`StateError::NameTaken`], or the directory cannot be read.
    pub fn name_is_free(&self, name: &Name) -> Result<(), StateError> {
        let Some(id) = self.owner(name)? else { return Ok(()) };
        // One that is damaged keeps its name.
        let sandbox = self.by_id(id).ok().flatten();
        match sandbox.and_then(|sandbox| self.clean_ended(&sandbox).ok().flatten()) {
            Some(_cleaned) => Ok(()),
            None => Err(StateError::NameTaken { name: name.clone(), id }),
        }
    }

    /// The sandbox that is called `name`. Of one whose record cannot be read, the link is believed.
    fn owner(&self, name: &Name) -> Result<Option<Id>, StateError> {
        let Some(id) = self.target(name)? else { return Ok(None) };
        let record = match self.by_id(id) {
            Ok(None) => return Ok(None),
            Ok(Some(sandbox)) => sandbox.record(),
            Err(error) => Err(error),
        };
        Ok(record.is_ok_and(|record| record.name != *name).not().then_some(id))
    }

    /// All links, with the sandboxes that they lead to.
    fn links(&self) -> Result<Vec<(Name, Option<Id>)>, StateError> {
        let names = self.names.names().map_err(|source| io_error("list", self.names.path(), source))?;
        let names = names.iter().filter_map(|name| name.to_str()?.parse::<Name>().ok());
        names.map(|name| Ok((name.clone(), self.target(&name)?))).collect()
    }

    /// The ids of the entries of this directory whose names begin with `prefix`.
    fn entries(&self, prefix: &str) -> Result<Vec<Id>, StateError> {
        let names = self.dir.names().map_err(|source| io_error("list", self.path(), source))?;
        let id = |name: &OsStr| {
            let rest = name.as_bytes().strip_prefix(prefix.as_bytes())?;
            std::str::from_utf8(rest).ok()?.parse::<Id>().ok()
        };
        Ok(names.iter().filter_map(|name| id(name)).collect())
    }
}

/// Checks the version of the directory. False if it has no version file.
fn check_version(dir: &TrustedDir) -> Result<bool, StateError> {
    let Some(file) = dir.read("version")? else { return Ok(false) };
    let path = dir.path().join("version");
    let mut found = Vec::new();
    file.take(64).read_to_end(&mut found).map_err(|source| io_error("read", &path, source))?;
    if found != VERSION.as_bytes() {
        let found = String::from_utf8_lossy(&found).trim_end().to_owned();
        return Err(StateError::Version { path, found });
    }
    Ok(true)
}

#[cfg(test)]
mod tests;
