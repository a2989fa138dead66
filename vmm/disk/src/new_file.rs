//! A file that gets its name when it is whole.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::sys;

/// A new file. Dropped before [`NewFile::finish`] it is gone; where the file system has files
/// without a name, also when the process is killed.
#[derive(Debug)]
pub struct NewFile {
    file: File,
    path: PathBuf,
    /// It has its name already, for the file system knows no files without one.
    named: bool,
}

impl NewFile {
    /// Makes the file that will be `path`, open for reading and writing.
    ///
    /// # Errors
    /// `AlreadyExists`, or the system's.
    pub fn begin(path: &Path) -> io::Result<Self> {
        Self::with_mode(path, 0o666)
    }

    /// The same, and from its first moment on nobody but its owner can open it.
    ///
    /// # Errors
    /// See [`NewFile::begin`].
    pub fn private(path: &Path) -> io::Result<Self> {
        Self::with_mode(path, 0o600)
    }

    fn with_mode(path: &Path, mode: u32) -> io::Result<Self> {
        if std::fs::symlink_metadata(path).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let (file, named) = match sys::unnamed(directory.unwrap_or(Path::new(".")), mode) {
            Ok(file) => (file, false),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                let mut options = OpenOptions::new();
                (options.read(true).write(true).create_new(true).mode(mode).open(path)?, true)
            }
            Err(error) => return Err(error),
        };
        Ok(Self { file, path: path.to_owned(), named })
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Makes it durable and gives it its name.
    ///
    /// # Errors
    /// `AlreadyExists`: somebody else was faster; or the system's. The file is gone.
    pub fn finish(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        if !self.named {
            sys::give_name(&self.file, &self.path)?;
        }
        // It stays when this is dropped.
        self.named = false;
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        match File::open(directory.unwrap_or(Path::new("."))).and_then(|directory| directory.sync_all()) {
            // Who may only write to a directory cannot make a name durable.
            Err(error) if error.kind() != io::ErrorKind::PermissionDenied => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if self.named {
            // There is nobody to tell.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
