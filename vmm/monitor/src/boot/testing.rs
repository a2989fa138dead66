//! Kernels made of a few bytes, for tests and as seeds of fuzzing: what is written here by the
//! formats' documents, not by the loader's constants, the loader has to find.

use std::io::Write;

use crate::sys::fits;

/// A segment of [`elf`].
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// Guest physical (and virtual) address.
    pub address: u64,
    /// Its bytes in the file.
    pub bytes: &'a [u8],
    /// Its length in memory.
    pub memory: u64,
}

/// A static x86-64 ELF file. Segments lie in the file at offsets equal to their address modulo
/// 4096; `notes` becomes a note segment, `sections` are named and not loaded.
#[must_use]
pub fn elf(entry: u64, segments: &[Segment<'_>], notes: &[u8], sections: &[(&str, &[u8])]) -> Vec<u8> {
    let count = segments.len() + usize::from(!notes.is_empty());
    let mut body = vec![0; 64 + 56 * count];
    let mut headers = Vec::new();
    for segment in segments {
        let congruent = fits::<_, usize>(segment.address % 4096, "less than a page");
        body.resize(body.len().next_multiple_of(4096) + congruent, 0);
        headers.push((1_u32, body.len(), segment.address, segment.bytes.len() as u64, segment.memory));
        body.extend_from_slice(segment.bytes);
    }
    if !notes.is_empty() {
        headers.push((4, body.len(), 0, notes.len() as u64, notes.len() as u64));
        body.extend_from_slice(notes);
    }
    let mut names = vec![0];
    let mut table = vec![0; 64];
    let mut section = |name: &str, bytes: &[u8], names: &mut Vec<u8>, body: &mut Vec<u8>| {
        let mut header = [0; 64];
        header[..4].copy_from_slice(&word(names.len()));
        header[4] = 1;
        header[24..32].copy_from_slice(&(body.len() as u64).to_le_bytes());
        names.extend_from_slice(name.as_bytes());
        names.push(0);
        let bytes = if name == ".shstrtab" { names.clone() } else { bytes.to_vec() };
        header[32..40].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        body.extend_from_slice(&bytes);
        table.extend_from_slice(&header);
    };
    for (name, bytes) in sections {
        section(name, bytes, &mut names, &mut body);
    }
    section(".shstrtab", &[], &mut names, &mut body);
    let section_count = fits::<_, u16>(table.len() / 64, "a test has a handful of sections");

    body[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    let mut put = |at: usize, bytes: &[u8]| body[at..at + bytes.len()].copy_from_slice(bytes);
    put(16, &[2, 0, 62, 0, 1, 0, 0, 0]);
    put(24, &entry.to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    for (at, half) in [
        (52, 64),
        (54, 56),
        (56, fits(count, "a test has a handful of segments")),
        (58, 64),
        (60, section_count),
        (62, section_count - 1),
    ] {
        put(at, &half.to_le_bytes());
    }
    for (index, (kind, offset, address, len, memory)) in headers.iter().enumerate() {
        let at = 64 + 56 * index;
        put(at, &kind.to_le_bytes());
        put(at + 4, &7_u32.to_le_bytes());
        for (field, value) in [*offset as u64, *address, *address, *len, *memory, 4].into_iter().enumerate() {
            put(at + 8 + 8 * field, &value.to_le_bytes());
        }
    }
    let sections_at = body.len() as u64;
    body[40..48].copy_from_slice(&sections_at.to_le_bytes());
    body.extend_from_slice(&table);
    body
}

/// A note, as [`elf`] takes several of them one after the other.
#[must_use]
pub fn note(owner: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for len in [owner.len() + 1, value.len()] {
        bytes.extend_from_slice(&word(len));
    }
    bytes.extend_from_slice(&kind.to_le_bytes());
    bytes.extend_from_slice(owner.as_bytes());
    bytes.push(0);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A bzImage of protocol 2.15 that prefers `preferred`, relocatable by 2 MiB, around an already
/// compressed kernel.
#[must_use]
pub fn bzimage(preferred: u64, init_size: u32, payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 1024];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    let body = (0x300 + payload.len()).next_multiple_of(16);
    put(0x1f1, &[1]);
    put(0x1f4, &word(body / 16));
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(0x202, b"HdrS\x0f\x02");
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(0x230, &0x20_0000_u32.to_le_bytes());
    put(0x234, &[1, 21, 0x3f, 0]);
    put(0x238, &2047_u32.to_le_bytes());
    put(0x248, &0x300_u32.to_le_bytes());
    put(0x24c, &word(payload.len()));
    put(0x258, &preferred.to_le_bytes());
    put(0x260, &init_size.to_le_bytes());
    let start = image.len();
    image[0x3f0..0x400].copy_from_slice(b"6.12.0-test (x) ");
    image[0x20e..0x210].copy_from_slice(&0x1f0_u16.to_le_bytes());
    image.resize(start + body, 0xcc);
    image[start + 0x300..][..payload.len()].copy_from_slice(payload);
    image
}

/// Linux's Image for arm64 that wants to lie `text_offset` bytes behind a multiple of 2 MiB and
/// takes `image_size` bytes there.
#[must_use]
pub fn arm64_image(text_offset: u64, image_size: u64, code: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 64];
    for (at, value) in [(8, text_offset), (16, image_size), (24, 0b1010)] {
        image[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    image[56..60].copy_from_slice(b"ARM\x64");
    image.extend_from_slice(code);
    image
}

/// Packs `bytes` as `gzip` would.
#[must_use]
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("memory takes every byte");
    encoder.finish().expect("memory takes every byte")
}

/// Packs `bytes` as `zstd` would.
#[must_use]
pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

/// Packs `bytes` as `lz4 -l` would, in blocks of `block` bytes, 8 MiB at most.
#[must_use]
pub fn lz4(bytes: &[u8], block: usize) -> Vec<u8> {
    let mut out = 0x184c_2102_u32.to_le_bytes().to_vec();
    for part in bytes.chunks(block) {
        let packed = lz4_flex::block::compress(part);
        out.extend_from_slice(&word(packed.len()));
        out.extend_from_slice(&packed);
    }
    out
}

/// What kernels append to their packed selves: the size.
#[must_use]
pub fn with_size(mut packed: Vec<u8>, bytes: &[u8]) -> Vec<u8> {
    packed.extend_from_slice(&word(bytes.len()));
    packed
}

/// A size as the formats have it.
fn word(size: usize) -> [u8; 4] {
    fits::<_, u32>(size, "what a test makes is less than 4 GiB").to_le_bytes()
}
