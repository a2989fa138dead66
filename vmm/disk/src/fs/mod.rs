//! File systems, only read: ext2, ext3 and ext4 with their journal, FAT; others are told by name.
//!
//! Nothing is trusted. What is read of a file system is bounded by its caller, what is kept in
//! memory by constants here, and the work of one call by the size of what it reads. Nothing is
//! written: a journal that an unclean stop left behind is applied to what is read, in memory.

mod crc32c;
pub mod ext;
pub mod fat;
mod identify;
mod path;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

pub use identify::{FsKind, Identity, identify};
pub use path::{FileReader, SYMLINKS_MAX, list, open, read_file, resolve};

use crate::traits::ReadAt;

/// Most names of a directory that is read.
pub const NAMES_MAX: usize = 200_000;

/// Most bytes of directories that are read of a volume while it is open. Every part of every path
/// reads some, so this bounds the work that paths, links and scripts of an image can cause.
pub const DIRECTORY_BYTES_MAX: u64 = 1 << 30;

/// What is left of [`DIRECTORY_BYTES_MAX`].
struct Budget(AtomicU64);

impl Budget {
    fn new() -> Self {
        Self(AtomicU64::new(DIRECTORY_BYTES_MAX))
    }

    fn spend(&self, bytes: u64) -> Result<(), FsError> {
        let spent = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        let what = || "what is read of directories".to_owned();
        spent.map(|_| ()).map_err(|_| FsError::TooLarge { what: what(), max: DIRECTORY_BYTES_MAX })
    }
}

/// Why something cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The disk cannot be read.
    #[error("cannot read the disk")]
    Read(#[from] io::Error),
    /// What the disk holds contradicts itself.
    #[error("the file system is corrupt: {0}")]
    Corrupt(String),
    /// It is sound and not read by this.
    #[error("the file system {0}")]
    Unsupported(String),
    /// A path leads through something that is no directory, or its symbolic links do not end.
    #[error("{path}: {why}")]
    Path {
        /// The path.
        path: String,
        /// Why.
        why: &'static str,
    },
    /// More than the caller wants, or than this reads.
    #[error("{what} is too large: more than {max}")]
    TooLarge {
        /// What.
        what: String,
        /// The limit.
        max: u64,
    },
}

impl FsError {
    pub(crate) fn corrupt<T>(what: impl Into<String>) -> Result<T, Self> {
        Err(Self::Corrupt(what.into()))
    }
}

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A device, a pipe, a socket.
    Other,
}

/// A file or a directory of one volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: NodeKind,
    /// Bytes of a file, or of the text of a link.
    pub size: u64,
    /// Where the file system has it: an inode's number, or a first cluster.
    pub place: u64,
}

/// A file system that can be read.
pub trait Volume: Send + Sync {
    /// The root directory.
    ///
    /// # Errors
    /// [`FsError`].
    fn root(&self) -> Result<Node, FsError>;

    /// Calls `each` with every name of `directory` and a number for [`Volume::node`], without `.`
    /// and `..`, until it returns `false`. At most [`NAMES_MAX`] names.
    ///
    /// # Errors
    /// [`FsError`].
    fn entries(&self, directory: Node, each: &mut dyn FnMut(&str, Entry) -> bool) -> Result<(), FsError>;

    /// What an entry names.
    ///
    /// # Errors
    /// [`FsError`].
    fn node(&self, entry: Entry) -> Result<Node, FsError>;

    /// Whether `a` and `b` are the same name here.
    fn same_name(&self, a: &str, b: &str) -> bool;

    /// Reads from byte `offset` of a file on, as [`ReadAt::read_at`] does.
    ///
    /// # Errors
    /// [`FsError`].
    fn read(&self, file: Node, into: &mut [u8], offset: u64) -> Result<usize, FsError>;

    /// The text of a symbolic link, at most 4095 bytes.
    ///
    /// # Errors
    /// [`FsError`].
    fn link(&self, link: Node) -> Result<String, FsError>;

    /// What was found that a user may want to know: that a journal was applied, for example.
    fn notes(&self) -> &[String];
}

/// What a directory says of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// An inode's number.
    Inode(u64),
    /// All that there is to know.
    Node(Node),
}

/// Opens the file system that fills `disk`, if it is one that is read here.
///
/// # Errors
/// [`FsError::Unsupported`] for another one, or none.
pub fn open_volume<'a>(disk: &'a dyn ReadAt) -> Result<Box<dyn Volume + 'a>, FsError> {
    match identify(disk)?.map(|identity| identity.kind) {
        Some(FsKind::Ext) => Ok(Box::new(ext::Ext::open(disk)?)),
        Some(FsKind::Fat) => Ok(Box::new(fat::Fat::open(disk)?)),
        Some(kind) => Err(FsError::Unsupported(format!("is {kind}, which is not read"))),
        None => Err(FsError::Unsupported("is none that is known".to_owned())),
    }
}
