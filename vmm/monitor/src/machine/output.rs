//! Where a console's output goes: a descriptor, or a log that stays below a size.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, fstat, openat, renameat, statat};

use super::watched::Watched;
use crate::sys::{Interest, Poller, at_most};

/// See the module.
pub(super) enum Output {
    Descriptor(Watched),
    Log(Log),
}

impl Output {
    /// A log of at most `most` bytes. What is no regular file has no size to bound, and is written
    /// as it is. `place` is the directory where `file` was opened and its name there, if it has
    /// one.
    pub(super) fn log(file: File, place: Option<(OwnedFd, OsString)>, most: u64) -> io::Result<Self> {
        let status = fstat(&file)?;
        if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
            return Ok(Self::Descriptor(Watched::independent(file.into(), OFlags::WRONLY)));
        }
        let bytes = file.metadata()?.len();
        Ok(Self::Log(Log { file, bytes, most, place: place.map(LogName::of) }))
    }

    /// Writes what there is room for without waiting.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Descriptor(watched) => watched.write(bytes),
            Self::Log(log) => log.write(bytes),
        }
    }

    /// Says to the poller whether room is waited for. A log always has room.
    pub(super) fn watch(&mut self, poller: &Poller, token: u64, interest: Interest) {
        if let Self::Descriptor(watched) = self {
            watched.watch(poller, token, interest);
        }
    }

    pub(super) fn forget(&mut self, poller: &Poller) {
        if let Self::Descriptor(watched) = self {
            watched.forget(poller);
        }
    }

    /// Waits for room, at most `patience`.
    pub(super) fn wait_writable(&self, patience: Duration) {
        if let Self::Descriptor(watched) = self {
            wait_writable(watched.fd.as_fd(), patience);
        }
    }
}

fn wait_writable(fd: BorrowedFd<'_>, patience: Duration) {
    let timeout = Timespec::try_from(patience).ok();
    let mut polled = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
    // An error shows at the next write.
    let _told_later = poll(&mut polled, timeout.as_ref());
}

/// A regular file that begins anew when it is full. The one before is kept beside it as `NAME.1`; a
/// log that came as a descriptor, or whose name means another file by now, loses what was in it.
pub(super) struct Log {
    file: File,
    /// What is in it.
    bytes: u64,
    most: u64,
    place: Option<LogName>,
}

impl Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes >= self.most {
            self.begin_anew()?;
        }
        let room = at_most(self.most - self.bytes, bytes.len());
        let count = self.file.write(&bytes[..room])?;
        self.bytes += count as u64;
        Ok(count)
    }

    fn begin_anew(&mut self) -> io::Result<()> {
        match self.place.as_ref().and_then(|place| place.renew(&self.file).ok()) {
            Some(fresh) => self.file = fresh,
            None => {
                self.file.set_len(0)?;
                self.file.seek(SeekFrom::Start(0))?;
            }
        }
        self.bytes = 0;
        Ok(())
    }
}

/// A name in a directory that is held, whatever becomes of the path to it. What a full log needs of
/// the system while its guest runs is `fstatat`, `renameat` and `openat` below this directory, and
/// nothing else in the file system.
struct LogName {
    directory: OwnedFd,
    name: OsString,
    older: OsString,
}

impl LogName {
    fn of((directory, name): (OwnedFd, OsString)) -> Self {
        let mut older = name.clone();
        older.push(".1");
        Self { directory, name, older }
    }

    /// Renames the log, which must be `old`, and makes the next one with the same rights.
    fn renew(&self, old: &File) -> io::Result<File> {
        let (open, named) = (fstat(old)?, statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW)?);
        if (open.st_dev, open.st_ino) != (named.st_dev, named.st_ino) {
            return Err(io::ErrorKind::NotFound.into());
        }
        renameat(&self.directory, &self.name, &self.directory, &self.older)?;
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(open.st_mode) & (Mode::RWXU | Mode::RWXG | Mode::RWXO);
        Ok(openat(&self.directory, &self.name, flags, mode)?.into())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::path::Path;

    use super::*;

    fn open(path: &Path) -> File {
        OpenOptions::new().append(true).create(true).open(path).unwrap()
    }

    fn place(path: &Path) -> Option<(OwnedFd, OsString)> {
        let directory = crate::sys::files::open_directory(path.parent().unwrap()).unwrap();
        Some((directory, path.file_name().unwrap().to_owned()))
    }

    fn fill(log: &mut Output, text: &str) {
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let count = log.write(rest).unwrap();
            rest = &rest[count..];
        }
    }

    #[test]
    fn a_log_keeps_one_older_file_and_never_more_than_twice_its_size() {
        let folder = tempfile::tempdir().unwrap();
        let (path, older) = (folder.path().join("log"), folder.path().join("log.1"));
        fs::write(&path, "before ").unwrap();
        let read = || [&path, &older].map(|path| fs::read_to_string(path).unwrap_or_default());
        let mut log = Output::log(open(&path), place(&path), 10).unwrap();
        fill(&mut log, "012");
        assert_eq!(read(), ["before 012", ""]);
        fill(&mut log, "3456789abcdef");
        assert_eq!(read(), ["def", "3456789abc"]);
        fill(&mut log, &"x".repeat(1000));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        assert!(read().iter().all(|text| text.len() <= 10));
    }

    #[test]
    fn a_log_without_a_name_of_its_own_begins_anew_in_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let (path, target) = (folder.path().join("log"), folder.path().join("target"));
        let mut log = Output::log(open(&path), None, 10).unwrap();
        fill(&mut log, "0123456789abc");
        assert_eq!(fs::read_to_string(&path).unwrap(), "abc");
        // Another's file has the name now: it is left alone.
        let mut log = Output::log(open(&path), place(&path), 10).unwrap();
        fs::rename(&path, &target).unwrap();
        fs::write(&path, "another's").unwrap();
        fill(&mut log, "0123456789");
        assert_eq!(fs::read_to_string(&path).unwrap(), "another's");
        assert_eq!(
            (fs::read_to_string(&target).unwrap().as_str(), folder.path().join("log.1").exists()),
            ("789", false)
        );
        // What is no file has no size.
        let mut sink = Output::log(open(Path::new("/dev/null")), place(Path::new("/dev/null")), 10).unwrap();
        fill(&mut sink, &"x".repeat(1000));
    }
}
