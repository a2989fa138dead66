//! Where file contents go while layers are read.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use super::WriteError;
use super::format::{BLOCK, BLOCK_SIZE, EXTENDED_INODE};
use crate::num::{at_most, fits, to_u64};
use crate::tree::FileData;

/// Bytes collected before a write.
const BUFFER: usize = 1 << 20;
/// Bytes that are zeroed at once.
const PIECE: usize = 64 << 10;
/// What the format can address with 32 bits of block number.
const ADDRESSABLE: u64 = (u32::MAX as u64) << 12;

/// Takes the contents of files, one after the other.
pub(crate) trait DataSink {
    /// A file of `size` bytes begins. Its inode will carry `xattr_bytes` of attributes at most.
    fn begin(&mut self, size: u64, xattr_bytes: usize) -> Result<(), WriteError>;
    /// The next bytes of the file. No more than announced may come.
    fn write(&mut self, data: &[u8]) -> Result<(), WriteError>;
    /// The next bytes of the file, all zero.
    fn zeros(&mut self, len: u64) -> Result<(), WriteError>;
    /// The file is complete.
    fn finish(&mut self) -> Result<FileData, WriteError>;
    /// Contents that no name leads to any more. `tick` is asked for every piece: `false` ends it
    /// with [`WriteError::Cancelled`].
    fn discard(&mut self, data: &FileData, tick: &mut dyn FnMut() -> bool) -> Result<(), WriteError>;
}

/// A sink that keeps nothing.
#[derive(Debug, Default)]
pub(crate) struct NullSink {
    size: u64,
}

impl DataSink for NullSink {
    fn begin(&mut self, size: u64, _xattr_bytes: usize) -> Result<(), WriteError> {
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

    fn discard(&mut self, _data: &FileData, _tick: &mut dyn FnMut() -> bool) -> Result<(), WriteError> {
        Ok(())
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

    /// What the file takes of its file system, in units of 512 bytes.
    fn blocks(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.blocks())
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

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn into_file(self) -> File {
        self.file
    }
}

/// What the system would say a little later, when nobody else could write either.
pub(crate) fn no_room(room: u64) -> io::Error {
    let why =
        format!("the image needs more than {room} bytes, and that is all but a sixteenth of what is free");
    io::Error::new(io::ErrorKind::StorageFull, why)
}

/// The first part of an image in the making: the contents of files.
#[derive(Debug)]
pub(crate) struct Contents {
    pub(super) image: Appender,
    /// The tails of files, one after the other.
    pub(super) tails: Appender,
    pub(super) limit: u64,
    /// Bytes that may be written, whatever the limit allows.
    room: u64,
    /// Bytes that were given back to the file system.
    given_back: u64,
    /// How bytes are given back, where the file system can.
    punch_hole: fn(&File, u64, u64) -> io::Result<()>,
    current: FileData,
    /// Bytes of the present file that still go to the image; the rest are the tail.
    whole_left: u64,
}

impl Contents {
    /// Starts an image in `image`, an empty file. `spool` is another empty file, of no use
    /// afterwards. The image has at most `limit` bytes, holes included, and writes at most `room`
    /// bytes.
    pub(crate) fn new(image: File, spool: File, limit: u64, room: u64) -> Result<Self, WriteError> {
        let mut image = Appender::new(image);
        // The superblock's block, filled in at the end.
        image.zeros(BLOCK).map_err(WriteError::Io)?;
        Ok(Self {
            image,
            tails: Appender::new(spool),
            limit: limit.min(ADDRESSABLE),
            room,
            given_back: 0,
            punch_hole: |file, offset, len| nelly_disk::sys::punch_hole(file, offset, len),
            current: FileData::default(),
            whole_left: 0,
        })
    }

    /// Makes a range read as zeros. Where the file system makes no holes, zeros are written over
    /// what is there; what reads as zeros already may be a hole, and is left alone, so that nothing
    /// is taken that was not counted.
    fn zero_out(&mut self, offset: u64, len: u64, tick: &mut dyn FnMut() -> bool) -> Result<(), WriteError> {
        let file = self.image.file();
        if (self.punch_hole)(file, offset, len).is_ok() {
            return Ok(());
        }
        let zeros = [0; BLOCK_SIZE];
        let mut piece = vec![0; PIECE];
        let mut done = 0;
        while done < len {
            if !tick() {
                return Err(WriteError::Cancelled);
            }
            let step = at_most(len - done, PIECE);
            let read = file.read_at(&mut piece[..step], offset + done).map_err(WriteError::Io)?;
            if read == 0 {
                // Behind the file's end there is nothing, and what comes there is written later.
                break;
            }
            for (at, block) in (offset + done..).step_by(BLOCK_SIZE).zip(piece[..read].chunks(BLOCK_SIZE)) {
                if block.iter().any(|&byte| byte != 0) {
                    file.write_all_at(&zeros[..block.len()], at).map_err(WriteError::Io)?;
                }
            }
            done += to_u64(read);
        }
        Ok(())
    }
}

impl DataSink for Contents {
    fn begin(&mut self, size: u64, xattr_bytes: usize) -> Result<(), WriteError> {
        // The tail counts as well: it ends up in the image, too.
        let end =
            self.image.position().checked_add(size).and_then(|end| end.checked_add(self.tails.position()));
        if end.is_none_or(|end| end > self.limit) {
            return Err(WriteError::TooLarge(self.limit));
        }
        let tail: usize = fits(size % BLOCK, "a part of a block");
        let inline_tail = tail > 0 && EXTENDED_INODE + xattr_bytes + tail <= BLOCK_SIZE;
        let block =
            u32::try_from(self.image.position() / BLOCK).map_err(|_| WriteError::TooLarge(self.limit))?;
        self.current = FileData { size, block, tail: self.tails.position(), inline_tail };
        self.whole_left = if inline_tail { size - size % BLOCK } else { size };
        Ok(())
    }

    fn write(&mut self, data: &[u8]) -> Result<(), WriteError> {
        let taken = self.image.taken() + self.tails.taken() + to_u64(data.len());
        if taken.saturating_sub(self.given_back) > self.room {
            return Err(WriteError::Io(no_room(self.room)));
        }
        let whole = at_most(self.whole_left, data.len());
        let (whole, tail) = data.split_at(whole);
        self.image.append(whole).map_err(WriteError::Io)?;
        self.whole_left -= to_u64(whole.len());
        self.tails.append(tail).map_err(WriteError::Io)
    }

    fn zeros(&mut self, len: u64) -> Result<(), WriteError> {
        let whole = len.min(self.whole_left);
        self.image.zeros(whole).map_err(WriteError::Io)?;
        self.whole_left -= whole;
        self.tails.zeros(len - whole).map_err(WriteError::Io)
    }

    fn finish(&mut self) -> Result<FileData, WriteError> {
        let partial = self.image.position() % BLOCK;
        if partial > 0 {
            self.image.zeros(BLOCK - partial).map_err(WriteError::Io)?;
        }
        Ok(self.current)
    }

    fn discard(&mut self, data: &FileData, tick: &mut dyn FnMut() -> bool) -> Result<(), WriteError> {
        let bytes = if data.inline_tail { data.size - data.size % BLOCK } else { data.size };
        if bytes == 0 {
            return Ok(());
        }
        let offset = u64::from(data.block) * BLOCK;
        let bytes = bytes.next_multiple_of(BLOCK);
        if offset + bytes > self.image.start {
            self.image.flush().map_err(WriteError::Io)?;
        }
        // Not the file's size: of a hole nothing comes back.
        let before = self.image.blocks().map_err(WriteError::Io)?;
        self.zero_out(offset, bytes, tick)?;
        let after = self.image.blocks().map_err(WriteError::Io)?;
        self.given_back += before.saturating_sub(after).saturating_mul(512).min(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_written_than_there_is_room_for() {
        let file = || tempfile::tempfile().unwrap();
        let mut contents = Contents::new(file(), file(), 1 << 40, 64 << 10).unwrap();
        let mut put = |size: u64, data: &[u8]| {
            contents.begin(size, 0)?;
            contents.write(data)?;
            contents.zeros(size - to_u64(data.len()))?;
            let data = contents.finish()?;
            contents.discard(&data, &mut || true)
        };
        // What is given back may be written again, and a hole takes nothing.
        for _ in 0..20 {
            put(40 << 10, &[1; 40 << 10]).unwrap();
            put(1 << 30, &[1; 4096]).unwrap();
        }
        let WriteError::Io(error) = put(80 << 10, &[1; 80 << 10]).unwrap_err() else {
            panic!("no room is an error of the disk")
        };
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        let mut contents = Contents::new(file(), file(), 1 << 40, 64 << 10).unwrap();
        contents.begin(70 << 10, 0).unwrap();
        let written = (0..70).take_while(|_| contents.write(&[1; 1024]).is_ok()).count();
        assert!((32..=64).contains(&written), "{written} KiB of 64");
    }
    #[test]
    fn without_holes_zeros_are_written_over_data_alone_and_not_after_a_cancellation() {
        let file = || tempfile::tempfile().unwrap();
        let mut contents = Contents::new(file(), file(), 1 << 40, 2 << 20).unwrap();
        contents.punch_hole = |_, _, _| Err(io::ErrorKind::Unsupported.into());
        let mut put = |data: &[u8], size: u64| {
            contents.begin(size, 0).unwrap();
            contents.write(data).unwrap();
            contents.zeros(size - to_u64(data.len())).unwrap();
            contents.finish().unwrap()
        };
        let (gone, kept) = (put(&[7; 300 << 10], 64 << 20), put(&[8; BUFFER], to_u64(BUFFER)));
        contents.image.flush().unwrap();
        let before = contents.image.blocks().unwrap();
        let mut asked = 0;
        let mut twice = || {
            asked += 1;
            asked <= 2
        };
        assert!(matches!(contents.discard(&gone, &mut twice), Err(WriteError::Cancelled)));
        let byte = |contents: &Contents, data: &FileData, offset: u64| {
            let mut byte = [0xff];
            let offset = u64::from(data.block) * BLOCK + offset;
            contents.image.file().read_exact_at(&mut byte, offset).unwrap();
            byte[0]
        };
        let seen = [0, (128 << 10) - 1, 128 << 10].map(|offset| byte(&contents, &gone, offset));
        assert_eq!(seen, [0, 0, 7]);
        contents.discard(&gone, &mut || true).unwrap();
        let seen = [128 << 10, (300 << 10) - 1].map(|offset| byte(&contents, &gone, offset));
        assert_eq!((seen, byte(&contents, &kept, 0)), ([0, 0], 8));
        assert!(contents.image.blocks().unwrap() <= before, "its holes are filled");
    }
}
