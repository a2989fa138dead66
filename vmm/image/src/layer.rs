//! Applying a layer's tar stream to the tree.

use std::io;

use thiserror::Error;

use crate::digest::Digest;
use crate::erofs::{DataSink, WriteError, keeps_xattr, xattr_bytes};
use crate::num::{at_most, to_u64};
use crate::tar::{EntryKind, SparseSegment, TarEntry, TarError, TarInput, TarReader};
use crate::tree::{Attr, EMPTY_WHITEOUT, NodeKind, Tree, TreeError};

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

/// Applies a layer to `tree`, its files' contents going to `sink`. Reads the archive up to its end
/// mark, and then whatever follows. `tick` is asked for every entry: `false` ends it with
/// [`LayerError::Cancelled`].
pub(crate) fn apply<I: TarInput>(
    tar: &mut TarReader<I>,
    tree: &mut Tree,
    sink: &mut impl DataSink,
    tick: &mut dyn FnMut() -> bool,
) -> Result<(), LayerError> {
    tree.begin_layer();
    while let Some(entry) = tar.next().map_err(LayerError::Tar)? {
        if !tick() {
            return Err(LayerError::Cancelled);
        }
        apply_entry(tar, entry, tree, sink, tick)?;
    }
    tar.drain().map_err(LayerError::Tar)
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

fn apply_entry<I: TarInput>(
    tar: &mut TarReader<I>,
    entry: TarEntry,
    tree: &mut Tree,
    sink: &mut impl DataSink,
    tick: &mut dyn FnMut() -> bool,
) -> Result<(), LayerError> {
    let refused = |source| LayerError::Entry { path: lossy(&entry.path), source };
    let not_stored = |source| match source {
        WriteError::Cancelled => LayerError::Cancelled,
        source => LayerError::Write { path: lossy(&entry.path), source },
    };

    let path = trimmed(&entry.path);
    let slash = path.iter().rposition(|&b| b == b'/').map_or(0, |at| at + 1);
    let (parent, name) = path.split_at(slash);
    if name == OPAQUE {
        tree.opaque(parent).map_err(refused)?;
    } else if name.starts_with(AUFS) {
        return Ok(());
    } else if let Some(hidden) = name.strip_prefix(WHITEOUT) {
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(refused(EMPTY_WHITEOUT));
        }
        tree.whiteout(&[parent, hidden].concat()).map_err(refused)?;
    } else if entry.kind == EntryKind::HardLink {
        tree.link(path, &entry.link).map_err(refused)?;
    } else {
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
        let kind = match entry.kind {
            EntryKind::Dir => NodeKind::Directory(crate::tree::Directory::default()),
            EntryKind::Symlink => {
                // Linux gives symbolic links all permissions; what an archive says of them differs
                // by its writer.
                attr.mode = 0o777;
                NodeKind::Symlink(entry.link.as_slice().into())
            }
            EntryKind::Char => NodeKind::Char { major, minor },
            EntryKind::Block => NodeKind::Block { major, minor },
            EntryKind::Fifo => NodeKind::Fifo,
            EntryKind::File | EntryKind::HardLink => {
                tree.check_add(path, &attr).map_err(refused)?;
                let reserve = attr.xattrs.as_deref().map_or(0, xattr_bytes);
                sink.begin(entry.size, reserve).map_err(not_stored)?;
                copy(tar, &entry.path, entry.sparse.as_deref(), entry.size, sink, tick)?;
                NodeKind::File(sink.finish().map_err(not_stored)?)
            }
        };
        tree.add(path, attr, kind).map_err(refused)?;
    }
    for data in std::mem::take(&mut tree.freed) {
        sink.discard(&data, tick).map_err(not_stored)?;
    }
    Ok(())
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
