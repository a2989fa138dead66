//! Output files that are named by flags. They are opened before anything is started, so that a file
//! that cannot be written, or a FIFO without a reader, is an error at once.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context as _, Result};
use nelly_vmm::sys::files::{self, Accept};

/// An opened file. It keeps its contents until something is written.
#[derive(Debug)]
pub(crate) struct OutputFile {
    file: File,
    /// The beginning of error messages.
    failure: String,
    /// Whether a regular file is truncated before it is written.
    replaces: bool,
}

impl OutputFile {
    /// Opens the file at `path` for the flag `flag`, and creates it if it does not exist.
    ///
    /// # Errors
    /// The file cannot be written, or is a FIFO without a reader.
    pub(crate) fn file(flag: &str, path: &Path) -> Result<Self> {
        let failure = format!("{flag}: cannot write {}", path.display());
        Self::open(path, OpenOptions::new().write(true).create(true), failure, true)
    }

    /// Opens file descriptor `number` again, in append mode. The descriptor itself stays open and
    /// is not changed.
    ///
    /// # Errors
    /// The descriptor is not open, or cannot be written.
    pub(crate) fn descriptor(flag: &str, number: u32) -> Result<Self> {
        let failure = format!("{flag}: cannot write descriptor {number}");
        Self::open(Path::new(&format!("/dev/fd/{number}")), OpenOptions::new().append(true), failure, false)
    }

    fn open(path: &Path, options: &OpenOptions, failure: String, replaces: bool) -> Result<Self> {
        match files::open(path, options, Accept::Stream) {
            Ok(file) => Ok(Self { file, failure, replaces }),
            Err(error) => Err(error).context(failure),
        }
    }

    /// Writes `text` and a newline in one system call; formatting directly into the file would need
    /// several.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write(self, text: &str) -> Result<()> {
        let Self { mut file, failure, replaces } = self;
        let mut write = || -> io::Result<()> {
            if replaces && file.metadata()?.is_file() {
                file.set_len(0)?;
            }
            file.write_all(format!("{text}\n").as_bytes())
        };
        write().context(failure)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn what_cannot_be_written_is_refused_at_once_and_names_its_flag() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, 0o600.into()).unwrap();
        for (path, what) in [
            (fifo.as_path(), "no process has open for reading"),
            (directory.path(), "directory"),
            (Path::new("/nonexistent/file"), "No such file"),
        ] {
            let error = format!("{:#}", OutputFile::file("--trace", path).unwrap_err());
            let named = error.starts_with("--trace") && error.contains(&*path.to_string_lossy());
            assert!(named && error.contains(what), "{error}");
        }
        let error = format!("{:#}", OutputFile::descriptor("--result", 1_000_000).unwrap_err());
        assert!(error.starts_with("--result: cannot write descriptor 1000000"), "{error}");
    }

    #[test]
    fn a_file_keeps_what_is_in_it_until_it_is_written_and_a_descriptor_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let text = || std::fs::read_to_string(&path).unwrap();
        drop(OutputFile::file("--trace", &path).unwrap());
        assert_eq!(text(), "");
        std::fs::write(&path, "what was there before").unwrap();
        let target = OutputFile::file("--trace", &path).unwrap();
        assert_eq!(text(), "what was there before");
        target.write("one").unwrap();
        assert_eq!(text(), "one\n");
        let owner = File::options().write(true).open(&path).unwrap();
        let number = owner.as_raw_fd().cast_unsigned();
        OutputFile::descriptor("--result", number).unwrap().write("two").unwrap();
        assert_eq!(text(), "one\ntwo\n");
    }
}
