//! Where file contents go while a layer is read: one file, each content at a block boundary.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::WriteError;
use super::format::BLOCK;
use crate::num::to_u64;
use crate::tree::FileData;

/// Bytes collected before a write.
const BUFFER: usize = 1 << 20;
/// What the format can address with 32 bits of block number.
const ADDRESSABLE: u64 = (u32::MAX as u64) << 12;

/// Takes the contents of files, one after the other.
pub(crate) trait DataSink {
    /// A file of `size` bytes begins.
    fn begin(&mut self, size: u64) -> Result<(), WriteError>;
    /// The next bytes of the file. No more than announced may come.
    fn write(&mut self, data: &[u8]) -> Result<(), WriteError>;
    /// The next bytes of the file, all zero.
    fn zeros(&mut self, len: u64) -> Result<(), WriteError>;
    /// The file is complete.
    fn finish(&mut self) -> Result<FileData, WriteError>;
}

/// A sink that keeps nothing.
#[derive(Debug, Default)]
pub(crate) struct NullSink {
    size: u64,
}

impl DataSink for NullSink {
    fn begin(&mut self, size: u64) -> Result<(), WriteError> {
        self.size = size;
        Ok(())
    }

    fn write(&mut self, _data: &[u8]) -> Result<(), WriteError> {
        Ok(())
    }

    fn zeros(&mut self, _len: u64) -> Result<(), WriteError> {
        Ok(())
    }

    fn finish(&mut self) -> Result<FileData, WriteError> {
        Ok(FileData { size: self.size, ..FileData::default() })
    }
}

/// A file written front to back through a buffer; runs of zeros become holes.
#[derive(Debug)]
pub(super) struct Appender {
    file: File,
    buffer: Vec<u8>,
    /// Offset of the buffer's first byte.
    start: u64,
    /// Bytes that were written to the file system: not its holes.
    written: u64,
}

impl Appender {
    pub(super) fn new(file: File) -> Self {
        Self { file, buffer: Vec::with_capacity(BUFFER), start: 0, written: 0 }
    }

    pub(super) fn position(&self) -> u64 {
        self.start + to_u64(self.buffer.len())
    }

    /// Bytes that it takes of the file system, once the buffer is written.
    fn taken(&self) -> u64 {
        self.written + to_u64(self.buffer.len())
    }

    pub(super) fn append(&mut self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            if self.buffer.is_empty() && data.len() >= BUFFER {
                // Large pieces need no copy.
                let (now, rest) = data.split_at(data.len() / BUFFER * BUFFER);
                self.file.write_all_at(now, self.start)?;
                self.start += to_u64(now.len());
                self.written += to_u64(now.len());
                data = rest;
                continue;
            }
            let step = data.len().min(BUFFER - self.buffer.len());
            self.buffer.extend_from_slice(&data[..step]);
            data = &data[step..];
            if self.buffer.len() == BUFFER {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Appends zeros; a hole where they are many.
    pub(super) fn zeros(&mut self, len: u64) -> io::Result<()> {
        if let Ok(few) = usize::try_from(len)
            && few <= BUFFER - self.buffer.len()
        {
            self.buffer.resize(self.buffer.len() + few, 0);
            return Ok(());
        }
        self.flush()?;
        self.start += len;
        Ok(())
    }

    /// Appends zeros up to the next block boundary.
    pub(super) fn pad_to_block(&mut self) -> io::Result<()> {
        let partial = self.position() % BLOCK;
        if partial > 0 { self.zeros(BLOCK - partial) } else { Ok(()) }
    }

    /// Writes the buffer out.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if self.buffer.iter().any(|&b| b != 0) {
            self.file.write_all_at(&self.buffer, self.start)?;
            self.written += to_u64(self.buffer.len());
        }
        self.start += to_u64(self.buffer.len());
        self.buffer.clear();
        Ok(())
    }

    /// Writes what is left and gives the file its length, which a hole at the end does not; returns
    /// the length.
    pub(super) fn complete(mut self) -> io::Result<(File, u64)> {
        self.flush()?;
        self.file.set_len(self.start)?;
        Ok((self.file, self.start))
    }
}

/// What the system would say a little later, when nobody else could write either.
pub(crate) fn no_room(room: u64) -> io::Error {
    let why =
        format!("the image needs more than {room} bytes, and that is all but a sixteenth of what is free");
    io::Error::new(io::ErrorKind::StorageFull, why)
}

/// What a data file may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    /// Most bytes of the whole image, for messages.
    pub(crate) limit: u64,
    /// Bytes of it that other parts of the image have already.
    pub(crate) used: u64,
    /// Most bytes that may be written, whatever the limit allows.
    pub(crate) room: u64,
}

/// A data file that is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    /// Its length in bytes, a multiple of a block.
    pub(crate) bytes: u64,
    /// Most bytes that it takes of the file system: its length without holes.
    pub(crate) taken: u64,
}

/// One of an image's data files in the making: the contents of files, each at a block boundary.
#[derive(Debug)]
pub(crate) struct Contents {
    file: Appender,
    part: u32,
    budget: Budget,
    current: FileData,
}

impl Contents {
    /// Starts data file `part` of an image in `file`, which is empty.
    pub(crate) fn new(file: File, part: u32, budget: Budget) -> Self {
        Self { file: Appender::new(file), part, budget, current: FileData::default() }
    }

    /// Completes the file. It is not synced.
    pub(crate) fn complete(self) -> Result<Written, WriteError> {
        let taken = self.file.taken();
        let (_, bytes) = self.file.complete().map_err(WriteError::Io)?;
        Ok(Written { bytes, taken })
    }
}

impl DataSink for Contents {
    fn begin(&mut self, size: u64) -> Result<(), WriteError> {
        let Budget { limit, used, .. } = self.budget;
        let most = limit.min(ADDRESSABLE);
        let end = self.file.position().checked_add(size).and_then(|end| end.checked_add(used));
        if end.is_none_or(|end| end > most) {
            return Err(WriteError::TooLarge(limit));
        }
        let block = u32::try_from(self.file.position() / BLOCK).map_err(|_| WriteError::TooLarge(limit))?;
        self.current = FileData { size, block, part: self.part };
        Ok(())
    }

    fn write(&mut self, data: &[u8]) -> Result<(), WriteError> {
        if self.file.taken() + to_u64(data.len()) > self.budget.room {
            return Err(WriteError::Io(no_room(self.budget.room)));
        }
        self.file.append(data).map_err(WriteError::Io)
    }

    fn zeros(&mut self, len: u64) -> Result<(), WriteError> {
        self.file.zeros(len).map_err(WriteError::Io)
    }

    fn finish(&mut self) -> Result<FileData, WriteError> {
        self.file.pad_to_block().map_err(WriteError::Io)?;
        Ok(self.current)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(room: u64) -> Contents {
        let budget = Budget { limit: 1 << 40, used: 1 << 20, room };
        Contents::new(tempfile::tempfile().unwrap(), 3, budget)
    }

    #[test]
    fn no_more_is_written_than_there_is_room_for() {
        let mut limited = contents(64 << 10);
        let mut put = |size: u64, data: &[u8]| {
            limited.begin(size)?;
            limited.write(data)?;
            limited.zeros(size - to_u64(data.len()))?;
            limited.finish()
        };
        // A hole takes nothing.
        let first = put(1 << 30, &[1; 4096]).unwrap();
        let second = put(1 << 30, &[1; 4097]).unwrap();
        assert_eq!((first.block, second.block, second.part), (0, 1 << 18, 3));
        let WriteError::Io(error) = put(80 << 10, &[1; 80 << 10]).unwrap_err() else {
            panic!("no room is an error of the disk")
        };
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        let mut limited = contents(64 << 10);
        limited.begin(70 << 10).unwrap();
        let written = (0..70).take_while(|_| limited.write(&[1; 1024]).is_ok()).count();
        assert_eq!(written, 64, "KiB");
    }

    #[test]
    fn what_other_parts_have_counts_for_the_limit() {
        let mut limited = contents(1 << 40);
        assert!(
            matches!(limited.begin((1 << 40) - (1 << 20) + 1), Err(WriteError::TooLarge(limit)) if limit == 1 << 40)
        );
        limited.begin((1 << 40) - (1 << 20)).unwrap();
    }

    #[test]
    fn a_data_file_has_whole_blocks_also_when_it_ends_in_a_hole() {
        let mut file = contents(1 << 40);
        file.begin(3 << 20).unwrap();
        file.zeros(3 << 20).unwrap();
        file.finish().unwrap();
        file.begin(1).unwrap();
        file.zeros(1).unwrap();
        file.finish().unwrap();
        let written = file.complete().unwrap();
        assert_eq!(written.bytes, (3 << 20) + BLOCK);
        assert!(written.taken <= BLOCK, "{written:?}");
    }
}
