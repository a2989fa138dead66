//! What an image says of itself.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::chain::{Format, ImageError, claim, open_file};
use crate::qcow2::{CheckReport, Header, check, read_header};
use crate::store::Store;

/// See [`image_info`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// Bytes of the disk.
    pub size: u64,
    /// Bytes of the file, with its holes.
    pub file_bytes: u64,
    /// Bytes that the file takes on the host; 0 for a block device.
    pub allocated_bytes: u64,
    /// The header of qcow2.
    pub header: Option<Header>,
}

/// Reads what the image at `path` says of itself. It may be in use; nothing below it is opened.
///
/// # Errors
/// [`ImageError`].
pub fn image_info(path: &Path, format: Format) -> Result<ImageInfo, ImageError> {
    let failed = |source| ImageError::Read { path: path.display().to_string(), source };
    let file = open_file(path, true)?;
    let file_bytes = Store::len(&file).map_err(failed)?;
    let allocated_bytes = file.metadata().map_err(failed)?.blocks().saturating_mul(512);
    let header = match format {
        Format::Raw => None,
        Format::Qcow2 => Some(
            read_header(&file)
                .map_err(|source| ImageError::Qcow2 { path: path.display().to_string(), source })?,
        ),
    };
    let size = header.as_ref().map_or(file_bytes, |header| header.size);
    Ok(ImageInfo { size, file_bytes, allocated_bytes, header })
}

/// Checks the qcow2 image at `path`, which nobody may write meanwhile; see
/// [`check`](crate::qcow2::check).
///
/// # Errors
/// [`ImageError`].
pub fn check_image(path: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<CheckReport, ImageError> {
    let file = claim(path, true, &mut Vec::new())?;
    check(&file, progress).map_err(|source| ImageError::Qcow2 { path: path.display().to_string(), source })
}
