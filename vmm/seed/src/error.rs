//! What cannot be put into a seed.

/// Why there is no seed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SeedError {
    /// A setting has a value that it cannot have.
    #[error("{what} {value:?} {reason}")]
    Setting {
        /// Which setting.
        what: &'static str,
        /// Its value, cut after 80 characters.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A key is none, or is one that must stay secret.
    #[error("line {line} {reason}")]
    Key {
        /// Counted from one.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A text is nothing that cloud-init takes.
    #[error("{0}")]
    Text(String),
    /// Two settings exclude each other, or one needs another.
    #[error("{0}")]
    Together(&'static str),
    /// There is more than a seed may hold.
    #[error("a seed holds at most {most} bytes, and this one would hold {bytes}")]
    TooLarge {
        /// Bytes of all files.
        bytes: u64,
        /// The limit.
        most: u64,
    },
    /// The file system could not be made.
    #[error("cannot make the seed's file system: {0}")]
    FileSystem(String),
}

impl SeedError {
    pub(crate) fn setting(what: &'static str, value: &str, reason: &'static str) -> Self {
        Self::Setting { what, value: value.chars().take(80).collect(), reason }
    }
}
