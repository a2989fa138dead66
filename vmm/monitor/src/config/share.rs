//! A shared directory, as a machine's configuration has it.

use serde::{Deserialize, Serialize};

use super::values::{name, text};
use super::{ConfigError, FileSource, FileUse};

/// Most shared directories of a machine. Each has a device and a thread of its own.
pub const MAX_SHARES: usize = 32;

/// A directory or a single file of the host that the guest sees as a virtio file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareConfig {
    /// The name by which the guest mounts it (`mount -t virtiofs TAG DIR`).
    pub tag: ShareTag,
    /// The directory. A regular file is shared alone: the guest sees a directory that has it as its
    /// only entry, `file`.
    pub source: FileSource,
    /// The guest may only read it.
    #[serde(default)]
    pub read_only: bool,
    /// Locks of files hold between this guest, other guests and programs of the host. Otherwise
    /// they hold between the programs of this guest alone, and a wait for one can be broken off.
    #[serde(default)]
    pub host_locks: bool,
}

impl ShareConfig {
    /// A share that the guest may write to, unless `read_only`, with locks of its own.
    #[must_use]
    pub fn new(tag: ShareTag, source: FileSource, read_only: bool) -> Self {
        Self { tag, source, read_only, host_locks: false }
    }

    /// Its file, with the field that names it, `field` being the share's.
    pub(crate) fn file(&mut self, field: &str) -> (String, FileUse, &mut FileSource) {
        (format!("{field}.source"), FileUse::Share { read_only: self.read_only }, &mut self.source)
    }
}

/// What no type of a field says: tags differ, and not too many.
pub(super) fn validate(shares: &[ShareConfig]) -> Result<(), ConfigError> {
    if shares.len() > MAX_SHARES {
        let reason = format!(
            "the machine has {} shared directories; the limit is {MAX_SHARES}. Share a directory that contains several of them",
            shares.len()
        );
        return Err(ConfigError::new("shares", reason));
    }
    for (index, share) in shares.iter().enumerate() {
        if shares[..index].iter().any(|other| other.tag == share.tag) {
            let reason = format!("two shared directories have the tag {:?}", share.tag.as_str());
            return Err(ConfigError::new(format!("shares[{index}].tag"), reason));
        }
    }
    Ok(())
}

/// The name of a share: 1 to 36 of `a-z A-Z 0-9 . _ -` (virtio 1.2, section 5.11.4, has room for 36
/// bytes).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ShareTag(String);

impl ShareTag {
    /// Most bytes.
    pub const MAX: usize = 36;

    /// The tag `text`.
    pub fn new(text: impl Into<String>) -> Result<Self, String> {
        let text = text.into();
        if text.len() > Self::MAX {
            return Err(format!("the tag {text:?} has {} bytes; the limit is {}", text.len(), Self::MAX));
        }
        match name(text) {
            Ok(text) => Ok(Self(text)),
            Err(_) => {
                Err(format!("a tag is 1 to {} letters, digits, dots, underscores and dashes", Self::MAX))
            }
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

text!(ShareTag);

#[cfg(test)]
mod tests {
    use super::*;

    fn share(tag: &str) -> ShareConfig {
        ShareConfig::new(ShareTag::new(tag).unwrap(), FileSource::Fd(3), false)
    }

    #[test]
    fn a_tag_is_short_and_plain() {
        for good in ["a", "A.b_c-9", &"t".repeat(36)] {
            assert_eq!(ShareTag::new(good).unwrap().as_str(), good);
        }
        for (bad, words) in [
            ("", "1 to 36"),
            ("a b", "1 to 36"),
            ("a/b", "1 to 36"),
            ("a\0", "1 to 36"),
            ("ä", "1 to 36"),
            (&"t".repeat(37), "37 bytes"),
        ] {
            let error = ShareTag::new(bad).unwrap_err();
            assert!(error.contains(words), "{bad:?}: {error}");
        }
    }

    #[test]
    fn tags_differ_and_there_is_a_most() {
        assert_eq!(validate(&[share("a"), share("b")]), Ok(()));
        let error = validate(&[share("a"), share("b"), share("a")]).unwrap_err();
        assert_eq!(error.to_string(), "shares[2].tag: two shared directories have the tag \"a\"");
        let many = |count: usize| (0..count).map(|n| share(&format!("t{n}"))).collect::<Vec<_>>();
        assert_eq!(validate(&many(MAX_SHARES)), Ok(()));
        let error = validate(&many(MAX_SHARES + 1)).unwrap_err().to_string();
        assert!(error.starts_with("shares: the machine has 33 ") && error.contains("limit is 32"), "{error}");
    }
}
