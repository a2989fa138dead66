//! Files into guest memory without a buffer in between.
#![allow(unsafe_code, reason = "pread into guest memory wants a host pointer")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::Memory;

/// Most bytes of one `pread`: Linux cuts at 2 GiB less a page anyway.
const CHUNK: usize = 1 << 30;

/// Reads `len` bytes of `file` at `offset` into guest memory at `guest`. The file's own position is neither used nor moved, so
/// that machines may share one open file.
///
/// Fails with `UnexpectedEof` when the file ends before, with `InvalidInput` when guest memory does not hold the range.
pub fn read_file_at(memory: &Memory, guest: u64, file: &File, offset: u64, len: u64) -> io::Result<()> {
    let outside = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
    let total = usize::try_from(len).map_err(outside)?;
    let mut position = libc::off_t::try_from(offset).map_err(outside)?;
    for slice in memory.get_slices(GuestAddress(guest), total) {
        let slice = slice.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let guard = slice.ptr_guard_mut();
        let mut done = 0;
        while done < slice.len() {
            let want = (slice.len() - done).min(CHUNK);
            // SAFETY: `done < slice.len()`, so the pointer is inside the slice, and `want` does not go past its end; `guard` keeps
            // the memory mapped. Nothing forms a Rust reference to it, so that the guest may run meanwhile.
            let got =
                unsafe { libc::pread(file.as_raw_fd(), guard.as_ptr().add(done).cast(), want, position) };
            match usize::try_from(got) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(got) => {
                    Bitmap::mark_dirty(slice.bitmap(), done, got);
                    done += got;
                    position += libc::off_t::try_from(got).map_err(outside)?;
                }
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn reads_across_regions_and_says_when_the_file_or_the_memory_ends() {
        let memory =
            Memory::from_ranges(&[(GuestAddress(0), 0x2000), (GuestAddress(0x2000), 0x1000)]).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..0x1800_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
        file.write_all(&bytes).unwrap();

        read_file_at(&memory, 0x1100, &file, 8, 0x1700).unwrap();
        let mut found = vec![0; 0x1700];
        memory.read_slice(&mut found, GuestAddress(0x1100)).unwrap();
        assert_eq!(found, bytes[8..0x1708]);

        let short = read_file_at(&memory, 0, &file, 0x1000, 0x1000).unwrap_err();
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
        let outside = read_file_at(&memory, 0x2fff, &file, 0, 2).unwrap_err();
        assert_eq!(outside.kind(), io::ErrorKind::InvalidInput);
    }
}
