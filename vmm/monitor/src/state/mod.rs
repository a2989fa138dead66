//! State written down: named sections, each with a version, one after the other. Pure. What has
//! state is [`Stateful`]; most of it writes its sections as [`fields`].
//!
//! Whoever takes state back names each section and the version that it knows, and says at the end
//! that it took all: what nobody knows is refused with a sentence, not left out. The bytes are
//! input like any other.
//!
//! Form, all numbers little-endian: [`MAGIC`], the number of sections (32 bits); for each the
//! length of its name (8 bits), its name, its version (32 bits), its length (64 bits), its bytes.

pub mod fields;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

use self::fields::{FieldReader, FieldWriter};
use crate::sys::fits;

/// How it begins.
const MAGIC: &[u8] = b"NELLYST1";
/// Most sections: a machine has some dozen.
const SECTIONS_MAX: u32 = 4096;

/// Why state cannot be taken back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// It is something else.
    #[error("it is no state of a machine")]
    Foreign,
    /// It is cut off, or contradicts itself.
    #[error("the state is damaged: {0}")]
    Damaged(&'static str),
    /// What is needed is not in it.
    #[error("the state has no section {0}")]
    Missing(String),
    /// Something is in it that nobody here knows.
    #[error(
        "the state has a section {0} that is unknown here: it is a newer program's, or of another kind of machine"
    )]
    Unknown(String),
    /// Its form is another one.
    #[error("the section {name} of the state has version {found}, and {known} is known here")]
    Version {
        /// The section.
        name: String,
        /// What it has.
        found: u32,
        /// What is known.
        known: u32,
    },
    /// What it says does not go with this machine.
    #[error("the section {name} of the state does not fit: {why}")]
    Unfit {
        /// The section.
        name: String,
        /// Why.
        why: String,
    },
}

impl StateError {
    /// Says why the section `name` does not fit.
    #[must_use]
    pub fn unfit(name: &str, why: impl Into<String>) -> Self {
        Self::Unfit { name: name.to_owned(), why: why.into() }
    }
}

/// What can say its state and take it back. What the machine's configuration and the host decide is
/// not state: it is there before the state comes.
pub trait Stateful {
    /// Adds its state to `state`: one section called `name`, and perhaps more whose names begin
    /// with `name` and a dot. What has no state adds an empty section, so that a restored machine
    /// is known to have it.
    fn save(&self, name: &str, state: &mut Sections);

    /// Takes from `state` what [`Stateful::save`] added under this name, into a fresh one that was
    /// made like the one that was saved. The bytes are input from outside: whatever they say, this
    /// returns. Interrupts nobody: the state of the interrupt controller is restored separately,
    /// and has what was pending.
    ///
    /// # Errors
    /// The state is missing, damaged, of another version, or does not fit this one. What refused
    /// its state is of no use afterwards.
    fn restore(&mut self, name: &str, state: &mut Sections) -> Result<(), StateError>;
}

/// One section.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Section {
    name: String,
    version: u32,
    bytes: Vec<u8>,
}

/// Sections, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sections(Vec<Section>);

impl Sections {
    /// None.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a section.
    ///
    /// # Panics
    /// There is one of this name, or the name is empty or longer than 255 bytes.
    pub fn put(&mut self, name: &str, version: u32, bytes: Vec<u8>) {
        assert!(self.position(name).is_none(), "two sections are called {name}");
        assert!(!name.is_empty() && name.len() <= 255, "a name is a word");
        self.0.push(Section { name: name.to_owned(), version, bytes });
    }

    /// Takes the section of this name, which has this version.
    ///
    /// # Errors
    /// There is none, or it has another version.
    pub fn take(&mut self, name: &str, version: u32) -> Result<Vec<u8>, StateError> {
        self.take_if_there(name, version)?.ok_or_else(|| StateError::Missing(name.to_owned()))
    }

    /// The same of one that may be missing.
    ///
    /// # Errors
    /// It has another version.
    pub fn take_if_there(&mut self, name: &str, version: u32) -> Result<Option<Vec<u8>>, StateError> {
        let Some(at) = self.position(name) else { return Ok(None) };
        let found = self.0[at].version;
        if found != version {
            return Err(StateError::Version { name: name.to_owned(), found, known: version });
        }
        Ok(Some(self.0.remove(at).bytes))
    }

    /// Adds a section of the fields that `write` writes.
    ///
    /// # Panics
    /// As [`Sections::put`].
    pub fn put_fields(&mut self, name: &str, version: u32, write: impl FnOnce(&mut FieldWriter)) {
        let mut fields = FieldWriter::default();
        write(&mut fields);
        self.put(name, version, fields.into_bytes());
    }

    /// Takes the section of this name and version, and of it the fields that `read` reads: all of
    /// them.
    ///
    /// # Errors
    /// As [`Sections::take`]; `read` failed; or it did not read everything.
    pub fn take_fields<T>(
        &mut self,
        name: &str,
        version: u32,
        read: impl FnOnce(&mut FieldReader<'_>) -> Result<T, StateError>,
    ) -> Result<T, StateError> {
        let bytes = self.take(name, version)?;
        let mut fields = FieldReader::new(name, &bytes);
        let value = read(&mut fields)?;
        fields.finish()?;
        Ok(value)
    }

    /// Says that everything was taken.
    ///
    /// # Errors
    /// It was not.
    pub fn finish(self) -> Result<(), StateError> {
        match self.0.into_iter().next() {
            Some(left) => Err(StateError::Unknown(left.name)),
            None => Ok(()),
        }
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.0.iter().position(|section| section.name == name)
    }

    /// Writes them down.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(fits::<_, u32>(self.0.len(), "a machine has some dozen sections").to_le_bytes());
        for Section { name, version, bytes: content } in &self.0 {
            bytes.push(fits(name.len(), "names were checked as they came"));
            bytes.extend(name.as_bytes());
            bytes.extend(version.to_le_bytes());
            bytes.extend((content.len() as u64).to_le_bytes());
            bytes.extend(content);
        }
        bytes
    }

    /// Reads what [`Sections::encode`] wrote, whole.
    ///
    /// # Errors
    /// It is something else, or damaged.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let Some(rest) = bytes.strip_prefix(MAGIC) else { return Err(StateError::Foreign) };
        let mut rest = Rest(rest);
        let count = rest.word()?;
        if count > SECTIONS_MAX {
            return Err(StateError::Damaged("it has too many sections"));
        }
        let mut sections = Self::new();
        for _ in 0..count {
            let [len] = rest.array()?;
            let name = std::str::from_utf8(rest.take(usize::from(len))?);
            let name = name.map_err(|_| StateError::Damaged("a section's name is no text"))?;
            if name.is_empty() {
                return Err(StateError::Damaged("a section has no name"));
            }
            if sections.position(name).is_some() {
                return Err(StateError::Damaged("two sections have one name"));
            }
            let version = rest.word()?;
            let len = u64::from_le_bytes(rest.array()?);
            let len = usize::try_from(len).map_err(|_| CUT_OFF)?;
            let bytes = rest.take(len)?.to_vec();
            sections.0.push(Section { name: name.to_owned(), version, bytes });
        }
        if !rest.0.is_empty() {
            return Err(StateError::Damaged("something follows its last section"));
        }
        Ok(sections)
    }
}

const CUT_OFF: StateError = StateError::Damaged("it is cut off");

/// Bytes that were not read yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], StateError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(CUT_OFF)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], StateError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(CUT_OFF)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn word(&mut self) -> Result<u32, StateError> {
        Ok(u32::from_le_bytes(self.array()?))
    }
}
