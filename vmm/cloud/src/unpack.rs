//! Decompression of initrds, as a stream, bounded.

use std::io::{self, BufReader, Read};

use nelly_disk::ReadAt;
use ruzstd::decoding::StreamingDecoder;

/// Largest window of zstd; initrds are made with `zstd -19` and less, whose is 8 MiB.
const ZSTD_WINDOW_MAX: u64 = 128 << 20;
/// Most memory of an xz decoder in KiB.
const XZ_MEMORY_MAX_KIB: u32 = 160 << 10;
/// Unpacked size of one block of lz4's legacy frame, at most.
const LZ4_BLOCK: usize = 8 << 20;

/// Reads from a place of something on.
pub(crate) struct Stream<'a> {
    source: &'a dyn ReadAt,
    at: u64,
}

impl<'a> Stream<'a> {
    pub(crate) fn new(source: &'a dyn ReadAt, at: u64) -> Self {
        Self { source, at }
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read_at(&mut &mut *into, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// What `head`, the first six bytes, says that it is compressed with, and the bytes unpacked.
pub(crate) fn reader<'a>(head: [u8; 6], stream: Stream<'a>) -> io::Result<Option<Box<dyn Read + 'a>>> {
    let buffered = BufReader::with_capacity(64 << 10, stream);
    Ok(Some(match head {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::GzDecoder::new(buffered)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let mut decoder = ruzstd::decoding::FrameDecoder::new();
            decoder.set_max_window_size(ZSTD_WINDOW_MAX);
            let decoder = StreamingDecoder::new_with_decoder(buffered, decoder);
            Box::new(decoder.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?)
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0] => {
            Box::new(lzma_rust2::XzReader::new_mem_limit(buffered, false, XZ_MEMORY_MAX_KIB))
        }
        [0x02, 0x21, 0x4c, 0x18, ..] => Box::new(Lz4::new(buffered)),
        _ => return Ok(None),
    }))
}

/// lz4's legacy frame, which the kernel knows: a magic number, then blocks behind their length.
struct Lz4<R> {
    inner: R,
    packed: Vec<u8>,
    block: Vec<u8>,
    have: usize,
    at: usize,
}

impl<R: Read> Lz4<R> {
    fn new(inner: R) -> Self {
        Self { inner, packed: Vec::new(), block: Vec::new(), have: 0, at: 0 }
    }

    fn word(&mut self) -> io::Result<Option<u32>> {
        let mut word = [0; 4];
        let mut done = 0;
        while done < 4 {
            match self.inner.read(&mut word[done..])? {
                0 if done == 0 => return Ok(None),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => done += read,
            }
        }
        Ok(Some(u32::from_le_bytes(word)))
    }

    fn fill(&mut self) -> io::Result<bool> {
        loop {
            let len = match self.word()? {
                None | Some(0) => return Ok(false),
                Some(0x184c_2102) => continue,
                Some(len) => len as usize,
            };
            if len > LZ4_BLOCK + LZ4_BLOCK / 255 + 16 {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a block of lz4 is too long"));
            }
            self.packed.resize(len, 0);
            self.inner.read_exact(&mut self.packed)?;
            self.block.resize(LZ4_BLOCK, 0);
            let got = lz4_flex::block::decompress_into(&self.packed, &mut self.block);
            self.have = got.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            self.at = 0;
            if self.have > 0 {
                return Ok(true);
            }
        }
    }
}

impl<R: Read> Read for Lz4<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.at == self.have && !self.fill()? {
            return Ok(0);
        }
        let some = into.len().min(self.have - self.at);
        into[..some].copy_from_slice(&self.block[self.at..self.at + some]);
        self.at += some;
        Ok(some)
    }
}
