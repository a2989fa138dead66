//! The merged layers as a tree of metadata, in memory. File contents are elsewhere: a node only
//! says where.
//!
//! Paths of layers are untrusted and never reach the host: they are walked in this tree, symbolic
//! links in directory positions followed inside it, as a container's own view would (`lib/x` lands
//! in `usr/lib/x` when `lib` is a link). Changesets follow the OCI image specification, "Image
//! Layer Filesystem Changeset".

use std::collections::{BTreeMap, HashMap};

use thiserror::Error;

use crate::limits::Limits;
use crate::num::{fits, to_u64};

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
/// Bytes of names and values of all extended attributes of a file (`XATTR_SIZE_MAX` for one in
/// Linux).
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
    /// Whether the bytes after the last whole block are in the spool of tails rather than in a
    /// block of their own.
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
    /// The layer that last hid what was older in it: what it holds since then is that layer's, or
    /// holds something of it.
    cleared: u32,
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
    /// It says nothing that a file system could hold: a NUL byte, a link to nothing, a whiteout of
    /// nothing.
    #[error("{0}")]
    Malformed(&'static str),
    /// A name, path, number or attribute beyond what Linux can represent.
    #[error("{0}")]
    Beyond(String),
    /// A directory position of the path is taken by something else.
    #[error("`{0}`, a parent in the path, is not a directory")]
    NotADirectory(String),
    /// Symbolic links on the way form a loop.
    #[error("the path goes through more than {FOLLOW_MAX} symbolic links")]
    Loop,
    /// A hard link to a name that does not exist.
    #[error("its hard link target `{0}` does not exist")]
    LinkTarget(String),
    /// A hard link to a directory.
    #[error("its hard link target `{0}` is a directory")]
    LinkToDirectory(String),
    /// The image costs more than one of [`Limits`] allows.
    #[error("the image has more than {most} {what} (limit `{limit}`)")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much of it is allowed.
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

/// The root of the image is replaced by something that is no directory.
const ROOT_NOT_DIRECTORY: TreeError =
    TreeError::Malformed("the image's root cannot be anything but a directory");
/// A `.wh.` file that names nothing that could be removed.
pub(crate) const EMPTY_WHITEOUT: TreeError = TreeError::Malformed("it is a whiteout without a name");

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
    /// Names looked at so far.
    walked: u64,
    /// Where links to directories lead, by the directory they are in, and over how many links; so
    /// that a link's target is walked once. Forgotten when a name of a directory or a link goes.
    resolved: HashMap<(NodeId, NodeId), (NodeId, u32)>,
    limits: Limits,
}

/// What is still to be walked of a symbolic link.
enum Step {
    Name(Box<[u8]>),
    /// The target of this link, in this directory, was walked: it leads here. So many links were
    /// followed before it.
    Resolved {
        dir: NodeId,
        link: NodeId,
        before: u32,
    },
}

/// Splits a path at its slashes, resolving `.` and `..` by name. A leading slash means the image's
/// root, too.
fn components(path: &[u8]) -> Result<Vec<&[u8]>, TreeError> {
    if path.len() > PATH_MAX {
        return Err(path_too_long());
    }
    if path.contains(&0) {
        return Err(TreeError::Malformed("the path contains a NUL byte"));
    }
    let mut parts = Vec::with_capacity(8);
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop().ok_or(TreeError::Escapes)?;
            }
            name if name.len() > NAME_MAX => return Err(name_too_long()),
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
            walked: 0,
            resolved: HashMap::new(),
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

    fn too_many_entries(&self) -> TreeError {
        TreeError::Limit { what: "files", most: self.limits.entries, limit: "entries" }
    }

    /// Charges an entry and its bytes of metadata to the limits.
    fn charge(&mut self, bytes: usize) -> Result<(), TreeError> {
        self.entries_left = self.entries_left.checked_sub(1).ok_or_else(|| self.too_many_entries())?;
        self.charge_metadata(bytes)
    }

    fn charge_metadata(&mut self, bytes: usize) -> Result<(), TreeError> {
        self.metadata_left = self.metadata_left.checked_sub(to_u64(bytes)).ok_or(TreeError::Limit {
            what: "bytes of names, link targets and extended attributes",
            most: self.limits.metadata_bytes,
            limit: "metadata_bytes",
        })?;
        Ok(())
    }

    /// Charges names that were looked at, on the way of a path or to be hidden: what a layer costs
    /// in time.
    fn charge_walk(&mut self, names: usize) -> Result<(), TreeError> {
        self.walked += to_u64(names);
        if self.walked <= self.limits.walked_names {
            return Ok(());
        }
        Err(TreeError::Limit {
            what: "path components to look up in its paths and whiteouts",
            most: self.limits.walked_names,
            limit: "walked_names",
        })
    }

    fn push(&mut self, node: Node) -> Result<NodeId, TreeError> {
        let id = NodeId::try_from(self.nodes.len()).map_err(|_| self.too_many_entries())?;
        self.nodes.push(node);
        Ok(id)
    }

    /// Walks `parts` from the root through directories and symbolic links. Missing directories are
    /// made if `create` (as layers may leave them out), else the answer is `None`.
    fn walk(&mut self, parts: &[&[u8]], create: bool) -> Result<Option<NodeId>, TreeError> {
        let mut here = ROOT;
        let mut followed = 0;
        // What is still to walk, last first, once a symbolic link brought names of its own.
        let mut rest: Vec<Step> = Vec::new();
        let mut parts = parts.iter();
        loop {
            let owned;
            let name: &[u8] = match rest.pop() {
                Some(Step::Name(name)) => {
                    owned = name;
                    &owned
                }
                Some(Step::Resolved { dir, link, before }) => {
                    self.resolved.insert((dir, link), (here, followed - before));
                    continue;
                }
                None => match parts.next() {
                    Some(name) => name,
                    None => return Ok(Some(here)),
                },
            };
            self.charge_walk(1)?;
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
                    let before = followed;
                    let known = self.resolved.get(&(here, entry.node)).copied();
                    followed += known.map_or(1, |(_, links)| links);
                    if followed > FOLLOW_MAX {
                        return Err(TreeError::Loop);
                    }
                    if let Some((leads_to, _)) = known {
                        here = leads_to;
                        continue;
                    }
                    rest.push(Step::Resolved { dir: here, link: entry.node, before });
                    if target.first() == Some(&b'/') {
                        here = ROOT;
                    }
                    let names = target.split(|&b| b == b'/').filter(|n| !n.is_empty() && *n != b".");
                    if names.clone().any(|name| name.len() > NAME_MAX) {
                        return Err(name_too_long());
                    }
                    rest.extend(names.rev().map(|name| Step::Name(name.into())));
                }
                _ => return Err(TreeError::NotADirectory(lossy(name))),
            }
        }
    }

    /// [`Tree::walk`] to what is to be hidden: what cannot be reached is not there to be hidden.
    fn reach(&mut self, parts: &[&[u8]]) -> Result<Option<NodeId>, TreeError> {
        match self.walk(parts, false) {
            Err(error @ TreeError::Limit { .. }) => Err(error),
            reached => Ok(reached.unwrap_or(None)),
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
                return Err(path_too_long());
            }
            dir.parent = parent;
            dir.depth = depth + 1;
        }
        let node = self.push(Node { attr, kind, links: 1 })?;
        let stamp = self.layer;
        self.dir_mut(parent).entries.insert(name.into(), Entry { node, stamp });
        Ok(node)
    }

    /// What [`Tree::add`] would refuse for reasons that need no look at the tree: asked before
    /// contents are copied.
    pub(crate) fn check_add(&self, path: &[u8], attr: &Attr) -> Result<(), TreeError> {
        components(path)?;
        let mut sum = 0;
        for (name, value) in attr.xattrs.iter().flat_map(|xattrs| xattrs.iter()) {
            sum += name.len() + value.len();
            if name.len() > NAME_MAX || value.len() > XATTR_VALUE_MAX || sum > XATTRS_MAX {
                return Err(TreeError::Beyond(format!(
                    "its extended attribute `{}` is too long (name 255, value 65535, all of a file 65536 bytes)",
                    lossy(name)
                )));
            }
        }
        if self.entries_left == 0 {
            return Err(self.too_many_entries());
        }
        Ok(())
    }

    /// Adds what `kind` says at `path`, in place of what was there; a directory over a directory
    /// keeps its entries. Missing parents are made.
    pub(crate) fn add(&mut self, path: &[u8], attr: Attr, kind: Kind) -> Result<NodeId, TreeError> {
        self.check_add(path, &attr)?;
        let extra = attr.xattrs.iter().flat_map(|xattrs| xattrs.iter());
        let mut bytes: usize = extra.map(|(name, value)| name.len() + value.len()).sum();
        if let Kind::Symlink(target) = &kind {
            if target.is_empty() || target.len() > PATH_MAX || target.contains(&0) {
                return Err(TreeError::Beyond(format!(
                    "its target is empty, longer than {PATH_MAX} bytes, or holds a NUL byte"
                )));
            }
            bytes += target.len();
        }
        if let Kind::Char { major, minor } | Kind::Block { major, minor } = kind
            && (major >= 1 << 12 || minor >= 1 << 20)
        {
            return Err(TreeError::Beyond(format!(
                "its device number {major}:{minor} is out of range (12 bits and 20 bits)"
            )));
        }
        self.charge_metadata(bytes)?;

        let parts = components(path)?;
        let Some((name, parents)) = parts.split_last() else {
            if !matches!(kind, Kind::Dir(_)) {
                return Err(ROOT_NOT_DIRECTORY);
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
        let (name, parents) = parts.split_last().ok_or(ROOT_NOT_DIRECTORY)?;
        self.charge(name.len())?;
        let parent = self.walk(parents, true)?.unwrap_or(ROOT);
        // The new name counts before the old one goes: it may be the target itself, or a directory
        // above it.
        self.nodes[index(node)].links += 1;
        if self.child(parent, name).is_some() {
            self.remove(parent, name);
        }
        let stamp = self.layer;
        self.dir_mut(parent).entries.insert((*name).into(), Entry { node, stamp });
        Ok(())
    }

    /// A whiteout: hides what earlier layers have at `path`, and nothing of this layer, wherever it
    /// stands in it.
    pub(crate) fn whiteout(&mut self, path: &[u8]) -> Result<(), TreeError> {
        self.charge(0)?;
        let parts = components(path)?;
        let (name, parents) = parts.split_last().ok_or(EMPTY_WHITEOUT)?;
        if let Some(parent) = self.reach(parents)?
            && let Some(entry) = self.child(parent, name)
        {
            self.hide_below(entry.node)?;
            if !self.stays(entry) {
                self.remove(parent, name);
            }
        }
        Ok(())
    }

    /// An opaque directory: hides what earlier layers have below `path`.
    pub(crate) fn opaque(&mut self, path: &[u8]) -> Result<(), TreeError> {
        self.charge(0)?;
        let parts = components(path)?;
        match self.reach(&parts)? {
            Some(dir) => self.hide_below(dir),
            None => Ok(()),
        }
    }

    /// Whether this layer made `entry`, or something below it; what is below it must be cleared.
    fn stays(&self, entry: Entry) -> bool {
        entry.stamp == self.layer || self.dir(entry.node).is_some_and(|dir| !dir.entries.is_empty())
    }

    /// Removes what is below `top` and not of this layer, but for the directories on the way to
    /// what is. A directory is looked through once a layer: nothing of an earlier one can come into
    /// it again.
    fn hide_below(&mut self, top: NodeId) -> Result<(), TreeError> {
        let layer = self.layer;
        let has_older = |tree: &Self, id| tree.dir(id).is_some_and(|dir| dir.cleared != layer);
        // Parents before what is in them.
        let mut dirs: Vec<NodeId> = Vec::new();
        dirs.extend(has_older(self, top).then_some(top));
        let mut next = 0;
        while let Some(dir) = dirs.get(next).and_then(|&id| self.dir(id)) {
            let names = dir.entries.len();
            dirs.extend(dir.entries.values().map(|entry| entry.node).filter(|&id| has_older(self, id)));
            self.charge_walk(names)?;
            next += 1;
        }
        for id in dirs.into_iter().rev() {
            let mut entries = std::mem::take(&mut self.dir_mut(id).entries);
            let mut gone = Vec::new();
            entries.retain(|_, entry| {
                let stays = self.stays(*entry);
                if !stays {
                    gone.push(entry.node);
                }
                stays
            });
            let dir = self.dir_mut(id);
            (dir.entries, dir.cleared) = (entries, layer);
            gone.into_iter().for_each(|node| self.release(node));
        }
        Ok(())
    }

    /// Removes a name and, if it was a directory's, everything below it.
    fn remove(&mut self, parent: NodeId, name: &[u8]) {
        if let Some(entry) = self.dir_mut(parent).entries.remove(name) {
            self.release(entry.node);
        }
    }

    /// A name of `node` is gone: with the last one goes what is below it.
    fn release(&mut self, node: NodeId) {
        if matches!(self.node(node).kind, Kind::Dir(_) | Kind::Symlink(_)) && !self.resolved.is_empty() {
            // To clear it would cost as much as it ever held.
            self.resolved = HashMap::new();
        }
        let mut gone = vec![node];
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

fn index(id: NodeId) -> usize {
    fits(id, "a node's number is an index of a vector")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Tree {
        Tree::new(&Limits::default())
    }

    fn add(tree: &mut Tree, path: &str, kind: Kind) {
        tree.add(path.as_bytes(), Attr::default(), kind).unwrap();
    }

    fn symlink(target: &str) -> Kind {
        Kind::Symlink(target.as_bytes().into())
    }

    fn has(tree: &mut Tree, path: &str) -> bool {
        let parts = components(path.as_bytes()).unwrap();
        let (name, parents) = parts.split_last().unwrap();
        tree.walk(parents, false).unwrap().is_some_and(|dir| tree.child(dir, name).is_some())
    }

    /// What `n` marks cost over `n` files each: of the layer itself, and of the one below.
    fn walked_by_marks(n: u64, mark: impl Fn(&mut Tree)) -> u64 {
        let mut tree = tree();
        for layer in 1..=2 {
            tree.begin_layer();
            for i in 0..n {
                add(&mut tree, &format!("d/{layer}/{i}"), Kind::Fifo);
            }
        }
        let before = tree.walked;
        for i in 0..n {
            mark(&mut tree);
            add(&mut tree, &format!("d/new{i}"), Kind::Fifo);
        }
        assert!(!has(&mut tree, "d/1/0") && has(&mut tree, "d/2/0") && has(&mut tree, "d/new0"));
        tree.walked - before
    }

    #[test]
    fn whiteouts_cost_what_they_hide_and_not_their_number_times_it() {
        let marks: [&dyn Fn(&mut Tree); 2] =
            [&|tree| tree.opaque(b"d").unwrap(), &|tree| tree.whiteout(b"d").unwrap()];
        for mark in marks {
            // Each file once, and a few names for each mark and each file that follows it.
            for n in [500, 1000] {
                let walked = walked_by_marks(n, mark);
                assert!(walked <= 6 * n + 10, "{walked} names for {n} marks over {n} files");
            }
        }
    }

    #[test]
    fn a_second_mark_hides_nothing_of_its_layer_and_a_later_layer_hides_all() {
        let mut tree = tree();
        for layer in 1..=3 {
            tree.begin_layer();
            add(&mut tree, &format!("a/b/{layer}"), Kind::Fifo);
            tree.opaque(b"a/b").unwrap();
            add(&mut tree, &format!("a/c/{layer}"), Kind::Fifo);
            tree.opaque(b"a").unwrap();
            tree.whiteout(b"a").unwrap();
            for old in 1..=3 {
                for dir in ["a/b", "a/c"] {
                    assert_eq!(has(&mut tree, &format!("{dir}/{old}")), old == layer, "{dir} {old} {layer}");
                }
            }
        }
        tree.begin_layer();
        tree.whiteout(b"a").unwrap();
        assert!(!has(&mut tree, "a"));
    }

    /// A chain of links, each by a detour of many names, and files through the whole chain.
    fn chain(tree: &mut Tree, links: u32) -> String {
        let detour = "x/../".repeat(400);
        add(tree, "x", Kind::Dir(Dir::default()));
        add(tree, "end", Kind::Dir(Dir::default()));
        add(tree, "l0", symlink("end"));
        for i in 1..links {
            add(tree, &format!("l{i}"), symlink(&format!("{detour}l{}", i - 1)));
        }
        format!("l{}", links - 1)
    }

    #[test]
    fn a_links_target_is_walked_once() {
        let mut tree = tree();
        let start = chain(&mut tree, FOLLOW_MAX);
        let before = tree.walked;
        for i in 0..1000 {
            add(&mut tree, &format!("{start}/{i}"), Kind::Fifo);
        }
        let (walked, once) = (tree.walked - before, u64::from(FOLLOW_MAX) * 801);
        assert!(walked <= once + 1000, "{walked} names, {once} of them in links");
        assert!(has(&mut tree, "end/999"));
        // What is known of it counts as links nevertheless.
        add(&mut tree, "more", symlink(&start));
        let error = tree.add(b"more/x", Attr::default(), Kind::Fifo).unwrap_err();
        assert_eq!(error, TreeError::Loop);
    }

    #[test]
    fn a_link_that_changes_leads_elsewhere() {
        let mut tree = tree();
        let start = chain(&mut tree, 3);
        add(&mut tree, &format!("{start}/one"), Kind::Fifo);
        add(&mut tree, "other", Kind::Dir(Dir::default()));
        add(&mut tree, "l1", symlink("other"));
        add(&mut tree, &format!("{start}/two"), Kind::Fifo);
        assert!(has(&mut tree, "end/one") && has(&mut tree, "other/two") && !has(&mut tree, "end/two"));
        // One link under two names is two links.
        add(&mut tree, "p/here/it", Kind::Fifo);
        add(&mut tree, "q/here/it", Kind::Fifo);
        add(&mut tree, "p/l", symlink("here"));
        tree.link(b"q/l", b"p/l").unwrap();
        add(&mut tree, "p/l/p", Kind::Fifo);
        add(&mut tree, "q/l/q", Kind::Fifo);
        assert!(has(&mut tree, "p/here/p") && has(&mut tree, "q/here/q"));
    }

    #[test]
    fn what_is_walked_has_a_budget() {
        let limits = Limits { walked_names: 100_000, ..Limits::default() };
        let mut tree = Tree::new(&limits);
        let start = chain(&mut tree, 30);
        let refused = |error: &TreeError| matches!(error, TreeError::Limit { limit: "walked_names", .. });
        // A link that is replaced each time has to be walked each time.
        let error = (0..1000).find_map(|i| {
            add(&mut tree, "l0", symlink("end"));
            tree.add(format!("{start}/{i}").as_bytes(), Attr::default(), Kind::Fifo).err()
        });
        assert!(refused(&error.unwrap()));
        assert!(tree.walked <= limits.walked_names + 1);
        // Whiteouts do not overlook it.
        assert!(refused(&tree.whiteout(b"x/y").unwrap_err()) && refused(&tree.opaque(b"x").unwrap_err()));
    }
}
