//! Kernels of a few instructions.

use std::io::Write;
use std::os::fd::OwnedFd;

use nelly_vmm::sys::anonymous::memory_file;

/// jmp $
pub(crate) const SPIN: &[u8] = &[0xeb, 0xfe];

/// [`image`] in a memory file.
pub(crate) fn kernel(code: &[u8]) -> OwnedFd {
    let mut file = memory_file("kernel").unwrap();
    file.write_all(&image(code)).unwrap();
    file.into()
}

/// A static ELF file that is nothing but `code`, at 1 MiB.
pub(crate) fn image(code: &[u8]) -> Vec<u8> {
    const ENTRY: u64 = 0x10_0000;
    let mut image = Vec::from(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    let mut put = |bytes: &[u8]| image.extend_from_slice(bytes);
    // Executable, x86-64, version 1; entry, program headers, no section headers; flags and sizes.
    put(&2u16.to_le_bytes());
    put(&62u16.to_le_bytes());
    put(&1u32.to_le_bytes());
    for word in [ENTRY, 64, 0] {
        put(&word.to_le_bytes());
    }
    put(&0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        put(&half.to_le_bytes());
    }
    // One segment to load, readable, writable, executable.
    put(&1u32.to_le_bytes());
    put(&7u32.to_le_bytes());
    let size = code.len() as u64;
    for word in [0x1000, ENTRY, ENTRY, size, size, 0x1000] {
        put(&word.to_le_bytes());
    }
    image.resize(0x1000, 0);
    image.extend_from_slice(code);
    image
}
