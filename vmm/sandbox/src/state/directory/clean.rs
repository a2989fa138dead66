//! Removes what killed commands and holders left, never what lives.

use std::fmt;
use std::path::PathBuf;

use super::{DRAFT, Guard, REMAINS, SandboxDir, Sandboxes};
use crate::state::runtime::RuntimeDir;
use crate::state::{Id, Name, StateError};

/// Something that was cleaned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cleaned {
    /// The unfinished sandbox of a command that was killed.
    Draft(Id),
    /// The rest of a sandbox whose removal was interrupted.
    Remains(Id),
    /// A name of no sandbox.
    Name(Name),
    /// A sandbox that was to be removed at its end, and whose holder was killed.
    Ended(Id, Name),
    /// The sockets of a keeper that was killed.
    Sockets(Id, PathBuf),
}

impl fmt::Display for Cleaned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Draft(id) => write!(f, "the unfinished sandbox {}", id.short()),
            Self::Remains(id) => write!(f, "the rest of the removed sandbox {}", id.short()),
            Self::Name(name) => write!(f, "the name {name}, which no sandbox has"),
            Self::Ended(id, name) => {
                write!(f, "sandbox {} ({name}), which was to be removed at its end", id.short())
            }
            Self::Sockets(id, path) => {
                write!(
                    f,
                    "the sockets of sandbox {}, whose process on this host was killed: {}",
                    id.short(),
                    path.display()
                )
            }
        }
    }
}

impl Sandboxes {
    /// Removes what is stale, and says what that was.
    ///
    /// # Errors
    /// Something cannot be removed; the rest is cleaned nevertheless.
    pub fn clean(&self) -> Result<Vec<Cleaned>, StateError> {
        let (mut cleaned, mut failed) = (Vec::new(), None);
        let mut note = |result: Result<Option<Cleaned>, StateError>| match result {
            Ok(what) => cleaned.extend(what),
            Err(error) => failed = Some(error),
        };
        self.sweep(self.guard()?, &mut note)?;
        for id in self.entries("")? {
            // Damage is for the commands that concern this sandbox.
            if let Ok(Some(sandbox)) = self.by_id(id) {
                note(self.clean_ended(&sandbox));
                note(self.clean_sockets(&sandbox));
            }
        }
        failed.map_or(Ok(cleaned), Err)
    }

    /// Removes what is stale beside the sandboxes.
    fn sweep(
        &self,
        guard: Guard,
        note: &mut impl FnMut(Result<Option<Cleaned>, StateError>),
    ) -> Result<(), StateError> {
        for id in self.entries(DRAFT)? {
            note(self.clean_draft(&guard, id));
        }
        for (name, _) in self.links()? {
            note(self.clean_name(&guard, name));
        }
        drop(guard);
        for id in self.entries(REMAINS)? {
            let removed = self.dir.remove_tree(&format!("{REMAINS}{id}"));
            note(removed.map(|()| Some(Cleaned::Remains(id))).map_err(Into::into));
        }
        Ok(())
    }

    fn clean_draft(&self, _guard: &Guard, id: Id) -> Result<Option<Cleaned>, StateError> {
        let name = format!("{DRAFT}{id}");
        if let Some(dir) = self.dir.subdirectory(&name)?
            && SandboxDir::new(id, dir).is_locked()?
        {
            return Ok(None);
        }
        self.dir.remove_tree(&name)?;
        Ok(Some(Cleaned::Draft(id)))
    }

    fn clean_name(&self, _guard: &Guard, name: Name) -> Result<Option<Cleaned>, StateError> {
        if self.owner(&name)?.is_some() {
            return Ok(None);
        }
        self.names.remove(name.as_str())?;
        Ok(Some(Cleaned::Name(name)))
    }

    /// Removes a sandbox that was to be removed at its end, if it ended.
    pub(super) fn clean_ended(&self, sandbox: &SandboxDir) -> Result<Option<Cleaned>, StateError> {
        let ended = |locked| {
            let record = sandbox.record().ok().filter(|record| record.auto_remove)?;
            let condition = sandbox.state().ok()?.condition(locked);
            (!condition.is_live() && condition.word() == "exited").then_some(record.name)
        };
        if ended(sandbox.is_locked()?).is_none() {
            return Ok(None);
        }
        let Ok(lock) = self.lock(sandbox) else { return Ok(None) };
        // Under our lock it can no longer be started, and nobody else holds it.
        let Some(name) = ended(false) else { return Ok(None) };
        // Nobody waits in a list for a command that is stopped.
        let Some(guard) = self.try_guard()? else { return Ok(None) };
        self.remove_under(guard, sandbox, lock)?;
        Ok(Some(Cleaned::Ended(sandbox.id(), name)))
    }

    /// Removes the sockets of a sandbox that does not live.
    fn clean_sockets(&self, sandbox: &SandboxDir) -> Result<Option<Cleaned>, StateError> {
        let stale = || {
            let path = sandbox.state().ok()?.runtime_dir?;
            path.symlink_metadata().is_ok().then_some(path)
        };
        if sandbox.is_locked()? || stale().is_none() {
            return Ok(None);
        }
        let Ok(_lock) = self.lock(sandbox) else { return Ok(None) };
        let Some(path) = stale() else { return Ok(None) };
        let removed = RuntimeDir::clean(&path, sandbox.id())?;
        Ok(removed.then_some(Cleaned::Sockets(sandbox.id(), path)))
    }

    /// Cleans what is seen to be stale at a glance, as every command does. Errors are for
    /// [`Sandboxes::clean`] to tell.
    pub(super) fn tidy(&self) {
        let remains = self.entries(REMAINS).is_ok_and(|ids| !ids.is_empty());
        let drafts = || self.entries(DRAFT).is_ok_and(|ids| ids.iter().any(|id| !self.is_being_made(*id)));
        if (remains || drafts())
            && let Ok(Some(guard)) = self.try_guard()
        {
            let _ = self.sweep(guard, &mut |_| ());
        }
    }

    fn is_being_made(&self, id: Id) -> bool {
        let draft = self.dir.subdirectory(&format!("{DRAFT}{id}")).ok().flatten();
        draft.is_some_and(|dir| SandboxDir::new(id, dir).is_locked().unwrap_or(true))
    }
}
