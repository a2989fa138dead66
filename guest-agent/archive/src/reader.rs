//! Reads a tar stream: v7, ustar, pax, and GNU's long names.

use std::io::{self, Read};

use crate::header::{self, BLOCK, Block, padding};
use crate::sparse::{self, Extent};
use crate::{ArchiveError, Entry, Kind};

/// Bytes of an extended header. An attribute may have 64 KiB.
const EXTENDED_MOST: u64 = 1 << 20;

/// Bytes of a GNU long name.
const NAME_MOST: u64 = 64 << 10;

/// A piece of an entry's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// So many bytes, which were read.
    Data(usize),
    /// So many zeros, which the archive does not have.
    Hole(u64),
    /// There is nothing more.
    End,
}

/// Where the reading of an entry's contents is.
#[derive(Default)]
struct Contents {
    at: u64,
    size: u64,
    /// Bytes of the present part that are still to be read.
    part: u64,
    parts: std::vec::IntoIter<Extent>,
}

/// Reads entries one after the other.
pub struct Reader<R> {
    input: R,
    /// Bytes of the present entry in the archive that are still to be read.
    left: u64,
    padding: u64,
    contents: Contents,
}

impl<R: Read> Reader<R> {
    /// Reads from `input`, in small steps: give it a buffer.
    pub fn new(input: R) -> Self {
        Self { input, left: 0, padding: 0, contents: Contents::default() }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), ArchiveError> {
        self.input.read_exact(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => ArchiveError::Truncated,
            _ => ArchiveError::Stream("read", error),
        })
    }

    fn skip(&mut self, mut count: u64) -> Result<(), ArchiveError> {
        let mut buffer = [0; 4096];
        while count > 0 {
            let step = usize::try_from(count.min(4096)).expect("at most 4096");
            self.fill(&mut buffer[..step])?;
            count -= step as u64;
        }
        Ok(())
    }

    fn extended(&mut self, size: u64, most: u64) -> Result<Vec<u8>, ArchiveError> {
        if size > most {
            return Err(ArchiveError::Damaged("an extended header that is too long"));
        }
        let mut data = vec![0; usize::try_from(size).expect("a megabyte at most")];
        self.fill(&mut data)?;
        self.skip(padding(size))?;
        Ok(data)
    }

    /// The next entry; `None` at the archive's end, which an empty block marks: without it the
    /// archive was cut.
    ///
    /// # Errors
    /// The stream is damaged or ends too early.
    pub fn entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        for count in [std::mem::take(&mut self.left), std::mem::take(&mut self.padding)] {
            self.skip(count)?;
        }
        let (mut path, mut link, mut records) = (None, None, None);
        loop {
            let mut block: Block = [0; BLOCK];
            self.fill(&mut block)?;
            if block.iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            let (kind, size) = header::check(&block)?;
            let name = |mut data: Vec<u8>| {
                data.truncate(data.iter().position(|byte| *byte == 0).unwrap_or(data.len()));
                Some(data)
            };
            match kind {
                b'L' => path = name(self.extended(size, NAME_MOST)?),
                b'K' => link = name(self.extended(size, NAME_MOST)?),
                b'x' | b'X' => records = Some(self.extended(size, EXTENDED_MOST)?),
                b'g' => drop(self.extended(size, EXTENDED_MOST)?),
                _ => {
                    let mut entry = header::entry(&block)?;
                    entry.path = path.unwrap_or(entry.path);
                    entry.link = link.unwrap_or(entry.link);
                    let told = records.map(|records| header::apply(&records, &mut entry)).transpose()?;
                    let sparse = block[156] == b'S' || matches!(told, Some(Some(_)));
                    if header::is_directory(&entry) && !sparse {
                        entry.kind = Kind::Directory;
                    }
                    // A link's size is that of its target; no data follows.
                    if matches!(entry.kind, Kind::HardLink | Kind::Symlink | Kind::Directory) {
                        entry.size = 0;
                    }
                    (self.left, self.padding) = (entry.size, padding(entry.size));
                    let told = told.flatten().filter(|_| entry.kind == Kind::File);
                    self.sparse(&block, told, &mut entry)?;
                    if header::is_directory(&entry) {
                        return Err(ArchiveError::Damaged("a sparse file with the name of a directory"));
                    }
                    let parts = entry.extents.clone().unwrap_or_else(|| sparse::whole(entry.size));
                    self.contents = Contents { at: 0, size: entry.size, part: 0, parts: parts.into_iter() };
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// Finds the size and the parts of a sparse file.
    fn sparse(
        &mut self,
        block: &Block,
        told: Option<sparse::Records>,
        entry: &mut Entry,
    ) -> Result<(), ArchiveError> {
        let (size, extents) = if let Some(mut told) = told {
            if !told.is_known() {
                entry.kind = Kind::Other;
                return Ok(());
            }
            entry.path = told.name.take().unwrap_or(std::mem::take(&mut entry.path));
            match told.finish()? {
                (size, Some(extents)) => (size, extents),
                (size, None) => (size, self.map()?),
            }
        } else if block[156] == b'S' {
            let (mut extents, size, mut more) = header::sparse(block)?;
            while more {
                let mut block: Block = [0; BLOCK];
                self.fill(&mut block)?;
                more = header::more_sparse(&block, &mut extents)?;
            }
            (size, extents)
        } else {
            return Ok(());
        };
        sparse::check(&extents, size, self.left)?;
        (entry.size, entry.extents) = (size, Some(extents));
        Ok(())
    }

    /// The map at the beginning of the data.
    fn map(&mut self) -> Result<Vec<Extent>, ArchiveError> {
        let mut parser = sparse::Parser::default();
        loop {
            let mut block: Block = [0; BLOCK];
            self.left = self.left.checked_sub(BLOCK as u64).ok_or(ArchiveError::Truncated)?;
            self.fill(&mut block)?;
            if let Some(map) = parser.block(&block)? {
                return Ok(map);
            }
        }
    }

    /// Reads some of the present entry's contents.
    ///
    /// # Errors
    /// The stream ends too early.
    pub fn piece(&mut self, buffer: &mut [u8]) -> Result<Piece, ArchiveError> {
        let now = &mut self.contents;
        while now.part == 0 {
            let next = now.parts.next();
            let begins = next.map_or(now.size, |part| part.offset);
            now.part = next.map_or(0, |part| part.length);
            let hole = begins - now.at;
            now.at = begins;
            if hole > 0 {
                return Ok(Piece::Hole(hole));
            }
            if next.is_none() {
                return Ok(Piece::End);
            }
        }
        let most = usize::try_from(now.part.min(buffer.len() as u64)).expect("no more than the buffer has");
        loop {
            match self.input.read(&mut buffer[..most]) {
                Ok(0) => return Err(ArchiveError::Truncated),
                Ok(count) => {
                    self.left -= count as u64;
                    now.part -= count as u64;
                    now.at += count as u64;
                    return Ok(Piece::Data(count));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(ArchiveError::Truncated);
                }
                Err(error) => return Err(ArchiveError::Stream("read", error)),
            }
        }
    }

    /// Reads and drops what follows the archive's end, such as the padding of its last record.
    ///
    /// # Errors
    /// The stream cannot be read.
    pub fn drain(&mut self) -> Result<(), ArchiveError> {
        io::copy(&mut self.input, &mut io::sink())
            .map(drop)
            .map_err(|error| ArchiveError::Stream("read", error))
    }
}
