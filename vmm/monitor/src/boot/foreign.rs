//! Which processor a kernel is for, by how its file begins: asked before a machine is made for it.

use std::fs::File;
use std::io::{BufReader, Read};

use super::compress::Format;
use super::source::Source;
use super::{BootError, arm64, reader, x86};

/// So much of a kernel tells which processor it is for: the last of it is the setup header of x86.
const HEAD: usize = 0x400;

/// Refuses a kernel that is for another processor than this one, which the name of the standard
/// library for it tells (`std::env::consts::ARCH`). What its beginning does not tell, and what else
/// is wrong with it, the loader finds in the machine's own process.
///
/// # Errors
/// It is for another processor.
pub fn refuse_foreign(name: &str, kernel: &File, processor: &str) -> Result<(), BootError> {
    let Ok(reader) = reader(name, kernel, false) else { return Ok(()) };
    let Some(head) = Source::open(name, &reader).ok().and_then(|source| unpacked_head(&source)) else {
        return Ok(());
    };
    let (theirs, ours) = match processor {
        "aarch64" if x86::begins_kernel(&head) => (x86::MACHINE, arm64::MACHINE),
        "x86_64" if arm64::begins_kernel(&head) => ("AArch64", x86::MACHINE),
        _ => return Ok(()),
    };
    Err(BootError::wrong_machine(name, theirs, ours))
}

/// The beginning of a kernel, unpacked where little of the file and little memory is enough.
fn unpacked_head(source: &Source<'_>) -> Option<Vec<u8>> {
    let head = source.head(HEAD).ok()?;
    let packed = BufReader::with_capacity(16 << 10, source.reader(0, source.len()));
    match Format::detect(&head) {
        Some(Format::Gzip) => beginning(flate2::bufread::GzDecoder::new(packed)),
        Some(_) => None,
        None => Some(head),
    }
}

fn beginning(decoder: impl Read) -> Option<Vec<u8>> {
    let mut head = Vec::with_capacity(HEAD);
    decoder.take(HEAD as u64).read_to_end(&mut head).ok()?;
    Some(head)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const OURS: [&str; 2] = ["x86_64", "aarch64"];

    /// Files that begin as kernels do, and what refuses them on x86-64 and on 64-bit Arm.
    #[test]
    fn each_processor_refuses_the_kernels_of_the_other() {
        let with = |parts: &[(usize, &[u8])]| {
            let mut bytes = vec![0; 8192];
            for (at, part) in parts {
                bytes[*at..*at + part.len()].copy_from_slice(part);
            }
            bytes
        };
        let elf = |machine: u8| with(&[(0, b"\x7fELF\x02\x01\x01"), (18, &[machine, 0])]);
        let image = with(&[(0, b"MZ"), (56, b"ARM\x64")]);
        let zboot = with(&[(0, b"MZ\0\0zimg"), (60, &[0x40, 0, 0, 0]), (0x40, b"PE\0\0\x64\xaa")]);
        let bzimage = with(&[(0, b"MZ"), (0x1fe, &[0x55, 0xaa]), (0x202, b"HdrS"), (0x206, &[0x0f, 0x02])]);
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(&image).expect("it has room");
        let packed = packed.finish().expect("it has room");
        let arm = [true, false];
        for (bytes, refused_by) in [
            (&elf(183), arm),
            (&image, arm),
            (&zboot, arm),
            (&packed, arm),
            (&elf(62), [false, true]),
            (&bzimage, [false, true]),
            // Whatever these are, the loader says so.
            (&elf(243), [false, false]),
            (&with(&[]), [false, false]),
            (&with(&[(0, b"MZ\0\0zimg"), (60, &[0xff; 4])]), [false, false]),
            (&b"\x1f\x8b\x08".to_vec(), [false, false]),
            (&packed[..20].to_vec(), [false, false]),
            (&Vec::new(), [false, false]),
        ] {
            let mut file = tempfile::tempfile().expect("a file");
            file.write_all(bytes).expect("it has room");
            for (ours, refused) in OURS.into_iter().zip(refused_by) {
                let said = refuse_foreign("KERNEL", &file, ours).err().map(|error| error.to_string());
                let names = if ours == "aarch64" {
                    "KERNEL is a kernel for x86-64; this machine is 64-bit Arm"
                } else {
                    "KERNEL is a kernel for AArch64; this machine is x86-64"
                };
                let begins = &bytes[..bytes.len().min(70)];
                assert_eq!(said.as_deref(), refused.then_some(names), "{ours}: {begins:x?}");
            }
        }
    }
}
