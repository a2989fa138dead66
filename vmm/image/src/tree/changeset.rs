//! Applying the entries of a layer: files, hard links, whiteouts and opaque directories.

use std::collections::HashMap;

use super::walk::components;
use super::{
    Attr, DirEntry, EMPTY_WHITEOUT, NAME_MAX, NodeId, NodeKind, PATH_MAX, ROOT, ROOT_NOT_DIRECTORY, Tree,
    TreeError, XATTR_VALUE_MAX, XATTRS_MAX, index, lossy,
};

impl Tree {
    /// The checks of [`Tree::add`] that do not depend on the tree. Called before file contents are
    /// copied.
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

    /// Adds a node at `path` and replaces an existing one; a directory that replaces a directory
    /// keeps the entries. Missing parents are created.
    pub(crate) fn add(&mut self, path: &[u8], attr: Attr, kind: NodeKind) -> Result<NodeId, TreeError> {
        self.check_add(path, &attr)?;
        let extra = attr.xattrs.iter().flat_map(|xattrs| xattrs.iter());
        let mut bytes: usize = extra.map(|(name, value)| name.len() + value.len()).sum();
        if let NodeKind::Symlink(target) = &kind {
            if target.is_empty() || target.len() > PATH_MAX || target.contains(&0) {
                return Err(TreeError::Beyond(format!(
                    "its target is empty, longer than {PATH_MAX} bytes, or contains a NUL byte"
                )));
            }
            bytes += target.len();
        }
        if let NodeKind::Char { major, minor } | NodeKind::Block { major, minor } = kind
            && (major >= 1 << 12 || minor >= 1 << 20)
        {
            return Err(TreeError::Beyond(format!(
                "its device number {major}:{minor} is out of range (12 bits and 20 bits)"
            )));
        }
        self.charge_metadata(bytes)?;

        let parts = components(path)?;
        let Some((name, parents)) = parts.split_last() else {
            if !matches!(kind, NodeKind::Directory(_)) {
                return Err(ROOT_NOT_DIRECTORY);
            }
            self.nodes[index(ROOT)].attr = attr;
            return Ok(ROOT);
        };
        let parent = self.walk(parents, true)?.unwrap_or(ROOT);
        if let Some(old) = self.child(parent, name) {
            if matches!(kind, NodeKind::Directory(_)) && self.dir(old.node).is_some() {
                self.charge(0)?;
                self.nodes[index(old.node)].attr = attr;
                let stamp = self.layer;
                self.dir_mut(parent).entries.insert((*name).into(), DirEntry { node: old.node, stamp });
                return Ok(old.node);
            }
            self.remove(parent, name);
        }
        self.insert_new(parent, name, attr, kind)
    }

    /// Adds a hard link `path` to the node at `target`, which may be from any layer so far.
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
        // The new name is counted before an old one is removed, which may be the target itself or a
        // parent of it.
        self.nodes[index(node)].links += 1;
        if self.child(parent, name).is_some() {
            self.remove(parent, name);
        }
        let stamp = self.layer;
        self.dir_mut(parent).entries.insert((*name).into(), DirEntry { node, stamp });
        Ok(())
    }

    /// A whiteout: hides what earlier layers have at `path`. Entries of this layer are kept,
    /// regardless of their order.
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

    /// Whether `entry`, or something below it, is from this layer. Older entries below it must have
    /// been removed.
    /// been removed before.
    fn stays(&self, entry: DirEntry) -> bool {
        entry.stamp == self.layer || self.dir(entry.node).is_some_and(|dir| !dir.entries.is_empty())
    }

    /// Removes everything below `top` that is not from this layer, except the parents of entries
    /// that are. Each directory is examined once for each layer, because entries of earlier layers
    /// cannot be added later.
    fn hide_below(&mut self, top: NodeId) -> Result<(), TreeError> {
        let layer = self.layer;
        let has_older = |tree: &Self, id| tree.dir(id).is_some_and(|dir| dir.cleared != layer);
        // Parents before their children.
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

    /// Removes a name, and if it is a directory, everything below it.
    fn remove(&mut self, parent: NodeId, name: &[u8]) {
        if let Some(entry) = self.dir_mut(parent).entries.remove(name) {
            self.release(entry.node);
        }
    }

    /// Drops one name of `node`; if it was the last one, everything below it is removed.
    fn release(&mut self, node: NodeId) {
        if matches!(self.node(node).kind, NodeKind::Directory(_) | NodeKind::Symlink(_))
            && !self.resolved.is_empty()
        {
            // `clear` takes time in proportion to the capacity.
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
                NodeKind::Directory(dir) => {
                    gone.extend(std::mem::take(&mut dir.entries).into_values().map(|entry| entry.node));
                }
                NodeKind::Symlink(target) => *target = Box::default(),
                _ => {}
            }
        }
    }
}
