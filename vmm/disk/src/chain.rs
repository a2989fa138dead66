//! The chain of an image: its file and those of its backing files, opened by whoever may use paths,
//! and put together by whoever has the files only.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::OFlags;

use crate::file;
use crate::qcow2::{BackingName, Qcow2, Qcow2Error, read_header};
use crate::raw::{DiskError, RawDisk, lock};
use crate::traits::{Disk, ReadAt};

/// Most images of a chain.
const CHAIN_MAX: usize = 64;

/// The format of an image. It is always named, never found out from what the image holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The disk byte for byte.
    Raw,
    /// QEMU's, version 2 or 3.
    Qcow2,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "raw" => Ok(Self::Raw),
            "qcow2" => Ok(Self::Qcow2),
            _ => Err(format!("{word:?} is not raw or qcow2")),
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        })
    }
}

/// Which backing files are opened. An image that somebody else made can name any file of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// Those in the directory of the image that names them, or below it.
    Beside,
    /// All.
    Anywhere,
}

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file cannot be used.
    #[error("cannot open {path}")]
    File {
        /// Its path.
        path: String,
        /// Why.
        #[source]
        source: DiskError,
    },
    /// The format is refused.
    #[error("cannot use {path}")]
    Qcow2 {
        /// Its path.
        path: String,
        /// Why.
        #[source]
        source: Qcow2Error,
    },
    /// A backing file's name, format or place is refused.
    #[error("{path} has the backing file {name:?}, which is not opened: {reason}")]
    Backing {
        /// The image that names it.
        path: String,
        /// The name.
        name: String,
        /// Why.
        reason: &'static str,
    },
    /// A new image cannot be made.
    #[error("cannot create {path}")]
    Create {
        /// Its path.
        path: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A size cannot be.
    #[error("{path}: {reason}")]
    Size {
        /// The image.
        path: String,
        /// Why.
        reason: String,
    },
    /// Reading failed.
    #[error("cannot read {path}")]
    Read {
        /// The image.
        path: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Writing failed.
    #[error("cannot change {path}")]
    Change {
        /// The image.
        path: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

pub(crate) fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// Opens a file without waiting for anybody.
pub(crate) fn open_file(path: &Path, read_only: bool) -> Result<File, ImageError> {
    let open = || {
        // One who opens a pipe does not wait for who writes it.
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let opened = OpenOptions::new().read(true).write(!read_only).custom_flags(flags).open(path);
        let file = opened.map_err(|source| DiskError::Open { path: shown(path), source })?;
        file::size(file.as_fd())?;
        Ok(file)
    };
    open().map_err(|source| ImageError::File { path: shown(path), source })
}

/// Opens a file of a chain and locks it, for several readers or one writer.
pub(crate) fn claim(path: &Path, read_only: bool, chain: &mut Vec<(u64, u64)>) -> Result<File, ImageError> {
    let file = open_file(path, read_only)?;
    // A chain that comes back to an image that it has locked is a loop, and no other user.
    remember(path, &file, chain)?;
    lock(&file, read_only).map_err(|source| ImageError::File { path: shown(path), source })?;
    Ok(file)
}

/// The image at `path`, which nobody else opens as long as it is open: `None` if somebody has it
/// open. It is opened to read.
///
/// # Errors
/// [`ImageError`].
pub fn alone(path: &Path) -> Result<Option<File>, ImageError> {
    let file = open_file(path, true)?;
    match lock(&file, false) {
        Ok(()) => Ok(Some(file)),
        Err(DiskError::Locked) => Ok(None),
        Err(source) => Err(ImageError::File { path: shown(path), source }),
    }
}

/// Remembers a file of the chain, by device and number.
pub(crate) fn remember(path: &Path, file: &File, chain: &mut Vec<(u64, u64)>) -> Result<(), ImageError> {
    let failed = |source| ImageError::Read { path: shown(path), source };
    let meta = file.metadata().map_err(failed)?;
    let id = (meta.dev(), meta.ino());
    let loops = chain.contains(&id);
    if loops || chain.len() == CHAIN_MAX {
        let what =
            if loops { "it is in the chain of its own backing files" } else { "the chain is too long" };
        return Err(ImageError::Size { path: shown(path), reason: what.to_owned() });
    }
    chain.push(id);
    Ok(())
}

/// A file of a chain.
#[derive(Debug)]
pub struct ChainFile {
    /// The file, open as it is used.
    pub file: File,
    /// Its format.
    pub format: Format,
    /// What messages call it.
    pub name: String,
}

/// Opens an image and what lies below it, the image first, and locks each: one writer or several
/// readers. Only the image itself is ever written.
///
/// # Errors
/// [`ImageError`].
pub fn open_chain(
    path: &Path,
    format: Format,
    read_only: bool,
    follow: Follow,
) -> Result<Vec<ChainFile>, ImageError> {
    let mut known = Vec::new();
    let mut files = Vec::new();
    let mut at = path.to_owned();
    let mut opened = claim(&at, read_only, &mut known)?;
    let mut format = format;
    loop {
        let below = match format {
            Format::Raw => None,
            Format::Qcow2 => read_header(&opened)
                .map_err(|source| ImageError::Qcow2 { path: shown(&at), source })?
                .backing
                .map(|backing| Below::find(&at, &backing, follow))
                .transpose()?,
        };
        files.push(ChainFile { file: opened, format, name: shown(&at) });
        let Some(Below { path, file, format: next }) = below else { return Ok(files) };
        remember(&path, &file, &mut known)?;
        lock(&file, true).map_err(|source| ImageError::File { path: shown(&path), source })?;
        (at, opened, format) = (path, file, next);
    }
}

/// A backing file.
struct Below {
    path: PathBuf,
    file: File,
    format: Format,
}

impl Below {
    /// Opens the backing file that an image names.
    fn find(image: &Path, backing: &BackingName, follow: Follow) -> Result<Self, ImageError> {
        let refused = |reason| ImageError::Backing { path: shown(image), name: backing.name.clone(), reason };
        let format = backing.format.as_deref().ok_or_else(|| {
            refused(
                "the image does not say its format; `qemu-img rebase -u -b FILE -F FORMAT IMAGE` writes it",
            )
        })?;
        let format: Format = format.parse().map_err(|_| refused("its format is not raw or qcow2"))?;
        let path = backing_path(image, &backing.name)
            .ok_or_else(|| refused("only names of files are followed, no protocols"))?;
        let file = open_file(&path, true)?;
        if follow == Follow::Beside && !lies_beside(image, &path, &file) {
            return Err(refused("it lies outside of the image's directory; --backing-anywhere allows it"));
        }
        Ok(Self { path, file, format })
    }
}

/// Whether the file that was opened by `path` lies in the image's directory or below, hidden files
/// and directories left out. The file itself is looked for there, so it does not matter whether a
/// link was changed in between.
fn lies_beside(image: &Path, path: &Path, file: &File) -> bool {
    let directory = image.canonicalize().ok().and_then(|image| Some(image.parent()?.to_owned()));
    let place = path.canonicalize().ok();
    let (Some(directory), Some(place)) = (directory, place) else { return false };
    let same = |there: std::fs::Metadata, here: std::fs::Metadata| {
        (there.dev(), there.ino()) == (here.dev(), here.ino())
    };
    // A disk in a home directory is no reason to read that directory's keys.
    let hidden = |part: std::path::Component<'_>| part.as_os_str().as_encoded_bytes().starts_with(b".");
    place.strip_prefix(directory).is_ok_and(|below| !below.components().any(hidden))
        && std::fs::symlink_metadata(&place)
            .is_ok_and(|there| file.metadata().is_ok_and(|here| same(there, here)))
}

/// A name is relative to the image that has it. A colon before the first slash begins a protocol.
pub(crate) fn backing_path(image: &Path, name: &str) -> Option<PathBuf> {
    let protocol = name.find(':').is_some_and(|colon| name.find('/').is_none_or(|slash| colon < slash));
    let directory = image.parent().unwrap_or(Path::new(""));
    (!protocol).then(|| directory.join(name))
}

/// Makes a disk of a chain's files, the image first, and locks them, unless they are locked by
/// whoever opened them. No path is used, and what an image says of its backing file is only whether
/// it has one.
///
/// # Errors
/// [`ImageError`]: a file cannot be used, or there are more or fewer of them than the images say.
pub fn disk_of_chain(files: Vec<ChainFile>, read_only: bool) -> Result<Box<dyn Disk>, ImageError> {
    let mut below: Option<Box<dyn ReadAt>> = None;
    let last = files.len().saturating_sub(1);
    for (number, ChainFile { file, format, name }) in files.into_iter().enumerate().rev() {
        let read_only = read_only || number > 0;
        let unusable = |source| ImageError::File { path: name.clone(), source };
        let disk: Box<dyn Disk> = match format {
            Format::Raw if number < last => {
                let reason = "a raw image has no backing file".to_owned();
                return Err(ImageError::Size { path: name, reason });
            }
            Format::Raw => Box::new(RawDisk::new(file, read_only).map_err(unusable)?),
            Format::Qcow2 => {
                lock(&file, read_only).map_err(unusable)?;
                let image = Qcow2::open(Box::new(file), below.take(), read_only);
                Box::new(image.map_err(|source| ImageError::Qcow2 { path: name, source })?)
            }
        };
        if number == 0 {
            return Ok(disk);
        }
        below = Some(disk);
    }
    Err(ImageError::File { path: "the disk".to_owned(), source: DiskError::File(file::OpenError::Kind) })
}
