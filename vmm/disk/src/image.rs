//! Images by path: their format, their lock, and the chain of backing files below them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::OFlags;

use crate::file;
use crate::new_file::NewFile;
use crate::qcow2::{self, BackingName, CreateOptions, Qcow2, Qcow2Error, read_header};
use crate::raw::{DiskError, RawDisk, lock};
use crate::traits::{BYTES_MAX, Disk, ReadAt, SECTOR};

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

fn shown(path: &Path) -> String {
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

/// Opens an image and the chain below it, which is only read.
///
/// # Errors
/// [`ImageError`].
pub fn open_image(
    path: &Path,
    format: Format,
    read_only: bool,
    follow: Follow,
) -> Result<Box<dyn Disk>, ImageError> {
    let mut chain = Vec::new();
    Ok(match format {
        Format::Raw => Box::new(open_raw(path, read_only, &mut chain)?),
        Format::Qcow2 => Box::new(open_qcow2(path, read_only, follow, &mut chain)?),
    })
}

/// Remembers a file of the chain, by device and number.
fn remember(path: &Path, file: &File, chain: &mut Vec<(u64, u64)>) -> Result<(), ImageError> {
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

fn open_raw(path: &Path, read_only: bool, chain: &mut Vec<(u64, u64)>) -> Result<RawDisk, ImageError> {
    let file = claim(path, read_only, chain)?;
    RawDisk::new(file, read_only).map_err(|source| ImageError::File { path: shown(path), source })
}

fn open_qcow2(
    path: &Path,
    read_only: bool,
    follow: Follow,
    chain: &mut Vec<(u64, u64)>,
) -> Result<Qcow2, ImageError> {
    let refused = |source| ImageError::Qcow2 { path: shown(path), source };
    let file = claim(path, read_only, chain)?;
    let header = read_header(&file).map_err(refused)?;
    let backing = match &header.backing {
        Some(backing) => Some(open_backing(path, backing, follow, chain)?),
        None => None,
    };
    Qcow2::open(Box::new(file), backing, read_only).map_err(refused)
}

fn open_backing(
    image: &Path,
    backing: &BackingName,
    follow: Follow,
    chain: &mut Vec<(u64, u64)>,
) -> Result<Box<dyn ReadAt>, ImageError> {
    let refused = |reason| ImageError::Backing { path: shown(image), name: backing.name.clone(), reason };
    let format = backing.format.as_deref().ok_or_else(|| {
        refused("the image does not say its format; `qemu-img rebase -u -b FILE -F FORMAT IMAGE` writes it")
    })?;
    let format: Format = format.parse().map_err(|_| refused("its format is not raw or qcow2"))?;
    let path = backing_path(image, &backing.name)
        .ok_or_else(|| refused("only names of files are followed, no protocols"))?;
    if follow == Follow::Beside {
        let directory = image.canonicalize().ok().and_then(|image| Some(image.parent()?.to_owned()));
        let place = path.canonicalize().map_err(|source| {
            let source = DiskError::Open { path: shown(&path), source };
            ImageError::File { path: shown(&path), source }
        })?;
        if !directory.is_some_and(|directory| place.starts_with(directory)) {
            return Err(refused("it lies outside of the image's directory; --backing-anywhere allows it"));
        }
    }
    Ok(match format {
        Format::Raw => Box::new(open_raw(&path, true, chain)?),
        Format::Qcow2 => Box::new(open_qcow2(&path, true, follow, chain)?),
    })
}

/// A name is relative to the image that has it. A colon before the first slash begins a protocol.
fn backing_path(image: &Path, name: &str) -> Option<PathBuf> {
    let protocol = name.find(':').is_some_and(|colon| name.find('/').is_none_or(|slash| colon < slash));
    let directory = image.parent().unwrap_or(Path::new(""));
    (!protocol).then(|| directory.join(name))
}

/// A new image that is wanted.
#[derive(Clone, Debug)]
pub struct NewImage {
    /// Its format.
    pub format: Format,
    /// Bytes of the disk; those of the backing file where it is not said.
    pub size: Option<u64>,
    /// The logarithm of the cluster size of qcow2, 9 to 21.
    pub cluster_bits: u32,
    /// The image that it is a change of, and its format; for qcow2 only.
    pub backing: Option<(PathBuf, Format)>,
}

/// Makes an image at `path`, where nothing is; returns the bytes of its disk.
///
/// # Errors
/// [`ImageError`]; nothing is left behind.
pub fn create_image(path: &Path, new: &NewImage) -> Result<u64, ImageError> {
    let failed = |source| ImageError::Create { path: shown(path), source };
    let size_refused = |reason: &str| ImageError::Size { path: shown(path), reason: reason.to_owned() };
    let mut backing = None;
    let mut base_bytes = None;
    if let Some((base, format)) = &new.backing {
        if new.format == Format::Raw {
            return Err(size_refused("a raw image has no backing file"));
        }
        // What it stands on is not looked at.
        base_bytes = Some(match format {
            Format::Raw => open_image(base, *format, true, Follow::Beside)?.len(),
            Format::Qcow2 => {
                let header = read_header(&open_file(base, true)?);
                header.map_err(|source| ImageError::Qcow2 { path: shown(base), source })?.size
            }
        });
        backing = Some(BackingName { name: name_from(path, base)?, format: Some(format.to_string()) });
    }
    let size =
        new.size.or(base_bytes).ok_or_else(|| size_refused("a disk without a backing file needs a size"))?;
    let size = size.checked_next_multiple_of(SECTOR).filter(|size| *size <= BYTES_MAX);
    let size = size.ok_or_else(|| size_refused("no disk is so large"))?;
    let file = NewFile::begin(path).map_err(failed)?;
    match new.format {
        Format::Raw => file.file().set_len(size).map_err(failed)?,
        Format::Qcow2 => {
            let store = file.file().try_clone().map_err(failed)?;
            let options = CreateOptions { size, cluster_bits: new.cluster_bits, backing };
            qcow2::create(Box::new(store), &options).map_err(|error| match error {
                Qcow2Error::Io(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                    size_refused("the disk is too large for clusters of this size")
                }
                Qcow2Error::Io(error) => failed(error),
                source => ImageError::Qcow2 { path: shown(path), source },
            })?;
        }
    }
    file.finish().map_err(failed)?;
    Ok(size)
}

/// How the image at `path` names `base`: relative if it lies beside or below it, else absolute.
fn name_from(path: &Path, base: &Path) -> Result<String, ImageError> {
    let failed = |source| ImageError::Create { path: shown(path), source };
    let base = base.canonicalize().map_err(failed)?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new(".")).canonicalize().map_err(failed)?;
    let name = base.strip_prefix(&directory).unwrap_or(&base);
    // A colon would be that of a protocol.
    let name = name.to_str().filter(|name| !name.contains(':'));
    name.map(ToOwned::to_owned).ok_or_else(|| ImageError::Size {
        path: shown(path),
        reason: format!("the path of the backing file {} is not UTF-8 or has a colon", base.display()),
    })
}

/// Makes the disk of an image larger; returns the bytes that it had.
///
/// # Errors
/// [`ImageError`]; also for a size that is smaller.
pub fn resize_image(path: &Path, format: Format, size: u64, follow: Follow) -> Result<u64, ImageError> {
    let refused = |reason: String| ImageError::Size { path: shown(path), reason };
    let failed = |source| ImageError::Change { path: shown(path), source };
    let grows = |old: u64| {
        let lost = "a disk is never made smaller, for that would cut off what is on it";
        if size < old {
            Err(refused(format!("the disk has {old} bytes, more than {size}: {lost}")))
        } else {
            Ok(())
        }
    };
    if !size.is_multiple_of(SECTOR) || size > BYTES_MAX {
        return Err(refused(format!("{size} bytes are not a number of whole sectors of 512 bytes")));
    }
    let mut chain = Vec::new();
    match format {
        Format::Raw => {
            let file = claim(path, false, &mut chain)?;
            let meta = file.metadata().map_err(failed)?;
            if !meta.is_file() {
                return Err(refused("a block device has the size that it has".to_owned()));
            }
            grows(meta.len())?;
            file.set_len(size).and_then(|()| file.sync_all()).map_err(failed)?;
            Ok(meta.len())
        }
        Format::Qcow2 => {
            let image = open_qcow2(path, false, follow, &mut chain)?;
            let old = image.len();
            grows(old)?;
            image.grow(size).map_err(|error| match error.kind() {
                io::ErrorKind::FileTooLarge => refused(format!(
                    "{size} bytes are too large for clusters of {} bytes",
                    image.header().cluster_size()
                )),
                _ => failed(error),
            })?;
            Ok(old)
        }
    }
}
