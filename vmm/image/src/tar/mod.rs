//! A streaming reader of tar: v7, ustar, pax and GNU with its long names and sparse files.
//!
//! Everything in the stream is untrusted: sizes are bounded before anything is kept, numbers are
//! parsed strictly, and a fault says at which byte of the stream it was found.

mod header;
mod pax;
mod sparse;

use std::io;

use thiserror::Error;

use crate::num::{at_most, to_u64};
use crate::tree::{PATH_MAX, Xattrs};
use header::TarHeader;
pub(crate) use sparse::SparseSegment;

/// Bytes of a block: everything in a tar is padded to it.
pub(crate) const BLOCK: usize = 512;
const BLOCK_U64: u64 = 512;
/// Bytes of one pax header. Attributes may be 64 KiB each.
const PAX_MAX: u64 = 1 << 20;
/// Bytes of a GNU long name with its NUL; a longer one could not be used anyway.
const LONG_NAME_MAX: u64 = 64 << 10;

/// Where a tar stream comes from: a reader that shows its buffer, and may know a faster way than
/// reading to skip.
pub(crate) trait TarInput {
    /// The bytes at hand, empty at the end of the stream only.
    fn fill(&mut self) -> io::Result<&[u8]>;
    /// `n` bytes of what [`TarInput::fill`] showed were used.
    fn consume(&mut self, n: usize);
    /// Passes over `n` bytes; `false` if the stream ended before that.
    fn skip(&mut self, mut n: u64) -> io::Result<bool> {
        while n > 0 {
            let have = self.fill()?.len();
            if have == 0 {
                return Ok(false);
            }
            let step = at_most(n, have);
            self.consume(step);
            n -= to_u64(step);
        }
        Ok(true)
    }
}

impl TarInput for &[u8] {
    fn fill(&mut self) -> io::Result<&[u8]> {
        Ok(self)
    }

    fn consume(&mut self, n: usize) {
        *self = self.get(n..).unwrap_or_default();
    }
}

impl<I: TarInput> TarInput for &mut I {
    fn fill(&mut self) -> io::Result<&[u8]> {
        (**self).fill()
    }

    fn consume(&mut self, n: usize) {
        (**self).consume(n);
    }

    fn skip(&mut self, n: u64) -> io::Result<bool> {
        (**self).skip(n)
    }
}

/// A damaged tar stream, or one that cannot be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TarError {
    /// The stream is no tar, or damaged.
    #[error("the tar stream is corrupt at byte {at}: {what}")]
    Damaged {
        /// What is wrong.
        what: Damage,
        /// Offset in the uncompressed stream.
        at: u64,
    },
    /// The stream could not be read.
    #[error("cannot read the tar stream at byte {at}")]
    Read {
        /// Offset in the uncompressed stream.
        at: u64,
        /// What the reader said.
        source: io::Error,
    },
}

/// What is wrong with a tar stream.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Damage {
    /// The stream ends in the middle of an entry.
    #[error("it ends in the middle of an entry")]
    Truncated,
    /// A header whose sum does not match.
    #[error("a header with a wrong checksum")]
    Checksum,
    /// A number field that holds none, or one out of range.
    #[error("an invalid number in the field `{0}`")]
    Number(&'static str),
    /// A type of entry that is not known.
    #[error("an entry of the unknown type {0:?}")]
    Type(char),
    /// A malformed pax record.
    #[error("a malformed extended (pax) header")]
    Pax,
    /// An extended header or a long name over its limit.
    #[error("an extended header of {0} bytes, over the limit")]
    ExtendedTooLong(u64),
    /// An extended header with no entry after it.
    #[error("an extended header that is not followed by an entry")]
    Dangling,
    /// A sparse map that is malformed, unsorted, or does not match the sizes.
    #[error("a malformed map of a sparse file")]
    Sparse,
    /// An extended attribute that no Linux file system holds.
    #[error("an extended attribute with an empty or too long name or value")]
    Xattr,
}

/// What kind of file an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    File,
    HardLink,
    Symlink,
    Char,
    Block,
    Dir,
    Fifo,
}

/// An entry's header with all extensions applied.
#[derive(Clone, Debug)]
pub(crate) struct TarEntry {
    /// As it stands in the archive; untrusted.
    pub(crate) path: Vec<u8>,
    /// Target of a link.
    pub(crate) link: Vec<u8>,
    pub(crate) kind: EntryKind,
    /// Twelve bits.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: i64,
    pub(crate) mtime_nsec: u32,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    /// Bytes of the file's contents, holes included.
    pub(crate) size: u64,
    /// The parts of a sparse file that are in the stream, sorted; `None`: all of it.
    pub(crate) sparse: Option<Vec<SparseSegment>>,
    pub(crate) xattrs: Xattrs,
}

/// The reader.
pub(crate) struct TarReader<I> {
    input: I,
    /// Offset in the stream.
    at: u64,
    /// Bytes of the present entry's data still in the stream.
    data_left: u64,
    /// Padding after them.
    padding: u64,
}

fn padding(size: u64) -> u64 {
    (BLOCK_U64 - size % BLOCK_U64) % BLOCK_U64
}

impl<I: TarInput> TarReader<I> {
    pub(crate) fn new(input: I) -> Self {
        Self { input, at: 0, data_left: 0, padding: 0 }
    }

    /// Offset of the next unread byte.
    pub(crate) fn position(&self) -> u64 {
        self.at
    }

    fn damaged(&self, what: Damage) -> TarError {
        TarError::Damaged { what, at: self.at }
    }

    fn skip(&mut self, n: u64) -> Result<(), TarError> {
        let whole = self.input.skip(n).map_err(|e| TarError::Read { at: self.at, source: e })?;
        if !whole {
            return Err(self.damaged(Damage::Truncated));
        }
        self.at = self.at.saturating_add(n);
        Ok(())
    }

    /// Reads to fill `out`; how many bytes there were before the stream's end.
    fn read_full(&mut self, out: &mut [u8]) -> Result<usize, TarError> {
        let mut filled = 0;
        while filled < out.len() {
            let at = self.at;
            let data = self.input.fill().map_err(|source| TarError::Read { at, source })?;
            let step = data.len().min(out.len() - filled);
            if step == 0 {
                break;
            }
            out[filled..filled + step].copy_from_slice(&data[..step]);
            self.input.consume(step);
            self.at += to_u64(step);
            filled += step;
        }
        Ok(filled)
    }

    fn read_block(&mut self) -> Result<[u8; BLOCK], TarError> {
        let mut block = [0; BLOCK];
        if self.read_full(&mut block)? < BLOCK {
            return Err(self.damaged(Damage::Truncated));
        }
        Ok(block)
    }

    /// Reads an extended header's data of `size` bytes and its padding.
    fn read_extended(&mut self, size: u64, max: u64) -> Result<Vec<u8>, TarError> {
        if size > max {
            return Err(self.damaged(Damage::ExtendedTooLong(size)));
        }
        let len = usize::try_from(size).map_err(|_| self.damaged(Damage::ExtendedTooLong(size)))?;
        let mut data = vec![0; len];
        if self.read_full(&mut data)? < len {
            return Err(self.damaged(Damage::Truncated));
        }
        self.skip(padding(size))?;
        Ok(data)
    }

    /// The next entry; `None` after the last. What was not read of the entry before is passed over.
    pub(crate) fn next(&mut self) -> Result<Option<TarEntry>, TarError> {
        self.skip(self.data_left)?;
        self.data_left = 0;
        self.skip(self.padding)?;
        self.padding = 0;

        let mut long_path = None;
        let mut long_link = None;
        let mut pax = None;
        loop {
            let start = self.at;
            let mut block = [0; BLOCK];
            let got = self.read_full(&mut block)?;
            let extended = long_path.is_some() || long_link.is_some() || pax.is_some();
            // Some writers leave the final zero blocks out.
            if got == 0 || block.iter().all(|&b| b == 0) && got == BLOCK {
                return if extended { Err(self.damaged(Damage::Dangling)) } else { Ok(None) };
            }
            if got < BLOCK {
                return Err(self.damaged(Damage::Truncated));
            }
            let header = TarHeader(&block);
            let at = |what| TarError::Damaged { what, at: start };
            header.check().map_err(at)?;
            let size = header.size().map_err(at)?;
            match header.kind() {
                b'L' => long_path = Some(until_nul(self.read_extended(size, LONG_NAME_MAX)?)),
                b'K' => long_link = Some(until_nul(self.read_extended(size, LONG_NAME_MAX)?)),
                b'x' | b'X' => {
                    let data = self.read_extended(size, PAX_MAX)?;
                    pax = Some(pax::parse(&data).map_err(at)?);
                }
                // Records for all entries that follow (git writes a comment), and a volume's label.
                b'g' | b'V' => self.skip(size.saturating_add(padding(size)))?,
                _ => {
                    let pax = pax.unwrap_or_default();
                    let mut entry = header.entry(&pax).map_err(at)?;
                    if pax.path.is_none()
                        && let Some(path) = long_path
                    {
                        entry.path = path;
                    }
                    if pax.link.is_none()
                        && let Some(link) = long_link
                    {
                        entry.link = link;
                    }
                    self.begin_data(&block, pax, &mut entry)?;
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// Sets up the reading of an entry's data, reading a sparse file's map first.
    fn begin_data(
        &mut self,
        block: &[u8; BLOCK],
        pax: pax::Pax,
        entry: &mut TarEntry,
    ) -> Result<(), TarError> {
        let header = TarHeader(block);
        if entry.kind != EntryKind::File {
            // A link's size is that of its target; no data follows.
            entry.size = 0;
            return Ok(());
        }
        let stored = entry.size;
        self.data_left = stored;
        self.padding = padding(stored);
        let map = if header.kind() == b'S' {
            Some(self.gnu_map(header)?)
        } else if let Some(sparse) = pax.sparse {
            entry.path = sparse.name.unwrap_or_else(|| std::mem::take(&mut entry.path));
            let segments = if sparse.map_in_data { self.pax_data_map()? } else { sparse.segments };
            Some((segments, sparse.real_size.unwrap_or(stored)))
        } else {
            None
        };
        if let Some((segments, real_size)) = map {
            sparse::check(&segments, real_size, self.data_left).map_err(|what| self.damaged(what))?;
            entry.size = real_size;
            entry.sparse = Some(segments);
        }
        Ok(())
    }

    /// The map of an old GNU sparse file: in the header and in blocks after it.
    fn gnu_map(&mut self, header: TarHeader<'_>) -> Result<(Vec<SparseSegment>, u64), TarError> {
        let (mut segments, real_size, mut more) = header.sparse().map_err(|what| self.damaged(what))?;
        while more {
            let block = self.read_block()?;
            more = header::sparse_block(&block, &mut segments).map_err(|what| self.damaged(what))?;
        }
        Ok((segments, real_size))
    }

    /// The map of a pax 1.0 sparse file: decimal lines at the start of the data, padded to a block.
    fn pax_data_map(&mut self) -> Result<Vec<SparseSegment>, TarError> {
        let mut parser = sparse::DataMap::default();
        loop {
            self.data_left =
                self.data_left.checked_sub(BLOCK_U64).ok_or_else(|| self.damaged(Damage::Sparse))?;
            let block = self.read_block()?;
            if parser.feed(&block).map_err(|what| self.damaged(what))? {
                return Ok(parser.into_segments());
            }
        }
    }

    /// Some of the present entry's data as it is in the stream, empty when all was read.
    pub(crate) fn data(&mut self) -> Result<&[u8], TarError> {
        if self.data_left == 0 {
            return Ok(&[]);
        }
        let at = self.at;
        let data = self.input.fill().map_err(|source| TarError::Read { at, source })?;
        if data.is_empty() {
            return Err(TarError::Damaged { what: Damage::Truncated, at });
        }
        Ok(&data[..at_most(self.data_left, data.len())])
    }

    /// `n` bytes of what [`TarReader::data`] showed were used.
    pub(crate) fn consume(&mut self, n: usize) {
        self.input.consume(n);
        self.at += to_u64(n);
        self.data_left = self.data_left.saturating_sub(to_u64(n));
    }

    /// Reads whatever follows the end of the archive, so that the whole stream is seen by those who
    /// hash it.
    pub(crate) fn drain(&mut self) -> Result<(), TarError> {
        loop {
            let have = self.input.fill().map_err(|source| TarError::Read { at: self.at, source })?.len();
            if have == 0 {
                return Ok(());
            }
            self.input.consume(have);
            self.at += to_u64(have);
        }
    }
}

fn until_nul(mut data: Vec<u8>) -> Vec<u8> {
    if let Some(end) = data.iter().position(|&b| b == 0) {
        data.truncate(end);
    }
    // One more than fits, so that the tree refuses it by its own rule.
    data.truncate(PATH_MAX + 1);
    data
}
