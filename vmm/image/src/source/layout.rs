//! A directory as the files of an image.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{ImageFiles, SourceError};
use crate::blob::{Blob, Bytes};

/// An OCI image layout directory.
#[derive(Debug)]
pub(crate) struct LayoutDir {
    dir: PathBuf,
}

impl LayoutDir {
    /// # Errors
    /// If `dir` is not a directory.
    pub(crate) fn open(dir: &Path) -> Result<Self, SourceError> {
        let name = || dir.display().to_string();
        match dir.metadata() {
            Ok(metadata) if metadata.is_dir() => Ok(Self { dir: dir.to_owned() }),
            Ok(_) => Err(SourceError::NotA { name: name(), wanted: "a directory" }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(SourceError::missing(name())),
            Err(source) => Err(SourceError::Io { name: name(), source }),
        }
    }
}

/// Opens a regular file for reading; anything else is refused, without waiting for the writer of a
/// fifo.
pub(crate) fn open_regular(path: &Path) -> Result<(File, u64), SourceError> {
    use rustix::fs::{Mode, OFlags};
    let name = || path.display().to_string();
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file: File = match rustix::io::retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty())) {
        Ok(fd) => fd.into(),
        Err(rustix::io::Errno::NOENT) => return Err(SourceError::missing(name())),
        Err(error) => return Err(SourceError::Io { name: name(), source: error.into() }),
    };
    let metadata = file.metadata().map_err(|source| SourceError::Io { name: name(), source })?;
    if !metadata.is_file() {
        return Err(SourceError::NotA { name: name(), wanted: "a regular file" });
    }
    Ok((file, metadata.len()))
}

impl ImageFiles for LayoutDir {
    fn open(&self, path: &str) -> Result<Blob, SourceError> {
        let path = self.dir.join(path);
        let (file, size) = open_regular(&path)?;
        Ok(Blob {
            name: path.display().to_string(),
            bytes: Bytes::File { file: Arc::new(file), offset: 0, size },
        })
    }

    fn size(&self, path: &str) -> Result<u64, SourceError> {
        Ok(self.open(path)?.size())
    }
}
