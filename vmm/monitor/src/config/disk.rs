//! A block device, as a machine's configuration has it.

use serde::{Deserialize, Serialize};

use super::{ConfigError, DiskId, FileSource, FileUse};

/// Most files of one disk: all descriptors of a machine go to its monitor in one message of at most
/// 253.
pub const MAX_DISK_PARTS: usize = 128;
/// What the offsets of a disk's files are multiples of, in bytes.
pub const PART_ALIGNMENT: u64 = 4096;

/// A block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Its name in messages, and its serial number, truncated to 20 bytes.
    pub id: DiskId,
    /// The raw disk image or block device.
    pub source: FileSource,
    /// The guest may only read it.
    #[serde(default)]
    pub read_only: bool,
    /// Files whose bytes follow those of `source` on the same disk, each from a multiple of
    /// [`PART_ALIGNMENT`] bytes. Only a read-only disk has any, at most [`MAX_DISK_PARTS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub followed_by: Vec<FileSource>,
}

impl DiskConfig {
    /// A disk of one file.
    #[must_use]
    pub fn new(id: DiskId, source: FileSource, read_only: bool) -> Self {
        Self { id, source, read_only, followed_by: Vec::new() }
    }

    /// What no type of a field says: several files make a read-only disk, and not too many.
    pub(crate) fn validate(&self, field: &str) -> Result<(), ConfigError> {
        let field = format!("{field}.followed_by");
        if !self.followed_by.is_empty() && !self.read_only {
            return Err(ConfigError::new(field, "a disk of several files must be read-only".into()));
        }
        if self.followed_by.len() >= MAX_DISK_PARTS {
            let files = self.followed_by.len() + 1;
            let reason = format!("the disk has {files} files, at most {MAX_DISK_PARTS} fit");
            return Err(ConfigError::new(field, reason));
        }
        Ok(())
    }

    /// Its files in their order on the disk, each with the field that names it, `field` being the
    /// disk's.
    pub(crate) fn files(&mut self, field: &str) -> Vec<(String, FileUse, &mut FileSource)> {
        let usage = FileUse::Disk { read_only: self.read_only };
        let mut files = vec![(field.to_owned(), usage, &mut self.source)];
        for (index, source) in self.followed_by.iter_mut().enumerate() {
            files.push((format!("{field}.followed_by[{index}]"), usage, source));
        }
        files
    }
}
