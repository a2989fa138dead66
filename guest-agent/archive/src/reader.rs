//! Reads a tar stream: v7, ustar, pax, and GNU's long names.

use std::io::{self, Read};

use crate::header::{self, BLOCK, Block, padding};
use crate::{ArchiveError, Entry, Kind};

/// Bytes of an extended header. An attribute may have 64 KiB.
const EXTENDED_MOST: u64 = 1 << 20;

/// Bytes of a GNU long name.
const NAME_MOST: u64 = 64 << 10;

/// Reads entries one after the other.
pub struct Reader<R> {
    input: R,
    left: u64,
    padding: u64,
}

impl<R: Read> Reader<R> {
    /// Reads from `input`, in small steps: give it a buffer.
    pub fn new(input: R) -> Self {
        Self { input, left: 0, padding: 0 }
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
                    if let Some(records) = records {
                        header::apply(&records, &mut entry)?;
                    }
                    // A link's size is that of its target; no data follows.
                    if matches!(entry.kind, Kind::HardLink | Kind::Symlink | Kind::Directory) {
                        entry.size = 0;
                    }
                    (self.left, self.padding) = (entry.size, padding(entry.size));
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// Reads some of the present entry's contents; 0 at their end.
    ///
    /// # Errors
    /// The stream ends too early.
    pub fn data(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        let most = self.left.min(buffer.len() as u64);
        let most = usize::try_from(most).expect("no more than the buffer has");
        if most == 0 {
            return Ok(0);
        }
        loop {
            match self.input.read(&mut buffer[..most]) {
                Ok(0) => return Err(ArchiveError::Truncated),
                Ok(count) => {
                    self.left -= count as u64;
                    return Ok(count);
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
