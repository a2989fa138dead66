//! A sandbox in the making, which becomes visible whole or not at all.

use std::path::Path;

use nelly_image::trusted::TrustedDir;
use rustix::fs::RenameFlags;

use super::sandbox::LOGS;
use super::{DRAFT, SandboxDir, SandboxLock, Sandboxes};
use crate::state::error::io_error;
use crate::state::storage::{self, StorageError, StorageSize};
use crate::state::{SandboxRecord, SandboxState, StateError};

/// A sandbox in the making. Dropping it removes it.
#[derive(Debug)]
pub struct Draft<'a> {
    sandboxes: &'a Sandboxes,
    record: SandboxRecord,
    /// Both are there until it is published.
    made: Option<(SandboxDir, SandboxLock)>,
}

impl<'a> Draft<'a> {
    pub(super) fn begin(sandboxes: &'a Sandboxes, mut record: SandboxRecord) -> Result<Self, StateError> {
        match sandboxes.name_is_free(&record.name) {
            // Two words are not many: a name that nobody asked for is no reason to refuse.
            Err(StateError::NameTaken { .. }) if record.name == record.id.name() => {
                record.name = record.id.longer_name();
                sandboxes.name_is_free(&record.name)?;
            }
            free => free?,
        }
        // Those who clean hold this lock, too: they see no draft that is not locked yet.
        let guard = sandboxes.guard()?;
        if let Some(id) = sandboxes.owner(&record.name)? {
            return Err(StateError::NameTaken { name: record.name, id });
        }
        let name = format!("{DRAFT}{}", record.id);
        let sandbox = SandboxDir::new(record.id, sandboxes.dir.make_subdirectory(&name)?);
        let lock = sandbox.try_lock()?.ok_or(StateError::Busy { id: record.id })?;
        drop(guard);
        let draft = Self { sandboxes, record, made: Some((sandbox, lock)) };
        let (sandbox, lock) = draft.parts();
        sandbox.write_record(&draft.record)?;
        sandbox.write_state(lock, &SandboxState::created())?;
        sandbox.dir().make_subdirectory(LOGS)?;
        Ok(draft)
    }

    fn parts(&self) -> &(SandboxDir, SandboxLock) {
        self.made.as_ref().expect("only publishing takes them, and consumes the draft")
    }

    /// Its directory, for further files, such as the disk.
    #[must_use]
    pub fn dir(&self) -> &TrustedDir {
        self.parts().0.dir()
    }

    /// The sandbox as it is so far, by its temporary path.
    #[must_use]
    pub fn sandbox(&self) -> &SandboxDir {
        &self.parts().0
    }

    /// Writes the seed of a machine of `nelly boot`, so that it is never seen without.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_seed(&self, bytes: &[u8]) -> Result<(), StateError> {
        let (sandbox, lock) = self.parts();
        sandbox.write_seed(lock, bytes)
    }

    /// Makes the disk of its writable layer, of which the record says the size, from the template
    /// of an installation.
    ///
    /// # Errors
    /// [`StorageError`]: the record says no possible size, or the disk cannot be made.
    pub fn make_disk(&self, template: &Path) -> Result<(), StorageError> {
        let size = StorageSize::new(self.record.storage_bytes)?;
        storage::create(template, &self.parts().0.disk(), size).map(drop)
    }

    /// Writes the state with which it becomes visible, instead of that of one that was never
    /// started.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_state(&self, state: &SandboxState) -> Result<(), StateError> {
        let (sandbox, lock) = self.parts();
        sandbox.write_state(lock, state)
    }

    /// Makes the sandbox visible, and gives its lock to the caller.
    ///
    /// # Errors
    /// Another one was given its name meanwhile; the draft is removed.
    pub fn publish(mut self) -> Result<(SandboxDir, SandboxLock), StateError> {
        let (id, all) = (self.record.id, self.sandboxes);
        let guard = all.guard()?;
        all.take_name(&guard, &self.record.name, id)?;
        let from = format!("{DRAFT}{id}");
        let renamed =
            rustix::fs::renameat_with(&all.dir, &from, &all.dir, id.to_string(), RenameFlags::NOREPLACE);
        if let Err(error) = renamed {
            all.drop_name(&guard, &self.record.name, id)?;
            return Err(io_error("rename", &all.path().join(from), error));
        }
        let (_, lock) = self.made.take().expect("only publishing takes them, and consumes the draft");
        // By its new path, for messages.
        let sandbox = all.by_id(id)?.ok_or_else(|| StateError::Missing { word: id.short() })?;
        Ok((sandbox, lock))
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if self.made.is_some() {
            // What cannot be removed now is stale, and removed by a later command.
            let _ = self.sandboxes.dir.remove_tree(&format!("{DRAFT}{}", self.record.id));
        }
    }
}
