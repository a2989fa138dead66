//! Files without a name: they vanish with their last descriptor.

use std::fs::File;
use std::io;
use std::path::Path;

/// A file in memory, close-on-exec, empty; `name` is for the eyes of whoever lists descriptors. On
/// Linux it can be [sealed](seal).
///
/// # Errors
/// Out of descriptors or memory.
#[cfg(target_os = "linux")]
pub fn memory_file(name: &str) -> io::Result<File> {
    use rustix::fs::{MemfdFlags, memfd_create};
    Ok(memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?.into())
}

/// A nameless file in the temporary directory, for systems without memory files.
#[cfg(not(target_os = "linux"))]
pub fn memory_file(_name: &str) -> io::Result<File> {
    unnamed_file(&std::env::temp_dir())
}

/// Fixes size and content of a memory file for ever. It can then be mapped without fear of
/// truncation.
///
/// # Errors
/// The file is not a memory file, or it is mapped writable and shared. Where there are no memory
/// files: `Unsupported`.
#[cfg(target_os = "linux")]
pub fn seal(file: &File) -> io::Result<()> {
    use rustix::fs::{SealFlags, fcntl_add_seals};
    Ok(fcntl_add_seals(file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL)?)
}

/// See the Linux version.
#[cfg(not(target_os = "linux"))]
pub fn seal(_file: &File) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Fixes the size of a memory file for ever, so that another process that has it cannot take pages
/// from under a mapping of it. Holes may still be punched into it. Files of systems without memory
/// files stay as they are.
///
/// # Errors
/// The file is not a memory file, or was sealed before.
#[cfg(target_os = "linux")]
pub fn seal_size(file: &File) -> io::Result<()> {
    use rustix::fs::{SealFlags, fcntl_add_seals};
    Ok(fcntl_add_seals(file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?)
}

/// See the Linux version.
///
/// # Errors
/// None.
#[cfg(not(target_os = "linux"))]
pub fn seal_size(_file: &File) -> io::Result<()> {
    Ok(())
}

/// Whether nobody can make the file shorter: it is sealed against it.
#[cfg(target_os = "linux")]
#[must_use]
pub fn is_sealed(file: &File) -> bool {
    use rustix::fs::{SealFlags, fcntl_get_seals};
    fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK))
}

/// See the Linux version.
#[cfg(not(target_os = "linux"))]
#[must_use]
pub fn is_sealed(_file: &File) -> bool {
    false
}

/// A file without a name on the file system of `directory` (O_TMPFILE; created and unlinked where
/// that does not exist).
///
/// # Errors
/// The directory is missing, not writable, or its file system full.
pub fn unnamed_file(directory: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    #[cfg(target_os = "linux")]
    let nameless = || {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR)
    };
    #[cfg(target_os = "linux")]
    match rustix::io::retry_on_intr(nameless) {
        Ok(fd) => return Ok(fd.into()),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => {}
        Err(error) => return Err(error.into()),
    }
    for attempt in 0u32.. {
        let path = directory.join(format!(".nelly-{}-{attempt}", std::process::id()));
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::io::retry_on_intr(|| rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)) {
            Ok(fd) => {
                rustix::fs::unlink(&path)?;
                return Ok(fd.into());
            }
            Err(rustix::io::Errno::EXIST) if attempt < 1000 => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use super::*;

    #[test]
    fn nameless_files_hold_bytes_and_leave_no_name() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = unnamed_file(directory.path()).unwrap();
        file.write_all(b"abc").unwrap();
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "abc");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        assert!(unnamed_file(&directory.path().join("absent")).is_err());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_of_sealed_size_is_written_to_and_has_holes() {
        let mut file = memory_file("test").unwrap();
        file.write_all(b"abc").unwrap();
        seal_size(&file).unwrap();
        for len in [0, 4] {
            assert!(file.set_len(len).is_err());
        }
        file.rewind().unwrap();
        file.write_all(b"d").unwrap();
        nelly_disk::sys::punch_hole(&file, 0, 3).unwrap();
        assert!(rustix::fs::fcntl_add_seals(&file, rustix::fs::SealFlags::FUTURE_WRITE).is_err());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_sealed_file_neither_shrinks_nor_changes() {
        let mut file = memory_file("test").unwrap();
        file.write_all(b"abc").unwrap();
        assert!(!is_sealed(&file));
        seal(&file).unwrap();
        assert!(is_sealed(&file));
        assert!(file.set_len(0).is_err());
        assert!(file.write_all(b"d").is_err());
    }
}
