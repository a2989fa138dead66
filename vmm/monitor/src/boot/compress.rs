//! Compressed kernels: what they are, and their bytes unpacked, bounded.

use std::io::{self, BufRead, BufReader, Read};

use ruzstd::decoding::FrameDecoder;

use super::error::BootError;
use super::source::Source;
use crate::sys::{at_most, fits};

/// Most bytes a kernel may unpack to: Debian's cloud kernel has 58 MB. What claims to be more is
/// refused within half a second.
pub(super) const UNPACKED_MAX: u64 = 256 << 20;

/// Largest window that a zstd stream may ask for: `zstd -22 --ultra`, with which kernels are built,
/// asks for exactly this.
const ZSTD_WINDOW_MAX: u64 = 128 << 20;

/// Most memory of an xz decoder in KiB: kernels are built with dictionaries of 1 to 128 MiB.
const XZ_MEMORY_MAX_KIB: u32 = 160 << 10;

/// Unpacked size of one block of lz4's legacy frame, at most.
const LZ4_BLOCK: usize = 8 << 20;

/// Most bytes one such block takes when it does not compress at all.
const LZ4_BLOCK_PACKED_MAX: usize = LZ4_BLOCK + LZ4_BLOCK / 255 + 16;

const LZ4_LEGACY_MAGIC: u32 = 0x184c_2102;

/// A compressed format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Gzip,
    Zstd,
    Lz4,
    Xz,
    /// Known by name, not unpacked.
    Other(&'static str),
}

impl Format {
    /// The format that begins with these bytes.
    pub(super) fn detect(head: &[u8]) -> Option<Self> {
        const KNOWN: [(&[u8], Format); 8] = [
            (&[0x1f, 0x8b, 8], Format::Gzip),
            (&[0x28, 0xb5, 0x2f, 0xfd], Format::Zstd),
            (&LZ4_LEGACY_MAGIC.to_le_bytes(), Format::Lz4),
            (&[0xfd, b'7', b'z', b'X', b'Z', 0], Format::Xz),
            (b"BZh", Format::Other("bzip2")),
            (&[0x5d, 0, 0], Format::Other("lzma")),
            (&[0x89, b'L', b'Z', b'O', 0], Format::Other("lzo")),
            (&[0x04, 0x22, 0x4d, 0x18], Format::Other("lz4 in its modern frame")),
        ];
        KNOWN.iter().find(|(magic, _)| head.starts_with(magic)).map(|&(_, format)| format)
    }

    /// Its name for messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::Xz => "xz",
            Self::Other(name) => name,
        }
    }
}

/// What went wrong, before it is tied to a file.
enum Failure {
    TooLarge,
    Unsupported,
    Data(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Data(error)
    }
}

/// Unpacks a kernel that is compressed as a whole.
pub(super) fn unpack_whole(source: &Source<'_>, format: Format) -> Result<Vec<u8>, BootError> {
    let len = source.len();
    if len > UNPACKED_MAX {
        let why = format!("is too large for a kernel: it has {len} bytes, the limit is {UNPACKED_MAX}");
        return Err(BootError::unfit(source.name(), why));
    }
    unpack(source, format, (0, len), len * 4, UNPACKED_MAX)
}

/// Unpacks `len` bytes at `offset` of `source`, to at most `limit` bytes. `size_hint` is how much
/// is expected, 0 if unknown: it is reserved, never trusted.
///
/// The kernel's build appends the unpacked size, four bytes, to what it compresses: they are
/// allowed behind the data, and must be right where the format alone cannot tell a whole file from
/// a cut one.
pub(super) fn unpack(
    source: &Source<'_>,
    format: Format,
    (offset, len): (u64, u64),
    size_hint: u64,
    limit: u64,
) -> Result<Vec<u8>, BootError> {
    let reader = BufReader::with_capacity(64 << 10, source.reader(offset, len));
    let reserve = at_most(size_hint.min(limit), 256 << 20);
    let mut out = Vec::with_capacity(reserve);
    let result = match format {
        Format::Gzip => drain(flate2::bufread::GzDecoder::new(reader), &mut out, limit),
        Format::Xz => {
            drain(lzma_rust2::XzReader::new_mem_limit(reader, false, XZ_MEMORY_MAX_KIB), &mut out, limit)
        }
        Format::Zstd => unpack_zstd(reader, &mut out, limit),
        Format::Lz4 => unpack_lz4(reader, &mut out, limit),
        Format::Other(_) => Err(Failure::Unsupported),
    };
    match result {
        Ok(()) => Ok(out),
        Err(Failure::TooLarge) => {
            let why = format!("unpacks to more than {limit} bytes, which is too large for a kernel");
            Err(BootError::unfit(source.name(), why))
        }
        Err(Failure::Unsupported) => {
            let known = "use gzip, zstd, lz4 (legacy) or xz, or unpack it";
            let why = format!("is compressed by {}, which is not supported: {known}", format.name());
            Err(BootError::unfit(source.name(), why))
        }
        Err(Failure::Data(error)) => {
            let file = source.name().to_owned();
            Err(BootError::Unpack { file, format: format.name(), source: error })
        }
    }
}

/// Reads `decoder` to its end, to at most `limit` bytes.
fn drain(decoder: impl Read, out: &mut Vec<u8>, limit: u64) -> Result<(), Failure> {
    decoder.take(limit + 1).read_to_end(out)?;
    if out.len() as u64 > limit { Err(Failure::TooLarge) } else { Ok(()) }
}

fn unpack_zstd(mut reader: impl BufRead, out: &mut Vec<u8>, limit: u64) -> Result<(), Failure> {
    use ruzstd::decoding::BlockDecodingStrategy::UptoBytes;
    let bad = |error: ruzstd::decoding::errors::FrameDecoderError| {
        io::Error::new(io::ErrorKind::InvalidData, error)
    };
    let mut decoder = FrameDecoder::new();
    decoder.set_max_window_size(ZSTD_WINDOW_MAX);
    decoder.reset(&mut reader).map_err(bad)?;
    loop {
        let done = decoder.decode_blocks(&mut reader, UptoBytes(1 << 20)).map_err(bad)?;
        if out.len() as u64 + decoder.can_collect() as u64 > limit {
            return Err(Failure::TooLarge);
        }
        decoder.collect_to_writer(&mut *out)?;
        if done {
            break;
        }
    }
    match (decoder.get_checksum_from_data(), decoder.get_calculated_checksum()) {
        (Some(stored), Some(found)) if stored != found => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "the checksum does not match").into())
        }
        _ => Ok(()),
    }
}

/// The legacy frame: a magic number, then blocks, each a little-endian length and one lz4 block. It
/// has neither end mark nor checksum.
fn unpack_lz4(mut reader: impl BufRead, out: &mut Vec<u8>, limit: u64) -> Result<(), Failure> {
    let corrupt = |what: &'static str| Failure::Data(io::Error::new(io::ErrorKind::InvalidData, what));
    if read_u32(&mut reader)? != Some(LZ4_LEGACY_MAGIC) {
        return Err(corrupt("the magic number is missing"));
    }
    let (mut packed, mut block) = (Vec::new(), vec![0; LZ4_BLOCK]);
    while let Some(word) = read_u32(&mut reader)? {
        if word == LZ4_LEGACY_MAGIC {
            continue; // Frames may follow one another.
        }
        if reader.fill_buf()?.is_empty() {
            // The kernel's build appends the size.
            let size: u32 = fits(out.len() & 0xffff_ffff, "32 bits");
            return if word == size { Ok(()) } else { Err(corrupt("it ends after the length of a block")) };
        }
        let len: usize = fits(word, "hosts of Nelly have 64 bits");
        if len == 0 || len > LZ4_BLOCK_PACKED_MAX {
            return Err(corrupt("a block has an invalid length"));
        }
        packed.resize(len, 0);
        reader.read_exact(&mut packed)?;
        let got = lz4_flex::block::decompress_into(&packed, &mut block)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        if (out.len() + got) as u64 > limit {
            return Err(Failure::TooLarge);
        }
        out.extend_from_slice(&block[..got]);
    }
    if out.is_empty() { Err(corrupt("it contains no block")) } else { Ok(()) }
}

/// Four bytes, or nothing at the end of the data.
fn read_u32(reader: &mut impl BufRead) -> io::Result<Option<u32>> {
    if reader.fill_buf()?.is_empty() {
        return Ok(None);
    }
    let mut word = [0; 4];
    reader.read_exact(&mut word)?;
    Ok(Some(u32::from_le_bytes(word)))
}
