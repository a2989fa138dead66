//! Writing tar archives: regular files only, always the same bytes for the same files.

use std::io::{self, Read, Write};

use crate::num::{at_most, to_u64};

const BLOCK: usize = 512;
/// Longest name in a header.
const NAME_MAX: usize = 100;
/// Bytes that the eleven octal digits of a header can say.
const SIZE_MAX: u64 = (1 << 33) - 1;
/// Bytes copied at a time.
const CHUNK: usize = 1 << 20;

/// An archive in the making.
pub(super) struct Tarball<'a> {
    out: &'a mut dyn Write,
}

/// A header of a file of this type, name and size.
fn header(kind: u8, name: &[u8], size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &name[..name.len().min(NAME_MAX)]);
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    // A size that does not fit is in the extended header.
    put(124, format!("{:011o}\0", size.min(SIZE_MAX)).as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// A record of an extended header, which begins with its own length.
fn record(key: &str, value: &str) -> String {
    let rest = format!(" {key}={value}\n");
    let mut length = rest.len() + 1;
    while length.to_string().len() + rest.len() != length {
        length = length.to_string().len() + rest.len();
    }
    format!("{length}{rest}")
}

impl<'a> Tarball<'a> {
    pub(super) fn new(out: &'a mut dyn Write) -> Self {
        Self { out }
    }

    /// Adds a file of `size` bytes from `data`.
    pub(super) fn file(&mut self, name: &str, size: u64, data: &mut dyn Read) -> io::Result<()> {
        let mut extended = String::new();
        if name.len() > NAME_MAX {
            extended += &record("path", name);
        }
        if size > SIZE_MAX {
            extended += &record("size", &size.to_string());
        }
        if !extended.is_empty() {
            self.out.write_all(&header(b'x', b"pax", to_u64(extended.len())))?;
            self.out.write_all(extended.as_bytes())?;
            self.pad(to_u64(extended.len()))?;
        }
        self.out.write_all(&header(b'0', name.as_bytes(), size))?;
        let mut buffer = vec![0; CHUNK];
        let mut left = size;
        while left > 0 {
            let most = at_most(left, buffer.len());
            match data.read(&mut buffer[..most]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(got) => {
                    self.out.write_all(&buffer[..got])?;
                    left -= to_u64(got);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.pad(size)
    }

    pub(super) fn bytes(&mut self, name: &str, mut data: &[u8]) -> io::Result<()> {
        self.file(name, to_u64(data.len()), &mut data)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let used = at_most(size % to_u64(BLOCK), BLOCK);
        if used == 0 { Ok(()) } else { self.out.write_all(&[0; BLOCK][used..]) }
    }

    /// Writes the end mark.
    pub(super) fn end(self) -> io::Result<()> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tar::{TarInput, TarReader};

    struct Whole<'a>(&'a [u8]);

    impl TarInput for Whole<'_> {
        fn fill(&mut self) -> io::Result<&[u8]> {
            Ok(self.0)
        }

        fn consume(&mut self, n: usize) {
            self.0 = &self.0[n..];
        }
    }

    #[test]
    fn our_reader_reads_what_is_written() {
        let long = "n".repeat(300);
        let files = [("a", 0), ("b/c", 511), ("d", 512), (long.as_str(), 513)];
        let mut written = Vec::new();
        let mut tarball = Tarball::new(&mut written);
        for (name, size) in files {
            tarball.bytes(name, &vec![b'x'; size]).unwrap();
        }
        tarball.end().unwrap();
        assert_eq!(written.len() % BLOCK, 0);
        let mut tar = TarReader::new(Whole(&written));
        for (name, size) in files {
            let entry = tar.next().unwrap().unwrap();
            assert_eq!((entry.path.as_slice(), entry.size), (name.as_bytes(), size as u64));
        }
        assert!(tar.next().unwrap().is_none());
    }

    #[test]
    fn a_record_counts_its_own_length() {
        assert_eq!(record("a", "b"), "6 a=b\n");
        for length in 80..120 {
            let record = record("path", &"x".repeat(length));
            assert_eq!(record.split(' ').next().unwrap(), record.len().to_string());
        }
    }
}
