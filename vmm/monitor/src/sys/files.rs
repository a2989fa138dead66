//! Opening what a user named, without waiting for it: a name may stand for a FIFO that nobody
//! writes to.

use std::fs::{File, FileType, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{Access, Mode, OFlags, fcntl_getfl, fcntl_setfl};

/// What may stand behind a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accept {
    /// A regular file.
    Regular,
    /// A regular file or a block device.
    Disk,
    /// Bytes to be read to their end: a regular file, a device, a pipe that was handed over
    /// (`/dev/stdin`, a shell's `<(...)`), but no FIFO that was only named.
    Text,
    /// Bytes that come or go one after the other: anything but a directory. A FIFO that is to be
    /// written needs its reader first.
    Stream,
}

impl Accept {
    fn wanted(self) -> &'static str {
        match self {
            Self::Regular => "a regular file is needed",
            Self::Disk => "a regular file or a block device is needed",
            Self::Text => "a regular file or an open pipe is needed",
            Self::Stream => "a file, a device or a pipe is needed",
        }
    }
}

/// Opens `path` as `options` say, close-on-exec, and at once whatever it is.
///
/// # Errors
/// The system's refusal, or a sentence that says what `path` is instead.
pub fn open(path: &Path, options: &OpenOptions, accept: Accept) -> io::Result<File> {
    // A terminal that is opened here does not become ours to be hung up on.
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let file =
        options.clone().custom_flags(flags).open(path).map_err(
            |error| match rustix::io::Errno::from_io_error(&error) {
                Some(rustix::io::Errno::NXIO) => io::Error::new(
                    error.kind(),
                    "it is a FIFO that no process has open for reading, or its device does not exist",
                ),
                _ => error,
            },
        )?;
    let kind = file.metadata()?.file_type();
    let fits = match accept {
        Accept::Regular => kind.is_file(),
        Accept::Disk => kind.is_file() || kind.is_block_device(),
        Accept::Text => !kind.is_dir() && (!kind.is_fifo() || has_no_name(&file)),
        Accept::Stream => !kind.is_dir(),
    };
    if !fits {
        let text = format!("it is {}; {}", name(kind), accept.wanted());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    // What was opened is waited for as ever.
    fcntl_setfl(&file, fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
    Ok(file)
}

/// Opens a directory, close-on-exec.
///
/// # Errors
/// The system's refusal.
pub fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::io::retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty()))?)
}

/// Whether an open file is a regular one. By its descriptor alone: the standard library's way is
/// one by names, too, which a confined process may not go.
///
/// # Errors
/// The system's refusal.
pub fn is_regular(file: impl AsFd) -> io::Result<bool> {
    let status = rustix::fs::fstat(file)?;
    Ok(rustix::fs::FileType::from_raw_mode(status.st_mode).is_file())
}

/// Opens what is to be shared with a guest, close-on-exec: a directory for reading, a regular file
/// by its place alone (`O_PATH`), since its server opens it as each guest asks. Looks first whether
/// this process may read it, and write to it unless `read_only`: of a file that it may not, the
/// guest would only see errors.
///
/// # Errors
/// The system's refusal, or a sentence that says what `path` is instead.
pub fn open_shared(path: &Path, read_only: bool) -> io::Result<OwnedFd> {
    shared(rustix::io::retry_on_intr(|| rustix::fs::open(path, PLACE, Mode::empty()))?, read_only)
}

/// The same of a path none of whose parts may be a symbolic link: one that has become a link since
/// somebody looked would lead elsewhere.
///
/// # Errors
/// As [`open_shared`]; the system's `ELOOP` of a path with a link.
#[cfg(target_os = "linux")]
pub fn open_shared_without_links(path: &Path, read_only: bool) -> io::Result<OwnedFd> {
    let without = rustix::fs::ResolveFlags::NO_SYMLINKS;
    let open = || rustix::fs::openat2(rustix::fs::CWD, path, PLACE, Mode::empty(), without);
    shared(rustix::io::retry_on_intr(open)?, read_only)
}

/// The same of a path none of whose parts may be a symbolic link.
///
/// # Errors
/// As [`open_shared`]; the system's `ELOOP` of a path with a link.
#[cfg(target_os = "macos")]
pub fn open_shared_without_links(path: &Path, read_only: bool) -> io::Result<OwnedFd> {
    let without = OFlags::from_bits_retain(libc::O_NOFOLLOW_ANY.cast_unsigned());
    let open = || rustix::fs::open(path, PLACE | without, Mode::empty());
    shared(rustix::io::retry_on_intr(open)?, read_only)
}

/// Flags that open a place in the file system and not what is there.
#[cfg(target_os = "linux")]
const PLACE: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);
#[cfg(not(target_os = "linux"))]
const PLACE: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

fn shared(place: OwnedFd, read_only: bool) -> io::Result<OwnedFd> {
    let place = File::from(place);
    let kind = place.metadata()?.file_type();
    if kind.is_dir() {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        return Ok(rustix::io::retry_on_intr(|| rustix::fs::openat(&place, ".", flags, Mode::empty()))?);
    }
    if !kind.is_file() {
        let text = format!("it is {}; a directory or a regular file is needed", name(kind));
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let wanted = if read_only { Access::READ_OK } else { Access::READ_OK | Access::WRITE_OK };
    let here = format!("/dev/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&place));
    rustix::fs::access(here.as_str(), wanted)?;
    Ok(place.into())
}

fn name(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_char_device() {
        "a character device"
    } else if kind.is_block_device() {
        "a block device"
    } else {
        "a special file"
    }
}

/// Whether a pipe was made without a name: its writer has it already.
#[cfg(target_os = "linux")]
#[must_use]
pub fn has_no_name(pipe: impl std::os::fd::AsFd) -> bool {
    const PIPEFS_MAGIC: i128 = 0x5049_5045;
    // The field's type differs between architectures.
    rustix::io::retry_on_intr(|| rustix::fs::fstatfs(&pipe))
        .is_ok_and(|system| i128::from(system.f_type) == PIPEFS_MAGIC)
}

/// Whether a pipe was made without a name: it is not known here.
#[cfg(not(target_os = "linux"))]
#[must_use]
pub fn has_no_name(_pipe: impl std::os::fd::AsFd) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::path::PathBuf;

    use super::*;

    const ALL: [Accept; 4] = [Accept::Regular, Accept::Disk, Accept::Text, Accept::Stream];

    fn read(path: &Path, accept: Accept) -> Result<File, String> {
        open(path, OpenOptions::new().read(true), accept).map_err(|error| error.to_string())
    }

    #[test]
    fn a_fifo_without_a_partner_is_told_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        for accept in [Accept::Regular, Accept::Disk, Accept::Text] {
            let error = read(&path, accept).unwrap_err();
            assert!(error.contains("it is a FIFO") && error.contains("is needed"), "{error}");
        }
        // Both ends: a disk that is to be written.
        let both = open(&path, OpenOptions::new().read(true).write(true), Accept::Disk);
        assert!(both.unwrap_err().to_string().contains("it is a FIFO"));
        let write = || open(&path, OpenOptions::new().write(true), Accept::Stream);
        assert!(write().unwrap_err().to_string().contains("open for reading"));
        let mut reader = read(&path, Accept::Stream).unwrap();
        write().unwrap().write_all(b"through").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }

    #[test]
    fn each_use_has_its_kinds_and_what_is_opened_waits_as_ever() {
        let directory = tempfile::tempdir().unwrap();
        let regular = directory.path().join("file");
        std::fs::write(&regular, "text").unwrap();
        let (pipe, _writer) = rustix::pipe::pipe().unwrap();
        let pipe_path = PathBuf::from(format!("/dev/fd/{}", pipe.as_raw_fd()));
        let table: [(&Path, &[Accept]); 4] = [
            (&regular, &ALL),
            (directory.path(), &[]),
            (Path::new("/dev/null"), &[Accept::Text, Accept::Stream]),
            (&pipe_path, &[Accept::Text, Accept::Stream]),
        ];
        for (path, accepted) in table {
            for accept in ALL {
                let opened = read(path, accept);
                assert_eq!(opened.is_ok(), accepted.contains(&accept), "{path:?} {accept:?} {opened:?}");
                if let Ok(file) = opened {
                    assert!(!fcntl_getfl(&file).unwrap().contains(OFlags::NONBLOCK), "{path:?}");
                }
            }
        }
        let gone = read(Path::new("/nonexistent/file"), Accept::Regular).unwrap_err();
        assert!(gone.contains("No such file"), "{gone}");
    }
}
