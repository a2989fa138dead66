//! Directory blocks: fixed records first, then the names, sorted by bytes throughout.

use super::format::BLOCK_SIZE;
use crate::num::{fits, to_u64};
use crate::tree::{Directory, NodeId, NodeKind};

/// Bytes of a record.
const RECORD: usize = 12;

/// Bytes of a directory's blocks; the last one counts only what it uses.
pub(super) fn size(dir: &Directory) -> u64 {
    let mut whole: u64 = 0;
    let mut used = 0;
    for (name, _) in sorted(dir) {
        let bytes = RECORD + name.len();
        if used + bytes > BLOCK_SIZE {
            whole += 1;
            used = 0;
        }
        used += bytes;
    }
    whole * super::format::BLOCK + to_u64(used)
}

/// The entries with `.` and `..` in their places; `None` stands for `..`, its own id for `.`.
fn sorted(dir: &Directory) -> impl Iterator<Item = (&[u8], EntryTarget)> {
    let dots = [(&b"."[..], EntryTarget::Itself), (&b".."[..], EntryTarget::Parent)];
    let mut dots = dots.into_iter().peekable();
    let mut entries =
        dir.entries.iter().map(|(name, entry)| (&**name, EntryTarget::Node(entry.node))).peekable();
    std::iter::from_fn(move || match (dots.peek(), entries.peek()) {
        (Some(dot), Some(entry)) if dot.0 < entry.0 => dots.next(),
        (Some(_), None) => dots.next(),
        _ => entries.next(),
    })
}

/// What a record points to.
#[derive(Clone, Copy)]
pub(super) enum EntryTarget {
    Itself,
    Parent,
    Node(NodeId),
}

/// The number of a file's type in a record.
pub(super) fn file_type(kind: &NodeKind) -> u8 {
    match kind {
        NodeKind::File(_) => 1,
        NodeKind::Directory(_) => 2,
        NodeKind::Char { .. } => 3,
        NodeKind::Block { .. } => 4,
        NodeKind::Fifo => 5,
        NodeKind::Socket => 6,
        NodeKind::Symlink(_) => 7,
    }
}

/// The directory's data. `locate` tells the inode number and the type of a target.
pub(super) fn encode(dir: &Directory, locate: impl Fn(EntryTarget) -> (u64, u8)) -> Vec<u8> {
    let mut out = Vec::new();
    let mut block: Vec<(&[u8], EntryTarget)> = Vec::new();
    let mut used = 0;
    for (name, target) in sorted(dir) {
        let bytes = RECORD + name.len();
        if used + bytes > BLOCK_SIZE {
            encode_block(&block, &locate, &mut out);
            out.resize(out.len().next_multiple_of(BLOCK_SIZE), 0);
            block.clear();
            used = 0;
        }
        used += bytes;
        block.push((name, target));
    }
    encode_block(&block, &locate, &mut out);
    out
}

fn encode_block(
    block: &[(&[u8], EntryTarget)],
    locate: impl Fn(EntryTarget) -> (u64, u8),
    out: &mut Vec<u8>,
) {
    let mut name_offset = block.len() * RECORD;
    for (name, target) in block {
        let (nid, file_type) = locate(*target);
        out.extend(nid.to_le_bytes());
        let offset: u16 = fits(name_offset, "an offset in a block");
        out.extend(offset.to_le_bytes());
        out.extend([file_type, 0]);
        name_offset += name.len();
    }
    for (name, _) in block {
        out.extend(*name);
    }
}
