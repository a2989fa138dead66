//! The merged layers as an in-memory tree of metadata. File contents are stored elsewhere; a node
//! records only their location.
//!
//! Paths in layers are untrusted and never used on the host. They are looked up in this tree, and
//! symbolic links to directories are followed inside it, as a container would see them (`lib/x`
//! becomes `usr/lib/x` if `lib` is a link). Changesets follow the OCI image specification, "Image
//! Layer Filesystem Changeset".

use std::collections::{BTreeMap, HashMap};

use thiserror::Error;

use crate::limits::Limits;
use crate::num::{fits, to_u64};

mod changeset;
#[cfg(test)]
mod tests;
mod walk;

/// Longest name of a directory entry, in bytes (`NAME_MAX`).
const NAME_MAX: usize = 255;
/// Longest path of an entry, in bytes (`PATH_MAX` with its NUL is 4096).
pub(crate) const PATH_MAX: usize = 4095;
/// Maximum depth of a directory; a path of `PATH_MAX` bytes cannot be deeper.
const DEPTH_MAX: u16 = 2048;
/// Maximum number of symbolic links followed in one look-up, as in Linux.
const FOLLOW_MAX: u32 = 40;

/// Longest value of an extended attribute that the file system image can hold.
const XATTR_VALUE_MAX: usize = 65535;
/// Maximum bytes of the names and values of all extended attributes of a file (Linux limits one
/// value to `XATTR_SIZE_MAX`).
const XATTRS_MAX: usize = 65536;

/// Index of a node in [`Tree::nodes`].
pub(crate) type NodeId = u32;

/// The root directory's node.
pub(crate) const ROOT: NodeId = 0;

/// The location of a file's contents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FileData {
    /// Bytes of the file.
    pub(crate) size: u64,
    /// Number of its first block in the data file; meaningless if the file is empty.
    pub(crate) block: u32,
    /// Which data file of the image contains it, counted from 0.
    pub(crate) part: u32,
}

/// Extended attributes, sorted by name, each name once.
pub(crate) type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// Attributes that every inode has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attr {
    /// Permission bits with set-user-id, set-group-id and sticky: 12 bits.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970; may be negative.
    pub(crate) mtime: i64,
    /// Nanoseconds, below 10^9.
    pub(crate) mtime_nsec: u32,
    pub(crate) xattrs: Option<Box<Xattrs>>,
}

/// A directory entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DirEntry {
    pub(crate) node: NodeId,
    /// The layer that created or last replaced this name.
    stamp: u32,
}

/// The contents of a directory.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    pub(crate) entries: BTreeMap<Box<[u8]>, DirEntry>,
    pub(crate) parent: NodeId,
    depth: u16,
    /// The last layer that hid older entries in this directory. All entries are that layer's or
    /// later ones, or directories that contain such entries.
    cleared: u32,
}

/// The type of a node, with its data.
#[derive(Debug)]
pub(crate) enum NodeKind {
    Directory(Directory),
    File(FileData),
    Symlink(Box<[u8]>),
    Char { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
    Fifo,
    Socket,
}

/// An inode.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) attr: Attr,
    pub(crate) kind: NodeKind,
    /// Number of names (hard links); 0 if the node was removed.
    pub(crate) links: u32,
}

/// Why an entry cannot be added to the tree.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TreeError {
    /// `..` leaves the image's root.
    #[error("the path leaves the image's root")]
    Escapes,
    /// A path that is invalid in any file system: it contains a NUL byte, or it is a whiteout
    /// without a name.
    #[error("{0}")]
    Malformed(&'static str),
    /// A name, path, number or attribute that exceeds a limit of Linux.
    #[error("{0}")]
    Beyond(String),
    /// A parent in the path is not a directory.
    #[error("`{0}`, a parent in the path, is not a directory")]
    NotADirectory(String),
    /// The path goes through too many symbolic links.
    #[error("the path goes through more than {FOLLOW_MAX} symbolic links")]
    Loop,
    /// A hard link to a name that does not exist.
    #[error("its hard link target `{0}` does not exist")]
    LinkTarget(String),
    /// A hard link to a directory.
    #[error("its hard link target `{0}` is a directory")]
    LinkToDirectory(String),
    /// The image exceeds one of [`Limits`].
    #[error("the image has more than {most} {what} (limit `{limit}`)")]
    Limit {
        /// What exceeds the limit.
        what: &'static str,
        /// The value of the limit.
        most: u64,
        /// The name of the limit.
        limit: &'static str,
    },
}

fn name_too_long() -> TreeError {
    TreeError::Beyond(format!("a name in the path is longer than {NAME_MAX} bytes"))
}

fn path_too_long() -> TreeError {
    TreeError::Beyond(format!(
        "the path is longer than {PATH_MAX} bytes or deeper than {DEPTH_MAX} directories"
    ))
}

/// The image replaces its root with something that is not a directory.
const ROOT_NOT_DIRECTORY: TreeError =
    TreeError::Malformed("the image's root cannot be anything but a directory");
/// A `.wh.` file whose name does not specify what to remove.
pub(crate) const EMPTY_WHITEOUT: TreeError = TreeError::Malformed("it is a whiteout without a name");

/// The tree.
#[derive(Debug)]
pub(crate) struct Tree {
    /// In the order of creation. Removed nodes stay, with `links` 0.
    pub(crate) nodes: Vec<Node>,
    layer: u32,
    entries_left: u64,
    /// Changes of all layers that may still come, such as entries for one and the same directory.
    changes_left: u64,
    metadata_left: u64,
    /// Path components looked up so far.
    walked: u64,
    /// Cache of resolved symbolic links to directories: (directory, link) to (target, number of
    /// links followed). Cleared when a name of a directory or a link is removed.
    resolved: HashMap<(NodeId, NodeId), (NodeId, u32)>,
    limits: Limits,
}

impl Tree {
    /// A tree with an empty root directory (mode 0755, owner 0:0).
    pub(crate) fn new(limits: &Limits) -> Self {
        let attr = Attr { mode: 0o755, ..Attr::default() };
        Self {
            nodes: vec![Node { attr, kind: NodeKind::Directory(Directory::default()), links: 1 }],
            layer: 0,
            walked: 0,
            resolved: HashMap::new(),
            entries_left: limits.entries,
            changes_left: limits.entries.saturating_add(to_u64(limits.layers)),
            metadata_left: limits.metadata_bytes,
            limits: *limits,
        }
    }

    /// Starts the next layer.
    pub(crate) fn begin_layer(&mut self) {
        self.layer = self.layer.saturating_add(1);
    }

    /// The node, which must be one of this tree's.
    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[index(id)]
    }

    fn dir(&self, id: NodeId) -> Option<&Directory> {
        match &self.node(id).kind {
            NodeKind::Directory(dir) => Some(dir),
            _ => None,
        }
    }

    fn dir_mut(&mut self, id: NodeId) -> &mut Directory {
        match &mut self.nodes[index(id)].kind {
            NodeKind::Directory(dir) => dir,
            _ => unreachable!("only directories have entries"),
        }
    }

    fn child(&self, dir: NodeId, name: &[u8]) -> Option<DirEntry> {
        self.dir(dir)?.entries.get(name).copied()
    }

    fn too_many_entries(&self) -> TreeError {
        TreeError::Limit { what: "files", most: self.limits.entries, limit: "entries" }
    }

    /// Counts an entry and its bytes of metadata against the limits.
    fn charge(&mut self, bytes: usize) -> Result<(), TreeError> {
        self.entries_left = self.entries_left.checked_sub(1).ok_or_else(|| self.too_many_entries())?;
        self.charge_metadata(bytes)
    }

    /// Charges a change of a layer, with a path of so many bytes, to the limits.
    pub(crate) fn charge_change(&mut self, path_bytes: usize) -> Result<(), TreeError> {
        if self.changes_left == 0 {
            return Err(self.too_many_entries());
        }
        self.changes_left -= 1;
        self.charge_metadata(path_bytes)
    }

    fn charge_metadata(&mut self, bytes: usize) -> Result<(), TreeError> {
        self.metadata_left = self.metadata_left.checked_sub(to_u64(bytes)).ok_or(TreeError::Limit {
            what: "bytes of names, link targets and extended attributes",
            most: self.limits.metadata_bytes,
            limit: "metadata_bytes",
        })?;
        Ok(())
    }

    fn push(&mut self, node: Node) -> Result<NodeId, TreeError> {
        let id = NodeId::try_from(self.nodes.len()).map_err(|_| self.too_many_entries())?;
        self.nodes.push(node);
        Ok(id)
    }

    /// Creates a directory that a layer does not list.
    fn make_dir(&mut self, parent: NodeId, name: &[u8]) -> Result<NodeId, TreeError> {
        let attr = Attr { mode: 0o755, ..Attr::default() };
        self.insert_new(parent, name, attr, NodeKind::Directory(Directory::default()))
    }

    /// Adds a node under an unused name.
    fn insert_new(
        &mut self,
        parent: NodeId,
        name: &[u8],
        attr: Attr,
        mut kind: NodeKind,
    ) -> Result<NodeId, TreeError> {
        self.charge(name.len())?;
        if let NodeKind::Directory(dir) = &mut kind {
            let depth = self.dir(parent).map_or(0, |dir| dir.depth);
            if depth >= DEPTH_MAX {
                return Err(path_too_long());
            }
            dir.parent = parent;
            dir.depth = depth + 1;
        }
        let node = self.push(Node { attr, kind, links: 1 })?;
        let stamp = self.layer;
        self.dir_mut(parent).entries.insert(name.into(), DirEntry { node, stamp });
        Ok(node)
    }
}

fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

fn index(id: NodeId) -> usize {
    fits(id, "a node's number is an index of a vector")
}
