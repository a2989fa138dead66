//! Kernels of a few instructions.

use std::io::Write;
use std::os::fd::OwnedFd;

use nelly_vmm::boot::testing::{Segment, elf};
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
    elf(ENTRY, &[Segment { address: ENTRY, bytes: code, memory: code.len() as u64 }], &[], &[])
}
