//! Operating system specific calls: punching holes and zeroing ranges.

use std::io;
use std::os::fd::AsFd;

/// Punches a hole: the range reads as zeroes and uses no space; the length of the file is
/// unchanged. Fails with `Unsupported` if the file system does not support it.
#[cfg(target_os = "linux")]
pub fn punch_hole(file: impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    use rustix::fs::FallocateFlags;
    allocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)
}

/// Zeroes the range but keeps its space allocated; the length of the file is unchanged. Fails with
/// `Unsupported` if the file system does not support it.
#[cfg(target_os = "linux")]
pub fn zero_range(file: impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    use rustix::fs::FallocateFlags;
    allocate(file, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, offset, len)
}

#[cfg(target_os = "linux")]
fn allocate(file: impl AsFd, mode: rustix::fs::FallocateFlags, offset: u64, len: u64) -> io::Result<()> {
    use rustix::io::Errno;
    loop {
        match rustix::fs::fallocate(&file, mode, offset, len) {
            Err(Errno::INTR) => {}
            Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::NODEV) => {
                return Err(io::ErrorKind::Unsupported.into());
            }
            result => return Ok(result?),
        }
    }
}

/// Punching holes is not supported on this system.
#[cfg(not(target_os = "linux"))]
pub fn punch_hole(_file: impl AsFd, _offset: u64, _len: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Zeroing ranges is not supported on this system.
#[cfg(not(target_os = "linux"))]
pub fn zero_range(_file: impl AsFd, _offset: u64, _len: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
