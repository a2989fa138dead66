//! A block device, as a machine's configuration has it.

use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

use super::{ConfigError, DiskId, FileSource, FileUse};

/// Most files of one disk: all descriptors of a machine go to its monitor in one message of at most
/// 253.
pub const MAX_DISK_PARTS: usize = 128;
/// Most backing files of one disk.
pub const MAX_BACKING: usize = 63;
/// What the offsets of a disk's files are multiples of, in bytes.
pub const PART_ALIGNMENT: u64 = 4096;

/// The format of an image. It is always named, and never found out from what the image holds, which
/// a guest may have written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskFormat {
    /// The disk byte for byte, or a block device.
    #[default]
    Raw,
    /// QEMU's, version 2 or 3.
    Qcow2,
}

impl DiskFormat {
    fn is_raw(&self) -> bool {
        *self == Self::Raw
    }
}

/// A file below an image, which is only read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackingFile {
    /// The file.
    pub source: FileSource,
    /// Its format.
    pub format: DiskFormat,
}

/// Bytes of a disk's sectors, as the guest sees them: 512 or 4096.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct SectorSize(u32);

impl SectorSize {
    /// Sectors of so many bytes.
    ///
    /// # Errors
    /// Neither 512 nor 4096.
    pub fn new(bytes: u32) -> Result<Self, String> {
        match bytes {
            512 | 4096 => Ok(Self(bytes)),
            _ => Err(format!("sectors have 512 or 4096 bytes, and not {bytes}")),
        }
    }

    /// Bytes.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }

    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for SectorSize {
    fn default() -> Self {
        Self(512)
    }
}

impl TryFrom<u32> for SectorSize {
    type Error = String;

    fn try_from(bytes: u32) -> Result<Self, String> {
        Self::new(bytes)
    }
}

impl From<SectorSize> for u32 {
    fn from(size: SectorSize) -> Self {
        size.0
    }
}

/// Threads that serve a disk's requests, 1 to 16: so many wait for the host at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct DiskThreads(u8);

impl DiskThreads {
    /// The most.
    pub const MAX: u8 = 16;

    /// So many.
    ///
    /// # Errors
    /// None, or more than 16.
    pub fn new(threads: u8) -> Result<Self, String> {
        match threads {
            1..=Self::MAX => Ok(Self(threads)),
            _ => Err(format!("a disk has 1 to {} threads, and not {threads}", Self::MAX)),
        }
    }

    /// How many.
    #[must_use]
    pub fn get(self) -> u8 {
        self.0
    }

    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for DiskThreads {
    fn default() -> Self {
        Self(1)
    }
}

impl TryFrom<u8> for DiskThreads {
    type Error = String;

    fn try_from(threads: u8) -> Result<Self, String> {
        Self::new(threads)
    }
}

impl From<DiskThreads> for u8 {
    fn from(threads: DiskThreads) -> Self {
        threads.0
    }
}

/// Limits of a disk's rates, of reading and writing together. What is not used is saved up for a
/// tenth of a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskLimits {
    /// Bytes that are read or written in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<NonZeroU64>,
    /// Requests in a second, whatever they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operations_per_second: Option<NonZeroU64>,
}

impl DiskLimits {
    fn are_none(&self) -> bool {
        *self == Self::default()
    }
}

/// A block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Its name in messages, and its serial number, truncated to 20 bytes.
    pub id: DiskId,
    /// The image or block device.
    pub source: FileSource,
    /// The format of `source`.
    #[serde(default, skip_serializing_if = "DiskFormat::is_raw")]
    pub format: DiskFormat,
    /// The files below a qcow2 image, the nearest first. Where `source` is a path and this is
    /// empty, whoever opens the machine's files finds them by what the images say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backing: Vec<BackingFile>,
    /// Backing files are found by their names wherever these lead; else only in the directory of
    /// the image that names them, and below it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub backing_anywhere: bool,
    /// The guest may only read it.
    #[serde(default)]
    pub read_only: bool,
    /// Files whose bytes follow those of `source` on the same disk, each from a multiple of
    /// [`PART_ALIGNMENT`] bytes. Only a read-only disk has any, at most [`MAX_DISK_PARTS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub followed_by: Vec<FileSource>,
    /// Bytes of its sectors.
    #[serde(default, skip_serializing_if = "SectorSize::is_default")]
    pub sector_bytes: SectorSize,
    /// Threads that serve its requests. A disk that is attached at run time has one.
    #[serde(default, skip_serializing_if = "DiskThreads::is_default")]
    pub threads: DiskThreads,
    /// Limits of its rates.
    #[serde(default, skip_serializing_if = "DiskLimits::are_none")]
    pub limits: DiskLimits,
}

impl DiskConfig {
    /// A raw disk of one file.
    #[must_use]
    pub fn new(id: DiskId, source: FileSource, read_only: bool) -> Self {
        Self {
            id,
            source,
            format: DiskFormat::Raw,
            backing: Vec::new(),
            backing_anywhere: false,
            read_only,
            followed_by: Vec::new(),
            sector_bytes: SectorSize::default(),
            threads: DiskThreads::default(),
            limits: DiskLimits::default(),
        }
    }

    /// What no type of a field says: which fields go together, and how many files there are.
    pub(crate) fn validate(&self, field: &str) -> Result<(), ConfigError> {
        let refused = |name: &str, reason: String| Err(ConfigError::new(format!("{field}.{name}"), reason));
        if self.format == DiskFormat::Qcow2 && !self.followed_by.is_empty() {
            return refused("followed_by", "only raw files follow one another".into());
        }
        if self.format == DiskFormat::Raw && !self.backing.is_empty() {
            return refused("backing", "a raw image has no backing file".into());
        }
        if self.backing.len() > MAX_BACKING {
            let reason =
                format!("the disk has {} backing files, at most {MAX_BACKING} fit", self.backing.len());
            return refused("backing", reason);
        }
        let last = self.backing.len().saturating_sub(1);
        if self.backing.iter().take(last).any(|file| file.format == DiskFormat::Raw) {
            return refused("backing", "a raw image has no backing file".into());
        }
        if !self.followed_by.is_empty() && !self.read_only {
            return refused("followed_by", "a disk of several files must be read-only".into());
        }
        if self.followed_by.len() >= MAX_DISK_PARTS {
            let files = self.followed_by.len() + 1;
            return refused(
                "followed_by",
                format!("the disk has {files} files, at most {MAX_DISK_PARTS} fit"),
            );
        }
        Ok(())
    }

    /// Whether its backing files are still to be found.
    pub(crate) fn is_unresolved(&self) -> bool {
        self.format == DiskFormat::Qcow2
            && self.backing.is_empty()
            && matches!(self.source, FileSource::Path(_))
    }

    /// Its files in their order on the disk, each with the field that names it, `field` being the
    /// disk's.
    pub(crate) fn files(&mut self, field: &str) -> Vec<(String, FileUse, &mut FileSource)> {
        let usage = match self.is_unresolved() {
            true => FileUse::Chain,
            false => FileUse::Disk { read_only: self.read_only },
        };
        let mut files = vec![(field.to_owned(), usage, &mut self.source)];
        for (index, file) in self.backing.iter_mut().enumerate() {
            let field = format!("{field}.backing[{index}]");
            files.push((field, FileUse::Disk { read_only: true }, &mut file.source));
        }
        for (index, source) in self.followed_by.iter_mut().enumerate() {
            files.push((format!("{field}.followed_by[{index}]"), usage, source));
        }
        files
    }
}
