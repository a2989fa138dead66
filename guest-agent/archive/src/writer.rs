//! Writes a tar stream: ustar, with pax records for what does not fit.

use std::io::Write;

use crate::header::{BLOCK, encode, extended, padding};
use crate::{ArchiveError, Entry, sparse};

/// Writes entries one after the other.
pub struct Writer<W> {
    output: W,
    padding: u64,
}

impl<W: Write> Writer<W> {
    /// Writes to `output`, in small steps: give it a buffer.
    pub fn new(output: W) -> Self {
        Self { output, padding: 0 }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        self.output.write_all(bytes).map_err(|error| ArchiveError::Stream("write", error))
    }

    fn zeros(&mut self, count: u64) -> Result<(), ArchiveError> {
        let count = usize::try_from(count).expect("less than two blocks");
        self.put(&[0; 2 * BLOCK][..count])
    }

    /// Begins an entry, whose contents, `size` bytes or those of its parts, follow by
    /// [`Writer::data`].
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn begin(&mut self, entry: &Entry) -> Result<(), ArchiveError> {
        let before = std::mem::take(&mut self.padding);
        self.zeros(before)?;
        let map = entry.extents.as_ref().map(|extents| sparse::written(extents)).unwrap_or_default();
        let stored = entry.extents.as_ref().map_or(entry.size, |extents| sparse::stored(extents));
        let stored = map.len() as u64 + stored;
        let (block, records) = encode(entry, stored);
        if !records.is_empty() {
            let length = records.len() as u64;
            self.put(&extended(length))?;
            self.put(&records)?;
            self.zeros(padding(length))?;
        }
        self.put(&block)?;
        self.put(&map)?;
        self.padding = padding(stored);
        Ok(())
    }

    /// Writes contents of the present entry.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn data(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        self.put(bytes)
    }

    /// Ends the archive, and gives the output back.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn finish(mut self) -> Result<W, ArchiveError> {
        let before = std::mem::take(&mut self.padding);
        self.zeros(before)?;
        self.zeros(2 * BLOCK as u64)?;
        self.output.flush().map_err(|error| ArchiveError::Stream("write", error))?;
        Ok(self.output)
    }
}
