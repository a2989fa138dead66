//! The directory of one sandbox: its two files and its lock.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nelly_image::trusted::{self, TrustedDir};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::state::error::io_error;
use crate::state::record::{BOOT_SCHEMA, Condition, SCHEMA, Status};
use crate::state::{Id, SandboxRecord, SandboxState, StateError, boot, storage};

const RECORD: &str = "sandbox.json";
const STATE: &str = "state.json";
const LOCK: &str = "lock";
const SEED: &str = "seed.img";
pub(super) const LOGS: &str = "logs";
const CONTAINERS: &str = "containers";
/// A larger file is not one of ours: what a user can say is limited by the system's argument size.
const MAX_BYTES: u64 = 64 << 20;

/// The directory of a sandbox, which may be in any state, or damaged.
#[derive(Debug)]
pub struct SandboxDir {
    id: Id,
    dir: TrustedDir,
}

/// The lock of a sandbox. Whoever holds it is the only one that starts, changes the state of, or
/// removes the sandbox. It is a descriptor: a process that inherits it holds the lock too, and the
/// lock ends when all copies are closed.
#[derive(Debug)]
pub struct SandboxLock {
    id: Id,
    file: File,
}

impl SandboxLock {
    /// The sandbox.
    #[must_use]
    pub fn id(&self) -> Id {
        self.id
    }

    /// The descriptor, to be passed on; closed on exec as long as nobody changes that.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.file.into()
    }
}

impl AsFd for SandboxLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A file with its schema.
#[derive(Serialize)]
struct Versioned<'a, T> {
    schema: u32,
    #[serde(flatten)]
    value: &'a T,
}

impl SandboxDir {
    pub(super) fn new(id: Id, dir: TrustedDir) -> Self {
        Self { id, dir }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> Id {
        self.id
    }

    /// Its directory, for further files.
    #[must_use]
    pub fn dir(&self) -> &TrustedDir {
        &self.dir
    }

    /// The path of the disk of its writable layer, if it has one.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.dir.path().join(storage::DISK)
    }

    /// The path of the disk that a machine of `nelly boot` writes to, if its image is not written
    /// itself.
    #[must_use]
    pub fn boot_disk(&self) -> PathBuf {
        self.dir.path().join(boot::DISK)
    }

    /// The path of the directory of a machine's own keys for ssh, if it has some.
    #[must_use]
    pub fn ssh_keys(&self) -> PathBuf {
        self.dir.path().join(boot::SSH)
    }

    /// The seed of a machine of `nelly boot`, to be read.
    ///
    /// # Errors
    /// It is missing or not trusted.
    pub fn seed(&self) -> Result<File, StateError> {
        let path = self.dir.path().join(SEED);
        self.dir.read(SEED)?.ok_or(StateError::Incomplete { path })
    }

    /// Replaces that seed. One that a machine has open stays as it is.
    ///
    /// # Errors
    /// The file system refuses; the old one is still there.
    pub fn write_seed(&self, lock: &SandboxLock, bytes: &[u8]) -> Result<(), StateError> {
        assert_eq!(lock.id, self.id, "the seed is written by the holder of this sandbox's lock");
        replace(&self.dir, SEED, bytes)
    }

    /// Removes that seed, if there is one. One that a machine has open stays as it is.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn remove_seed(&self, lock: &SandboxLock) -> Result<(), StateError> {
        assert_eq!(lock.id, self.id, "the seed is removed by the holder of this sandbox's lock");
        Ok(self.dir.remove(SEED)?)
    }

    /// The directory of its logs, made if it is missing.
    ///
    /// # Errors
    /// It cannot be made or is not trusted.
    pub fn logs(&self) -> Result<TrustedDir, StateError> {
        Ok(self.dir.make_subdirectory(LOGS)?)
    }

    /// The directory of the logs of a further container, made if it is missing. It is removed with
    /// the sandbox.
    ///
    /// # Errors
    /// It cannot be made or is not trusted.
    pub fn container_logs(&self, id: Id) -> Result<TrustedDir, StateError> {
        Ok(self.dir.make_subdirectory(CONTAINERS)?.make_subdirectory(&id.to_string())?)
    }

    /// Removes the logs of a further container, if it has any.
    ///
    /// # Errors
    /// They cannot be removed or are not trusted.
    pub fn remove_container_logs(&self, id: Id) -> Result<(), StateError> {
        if let Some(containers) = self.dir.subdirectory(CONTAINERS)? {
            containers.remove_tree(&id.to_string())?;
        }
        Ok(())
    }

    /// Reads `sandbox.json`.
    ///
    /// # Errors
    /// It is missing, damaged, of a newer version, or not trusted.
    pub fn record(&self) -> Result<SandboxRecord, StateError> {
        let (schema, record): (_, SandboxRecord) =
            self.parse(RECORD, &[SCHEMA, BOOT_SCHEMA], &self.read_text(RECORD)?)?;
        let source = if record.id != self.id {
            serde::de::Error::custom(format_args!("it is the record of sandbox {}", record.id.short()))
        } else if record.schema() != schema {
            serde::de::Error::custom(format_args!("its schema is {schema}, and not {}", record.schema()))
        } else {
            return Ok(record);
        };
        Err(StateError::Json { path: self.dir.path().join(RECORD), source })
    }

    /// Reads `state.json`.
    ///
    /// # Errors
    /// As [`SandboxDir::record`].
    pub fn state(&self) -> Result<SandboxState, StateError> {
        #[derive(Deserialize)]
        struct Word {
            status: String,
        }
        let text = self.read_text(STATE)?;
        let state = self.parse(STATE, &[SCHEMA], &text).map(|(_, state)| state);
        state.map_err(|error| match serde_json::from_slice(&text) {
            Ok(Word { status: found }) if found.parse::<Status>().is_err() => {
                StateError::Status { path: self.dir.path().join(STATE), found }
            }
            _ => error,
        })
    }

    /// Refuses a sandbox that a newer version wrote. A damaged one is none.
    ///
    /// # Errors
    /// One for which [`StateError::is_of_newer_version`] holds.
    pub fn refuse_newer(&self) -> Result<(), StateError> {
        let mut errors = self.record().err().into_iter().chain(self.state().err());
        errors.find(StateError::is_of_newer_version).map_or(Ok(()), Err)
    }

    /// Whether somebody holds its lock. Asking neither waits nor disturbs.
    ///
    /// # Errors
    /// The lock cannot be opened.
    pub fn is_locked(&self) -> Result<bool, StateError> {
        let Some(file) = self.dir.read(LOCK)? else { return Ok(false) };
        trusted::is_locked(&file)
            .map_err(|source| io_error("ask for the lock", &self.dir.path().join(LOCK), source))
    }

    /// What is the case: the state, and whether somebody holds the lock.
    ///
    /// # Errors
    /// As [`SandboxDir::record`].
    pub fn condition(&self) -> Result<Condition, StateError> {
        // In this order: a holder writes its last state before it lets go.
        let locked = self.is_locked()?;
        Ok(self.state()?.condition(locked))
    }

    /// The lock that this process inherited as `fd`.
    ///
    /// # Errors
    /// It is the lock of another sandbox, or not held.
    pub fn adopt(&self, fd: OwnedFd) -> Result<SandboxLock, StateError> {
        let file = File::from(fd);
        let path = self.dir.path().join(LOCK);
        let held = || trusted::try_lock(&file).map_err(|source| io_error("lock", &path, source));
        if self.dir.leads_to(LOCK, &file)? && held()? {
            return Ok(SandboxLock { id: self.id, file });
        }
        Err(StateError::Busy { id: self.id })
    }

    /// Writes `state.json` anew.
    ///
    /// # Errors
    /// The file system refuses; the old file is still there.
    pub fn write_state(&self, lock: &SandboxLock, state: &SandboxState) -> Result<(), StateError> {
        assert_eq!(lock.id, self.id, "the state is written by the holder of this sandbox's lock");
        self.write(STATE, SCHEMA, state)
    }

    /// Writes `sandbox.json` anew, under the lock of the whole directory.
    pub(super) fn write_record(&self, record: &SandboxRecord) -> Result<(), StateError> {
        self.write(RECORD, record.schema(), record)
    }

    /// Takes the lock without waiting; `None` if it is held.
    pub(super) fn try_lock(&self) -> Result<Option<SandboxLock>, StateError> {
        let path = self.dir.path().join(LOCK);
        let file = self.dir.open_or_make(LOCK)?;
        let locked = trusted::try_lock(&file).map_err(|source| io_error("lock", &path, source))?;
        Ok(locked.then_some(SandboxLock { id: self.id, file }))
    }

    fn read_text(&self, name: &str) -> Result<Vec<u8>, StateError> {
        let path = self.dir.path().join(name);
        let Some(file) = self.dir.read(name)? else { return Err(StateError::Incomplete { path }) };
        let mut text = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut text).map_err(|source| io_error("read", &path, source))?;
        Ok(text)
    }

    /// Reads what has one of the `known` schemas; and which.
    fn parse<T: DeserializeOwned>(
        &self,
        name: &str,
        known: &[u32],
        text: &[u8],
    ) -> Result<(u32, T), StateError> {
        #[derive(Deserialize)]
        struct Schema {
            schema: u64,
        }
        let path = self.dir.path().join(name);
        // Of another schema nothing else is known, so that is asked first.
        let found = match serde_json::from_slice(text) {
            Ok(Schema { schema }) => known.iter().find(|known| u64::from(**known) == schema).ok_or(schema),
            Err(source) => return Err(StateError::Json { path, source }),
        };
        match found {
            Ok(schema) => match serde_json::from_slice(text) {
                Ok(value) => Ok((*schema, value)),
                Err(source) => Err(StateError::Json { path, source }),
            },
            Err(found) => Err(StateError::Schema { path, found }),
        }
    }

    fn write(&self, name: &str, schema: u32, value: &impl Serialize) -> Result<(), StateError> {
        let versioned = Versioned { schema, value };
        let mut text = serde_json::to_vec_pretty(&versioned)
            .map_err(|source| StateError::Json { path: self.dir.path().join(name), source })?;
        text.push(b'\n');
        replace(&self.dir, name, &text)
    }
}

/// Replaces the file `name` in `dir` by renaming, so that every reader finds a whole one, also
/// after the host lost its power. Only one process at a time may replace a file, which a lock sees
/// to.
pub(in crate::state) fn replace(dir: &TrustedDir, name: &str, bytes: &[u8]) -> Result<(), StateError> {
    let unfinished = format!("{name}.new");
    let path = dir.path().join(name);
    // What a killed process left.
    dir.remove(&unfinished)?;
    let written = || {
        let mut file = dir.make_new(&unfinished)?;
        file.write_all(bytes)
            .and_then(|()| file.sync_all())
            .map_err(|source| io_error("write", &path, source))?;
        rustix::fs::renameat(dir, &unfinished, dir, name).map_err(|error| io_error("write", &path, error))
    };
    written().inspect_err(|_: &StateError| {
        // The disk may be full: what was begun is in the way.
        let _ = dir.remove(&unfinished);
    })
}
