//! What is said between a program and its unpacker: an order, which is a line of JSON on the
//! unpacker's standard input, and reports, which are lines of JSON on its standard output.

use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::limits::Limits;
use crate::progress::ImageStage;
use crate::reference::Reference;

/// A path, of whatever bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Bytes(Vec<u8>);

impl Bytes {
    pub(super) fn of(path: &Path) -> Self {
        Self(path.as_os_str().as_bytes().to_vec())
    }

    pub(super) fn path(&self) -> PathBuf {
        std::ffi::OsString::from_vec(self.0.clone()).into()
    }
}

/// Which image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Wanted {
    Layout(Bytes, Option<String>),
    OciArchive(Bytes, Option<String>),
    DockerArchive(Bytes, Option<String>),
    /// As on a command line: a name, a digest, the built-in image.
    Word(String),
}

impl Wanted {
    pub(super) fn of(reference: &Reference) -> Self {
        match reference {
            Reference::OciLayout { dir, tag } => Self::Layout(Bytes::of(dir), tag.clone()),
            Reference::OciArchive { file, tag } => Self::OciArchive(Bytes::of(file), tag.clone()),
            Reference::DockerArchive { file, tag } => Self::DockerArchive(Bytes::of(file), tag.clone()),
            other => Self::Word(other.to_string()),
        }
    }

    /// The image; `None` if the word names none.
    pub(super) fn reference(&self) -> Option<Reference> {
        Some(match self {
            Self::Layout(dir, tag) => Reference::OciLayout { dir: dir.path(), tag: tag.clone() },
            Self::OciArchive(file, tag) => Reference::OciArchive { file: file.path(), tag: tag.clone() },
            Self::DockerArchive(file, tag) => {
                Reference::DockerArchive { file: file.path(), tag: tag.clone() }
            }
            Self::Word(word) => match word.parse().ok()? {
                // What is in a directory is not unpacked.
                Reference::Rootfs { .. } => return None,
                reference => reference,
            },
        })
    }
}

/// The version of orders and reports.
pub(crate) const VERSION: u32 = 1;

/// An order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OrderText {
    pub(super) version: u32,
    pub(super) wanted: Wanted,
    pub(super) cache: Bytes,
    pub(super) local: Option<Bytes>,
    pub(super) builtin: Option<Bytes>,
    pub(super) limits: Limits,
}

/// A report. The last one is `Done`, `Files` or `Failed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Report {
    /// As [`crate::Progress::update`] is told.
    Stage { stage: ImageStage, done: u64, total: Option<u64> },
    /// The image is in the cache.
    Done {
        /// The image's digest.
        digest: String,
        /// Its configuration, as it is stored.
        config: String,
        /// Whether it was there before.
        cached: bool,
    },
    /// Of an archive that is loaded: a file of it.
    File {
        /// Its name.
        name: String,
        /// Where its bytes begin, in the archive as it is when it is not compressed.
        offset: u64,
        /// Their number.
        size: u64,
    },
    /// These were all files of the archive, so many.
    Files(usize),
    /// It is not.
    Failed {
        /// As [`crate::ImageError::code`].
        code: String,
        /// The error, and then each of its causes, a line each.
        words: String,
    },
}

impl Report {
    /// Writes it as a line.
    pub(crate) fn tell(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        out.write_all(&line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_image_arrives_as_it_was_named() {
        let odd = PathBuf::from(std::ffi::OsString::from_vec(b"/a\xff:b\n".to_vec()));
        let digest = format!("sha256:{}", "a".repeat(64));
        let words = ["alpine:3.20", "builtin:busybox", "reg.example:5000/a/b@", &digest];
        let mut references: Vec<Reference> = words.iter().filter_map(|word| word.parse().ok()).collect();
        assert_eq!(references.len(), 3);
        for tag in [None, Some("a:b".to_owned())] {
            references.push(Reference::OciLayout { dir: odd.clone(), tag: tag.clone() });
            references.push(Reference::OciArchive { file: odd.clone(), tag: tag.clone() });
            references.push(Reference::DockerArchive { file: odd.clone(), tag });
        }
        for reference in references {
            let line = serde_json::to_string(&Wanted::of(&reference)).unwrap();
            assert!(!line.contains('\n'));
            let arrived: Wanted = serde_json::from_str(&line).unwrap();
            assert_eq!(arrived.reference(), Some(reference));
        }
        assert_eq!(Wanted::Word("oci:".to_owned()).reference(), None);
        assert_eq!(Wanted::Word("rootfs:/".to_owned()).reference(), None);
    }
}
