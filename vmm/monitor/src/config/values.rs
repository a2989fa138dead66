//! Values with a range: each type refuses what is outside, with a sentence that says the range.

use serde::{Deserialize, Serialize};

/// Virtual CPUs, 1 to 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct CpuCount(u8);

impl CpuCount {
    /// Most CPUs of a machine.
    pub const MAX: u8 = 32;

    /// `count` CPUs.
    pub fn new(count: u64) -> Result<Self, String> {
        match u8::try_from(count) {
            Ok(count) if (1..=Self::MAX).contains(&count) => Ok(Self(count)),
            _ => Err(format!("{count} is not a valid number of CPUs: a machine has 1 to {}", Self::MAX)),
        }
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u8 {
        self.0
    }
}

impl Default for CpuCount {
    fn default() -> Self {
        Self(1)
    }
}

/// Guest memory in bytes: 2 MiB to 1 TiB, a multiple of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct MemorySize(u64);

impl MemorySize {
    /// The least: the page tables, the tables of the platform and a kernel of a few pages.
    pub const MIN: u64 = 2 << 20;
    /// The most.
    pub const MAX: u64 = 1 << 40;
    /// A guest page.
    pub const PAGE: u64 = 4096;

    /// `bytes` of memory.
    pub fn new(bytes: u64) -> Result<Self, String> {
        if !(Self::MIN..=Self::MAX).contains(&bytes) {
            return Err(format!(
                "{bytes} bytes are out of range: a machine has {} to {} bytes",
                Self::MIN,
                Self::MAX
            ));
        }
        if !bytes.is_multiple_of(Self::PAGE) {
            return Err(format!("{bytes} bytes are not a multiple of {}", Self::PAGE));
        }
        Ok(Self(bytes))
    }

    /// In bytes.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }
}

impl Default for MemorySize {
    fn default() -> Self {
        Self(128 << 20)
    }
}

/// Memory that can be plugged in, in bytes: 0 to 1 TiB, a multiple of 128 MiB, by which Linux adds
/// memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct HotplugSize(u64);

impl HotplugSize {
    /// What it is a multiple of.
    pub const STEP: u64 = 128 << 20;

    /// `bytes` of memory.
    pub fn new(bytes: u64) -> Result<Self, String> {
        if bytes > MemorySize::MAX {
            return Err(format!(
                "{bytes} bytes are out of range: at most {} bytes can be hot-plugged",
                MemorySize::MAX
            ));
        }
        if !bytes.is_multiple_of(Self::STEP) {
            return Err(format!("{bytes} bytes are not a multiple of {}", Self::STEP));
        }
        Ok(Self(bytes))
    }

    /// In bytes.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }
}

/// Most bytes of a console's log: 4 KiB to 1 TiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct LogSize(u64);

impl LogSize {
    /// The least.
    pub const MIN: u64 = 4 << 10;
    /// The most.
    pub const MAX: u64 = 1 << 40;

    /// `bytes` of a log.
    pub fn new(bytes: u64) -> Result<Self, String> {
        if !(Self::MIN..=Self::MAX).contains(&bytes) {
            return Err(format!(
                "{bytes} bytes are out of range: the size limit of a log is {} to {} bytes",
                Self::MIN,
                Self::MAX
            ));
        }
        Ok(Self(bytes))
    }

    /// In bytes.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }
}

impl Default for LogSize {
    fn default() -> Self {
        Self(16 << 20)
    }
}

/// A kernel command line: at most 65,535 bytes of text without NUL, line breaks or other control
/// characters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CommandLine(String);

impl CommandLine {
    /// Most bytes. A kernel may take less (2,047 on x86); the loader refuses what its kernel would
    /// cut off.
    pub const MAX: usize = 65_535;

    /// The command line `text`.
    pub fn new(text: impl Into<String>) -> Result<Self, String> {
        let text = text.into();
        if text.len() > Self::MAX {
            return Err(format!("it has {} bytes; the limit is {}", text.len(), Self::MAX));
        }
        match text.chars().position(|c| c.is_control() && c != '\t') {
            Some(at) => Err(format!("it contains a control character at position {at}")),
            None => Ok(Self(text)),
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A device's name: 1 to 64 of `a-z A-Z 0-9 . _ -`.
pub(super) fn name(text: String) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if text.is_empty() || text.len() > 64 || !text.chars().all(fits) {
        return Err(format!(
            "the id {text:?} is invalid: use 1 to 64 letters, digits, dots, underscores and dashes"
        ));
    }
    Ok(text)
}

/// So many bytes of a disk's id its guest sees, as its serial number (virtio 1.2, section 5.2.6).
pub const SERIAL_BYTES: usize = 20;

/// A disk's name: 1 to 64 of `a-z A-Z 0-9 . _ -`. Two disks of a machine differ in the first
/// [`SERIAL_BYTES`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DiskId(String);

impl DiskId {
    /// The id `text`.
    pub fn new(text: impl Into<String>) -> Result<Self, String> {
        name(text.into()).map(Self)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What the guest sees of it.
    #[must_use]
    pub fn serial(&self) -> &str {
        self.0.get(..SERIAL_BYTES).unwrap_or(&self.0)
    }
}

/// The guest's context id on the socket device: 3 to 4294967294 (0 to 2 and the last one have
/// meanings of their own).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct ContextId(u32);

impl ContextId {
    /// The context id `cid`.
    pub fn new(cid: u64) -> Result<Self, String> {
        match u32::try_from(cid) {
            Ok(cid) if (3..u32::MAX).contains(&cid) => Ok(Self(cid)),
            _ => Err(format!("the context id {cid} is out of range: 3 to {} are allowed", u32::MAX - 1)),
        }
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl Default for ContextId {
    fn default() -> Self {
        Self(3)
    }
}

macro_rules! number {
    ($($name:ident),*) => {$(
        impl TryFrom<u64> for $name {
            type Error = String;
            fn try_from(value: u64) -> Result<Self, String> {
                Self::new(value)
            }
        }
        impl From<$name> for u64 {
            fn from(value: $name) -> u64 {
                u64::from(value.0)
            }
        }
    )*};
}
pub(super) use number;
number!(CpuCount, MemorySize, HotplugSize, LogSize, ContextId);

macro_rules! text {
    ($($name:ident),*) => {$(
        impl TryFrom<String> for $name {
            type Error = String;
            fn try_from(value: String) -> Result<Self, String> {
                Self::new(value)
            }
        }
        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.0
            }
        }
    )*};
}
pub(super) use text;
text!(CommandLine, DiskId);
