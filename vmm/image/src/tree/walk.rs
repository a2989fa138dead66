//! Path look-ups in the tree: directories, `..` and symbolic links.

use super::{
    FOLLOW_MAX, NAME_MAX, NodeId, NodeKind, PATH_MAX, ROOT, Tree, TreeError, lossy, name_too_long,
    path_too_long,
};
use crate::num::to_u64;

/// A step that remains of the target of a symbolic link.
enum Step {
    Name(Box<[u8]>),
    /// The end of the target of `link` in `dir`: the current directory is its target. `before` is
    /// the number of links that were followed before it.
    Resolved {
        dir: NodeId,
        link: NodeId,
        before: u32,
    },
}

/// Splits a path at its slashes and resolves `.` and `..` lexically. A leading slash means the
/// image's root.
pub(super) fn components(path: &[u8]) -> Result<Vec<&[u8]>, TreeError> {
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

impl Tree {
    /// Counts path components that were looked up, or entries that were examined by a whiteout,
    /// against the limit of processing time.
    pub(super) fn charge_walk(&mut self, names: usize) -> Result<(), TreeError> {
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

    /// Looks up `parts` from the root, through directories and symbolic links. Missing directories
    /// are created if `create` is set (layers may omit them), otherwise the result is `None`.
    pub(super) fn walk(&mut self, parts: &[&[u8]], create: bool) -> Result<Option<NodeId>, TreeError> {
        let mut here = ROOT;
        let mut followed = 0;
        // The remaining steps of symbolic links, in reverse order.
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
                NodeKind::Directory(_) => here = entry.node,
                NodeKind::Symlink(target) => {
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

    /// [`Tree::walk`] for whiteouts: a path that cannot be resolved hides nothing.
    pub(super) fn reach(&mut self, parts: &[&[u8]]) -> Result<Option<NodeId>, TreeError> {
        match self.walk(parts, false) {
            Err(error @ TreeError::Limit { .. }) => Err(error),
            reached => Ok(reached.unwrap_or(None)),
        }
    }
}
