//! Reading a layer's tar stream: its changes go to the tree and to whoever keeps them, its contents
//! to a data file.

use std::io;

use thiserror::Error;

use crate::changes::{Change, NewNode};
use crate::digest::Digest;
use crate::erofs::{DataSink, WriteError, keeps_xattr};
use crate::num::{at_most, to_u64};
use crate::tar::{EntryKind, SparseSegment, TarEntry, TarError, TarInput, TarReader};
use crate::tree::{Attr, EMPTY_WHITEOUT, Tree, TreeError};

/// Why a layer could not be unpacked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LayerError {
    /// The tar stream is damaged or could not be read.
    #[error("its contents cannot be used")]
    Tar(#[source] TarError),
    /// An entry of the layer cannot be part of an image.
    #[error("the entry `{path}` is refused")]
    Entry {
        /// The entry's path as the layer spells it.
        path: String,
        /// Why.
        source: TreeError,
    },
    /// The file system image could not be written.
    #[error("the entry `{path}` cannot be stored")]
    Write {
        /// The entry's path as the layer spells it.
        path: String,
        /// Why.
        source: WriteError,
    },
    /// The layer's bytes do not have the digest by which the image names them.
    #[error("it is corrupt: its digest is {found}, but the image lists {wanted}")]
    Digest {
        /// What the manifest says.
        wanted: Box<Digest>,
        /// What the bytes have.
        found: Box<Digest>,
    },
    /// The layer's uncompressed bytes do not have the digest that the configuration lists.
    #[error("it is corrupt: its uncompressed digest is {found}, but the configuration lists {wanted}")]
    DiffId {
        /// What the configuration says.
        wanted: Box<Digest>,
        /// What the bytes have.
        found: Box<Digest>,
    },
    /// The layer's file could not be read.
    #[error("cannot read {name}")]
    Read {
        /// The file.
        name: String,
        /// The system's word.
        source: io::Error,
    },
    /// The compressed stream is damaged.
    #[error("its {method} stream is corrupt")]
    Compression {
        /// gzip or zstd.
        method: &'static str,
        /// What the decoder said.
        source: io::Error,
    },
    /// A compression that is not supported.
    #[error("it is compressed with {0}; only gzip, zstd and no compression are supported")]
    UnsupportedCompression(&'static str),
    /// More uncompressed bytes than [`crate::Limits::unpacked_bytes`] allows for all layers.
    #[error("the image's layers unpack to more than {0} bytes (limit `unpacked_bytes`)")]
    TooLarge(u64),
    /// The caller gave up.
    #[error("cancelled")]
    Cancelled,
}

/// What a whiteout's file name begins with.
const WHITEOUT: &[u8] = b".wh.";
/// The mark of an opaque directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Marks of aufs that say nothing about the image.
const AUFS: &[u8] = b".wh..wh.";

fn lossy(path: &[u8]) -> String {
    const SHOWN: usize = 512;
    String::from_utf8_lossy(&path[..path.len().min(SHOWN)]).into_owned()
}

/// Keeps a change that was read.
pub(crate) type Keep<'a> = dyn FnMut(&Change) -> io::Result<()> + 'a;

/// Applies a layer to `tree`, its files' contents going to `sink` and each change to `keep` first.
/// Reads the archive up to its end mark, and then whatever follows. `tick` is asked for every
/// entry: `false` ends it with [`LayerError::Cancelled`].
pub(crate) fn apply<I: TarInput>(
    tar: &mut TarReader<I>,
    tree: &mut Tree,
    sink: &mut impl DataSink,
    keep: &mut Keep<'_>,
    tick: &mut dyn FnMut() -> bool,
) -> Result<(), LayerError> {
    change(Change::Layer, tree, keep)?;
    while let Some(entry) = tar.next().map_err(LayerError::Tar)? {
        if !tick() {
            return Err(LayerError::Cancelled);
        }
        if let Some(found) = read_entry(tar, entry, tree, sink, tick)? {
            change(found, tree, keep)?;
        }
    }
    tar.drain().map_err(LayerError::Tar)
}

/// Keeps a change and makes it.
fn change(change: Change, tree: &mut Tree, keep: &mut Keep<'_>) -> Result<(), LayerError> {
    if let Err(error) = keep(&change) {
        return Err(LayerError::Write { path: lossy(change.path()), source: WriteError::Io(error) });
    }
    make(change, tree)
}

/// Makes a change, of a layer that is read or was kept.
pub(crate) fn make(change: Change, tree: &mut Tree) -> Result<(), LayerError> {
    change.apply(tree).map_err(|(path, source)| LayerError::Entry { path: lossy(&path), source })
}

/// Reads a layer's stream to its end and does nothing with it: for those who hash it.
pub(crate) fn pass(stream: &mut impl TarInput, tick: &mut dyn FnMut() -> bool) -> Result<(), LayerError> {
    let read_error = |source| LayerError::Tar(TarError::Read { at: 0, source });
    loop {
        let have = stream.fill().map_err(read_error)?.len();
        if have == 0 {
            return Ok(());
        }
        stream.consume(have);
        if !tick() {
            return Err(LayerError::Cancelled);
        }
    }
}

/// What an entry changes, its contents being copied; nothing of some marks.
fn read_entry<I: TarInput>(
    tar: &mut TarReader<I>,
    entry: TarEntry,
    tree: &Tree,
    sink: &mut impl DataSink,
    tick: &mut dyn FnMut() -> bool,
) -> Result<Option<Change>, LayerError> {
    let refused = |source| LayerError::Entry { path: lossy(&entry.path), source };
    let not_stored = |source| match source {
        WriteError::Cancelled => LayerError::Cancelled,
        source => LayerError::Write { path: lossy(&entry.path), source },
    };

    let path = trimmed(&entry.path);
    let slash = path.iter().rposition(|&b| b == b'/').map_or(0, |at| at + 1);
    let (parent, name) = path.split_at(slash);
    if name == OPAQUE {
        return Ok(Some(Change::Opaque(parent.to_vec())));
    }
    if name.starts_with(AUFS) {
        return Ok(None);
    }
    if let Some(hidden) = name.strip_prefix(WHITEOUT) {
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(refused(EMPTY_WHITEOUT));
        }
        return Ok(Some(Change::Whiteout([parent, hidden].concat())));
    }
    let path = path.to_vec();
    if entry.kind == EntryKind::HardLink {
        return Ok(Some(Change::Link { path, target: entry.link }));
    }
    let mut attr = Attr {
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime: entry.mtime,
        mtime_nsec: entry.mtime_nsec,
        xattrs: None,
    };
    let mut xattrs = entry.xattrs;
    xattrs.retain(|name, _| keeps_xattr(name));
    if !xattrs.is_empty() {
        attr.xattrs = Some(Box::new(xattrs));
    }
    let (major, minor) = (entry.major, entry.minor);
    let node = match entry.kind {
        EntryKind::Dir => NewNode::Dir,
        EntryKind::Symlink => {
            // Linux gives symbolic links all permissions; what an archive says of them differs by
            // its writer.
            attr.mode = 0o777;
            NewNode::Symlink(entry.link)
        }
        EntryKind::Char => NewNode::Char { major, minor },
        EntryKind::Block => NewNode::Block { major, minor },
        EntryKind::Fifo => NewNode::Fifo,
        EntryKind::File | EntryKind::HardLink => {
            tree.check_add(&path, &attr).map_err(refused)?;
            sink.begin(entry.size).map_err(not_stored)?;
            copy(tar, &entry.path, entry.sparse.as_deref(), entry.size, sink, tick)?;
            NewNode::File(sink.finish().map_err(not_stored)?)
        }
    };
    Ok(Some(Change::Add { path, attr, node }))
}

/// Without slashes at the end.
fn trimmed(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|&b| b != b'/').map_or(0, |at| at + 1);
    &path[..end]
}

/// Copies a file's contents, holes included.
fn copy<I: TarInput>(
    tar: &mut TarReader<I>,
    path: &[u8],
    sparse: Option<&[SparseSegment]>,
    size: u64,
    sink: &mut impl DataSink,
    tick: &mut dyn FnMut() -> bool,
) -> Result<(), LayerError> {
    let not_stored = |source| LayerError::Write { path: lossy(path), source };
    let whole = [SparseSegment { offset: 0, len: size }];
    let mut at = 0;
    for segment in sparse.unwrap_or(&whole) {
        if segment.offset > at {
            sink.zeros(segment.offset - at).map_err(not_stored)?;
        }
        let mut left = segment.len;
        while left > 0 {
            let data = tar.data().map_err(LayerError::Tar)?;
            let step = at_most(left, data.len());
            sink.write(&data[..step]).map_err(not_stored)?;
            tar.consume(step);
            left -= to_u64(step);
            if !tick() {
                return Err(LayerError::Cancelled);
            }
        }
        at = segment.offset + segment.len;
    }
    if size > at {
        sink.zeros(size - at).map_err(not_stored)?;
    }
    Ok(())
}
