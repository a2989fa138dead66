//! Trees of files as tar streams and back. Host and guest use the same code, and neither trusts the
//! other: what is read is bounded, and what is written stays below one directory, whatever names
//! and links the stream or the directory hold.

mod error;
mod header;
pub mod pack;
pub mod place;
mod reader;
mod room;
mod sparse;
mod sys;
#[cfg(test)]
mod tests;
pub mod unpack;
mod writer;

pub use error::ArchiveError;
pub use reader::{Piece, Reader};
pub use room::Room;
pub use sparse::Extent;
pub use writer::Writer;

/// What kind of file an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// Another name of a file that came before.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A directory.
    Directory,
    /// A device, a named pipe, or a sparse file in a form that is not read.
    Other,
}

/// An entry of an archive. Its names are untrusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its path.
    pub path: Vec<u8>,
    /// Target of a link.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Twelve bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: i64,
    /// Nanoseconds, below 10^9.
    pub mtime_nsec: u32,
    /// Bytes of contents, holes included; 0 unless it is a regular file.
    pub size: u64,
    /// Of a sparse file the parts that the archive has, in their order; everything else is zeros.
    /// `None`: it has everything.
    pub extents: Option<Vec<Extent>>,
    /// Extended attributes, name and value.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}
