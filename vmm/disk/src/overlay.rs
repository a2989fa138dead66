//! Overlays: what a machine writes goes to an image of its own, and the base below stays as it is.

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::chain::{
    ChainFile, Follow, Format, ImageError, backing_path, claim, disk_of_chain, open_chain, shown,
};
use crate::image::{NewImage, create_image};
use crate::qcow2::{self, BackingName, CreateOptions, Qcow2Error, read_header};
use crate::sys;
use crate::traits::SECTOR;

/// The logarithm of the cluster size of overlays: 64 KiB.
const CLUSTER_BITS: u32 = 16;

/// Opens the overlay at `path` over the image `base` for writing, and makes it if nothing is there.
/// An overlay of another image is refused.
///
/// # Errors
/// [`ImageError`].
pub fn open_overlay(
    path: &Path,
    base: &Path,
    format: Format,
    follow: Follow,
) -> Result<Vec<ChainFile>, ImageError> {
    if let Err(error) = std::fs::symlink_metadata(path)
        && error.kind() == io::ErrorKind::NotFound
    {
        let backing = Some((base.to_owned(), format));
        let new = NewImage { format: Format::Qcow2, size: None, cluster_bits: CLUSTER_BITS, backing };
        match create_image(path, &new) {
            // Somebody else was faster: it is opened as any other.
            Err(ImageError::Create { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {}
            made => _ = made?,
        }
    }
    open_made(path, base, format, follow, false)
}

/// Opens the overlay at `path`, which is there, over the image `base`, and all of it for reading.
///
/// # Errors
/// [`ImageError`]; also when somebody writes to it.
pub fn open_overlay_to_read(
    path: &Path,
    base: &Path,
    format: Format,
    follow: Follow,
) -> Result<Vec<ChainFile>, ImageError> {
    open_made(path, base, format, follow, true)
}

fn open_made(
    path: &Path,
    base: &Path,
    format: Format,
    follow: Follow,
    read_only: bool,
) -> Result<Vec<ChainFile>, ImageError> {
    let overlay = claim(path, read_only, &mut Vec::new())?;
    let header = read_header(&overlay).map_err(|source| ImageError::Qcow2 { path: shown(path), source })?;
    let below = open_chain(base, format, true, follow)?;
    let named = header.backing.as_ref();
    if !named.is_some_and(|named| is_named(path, named, &below[0])) {
        let reason = match named {
            Some(named) => format!("it is an overlay of {:?}, and not of {}", named.name, base.display()),
            None => format!("it is a disk of its own, and no overlay of {}", base.display()),
        };
        return Err(ImageError::Size { path: shown(path), reason });
    }
    let overlay = ChainFile { file: overlay, format: Format::Qcow2, name: shown(path) };
    Ok([overlay].into_iter().chain(below).collect())
}

/// Whether an overlay names this image, in its format.
fn is_named(overlay: &Path, named: &BackingName, base: &ChainFile) -> bool {
    let format = named.format.as_deref().and_then(|word| word.parse().ok());
    let there = backing_path(overlay, &named.name).and_then(|path| std::fs::metadata(path).ok());
    let same = |a: &std::fs::Metadata, b: &std::fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    let here = base.file.metadata().ok();
    format == Some(base.format) && there.zip(here).is_some_and(|(there, here)| same(&there, &here))
}

/// Opens an overlay without a name over the image `base`, in a file of `directory` that is gone
/// with the last descriptor of it.
///
/// # Errors
/// [`ImageError`].
pub fn ephemeral_overlay(
    directory: &Path,
    base: &Path,
    format: Format,
    follow: Follow,
) -> Result<Vec<ChainFile>, ImageError> {
    let name = format!("the ephemeral overlay of {}", base.display());
    let failed = |source| ImageError::Create { path: format!("{name} in {}", directory.display()), source };
    let below = open_chain(base, format, true, follow)?;
    let size = disk_of_chain(copies(&below)?, true)?.len();
    let file = match sys::unnamed(directory, 0o600) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => removed_at_once(directory),
        made => made,
    };
    let file = file.map_err(failed)?;
    let backing =
        // Nobody reads it: the files below are handed over open.
        BackingName { name: "base".to_owned(), format: Some(format.to_string()) };
    let options = CreateOptions {
        size: size.next_multiple_of(SECTOR),
        cluster_bits: CLUSTER_BITS,
        backing: Some(backing),
    };
    let store = file.try_clone().map_err(failed)?;
    qcow2::create(Box::new(store), &options).map_err(|error| match error {
        Qcow2Error::Io(error) => failed(error),
        source => ImageError::Qcow2 { path: name.clone(), source },
    })?;
    crate::raw::lock(&file, false).map_err(|source| ImageError::File { path: name.clone(), source })?;
    let overlay = ChainFile { file, format: Format::Qcow2, name };
    Ok([overlay].into_iter().chain(below).collect())
}

/// A file whose name is removed at once, on file systems that know none without one.
fn removed_at_once(directory: &Path) -> io::Result<File> {
    let path = directory.join(format!(".nelly-overlay-{}", std::process::id()));
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// The same files once more.
fn copies(files: &[ChainFile]) -> Result<Vec<ChainFile>, ImageError> {
    let copy = |of: &ChainFile| {
        let file = of.file.try_clone();
        let file = file.map_err(|source| ImageError::Read { path: of.name.clone(), source })?;
        Ok(ChainFile { file, format: of.format, name: of.name.clone() })
    };
    files.iter().map(copy).collect()
}

/// Makes the disk of a chain that is open for writing at least `bytes` long.
///
/// # Errors
/// [`ImageError`].
pub fn grow_chain(files: &[ChainFile], bytes: u64) -> Result<(), ImageError> {
    let name = files.first().map(|image| image.name.clone()).unwrap_or_default();
    let disk = disk_of_chain(copies(files)?, false)?;
    let refused = |reason: String| ImageError::Size { path: name.clone(), reason };
    if disk.len() >= bytes {
        return Ok(());
    }
    disk.grow(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::FileTooLarge => refused(format!("{bytes} bytes are too large for it")),
        io::ErrorKind::InvalidInput => {
            refused(format!("{bytes} bytes are not a number of whole sectors of 512 bytes"))
        }
        _ => ImageError::Change { path: name.clone(), source: error },
    })
}
