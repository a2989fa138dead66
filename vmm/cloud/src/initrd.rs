//! What an initrd holds: the names of its modules, of all archives that it is made of.

use std::collections::BTreeSet;
use std::io::{self, BufReader, Read};

use nelly_disk::ReadAt;

use crate::unpack::{Stream, reader};

/// Most bytes that the initrds of an entry unpack to, as far as they are looked at.
const UNPACKED_MAX: u64 = 2 << 30;
/// Most archives in a file.
const ARCHIVES_MAX: u32 = 64;
/// Most bytes of a list of modules.
const LIST_MAX: u64 = 1 << 20;
/// Most modules.
const MODULES_MAX: usize = 50_000;

/// What was found in an initrd.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    /// Modules, by the names that the kernel has for them.
    pub(crate) modules: BTreeSet<String>,
    /// Its own `modules.builtin`.
    pub(crate) builtin: Option<String>,
    /// Bytes that were unpacked.
    pub(crate) unpacked: u64,
}

/// The name of a module's file, as the kernel has it.
pub(crate) fn module_name(path: &str) -> Option<String> {
    let name = path.rsplit('/').next()?;
    let (name, rest) = name.split_once(".ko")?;
    matches!(rest, "" | ".xz" | ".zst" | ".gz").then(|| name.replace('-', "_"))
}

/// Looks into an initrd: archives (newc), plain or compressed, one after the other, with zeroes
/// between them.
pub(crate) fn look(source: &dyn ReadAt, contents: &mut Contents) -> io::Result<()> {
    let mut at = 0;
    for _ in 0..ARCHIVES_MAX {
        at = skip_zeroes(source, at)?;
        let mut head = [0; 6];
        let have = usize::try_from(source.len().saturating_sub(at)).map_or(6, |left| left.min(6));
        source.read_exact_at(&mut &mut head[..have], at)?;
        if have == 0 {
            return Ok(());
        }
        if head.starts_with(b"07070") {
            let mut counted = Counted { inner: BufReader::new(Stream::new(source, at)), read: 0 };
            archive(&mut counted, contents)?;
            at += counted.read;
            continue;
        }
        let Some(unpacked) = reader(head, Stream::new(source, at))? else {
            return Err(invalid("it is neither an archive (newc) nor compressed by gzip, zstd, xz or lz4"));
        };
        let left = UNPACKED_MAX.saturating_sub(contents.unpacked);
        let mut unpacked = BufReader::new(Counted { inner: unpacked.take(left), read: 0 });
        while more(&mut unpacked)? {
            archive(&mut unpacked, contents)?;
        }
        contents.unpacked += unpacked.get_ref().read;
        // What a decoder leaves behind is not told by all of them: it is the last one.
        return Ok(());
    }
    Err(invalid("it has too many archives"))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn skip_zeroes(source: &dyn ReadAt, mut at: u64) -> io::Result<u64> {
    let mut buffer = [0; 4096];
    while at < source.len() {
        let read = source.read_at(&mut buffer, at)?;
        let zeroes = buffer[..read].iter().take_while(|byte| **byte == 0).count();
        at += zeroes as u64;
        if zeroes < read || read == 0 {
            break;
        }
    }
    Ok(at)
}

/// Whether another archive follows, behind zeroes.
fn more(reader: &mut impl io::BufRead) -> io::Result<bool> {
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok(false);
        }
        let zeroes = buffer.iter().take_while(|byte| **byte == 0).count();
        let all = zeroes == buffer.len();
        reader.consume(zeroes);
        if !all {
            return Ok(true);
        }
    }
}

struct Counted<R> {
    inner: R,
    read: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(into)?;
        self.read += read as u64;
        Ok(read)
    }
}

/// Reads one archive, up to its trailer.
fn archive(reader: &mut dyn Read, contents: &mut Contents) -> io::Result<()> {
    loop {
        let mut head = [0; 110];
        reader.read_exact(&mut head)?;
        if !head.starts_with(b"070701") && !head.starts_with(b"070702") {
            return Err(invalid("a header of its archive has no magic number"));
        }
        let field = |index: usize| {
            let text = std::str::from_utf8(&head[6 + 8 * index..14 + 8 * index]).ok();
            text.and_then(|text| u32::from_str_radix(text, 16).ok())
                .ok_or_else(|| invalid("a header of its archive has no numbers"))
        };
        let (size, name_size) = (u64::from(field(6)?), u64::from(field(11)?));
        if name_size == 0 || name_size > 4096 {
            return Err(invalid("a name in its archive is too long"));
        }
        let mut name =
            vec![0; usize::try_from((110 + name_size).next_multiple_of(4) - 110).map_err(io::Error::other)?];
        reader.read_exact(&mut name)?;
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        let name = String::from_utf8_lossy(&name[..end]).into_owned();
        if name == "TRAILER!!!" {
            return Ok(());
        }
        if let Some(module) = module_name(&name)
            && contents.modules.len() < MODULES_MAX
        {
            contents.modules.insert(module);
        }
        let mut body = reader.take(size.next_multiple_of(4));
        if name.ends_with("/modules.builtin") && size <= LIST_MAX {
            let mut list = Vec::new();
            body.read_to_end(&mut list)?;
            list.truncate(usize::try_from(size).map_err(io::Error::other)?);
            contents.builtin = Some(String::from_utf8_lossy(&list).into_owned());
        }
        if io::copy(&mut body, &mut io::sink())? == 0 && size > 0 && body.limit() > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An archive of newc with these files.
    pub(crate) fn newc(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, data) in files.iter().chain([&("TRAILER!!!", &b""[..])]) {
            let mut fields = [0_usize; 13];
            (fields[6], fields[11]) = (data.len(), name.len() + 1);
            out.extend_from_slice(b"070701");
            for field in fields {
                out.extend_from_slice(format!("{field:08x}").as_bytes());
            }
            out.extend_from_slice(name.as_bytes());
            out.push(0);
            out.resize(out.len().next_multiple_of(4), 0);
            out.extend_from_slice(data);
            out.resize(out.len().next_multiple_of(4), 0);
        }
        out
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        use std::io::Write;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn modules(bytes: &Vec<u8>) -> Vec<String> {
        let mut contents = Contents::default();
        look(bytes, &mut contents).unwrap();
        contents.modules.into_iter().collect()
    }

    #[test]
    fn archives_behind_one_another_are_looked_into() {
        let early = newc(&[("kernel/x86/microcode/GenuineIntel.bin", &[7; 5000])]);
        let main = newc(&[
            ("usr/lib/modules/6.1/kernel/drivers/virtio/virtio_mmio.ko.xz", b"x"),
            ("usr/lib/modules/6.1/kernel/drivers/block/virtio-blk.ko", b"data"),
            ("usr/lib/modules/6.1/modules.builtin", b"kernel/fs/ext4/ext4.ko\n"),
            ("bin/virtio_net.ko.txt", b""),
        ]);
        let expected = ["virtio_blk", "virtio_mmio"];
        assert_eq!(modules(&main), expected);
        assert_eq!(modules(&[early.clone(), vec![0; 512], gzip(&main)].concat()), expected);
        assert_eq!(modules(&[early.clone(), main.clone()].concat()), expected);
        assert_eq!(modules(&gzip(&[early, vec![0; 100], main.clone()].concat())), expected);
        let mut block = vec![0x02, 0x21, 0x4c, 0x18];
        let packed = lz4_flex::block::compress(&main);
        block.extend_from_slice(&u32::try_from(packed.len()).unwrap().to_le_bytes());
        block.extend_from_slice(&packed);
        assert_eq!(modules(&block), expected);
        let mut contents = Contents::default();
        look(&main, &mut contents).unwrap();
        assert_eq!(contents.builtin.as_deref(), Some("kernel/fs/ext4/ext4.ko\n"));
    }

    #[test]
    fn what_is_no_initrd_is_an_error() {
        let sound = newc(&[("a.ko", b"data")]);
        let mut long = sound.clone();
        long[6 + 8 * 6..14 + 8 * 6].copy_from_slice(b"ffffffff");
        let mut name = sound.clone();
        name[6 + 8 * 11..14 + 8 * 11].copy_from_slice(b"ffffffff");
        for bytes in [
            b"text".to_vec(),
            b"070701".to_vec(),
            sound[..50].to_vec(),
            long,
            name,
            gzip(b"text"),
            vec![0x1f, 0x8b, 8, 0],
        ] {
            assert!(look(&bytes, &mut Contents::default()).is_err(), "{} bytes", bytes.len());
        }
        assert!(look(&Vec::new(), &mut Contents::default()).is_ok());
    }
}
