//! The merged layers as a tree of metadata, in memory. File contents are elsewhere: a node only says where.
//!
//! Paths of layers are untrusted and never reach the host: they are walked in this tree, symbolic links in
//! directory positions followed inside it, as a container's own view would (`lib/x` lands in `usr/lib/x` when
//! `lib` is a link). Changesets follow the OCI image specification, "Image Layer Filesystem Changeset".

use std::collections::BTreeMap;

use thiserror::Error;

use crate::limits::Limits;

/// Longest name of a directory entry, in bytes (`NAME_MAX`).
const NAME_MAX: usize = 255;
/// Longest path of an entry, in bytes (`PATH_MAX` with its NUL is 4096).
pub(crate) const PATH_MAX: usize = 4095;
/// Deepest directory: a path of `PATH_MAX` bytes cannot name a deeper one.
const DEPTH_MAX: u16 = 2048;
/// Symbolic links followed in one walk, as in Linux.
const FOLLOW_MAX: u32 = 40;

/// Longest value of an extended attribute that the file system image can hold.
const XATTR_VALUE_MAX: usize = 65535;
/// Bytes of names and values of all extended attributes of a file (`XATTR_SIZE_MAX` for one in Linux).
const XATTRS_MAX: usize = 65536;

/// Index of a node in [`Tree::nodes`].
pub(crate) type NodeId = u32;

/// The root directory's node.
pub(crate) const ROOT: NodeId = 0;

/// Where a file's contents are. What the numbers mean is the business of the sink that made them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FileData {
    /// Bytes of the file.
    pub(crate) size: u64,
    /// First block of the whole blocks, if there are any.
    pub(crate) block: u32,
    /// Offset of the tail in the spool of tails, if `inline_tail`.
    pub(crate) tail: u64,
    /// Whether the bytes after the last whole block are in the spool of tails rather than in a block of their own.
    pub(crate) inline_tail: bool,
}

/// Extended attributes, sorted by name, each name once.
pub(crate) type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// What every kind of inode has.
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

/// A name in a directory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) node: NodeId,
    /// The layer that made or last replaced this name.
    stamp: u32,
}

/// A directory's own part.
#[derive(Debug, Default)]
pub(crate) struct Dir {
    pub(crate) entries: BTreeMap<Box<[u8]>, Entry>,
    pub(crate) parent: NodeId,
    depth: u16,
}

/// What a node is.
#[derive(Debug)]
pub(crate) enum Kind {
    Dir(Dir),
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
    pub(crate) kind: Kind,
    /// Names that lead here. 0: removed.
    pub(crate) links: u32,
}

/// Why an entry does not fit into the tree.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TreeError {
    /// `..` leads out of the image's root.
    #[error("the path leaves the image's root")]
    Escapes,
    /// The path holds a NUL byte.
    #[error("the path holds a NUL byte")]
    Nul,
    /// A name in the path is longer than 255 bytes.
    #[error("a name in the path is longer than {NAME_MAX} bytes")]
    NameTooLong,
    /// The path is longer than 4095 bytes, or the directory too deep.
    #[error("the path is longer than {PATH_MAX} bytes or deeper than {DEPTH_MAX} directories")]
    PathTooLong,
    /// A directory position of the path is taken by something else.
    #[error("`{0}` on the way is not a directory")]
    NotADirectory(String),
    /// Symbolic links on the way form a loop.
    #[error("more than {FOLLOW_MAX} symbolic links on the way")]
    Loop,
    /// The root of the image is replaced by something that is no directory.
    #[error("the image's root cannot be anything but a directory")]
    RootNotDirectory,
    /// A hard link to a name that does not exist.
    #[error("its hard link target `{0}` does not exist")]
    LinkTarget(String),
    /// A hard link to a directory.
    #[error("its hard link target `{0}` is a directory")]
    LinkToDirectory(String),
    /// A `.wh.` file that names nothing that could be removed.
    #[error("it is a whiteout that names nothing")]
    Whiteout,
    /// A symbolic link with an empty target, one over 4095 bytes or one with a NUL byte.
    #[error("its target is empty, longer than {PATH_MAX} bytes, or holds a NUL byte")]
    SymlinkTarget,
    /// A device number that Linux cannot represent.
    #[error("its device number {0}:{1} is out of range (12 bits and 20 bits)")]
    DeviceNumber(u64, u64),
    /// Extended attributes that Linux cannot represent.
    #[error("its extended attribute `{0}` is too long (name 255, value 65535, all of a file 65536 bytes)")]
    Xattr(String),
    /// More entries than [`Limits::entries`].
    #[error("the image has more than {0} files (limit `entries`)")]
    TooManyEntries(u64),
    /// More metadata than [`Limits::metadata_bytes`].
    #[error(
        "names, link targets and extended attributes of the image exceed {0} bytes (limit `metadata_bytes`)"
    )]
    TooMuchMetadata(u64),
}

/// The tree.
#[derive(Debug)]
pub(crate) struct Tree {
    /// In the order of creation; removed ones stay, with no links.
    pub(crate) nodes: Vec<Node>,
    /// Contents that lost their last name since the caller last took them.
    pub(crate) freed: Vec<FileData>,
    layer: u32,
    entries_left: u64,
    metadata_left: u64,
    limits: Limits,
}

/// Splits a path at its slashes, resolving `.` and `..` by name. A leading slash means the image's root, too.
fn components(path: &[u8]) -> Result<Vec<&[u8]>, TreeError> {
    if path.len() > PATH_MAX {
        return Err(TreeError::PathTooLong);
    }
    if path.contains(&0) {
        return Err(TreeError::Nul);
    }
    let mut parts = Vec::with_capacity(8);
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop().ok_or(TreeError::Escapes)?;
            }
            name if name.len() > NAME_MAX => return Err(TreeError::NameTooLong),
            name => parts.push(name),
        }
    }
    Ok(parts)
}

fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

impl Tree {
    /// A tree with an empty root directory (mode 0755, owner 0:0).
    pub(crate) fn new(limits: &Limits) -> Self {
        let attr = Attr { mode: 0o755, ..Attr::default() };
        Self {
            nodes: vec![Node { attr, kind: Kind::Dir(Dir::default()), links: 1 }],
            freed: Vec::new(),
            layer: 0,
            entries_left: limits.entries,
            metadata_left: limits.metadata_bytes,
            limits: *limits,
        }
    }

    /// What follows belongs to the next layer.
    pub(crate) fn begin_layer(&mut self) {
        self.layer = self.layer.saturating_add(1);
    }

    /// The node, which must be one of this tree's.
    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[index(id)]
    }

    fn dir(&self, id: NodeId) -> Option<&Dir> {
        match &self.node(id).kind {
            Kind::Dir(dir) => Some(dir),
            _ => None,
        }
    }

    fn dir_mut(&mut self, id: NodeId) -> &mut Dir {
        match &mut self.nodes[index(id)].kind {
            Kind::Dir(dir) => dir,
            _ => unreachable!("only directories have entries"),
        }
    }

    fn child(&self, dir: NodeId, name: &[u8]) -> Option<Entry> {
        self.dir(dir)?.entries.get(name).copied()
    }

    /// Charges an entry and its bytes of metadata to the limits.
    fn charge(&mut self, bytes: usize) -> Result<(), TreeError> {
        self.entries_left =
            self.entries_left.checked_sub(1).ok_or(TreeError::TooManyEntries(self.limits.entries))?;
        self.metadata_left = u64::try_from(bytes)
            .ok()
            .and_then(|bytes| self.metadata_left.checked_sub(bytes))
            .ok_or(TreeError::TooMuchMetadata(self.limits.metadata_bytes))?;
        Ok(())
    }

    fn push(&mut self, node: Node) -> Result<NodeId, TreeError> {
        let id =
            NodeId::try_from(self.nodes.len()).map_err(|_| TreeError::TooManyEntries(self.limits.entries))?;
        self.nodes.push(node);
        Ok(id)
    }

    /// Walks `parts` from the root through directories and symbolic links. Missing directories are made if
    /// `create` (as layers may leave them out), else the answer is `None`.
    fn walk(&mut self, parts: &[&[u8]], create: bool) -> Result<Option<NodeId>, TreeError> {
        let mut here = ROOT;
        let mut followed = 0;
        // The names still to walk, last first; owned once a symbolic link brought its own.
        let mut rest: Vec<Box<[u8]>> = Vec::new();
        let mut parts = parts.iter();
        loop {
            let owned;
            let name: &[u8] = if let Some(name) = rest.pop() {
                owned = name;
                &owned
            } else if let Some(name) = parts.next() {
                name
            } else {
                return Ok(Some(here));
            };
            if name == b".." {
                here = self.dir(here).map_or(ROOT, |dir| dir.parent);
                continue;
            }
            let Some(entry) = self.child(here, name) else {
                if !create {
                    return Ok(None);
                }
                here = self.make_dir(here, name)?;
                continue;
            };
            match &self.node(entry.node).kind {
                Kind::Dir(_) => here = entry.node,
                Kind::Symlink(target) => {
                    followed += 1;
                    if followed > FOLLOW_MAX {
                        return Err(TreeError::Loop);
                    }
                    if target.first() == Some(&b'/') {
                        here = ROOT;
                    }
                    let names = target.split(|&b| b == b'/').filter(|n| !n.is_empty() && *n != b".");
                    if names.clone().any(|name| name.len() > NAME_MAX) {
                        return Err(TreeError::NameTooLong);
                    }
                    rest.extend(names.rev().map(Box::from));
                }
                _ => return Err(TreeError::NotADirectory(lossy(name))),
            }
        }
    }

    /// Makes a directory that a layer implied without listing it.
    fn make_dir(&mut self, parent: NodeId, name: &[u8]) -> Result<NodeId, TreeError> {
        let attr = Attr { mode: 0o755, ..Attr::default() };
        self.insert_new(parent, name, attr, Kind::Dir(Dir::default()))
    }

    /// Adds a node under a name that is free.
    fn insert_new(
        &mut self,
        parent: NodeId,
        name: &[u8],
        attr: Attr,
        mut kind: Kind,
    ) -> Result<NodeId, TreeError> {
        self.charge(name.len())?;
        if let Kind::Dir(dir) = &mut kind {
            let depth = self.dir(parent).map_or(0, |dir| dir.depth);
            if depth >= DEPTH_MAX {
                return Err(TreeError::PathTooLong);
            }
            dir.parent = parent;
            dir.depth = depth + 1;
        }
        let node = self.push(Node { attr, kind, links: 1 })?;
        let stamp = self.layer;
        self.dir_mut(parent).entries.insert(name.into(), Entry { node, stamp });
        Ok(node)
    }

    /// What [`Tree::add`] would refuse for reasons that need no look at the tree: asked before contents are copied.
    pub(crate) fn check_add(&self, path: &[u8], attr: &Attr) -> Result<(), TreeError> {
        components(path)?;
        let mut sum = 0;
        for (name, value) in attr.xattrs.iter().flat_map(|xattrs| xattrs.iter()) {
            sum += name.len() + value.len();
            if name.len() > NAME_MAX || value.len() > XATTR_VALUE_MAX || sum > XATTRS_MAX {
                return Err(TreeError::Xattr(lossy(name)));
            }
        }
        if self.entries_left == 0 {
            return Err(TreeError::TooManyEntries(self.limits.entries));
        }
        Ok(())
    }

    /// Adds what `kind` says at `path`, in place of what was there; a directory over a directory keeps its
    /// entries. Missing parents are made.
    pub(crate) fn add(&mut self, path: &[u8], attr: Attr, kind: Kind) -> Result<NodeId, TreeError> {
        self.check_add(path, &attr)?;
        let extra = attr.xattrs.iter().flat_map(|xattrs| xattrs.iter());
        let mut bytes: usize = extra.map(|(name, value)| name.len() + value.len()).sum();
        if let Kind::Symlink(target) = &kind {
            if target.is_empty() || target.len() > PATH_MAX || target.contains(&0) {
                return Err(TreeError::SymlinkTarget);
            }
            bytes += target.len();
        }
        if let Kind::Char { major, minor } | Kind::Block { major, minor } = kind
            && (major >= 1 << 12 || minor >= 1 << 20)
        {
            return Err(TreeError::DeviceNumber(major.into(), minor.into()));
        }
        self.metadata_left = u64::try_from(bytes)
            .ok()
            .and_then(|bytes| self.metadata_left.checked_sub(bytes))
            .ok_or(TreeError::TooMuchMetadata(self.limits.metadata_bytes))?;

        let parts = components(path)?;
        let Some((name, parents)) = parts.split_last() else {
            if !matches!(kind, Kind::Dir(_)) {
                return Err(TreeError::RootNotDirectory);
            }
            self.nodes[index(ROOT)].attr = attr;
            return Ok(ROOT);
        };
        let parent = self.walk(parents, true)?.unwrap_or(ROOT);
        if let Some(old) = self.child(parent, name) {
            if matches!(kind, Kind::Dir(_)) && self.dir(old.node).is_some() {
                self.charge(0)?;
                self.nodes[index(old.node)].attr = attr;
                let stamp = self.layer;
                self.dir_mut(parent).entries.insert((*name).into(), Entry { node: old.node, stamp });
                return Ok(old.node);
            }
            self.remove(parent, name);
        }
        self.insert_new(parent, name, attr, kind)
    }

    /// Gives the node at `target` another name, `path`. The target may be of any earlier layer.
    pub(crate) fn link(&mut self, path: &[u8], target: &[u8]) -> Result<(), TreeError> {
        let missing = || TreeError::LinkTarget(lossy(target));
        let wanted = components(target)?;
        let (name, parents) = wanted.split_last().ok_or_else(|| TreeError::LinkToDirectory(lossy(target)))?;
        let dir = self.walk(parents, false)?.ok_or_else(missing)?;
        let node = self.child(dir, name).ok_or_else(missing)?.node;
        if self.dir(node).is_some() {
            return Err(TreeError::LinkToDirectory(lossy(target)));
        }

        let parts = components(path)?;
        let (name, parents) = parts.split_last().ok_or(TreeError::RootNotDirectory)?;
        self.charge(name.len())?;
        let parent = self.walk(parents, true)?.unwrap_or(ROOT);
        // The new name counts before the old one goes: it may be the target itself, or a directory above it.
        self.nodes[index(node)].links += 1;
        if self.child(parent, name).is_some() {
            self.remove(parent, name);
        }
        let stamp = self.layer;
        self.dir_mut(parent).entries.insert((*name).into(), Entry { node, stamp });
        Ok(())
    }

    /// A whiteout: hides what earlier layers have at `path`, and nothing of this layer, wherever it stands in it.
    pub(crate) fn whiteout(&mut self, path: &[u8]) -> Result<(), TreeError> {
        self.charge(0)?;
        let parts = components(path)?;
        let (name, parents) = parts.split_last().ok_or(TreeError::Whiteout)?;
        // What cannot be reached is not there to be hidden.
        if let Ok(Some(parent)) = self.walk(parents, false)
            && let Some(entry) = self.child(parent, name)
        {
            self.hide(parent, name, entry);
        }
        Ok(())
    }

    /// An opaque directory: hides what earlier layers have below `path`.
    pub(crate) fn opaque(&mut self, path: &[u8]) -> Result<(), TreeError> {
        self.charge(0)?;
        let parts = components(path)?;
        if let Ok(Some(dir)) = self.walk(&parts, false) {
            self.hide_below(dir);
        }
        Ok(())
    }

    /// Removes `entry` unless this layer made it or something below it. Recursion is bounded by `DEPTH_MAX`.
    fn hide(&mut self, parent: NodeId, name: &[u8], entry: Entry) -> bool {
        let kept_below = self.dir(entry.node).is_some() && self.hide_below(entry.node);
        if kept_below || entry.stamp == self.layer {
            return true;
        }
        self.remove(parent, name);
        false
    }

    /// [`Tree::hide`] for every entry of `dir`; whether any stays.
    fn hide_below(&mut self, dir: NodeId) -> bool {
        let entries: Vec<(Box<[u8]>, Entry)> = match self.dir(dir) {
            Some(dir) => dir.entries.iter().map(|(name, entry)| (name.clone(), *entry)).collect(),
            None => return false,
        };
        let mut kept = false;
        for (name, entry) in entries {
            kept |= self.hide(dir, &name, entry);
        }
        kept
    }

    /// Removes a name and, if it was a directory's, everything below it.
    fn remove(&mut self, parent: NodeId, name: &[u8]) {
        let Some(entry) = self.dir_mut(parent).entries.remove(name) else { return };
        let mut gone = vec![entry.node];
        while let Some(id) = gone.pop() {
            let node = &mut self.nodes[index(id)];
            node.links = node.links.saturating_sub(1);
            if node.links > 0 {
                continue;
            }
            node.attr.xattrs = None;
            match &mut node.kind {
                Kind::Dir(dir) => {
                    gone.extend(std::mem::take(&mut dir.entries).into_values().map(|entry| entry.node));
                }
                Kind::File(data) => self.freed.push(*data),
                Kind::Symlink(target) => *target = Box::default(),
                _ => {}
            }
        }
    }
}

/// Node numbers are made from lengths of a vector, so they fit.
fn index(id: NodeId) -> usize {
    usize::try_from(id).unwrap_or(usize::MAX)
}
