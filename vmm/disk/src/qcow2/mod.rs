//! The format qcow2, versions 2 and 3: read, written, grown, checked. docs/disks.md says what is
//! supported and why it is safe.
//!
//! **A crash at any write leaves a consistent image.** Data and changes of metadata wait until a
//! commit (at a flush, or when much waits), which writes in this order, with the host's cache
//! flushed between the steps:
//! 1. refcounts that were raised, then the refcount table;
//! 2. data was written before; the second-level tables that name it;
//! 3. the first-level table, the header;
//! 4. now nothing durable refers to what was freed: its holes are punched, its refcounts lowered,
//!    and from here on it is given out again.
//!
//! So a cluster that any durable entry names has a durable count and content. A crash leaks what
//! was counted and is not yet named.
//!
//! **Threads**: one lock guards the metadata, and is not held while data is moved or the host
//! flushes; ranges of clusters in use keep others from moving or freeing them meanwhile. The order
//! of locks is range, commit, metadata.

mod cache;
mod check;
mod commit;
mod compress;
mod create;
mod disk;
mod entry;
mod header;
mod meta;
mod range;
mod refcount;
#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "the disks of these tests are small")]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use self::check::{CheckReport, check};
pub use self::create::{CreateOptions, create};
use self::entry::Geometry;
pub use self::header::{BackingName, Compression, Header, HeaderError};
use self::meta::Meta;
use self::range::Ranges;
use crate::number::{at_most, fits};
use crate::store::Store;
use crate::traits::ReadAt;

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Qcow2Error {
    /// The header is refused.
    #[error("the qcow2 image is refused")]
    Header(#[from] HeaderError),
    /// It may be read, but not written.
    #[error("the qcow2 image cannot be written: {0}")]
    Unwritable(&'static str),
    /// It has parts that a check does not know.
    #[error("the qcow2 image has {0}, which cannot be checked")]
    Unchecked(&'static str),
    /// It has a backing file and none was given, or the other way round.
    #[error("the qcow2 image {0}")]
    Backing(&'static str),
    /// The host cannot read or write it, or its tables are damaged.
    #[error("cannot read the qcow2 image")]
    Io(#[source] io::Error),
}

/// An open image, as a disk. Dropping it commits what waits, without telling whether that
/// succeeded; a flush before tells.
pub struct Qcow2 {
    store: Box<dyn Store>,
    backing: Option<Box<dyn ReadAt>>,
    header: Header,
    geometry: Geometry,
    read_only: bool,
    size: AtomicU64,
    /// Bytes that the file had when it was opened: it never has less.
    file_bytes: u64,
    meta: Mutex<Meta>,
    committing: Mutex<()>,
    ranges: Ranges,
    /// The host did not make durable what it was asked to: what it has is unknown.
    broken: AtomicBool,
    unpacked: Mutex<VecDeque<Unpacked>>,
}

/// A compressed cluster that was read: its offset, and what it holds.
type Unpacked = (u64, Arc<[u8]>);

/// Clusters kept that were compressed: reading goes on where it ended.
const UNPACKED_MAX: usize = 4;

/// Reads and checks the header of an image.
///
/// # Errors
/// [`Qcow2Error::Header`] or [`Qcow2Error::Io`].
pub fn read_header(store: &dyn Store) -> Result<Header, Qcow2Error> {
    let bytes = store.len().map_err(Qcow2Error::Io)?;
    let mut first = vec![0; at_most(bytes, header::FIXED)];
    store.read_padded(&mut first, 0).map_err(Qcow2Error::Io)?;
    let cluster = 1_u64 << header::cluster_bits(&first, bytes)?;
    let mut first = vec![0; fits(cluster.min(bytes), "a cluster has 2 MiB at most")];
    store.read_padded(&mut first, 0).map_err(Qcow2Error::Io)?;
    Ok(Header::parse(&first, bytes)?)
}

impl Qcow2 {
    /// Opens an image over the opened backing file that its header names, or none.
    ///
    /// # Errors
    /// [`Qcow2Error`].
    pub fn open(
        store: Box<dyn Store>,
        backing: Option<Box<dyn ReadAt>>,
        read_only: bool,
    ) -> Result<Self, Qcow2Error> {
        let header = read_header(&*store)?;
        match (&header.backing, &backing) {
            (Some(_), None) => return Err(Qcow2Error::Backing("has a backing file, which is not opened")),
            (None, Some(_)) => return Err(Qcow2Error::Backing("has no backing file")),
            _ => {}
        }
        Self::with_header(store, backing, header, read_only)
    }

    fn with_header(
        store: Box<dyn Store>,
        backing: Option<Box<dyn ReadAt>>,
        header: Header,
        read_only: bool,
    ) -> Result<Self, Qcow2Error> {
        if !read_only {
            writable(&header)?;
        }
        let bytes = store.len().map_err(Qcow2Error::Io)?;
        let meta = match read_only {
            true => Meta::for_reading(&header, bytes),
            false => Meta::load(&*store, &header, bytes),
        };
        let meta = meta.map_err(Qcow2Error::Io)?;
        if !read_only && header.autoclear != 0 {
            // What these features describe is not kept up to date from now on.
            store.write_bytes(&[0; 8], 88).map_err(Qcow2Error::Io)?;
            store.sync().map_err(Qcow2Error::Io)?;
        }
        Ok(Self {
            geometry: meta::geometry(&header),
            size: AtomicU64::new(header.size),
            file_bytes: bytes,
            meta: Mutex::new(meta),
            store,
            backing,
            header,
            read_only,
            committing: Mutex::new(()),
            ranges: Ranges::default(),
            broken: AtomicBool::new(false),
            unpacked: Mutex::new(VecDeque::new()),
        })
    }

    /// The header as it was when the image was opened.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    fn meta(&self) -> MutexGuard<'_, Meta> {
        // A panic under the lock is a bug that ends the process or the machine; what a test sees
        // after it does not matter.
        self.meta.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bytes(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }
}

impl std::fmt::Debug for Qcow2 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Qcow2").field("header", &self.header).finish_non_exhaustive()
    }
}

/// Whether an image may be written.
fn writable(header: &Header) -> Result<(), Qcow2Error> {
    let reason = if header.corrupt {
        "it is marked as corrupt; `nelly disk check` says what is wrong, `qemu-img convert` copies more of it than Nelly does"
    } else if header.dirty {
        "it was not closed by who wrote it with lazy refcounts; `qemu-img check -r all` repairs it"
    } else if header.snapshots > 0 {
        "it has internal snapshots; `nelly disk convert` copies its current state"
    } else if header.bitmaps {
        "it has persistent bitmaps; `nelly disk convert` copies it without them"
    } else {
        return Ok(());
    };
    Err(Qcow2Error::Unwritable(reason))
}
