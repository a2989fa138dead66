//! The images that are kept: which there are, what lies above them, and how one is removed.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nelly_disk::{Format, alone, image_info};
use nelly_image::Digest;
use nelly_image::trusted::TrustedDir;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::cache::{DOWNLOAD, DiskCache, ENTRY};
use crate::download::Part;
use crate::error::{FetchError, of_file};
use crate::look::DiskFormat;
use crate::watch::Unwatched;

/// The file that tells which overlays were made, a line each.
const OVERLAYS: &str = "overlays";
/// Most bytes of it.
const OVERLAYS_MAX: u64 = 16 << 20;

/// An image that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptDisk {
    /// Its file.
    pub path: PathBuf,
    /// Its name, for people: what it was called where it came from.
    pub name: String,
    /// Its format.
    pub format: DiskFormat,
    /// The SHA-256 digest of what came, before it was unpacked.
    pub sha256: Digest,
    /// Bytes of the file.
    pub bytes: u64,
    /// Bytes that it takes on this host.
    pub allocated: u64,
    /// When it came.
    pub modified: SystemTime,
}

/// Why an image was not removed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KeptError {
    /// Something needs it.
    #[error("{} is in use: {by}", path.display())]
    InUse {
        /// The image.
        path: PathBuf,
        /// What needs it.
        by: String,
    },
    /// A file cannot be used.
    #[error(transparent)]
    Files(#[from] FetchError),
}

/// An overlay that was to be made.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Above {
    /// The image's file, in the same directory.
    file: String,
    overlay: PathBuf,
}

impl DiskCache {
    /// All images, the youngest first.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn list(&self) -> Result<Vec<KeptDisk>, FetchError> {
        let Some(top) = TrustedDir::open(self.dir())? else { return Ok(Vec::new()) };
        let mut disks = Vec::new();
        for place in top.names().map_err(of_file(self.dir()))? {
            let path = self.dir().join(&place);
            let Some(place) = place.to_str() else { continue };
            // Somebody may have put a file there, or removed it meanwhile.
            let Ok(Some(place)) = top.subdirectory(place) else { continue };
            for name in place.names().map_err(of_file(&path))? {
                disks.extend(name.to_str().and_then(|name| kept(&path, name)));
            }
        }
        disks.sort_by(|one, two| (two.modified, &two.path).cmp(&(one.modified, &one.path)));
        Ok(disks)
    }

    /// Remembers that `overlay` will lie above `disk`, if that is one of these images: then
    /// [`DiskCache::remove`] does not remove it as long as the overlay is there.
    ///
    /// # Errors
    /// It cannot be written down.
    pub fn note_overlay(&self, disk: &Path, overlay: &Path) -> Result<(), FetchError> {
        // By its own name, whatever link or working directory leads to it. What cannot be found is
        // none of these, and is refused by whoever opens it.
        let Ok(disk) = disk.canonicalize() else { return Ok(()) };
        let (Some(place), Some(name)) = (disk.parent(), disk.file_name().and_then(|name| name.to_str()))
        else {
            return Ok(());
        };
        if kept(place, name).is_none() || place.parent().is_none_or(|top| !same(top, self.dir())) {
            return Ok(());
        }
        let path = place.join(OVERLAYS);
        let overlay = std::path::absolute(overlay).map_err(of_file(overlay))?;
        let above = Above { file: name.to_owned(), overlay };
        if noted(&path)?.contains(&above) {
            return Ok(());
        }
        let mut line = serde_json::to_vec(&above).map_err(|error| of_file(&path)(error.into()))?;
        line.push(b'\n');
        let mut file =
            File::options().create(true).append(true).mode(0o600).open(&path).map_err(of_file(&path))?;
        // In one piece, so that lines of others are not torn.
        file.write_all(&line).map_err(of_file(&path))
    }

    /// Removes an image; how many bytes are free then.
    ///
    /// # Errors
    /// It is open, or an overlay that was noted lies above it.
    pub fn remove(&self, disk: &KeptDisk, over: &dyn Fn() -> bool) -> Result<u64, KeptError> {
        let place = disk.path.parent().unwrap_or(self.dir());
        TrustedDir::make(place).map_err(FetchError::from)?;
        // Whoever fetches it again waits, or is waited for.
        let part = Part::of(&place.join(DOWNLOAD), &mut Unwatched, over)?;
        let removed = self.remove_locked(disk, place);
        part.clear();
        if removed.is_ok() && !self.list()?.iter().any(|other| other.path.starts_with(place)) {
            // Nobody needs what is left: overlays were noted of images that are gone.
            for name in [OVERLAYS, ENTRY] {
                gone(std::fs::remove_file(place.join(name))).map_err(of_file(place))?;
            }
            // Unless a download was begun meanwhile.
            let _ = std::fs::remove_dir(place);
        }
        removed
    }

    fn remove_locked(&self, disk: &KeptDisk, place: &Path) -> Result<u64, KeptError> {
        let failed = of_file(&disk.path);
        let in_use = |by: String| KeptError::InUse { path: disk.path.clone(), by };
        let image = |source| FetchError::Image { what: disk.path.display().to_string(), source };
        let Some(file) = alone(&disk.path).map_err(image)? else {
            return Err(in_use("a machine runs with it, or another program has it open".to_owned()));
        };
        for above in noted(&place.join(OVERLAYS))? {
            if disk.path.file_name().is_some_and(|name| name == above.file.as_str())
                && lies_above(&above.overlay, &file)
            {
                return Err(in_use(format!("the disk {} lies above it", above.overlay.display())));
            }
        }
        let bytes = file.metadata().map_err(&failed)?.blocks().saturating_mul(512);
        std::fs::remove_file(&disk.path).map_err(&failed)?;
        Ok(bytes)
    }
}

/// A file of a place, if it is an image: its name ends with a digest and a format.
fn kept(place: &Path, file: &str) -> Option<KeptDisk> {
    let (stem, format) = file.rsplit_once('.')?;
    let format = DiskFormat::of_word(format)?;
    let (own, hex) = stem.rsplit_once('-')?;
    let sha256 = format!("sha256:{hex}").parse().ok()?;
    let path = place.join(file);
    let meta = std::fs::symlink_metadata(&path).ok().filter(std::fs::Metadata::is_file)?;
    Some(KeptDisk {
        path,
        name: format!("{own}.{}", format.word()),
        format,
        sha256,
        bytes: meta.len(),
        allocated: meta.blocks().saturating_mul(512),
        modified: meta.modified().ok()?,
    })
}

/// Which overlays were noted.
fn noted(path: &Path) -> Result<Vec<Above>, FetchError> {
    let mut text = Vec::new();
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(of_file(path)(error)),
    };
    file.take(OVERLAYS_MAX + 1).read_to_end(&mut text).map_err(of_file(path))?;
    if text.len() as u64 > OVERLAYS_MAX {
        return Err(of_file(path)(std::io::ErrorKind::FileTooLarge.into()));
    }
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let read = lines.map(|line| serde_json::from_slice(line).map_err(|error| of_file(path)(error.into())));
    read.collect()
}

/// Whether the image at `overlay` lies above `disk`, as far as that can be told.
fn lies_above(overlay: &Path, disk: &File) -> bool {
    let info = match image_info(overlay, Format::Qcow2) {
        Ok(info) => info,
        // One that is gone is none; one that cannot be read may be one.
        Err(_) => return std::fs::symlink_metadata(overlay).is_ok(),
    };
    let Some(backing) = info.header.and_then(|header| header.backing) else { return false };
    let backing = overlay.parent().unwrap_or(Path::new("/")).join(backing.name);
    match (std::fs::metadata(backing), disk.metadata()) {
        (Ok(one), Ok(two)) => (one.dev(), one.ino()) == (two.dev(), two.ino()),
        _ => false,
    }
}

fn same(one: &Path, two: &Path) -> bool {
    match (std::fs::metadata(one), std::fs::metadata(two)) {
        (Ok(one), Ok(two)) => (one.dev(), one.ino()) == (two.dev(), two.ino()),
        _ => false,
    }
}

/// What is gone was removed.
fn gone(removed: std::io::Result<()>) -> std::io::Result<()> {
    match removed {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
