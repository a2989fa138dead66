//! New images.

use std::io;

use super::header::{BackingName, CLUSTER_BITS};
use super::{Qcow2, Qcow2Error, read_header};
use crate::buffer::wide;
use crate::number::fits;
use crate::store::Store;
use crate::traits::Disk;

/// What a new image is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// Bytes of the disk, whole sectors.
    pub size: u64,
    /// The logarithm of the cluster size, 9 to 21.
    pub cluster_bits: u32,
    /// What it is a change of.
    pub backing: Option<BackingName>,
}

impl CreateOptions {
    /// An empty disk of `size` bytes with clusters of 64 KiB.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self { size, cluster_bits: 16, backing: None }
    }
}

/// Makes an image of version 3 in an empty file; it is durable when this returns.
///
/// # Errors
/// `InvalidInput` for options that cannot be, `FileTooLarge` for a disk that is too large for its
/// clusters; else the host's.
pub fn create(store: Box<dyn Store>, options: &CreateOptions) -> Result<(), Qcow2Error> {
    let fields = fields(options).ok_or_else(|| Qcow2Error::Io(io::ErrorKind::InvalidInput.into()))?;
    let cluster = 1_u64 << options.cluster_bits;
    // The header, the refcount table, its first block, the first-level table: one cluster each.
    let write = || -> io::Result<()> {
        store.set_len(4 * cluster)?;
        // A flush writes there, and is to find the room.
        store.write_zero_bytes(cluster, 2 * cluster)?;
        store.write_bytes(&(2 * cluster).to_be_bytes(), cluster)?;
        store.write_bytes(&[0, 1, 0, 1, 0, 1, 0, 1], 2 * cluster)?;
        store.write_bytes(&fields, 0)
    };
    write().map_err(Qcow2Error::Io)?;
    let header = read_header(&*store)?;
    // Without the backing file, of which nothing is to be hidden.
    let image = Qcow2::with_header(store, None, header, false)?;
    image.grow(options.size).map_err(Qcow2Error::Io)
}

/// The header's cluster of an image of no size, as far as it is not zero.
fn fields(options: &CreateOptions) -> Option<Vec<u8>> {
    if !CLUSTER_BITS.contains(&options.cluster_bits) {
        return None;
    }
    let cluster = 1_u64 << options.cluster_bits;
    let mut header = Vec::new();
    let mut word = |word: u32| header.extend_from_slice(&word.to_be_bytes());
    for value in [0x5146_49fb, 3, 0, 0, 0, options.cluster_bits, 0, 0, 0] {
        word(value);
    }
    // One entry of the first-level table.
    word(1);
    header.extend_from_slice(&(3 * cluster).to_be_bytes());
    header.extend_from_slice(&cluster.to_be_bytes());
    // One cluster of the refcount table, no snapshots (3 words), no features (6 words), refcounts
    // of 16 bits, and the header's length.
    for value in [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 104] {
        header.extend_from_slice(&u32::to_be_bytes(value));
    }
    if let Some(backing) = &options.backing {
        if let Some(format) = &backing.format {
            header.extend_from_slice(&0xe279_2aca_u32.to_be_bytes());
            header.extend_from_slice(&u32::try_from(format.len()).ok()?.to_be_bytes());
            header.extend_from_slice(format.as_bytes());
            header.resize(header.len().next_multiple_of(8), 0);
        }
        // The end of the extensions.
        header.extend_from_slice(&[0; 8]);
        let name = backing.name.as_bytes();
        let (at, bytes) = (wide(header.len()), wide(name.len()));
        if name.is_empty() || bytes > 1023 || at + bytes > cluster {
            return None;
        }
        header[8..16].copy_from_slice(&at.to_be_bytes());
        header[16..20].copy_from_slice(&fits::<u64, u32>(bytes, "1023 at most").to_be_bytes());
        header.extend_from_slice(name);
    }
    Some(header)
}
