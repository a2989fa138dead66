//! Images by path: opened, made and grown.

use std::io;
use std::path::{Path, PathBuf};

use crate::chain::{Follow, Format, ImageError, claim, disk_of_chain, open_chain, open_file, shown};
use crate::new_file::NewFile;
use crate::qcow2::{self, BackingName, CreateOptions, Qcow2Error, read_header};
use crate::traits::{BYTES_MAX, Disk, SECTOR};

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
    disk_of_chain(open_chain(path, format, read_only, follow)?, read_only)
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
pub(crate) fn name_from(path: &Path, base: &Path) -> Result<String, ImageError> {
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
    match format {
        Format::Raw => {
            let file = claim(path, false, &mut Vec::new())?;
            let meta = file.metadata().map_err(failed)?;
            if !meta.is_file() {
                return Err(refused("a block device has the size that it has".to_owned()));
            }
            grows(meta.len())?;
            file.set_len(size).and_then(|()| file.sync_all()).map_err(failed)?;
            Ok(meta.len())
        }
        Format::Qcow2 => {
            let image = open_image(path, format, false, follow)?;
            let old = image.len();
            grows(old)?;
            image.grow(size).map_err(|error| match error.kind() {
                io::ErrorKind::FileTooLarge => {
                    refused(format!("{size} bytes are too large for clusters of this size"))
                }
                _ => failed(error),
            })?;
            Ok(old)
        }
    }
}
