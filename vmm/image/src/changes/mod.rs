//! What a layer changes, as a list that can be applied to any tree: the layer's archive without the
//! contents of its files. It is kept beside the contents, so that another image with the same layer
//! need not read the archive again.
//!
//! What a change comes to depends on the layers below (a path may lead through a symbolic link of
//! theirs), so changes are kept and not their result.

mod file;

pub(crate) use file::{Reader, Writer};

use crate::tree::{Attr, Directory, FileData, NodeKind, Tree, TreeError};

/// One change, in the order of the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// What follows belongs to the next layer.
    Layer,
    /// Hides what earlier layers have below this directory.
    Opaque(Vec<u8>),
    /// Hides what earlier layers have at this path.
    Whiteout(Vec<u8>),
    /// Gives what is at `target` another name.
    Link { path: Vec<u8>, target: Vec<u8> },
    /// Adds or replaces what is at `path`.
    Add { path: Vec<u8>, attr: Attr, node: NewNode },
}

/// What is added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NewNode {
    Dir,
    File(FileData),
    Symlink(Vec<u8>),
    Char { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
    Fifo,
    Socket,
}

impl Change {
    /// The path that it is about, as the layer spells it.
    pub(crate) fn path(&self) -> &[u8] {
        match self {
            Self::Layer => b"",
            Self::Opaque(path) | Self::Whiteout(path) | Self::Link { path, .. } | Self::Add { path, .. } => {
                path
            }
        }
    }

    /// Makes the change; an error comes with the path.
    pub(crate) fn apply(self, tree: &mut Tree) -> Result<(), (Vec<u8>, TreeError)> {
        // What is kept of a layer has a limit, whatever becomes of the path in the tree.
        if let Err(error) = tree.charge_change(self.path().len()) {
            return Err((self.path().to_vec(), error));
        }
        let (path, done) = match self {
            Self::Layer => {
                tree.begin_layer();
                return Ok(());
            }
            Self::Opaque(path) => {
                let done = tree.opaque(&path);
                (path, done)
            }
            Self::Whiteout(path) => {
                let done = tree.whiteout(&path);
                (path, done)
            }
            Self::Link { path, target } => {
                let done = tree.link(&path, &target);
                (path, done)
            }
            Self::Add { path, attr, node } => {
                let done = tree.add(&path, attr, node.into()).map(drop);
                (path, done)
            }
        };
        done.map_err(|error| (path, error))
    }
}

impl From<NewNode> for NodeKind {
    fn from(node: NewNode) -> Self {
        match node {
            NewNode::Dir => Self::Directory(Directory::default()),
            NewNode::File(data) => Self::File(data),
            NewNode::Symlink(target) => Self::Symlink(target.into()),
            NewNode::Char { major, minor } => Self::Char { major, minor },
            NewNode::Block { major, minor } => Self::Block { major, minor },
            NewNode::Fifo => Self::Fifo,
            NewNode::Socket => Self::Socket,
        }
    }
}
