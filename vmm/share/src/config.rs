//! How a tree is shared.

use std::os::fd::OwnedFd;
use std::time::Duration;

/// What is shared. Its holder opened it, so that the server opens nothing by a path of the host.
#[derive(Debug)]
pub enum Tree {
    /// A directory and what is below it, mounts included.
    Directory(OwnedFd),
    /// One file and nothing beside it: the root is a made-up directory with the one entry
    /// [`crate::FILE_NAME`].
    File(OwnedFd),
}

/// Whose files the guest sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// Files belong to the user of this process. What the guest sets (owner, group, mode) is kept
    /// in an extended attribute and shown to it; files without one show this owner and group.
    Mapped {
        /// User that files without our attribute show.
        uid: u32,
        /// Group that files without our attribute show.
        gid: u32,
    },
    /// Owners, groups and modes are the host's: the guest sees and sets real ones, as far as this
    /// process may (root, in practice).
    Kept,
}

/// What the driver may keep, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheMode {
    /// Names and attributes for a second, data until the file is opened again or its size or time
    /// of change differs.
    Auto,
    /// Everything, for a day: for trees that nobody else changes.
    Always,
    /// Nothing: every read and write reaches the host, and is not aligned to pages.
    None,
}

impl CacheMode {
    /// How long names and attributes are valid.
    #[must_use]
    pub fn validity(self) -> Duration {
        match self {
            Self::Auto => Duration::from_secs(1),
            Self::Always => Duration::from_secs(86_400),
            Self::None => Duration::ZERO,
        }
    }
}

/// Where locks of files are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locks {
    /// In the guest's kernel: they hold between processes of the guest, waiting costs nothing here,
    /// and the host sees none.
    Guest,
    /// On the host's files: they hold between guests and processes of the host too. A wait for a
    /// lock occupies the thread that called [`crate::Server::handle`], so at most so many calls
    /// wait at a time; further ones fail with `ENOLCK`.
    Host {
        /// Most calls that wait.
        waiters: usize,
    },
}

/// How a tree is shared.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether the server refuses everything that changes the tree.
    pub read_only: bool,
    /// Whose files the guest sees.
    pub owners: Owners,
    /// What the driver may keep.
    pub cache: CacheMode,
    /// Where locks are held.
    pub locks: Locks,
    /// Most descriptors that stay open, at least 16. `None`: a quarter of what the process may
    /// have, between 64 and 4096. Each thread that calls the server needs up to four more for as
    /// long as a request takes.
    pub descriptors: Option<usize>,
    /// Most inodes that the driver may know at a time, about 250 bytes of memory each.
    pub inodes: usize,
    /// Most files and directories that the driver may have open, about 150 bytes of memory each.
    pub handles: usize,
}

impl Default for Options {
    /// Writable, files without our attribute shown as root's, cached for a second, locks in the
    /// guest, two million inodes, 262,144 handles.
    fn default() -> Self {
        Self {
            read_only: false,
            owners: Owners::Mapped { uid: 0, gid: 0 },
            cache: CacheMode::Auto,
            locks: Locks::Guest,
            descriptors: None,
            inodes: 2 << 20,
            handles: 1 << 18,
        }
    }
}
