//! Lists sandboxes, and finds one by what a person calls it.

use nelly_image::trusted::TrustError;

use super::{SandboxDir, Sandboxes};
use crate::state::record::Condition;
use crate::state::{Id, Name, SandboxRecord, SandboxState, StateError};

/// How many ids an error names.
const NAMED: usize = 8;

/// A sandbox in a list.
#[derive(Debug)]
pub struct Listed {
    /// Its id.
    pub id: Id,
    /// Its name; of a damaged one, what a link says.
    pub name: Option<Name>,
    /// Whether somebody holds its lock.
    pub locked: bool,
    /// What its files say, or why they cannot be used.
    pub details: Result<Details, StateError>,
}

/// What the files of a sandbox say.
#[derive(Debug)]
pub struct Details {
    /// Its record.
    pub record: SandboxRecord,
    /// Its state.
    pub state: SandboxState,
    /// What is the case.
    pub condition: Condition,
}

impl Sandboxes {
    /// All sandboxes, the youngest first. A damaged one is in the list like all others. Only files
    /// are read and locks asked for, so no sandbox can delay this.
    ///
    /// # Errors
    /// The directory itself cannot be listed.
    pub fn list(&self) -> Result<Vec<Listed>, StateError> {
        let ids = self.entries("")?;
        let mut all: Vec<Listed> = ids.into_iter().filter_map(|id| self.listed(id)).collect();
        if all.iter().any(|one| one.name.is_none()) {
            let links = self.links()?;
            for one in all.iter_mut().filter(|one| one.name.is_none()) {
                one.name = links.iter().find(|(_, id)| *id == Some(one.id)).map(|(name, _)| name.clone());
            }
        }
        all.retain(|one| !self.is_cleaned(one));
        let created = |one: &Listed| one.details.as_ref().ok().map(|details| details.record.created);
        all.sort_by_key(|one| std::cmp::Reverse((created(one), one.id)));
        self.tidy();
        Ok(all)
    }

    /// The directories of all sandboxes, in the order of their ids; without those that are not
    /// trusted or were removed meanwhile.
    ///
    /// # Errors
    /// The directory itself cannot be listed.
    pub fn directories(&self) -> Result<Vec<SandboxDir>, StateError> {
        let mut ids = self.entries("")?;
        ids.sort();
        Ok(ids.into_iter().filter_map(|id| self.by_id(id).ok().flatten()).collect())
    }

    /// Whether it was to be removed at its end, and is gone now.
    fn is_cleaned(&self, one: &Listed) -> bool {
        let Ok(Details { record, condition, .. }) = &one.details else { return false };
        let ended = record.auto_remove && !condition.is_live() && !one.locked;
        let sandbox = ended.then(|| self.by_id(one.id).ok().flatten()).flatten();
        sandbox.is_some_and(|sandbox| self.clean_ended(&sandbox).is_ok_and(|cleaned| cleaned.is_some()))
    }

    /// `None` if it was removed meanwhile.
    fn listed(&self, id: Id) -> Option<Listed> {
        let opened = match self.by_id(id) {
            Ok(None) => return None,
            Ok(Some(sandbox)) => Ok(sandbox),
            Err(error) => Err(error),
        };
        let (locked, details) = match opened {
            Ok(sandbox) => match (sandbox.is_locked(), details(&sandbox)) {
                // A half removed one has no files any more.
                (_, Err(_)) if self.is_at(&id.to_string(), &sandbox).is_ok_and(|there| !there) => {
                    return None;
                }
                (Ok(locked), details) => (locked, details),
                (Err(error), _) => (false, Err(error)),
            },
            Err(error) => (false, Err(error)),
        };
        let name = details.as_ref().ok().map(|details| details.record.name.clone());
        Some(Listed { id, name, locked, details })
    }

    /// The sandbox with this id; `None` if there is none.
    ///
    /// # Errors
    /// Its directory is not trusted.
    pub fn by_id(&self, id: Id) -> Result<Option<SandboxDir>, StateError> {
        let dir = self.dir.subdirectory(&id.to_string()).map_err(|error| match error {
            TrustError::Kind { path, .. } => {
                let wanted = "a directory, so it is no sandbox; remove it with `rm`";
                TrustError::Kind { path, wanted }
            }
            other => other,
        });
        Ok(dir?.map(|dir| SandboxDir::new(id, dir)))
    }

    /// The sandbox that `word` stands for: its whole id, else its name, else the beginning of its
    /// id.
    ///
    /// # Errors
    /// [`StateError::Missing`], or [`StateError::Ambiguous`], which names the candidates.
    pub fn find(&self, word: &str) -> Result<SandboxDir, StateError> {
        let missing = || StateError::Missing { word: word.to_owned() };
        if let Ok(id) = word.parse::<Id>() {
            return self.by_id(id)?.ok_or_else(missing);
        }
        if let Ok(name) = word.parse::<Name>()
            && let Some(id) = self.named(&name)?
        {
            return self.by_id(id)?.ok_or_else(missing);
        }
        let hexadecimal = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        if word.is_empty() || !word.chars().all(hexadecimal) {
            return Err(missing());
        }
        let mut found = self.entries("")?;
        found.retain(|id| id.to_string().starts_with(word));
        found.sort();
        match found[..] {
            [] => Err(missing()),
            [id] => self.by_id(id)?.ok_or_else(missing),
            _ => Err(StateError::Ambiguous { word: word.to_owned(), candidates: self.described(&found) }),
        }
    }

    /// The sandbox called `name`: the one that its link leads to, or, should the link be lost, the
    /// one whose record says so.
    fn named(&self, name: &Name) -> Result<Option<Id>, StateError> {
        if let Some(id) = self.owner(name)? {
            return Ok(Some(id));
        }
        let called = |id: &Id| {
            let sandbox = self.by_id(*id).ok().flatten();
            sandbox.and_then(|sandbox| sandbox.record().ok()).is_some_and(|record| record.name == *name)
        };
        Ok(self.entries("")?.into_iter().find(called))
    }

    fn described(&self, ids: &[Id]) -> Vec<String> {
        let describe = |id: &Id| {
            let record = self.by_id(*id).ok().flatten().and_then(|sandbox| sandbox.record().ok());
            let name = record.map(|record| format!(" ({})", record.name)).unwrap_or_default();
            format!("{}{name}", id.short())
        };
        let mut words: Vec<String> = ids.iter().take(NAMED).map(describe).collect();
        if ids.len() > NAMED {
            words.push(format!("and {} more", ids.len() - NAMED));
        }
        words
    }
}

fn details(sandbox: &SandboxDir) -> Result<Details, StateError> {
    let record = sandbox.record()?;
    // In this order: a holder writes its last state before it lets go.
    let locked = sandbox.is_locked()?;
    let state = sandbox.state()?;
    let condition = state.condition(locked);
    Ok(Details { record, state, condition })
}
