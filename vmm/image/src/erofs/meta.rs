//! The first part of an image: the superblock, directories, attributes and inodes.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::WriteError;
use super::data::Appender;
use super::dir::{self, EntryTarget};
use super::format::{BLOCK, BLOCK_SIZE, DataLayout, Inode, SLOT, Superblock, device};
use super::xattr::SharedXattrs;
use crate::num::{fits, to_u64};
use crate::tree::{Directory, Node, NodeId, NodeKind, ROOT, Tree};

/// Partly filled blocks kept in mind for small inodes. More would scatter what belongs together.
const OPEN_BLOCKS: usize = 64;

const S_IFIFO: u16 = 0o010_000;
const S_IFCHR: u16 = 0o020_000;
const S_IFDIR: u16 = 0o040_000;
const S_IFBLK: u16 = 0o060_000;
const S_IFREG: u16 = 0o100_000;
const S_IFLNK: u16 = 0o120_000;
const S_IFSOCK: u16 = 0o140_000;

/// Gives inodes their places: an inode with its attributes and its tail never crosses a block
/// unless it is larger.
struct Places {
    /// Free bytes at the end of a block, and the block.
    open: BTreeSet<(u64, u64)>,
    next_block: u64,
}

impl Places {
    fn new() -> Self {
        // Inode number 0 would be taken for "no file" by old readers of directories.
        Self { open: BTreeSet::from([(BLOCK - 2 * SLOT, 0)]), next_block: 1 }
    }

    /// Offset of a place for `bytes`.
    fn take(&mut self, bytes: u64) -> u64 {
        let bytes = bytes.next_multiple_of(SLOT);
        let (free, offset) = match self.open.range((bytes, 0)..).next().copied() {
            Some((free, block)) => {
                self.open.remove(&(free, block));
                (free - bytes, (block + 1) * BLOCK - free)
            }
            None => {
                let start = self.next_block;
                self.next_block += bytes.div_ceil(BLOCK);
                (bytes.next_multiple_of(BLOCK) - bytes, start * BLOCK)
            }
        };
        if free > 0 {
            let block = (offset + bytes) / BLOCK;
            self.open.insert((free, block));
            if self.open.len() > OPEN_BLOCKS {
                self.open.pop_first();
            }
        }
        offset
    }
}

/// An inode with its place.
struct Placed {
    node: NodeId,
    /// Offset in the area of inodes.
    offset: u64,
    inode: Inode,
    xattrs: Vec<u8>,
}

/// What remains to be written, with everything in its place.
struct Meta<'a> {
    tree: &'a Tree,
    shared: SharedXattrs<'a>,
    placed: Vec<Placed>,
    /// Inode number of each node; 0 if it has none.
    nids: Vec<u64>,
    /// Blocks of directories and links that do not fit beside their inodes.
    extra_blocks: u64,
    inode_blocks: u64,
}

fn file_mode(node: &Node) -> u16 {
    node.attr.mode
        | match node.kind {
            NodeKind::Directory(_) => S_IFDIR,
            NodeKind::File(_) => S_IFREG,
            NodeKind::Symlink(_) => S_IFLNK,
            NodeKind::Char { .. } => S_IFCHR,
            NodeKind::Block { .. } => S_IFBLK,
            NodeKind::Fifo => S_IFIFO,
            NodeKind::Socket => S_IFSOCK,
        }
}

fn index(node: NodeId) -> usize {
    fits(node, "a node's number is an index of a vector")
}

fn block_number(block: u64, limit: u64) -> Result<u32, WriteError> {
    u32::try_from(block).map_err(|_| WriteError::TooLarge(limit))
}

impl<'a> Meta<'a> {
    /// Places every inode of `tree`; blocks of directories follow from `first_block` on.
    fn plan(tree: &'a Tree, first_block: u64, limit: u64) -> Result<Self, WriteError> {
        let shared = SharedXattrs::collect(tree);
        let mut places = Places::new();
        let mut placed = Vec::new();
        let mut nids = vec![0; tree.nodes.len()];
        let mut extra_blocks = 0;
        let mut end = 0;
        for (node, id) in tree.nodes.iter().zip(0..).filter(|(node, _)| node.links > 0) {
            let xattrs = shared.encode(node.attr.xattrs.as_deref());
            let number = fits(placed.len() + 1, "nodes are numbered with 32 bits");
            let mut inode = inode(tree, node, xattrs.len(), number);
            let mut bytes = inode.bytes() + xattrs.len();
            let tail: usize = fits(inode.size % BLOCK, "a part of a block");
            match node.kind {
                NodeKind::Directory(_) | NodeKind::Symlink(_) => {
                    let in_blocks = if tail > 0 && bytes + tail <= BLOCK_SIZE {
                        inode.layout = DataLayout::Inline;
                        inode.size / BLOCK
                    } else {
                        inode.size.div_ceil(BLOCK)
                    };
                    if in_blocks > 0 {
                        inode.location = block_number(first_block + extra_blocks, limit)?;
                        extra_blocks += in_blocks;
                    }
                }
                _ => {}
            }
            if inode.layout == DataLayout::Inline {
                bytes += tail;
            }
            let offset = places.take(to_u64(bytes));
            end = end.max(offset + to_u64(bytes));
            nids[index(id)] = offset / SLOT;
            placed.push(Placed { node: id, offset, inode, xattrs });
        }
        // Some readers look for attributes behind an inode before they look whether there are any:
        // let there be something behind the last one.
        let inode_blocks = places.next_block.max((end + SLOT).div_ceil(BLOCK));
        Ok(Self { tree, shared, placed, nids, extra_blocks, inode_blocks })
    }

    fn encode_dir(&self, id: NodeId, dir: &Directory) -> Vec<u8> {
        dir::encode(dir, |target| {
            let node = match target {
                EntryTarget::Itself => id,
                EntryTarget::Parent => dir.parent,
                EntryTarget::Node(node) => node,
            };
            (self.nids[index(node)], dir::file_type(&self.tree.node(node).kind))
        })
    }

    /// Writes the blocks of directories and links that are not beside their inodes.
    fn write_extra(&self, image: &mut Appender) -> io::Result<()> {
        for Placed { node, inode, .. } in &self.placed {
            let whole = match inode.layout {
                DataLayout::Plain => inode.size,
                DataLayout::Inline => inode.size - inode.size % BLOCK,
            };
            if whole == 0 {
                continue;
            }
            let in_memory = |bytes: u64| -> usize { fits(bytes, "it is in memory as a whole") };
            match &self.tree.node(*node).kind {
                NodeKind::Directory(dir) => image.append(&self.encode_dir(*node, dir)[..in_memory(whole)])?,
                NodeKind::Symlink(target) => image.append(&target[..in_memory(whole)])?,
                _ => continue,
            }
            image.pad_to_block()?;
        }
        Ok(())
    }

    /// Writes the inodes with what follows them.
    fn write_inodes(
        &mut self,
        image: &mut Appender,
        tick: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<(), WriteError> {
        self.placed.sort_unstable_by_key(|placed| placed.offset);
        let start = image.position();
        let total = self.inode_blocks * BLOCK;
        let mut out = Vec::with_capacity(2 * BLOCK_SIZE);
        for placed in &self.placed {
            let at = image.position() - start;
            image.zeros(placed.offset - at).map_err(WriteError::Io)?;
            out.clear();
            placed.inode.encode(&mut out);
            out.extend(&placed.xattrs);
            if placed.inode.layout == DataLayout::Inline {
                self.append_tail(placed, &mut out);
            }
            image.append(&out).map_err(WriteError::Io)?;
            if !tick(at, total) {
                return Err(WriteError::Cancelled);
            }
        }
        let at = image.position() - start;
        image.zeros(total - at).map_err(WriteError::Io)
    }

    /// Appends what of a directory or link stands beside its inode.
    fn append_tail(&self, placed: &Placed, out: &mut Vec<u8>) {
        let tail: usize = fits(placed.inode.size % BLOCK, "a part of a block");
        match &self.tree.node(placed.node).kind {
            NodeKind::Directory(dir) => {
                let data = self.encode_dir(placed.node, dir);
                out.extend(&data[data.len() - tail..]);
            }
            NodeKind::Symlink(target) => out.extend(&target[target.len() - tail..]),
            _ => {}
        }
    }

    /// Gives files the blocks of the whole image, of which part `i` begins at block `starts[i]`.
    fn locate(&mut self, starts: &[u64], limit: u64) -> Result<(), WriteError> {
        for placed in &mut self.placed {
            if let NodeKind::File(data) = &self.tree.node(placed.node).kind
                && data.size > 0
            {
                let start = starts[fits::<_, usize>(data.part, "a part's number is an index")];
                placed.inode.location = block_number(start + u64::from(data.block), limit)?;
            }
        }
        Ok(())
    }
}

/// The inode of `node`, its layout and place of data not yet decided unless it is a file.
fn inode(tree: &Tree, node: &Node, xattr_bytes: usize, number: u32) -> Inode {
    let mut links = node.links;
    let (size, location) = match &node.kind {
        NodeKind::File(data) => (data.size, u32::MAX),
        NodeKind::Directory(dir) => {
            let is_dir = |id: NodeId| matches!(tree.node(id).kind, NodeKind::Directory(_));
            let subdirs = dir.entries.values().filter(|entry| is_dir(entry.node)).count();
            links = fits(2 + subdirs, "nodes are numbered with 32 bits");
            (dir::size(dir), u32::MAX)
        }
        NodeKind::Symlink(target) => (to_u64(target.len()), u32::MAX),
        NodeKind::Char { major, minor } | NodeKind::Block { major, minor } => (0, device(*major, *minor)),
        NodeKind::Fifo | NodeKind::Socket => (0, 0),
    };
    Inode {
        layout: DataLayout::Plain,
        xattr_bytes,
        mode: file_mode(node),
        links,
        size,
        location,
        number,
        uid: node.attr.uid,
        gid: node.attr.gid,
        mtime: node.attr.mtime,
        mtime_nsec: node.attr.mtime_nsec,
    }
}

/// Writes the metadata of the image whose contents lie in data files of `parts` bytes each, which
/// will follow in their order. `file` is empty; the image has at most `limit` bytes. `tick` is told
/// the written and all bytes of the inodes; when it answers `false` the writing ends with
/// [`WriteError::Cancelled`]. Returns the bytes of the whole image. The file is not synced.
pub(crate) fn write_metadata(
    file: File,
    tree: &Tree,
    parts: &[u64],
    uuid: [u8; 16],
    limit: u64,
    tick: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<u64, WriteError> {
    let mut image = Appender::new(file);
    // The superblock's block, filled in at the end.
    image.zeros(BLOCK).map_err(WriteError::Io)?;
    let mut meta = Meta::plan(tree, 1, limit)?;
    let xattr_block = 1 + meta.extra_blocks;
    let meta_block = xattr_block + meta.shared.len().div_ceil(BLOCK);
    let mut end = meta_block + meta.inode_blocks;
    let metadata = end * BLOCK;
    let mut starts = Vec::with_capacity(parts.len());
    for bytes in parts {
        starts.push(end);
        end = end.saturating_add(bytes.div_ceil(BLOCK));
    }
    let all = end.saturating_mul(BLOCK);
    if all > limit {
        return Err(WriteError::TooLarge(limit));
    }
    meta.locate(&starts, limit)?;
    let superblock = Superblock {
        root_nid: fits(meta.nids[index(ROOT)], "the root has one of the first places"),
        inodes: to_u64(meta.placed.len()),
        blocks: block_number(end, limit)?,
        meta_block: block_number(meta_block, limit)?,
        xattr_block: block_number(xattr_block, limit)?,
        uuid,
    };
    meta.write_extra(&mut image).map_err(WriteError::Io)?;
    image.append(&meta.shared.bytes).and_then(|()| image.pad_to_block()).map_err(WriteError::Io)?;
    meta.write_inodes(&mut image, tick)?;
    let (file, bytes) = image.complete().map_err(WriteError::Io)?;
    assert_eq!(bytes, metadata, "what was planned is what was written");
    file.write_all_at(&superblock.encode(), 0).map_err(WriteError::Io)?;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_apart_and_do_not_cross_blocks() {
        let mut places = Places::new();
        let mut taken: Vec<(u64, u64)> = Vec::new();
        let mut bytes = 1;
        for _ in 0..3000 {
            bytes = (bytes * 7919 + 13) % 6000 + 32;
            let offset = places.take(bytes);
            assert_eq!(offset % SLOT, 0);
            assert!(offset >= 64);
            if bytes <= BLOCK {
                assert_eq!(offset / BLOCK, (offset + bytes - 1) / BLOCK);
            } else {
                assert_eq!(offset % BLOCK, 0);
            }
            taken.push((offset, offset + bytes));
        }
        taken.sort_unstable();
        assert!(taken.windows(2).all(|pair| pair[0].1 <= pair[1].0));
        assert!(taken.last().unwrap().1 <= places.next_block * BLOCK);
    }
}
