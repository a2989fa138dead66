//! The disk of a kept sandbox's writable layer: a sparse file that begins as a copy of an ext4 file
//! system made at build, and that the agent's mount grows to its size. No mkfs runs on the host.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::spec::quantity;

/// File name of the disk, in the sandbox's directory.
pub const DISK: &str = "disk.raw";

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// Beyond what a disk may have.
    #[error("a storage of {} is not possible: 64M to 16T, in whole mebibytes, are", quantity::show_bytes(*.0))]
    Size(u64),
    /// The template cannot be read.
    #[error("cannot read the storage template {}; it is a part of the installation", .path.display())]
    Template {
        /// The template.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The template is another file.
    #[error("{} is no ext4 file system of at most {}; it is a part of the installation", .0.display(), quantity::show_bytes(StorageSize::MIN))]
    NoTemplate(PathBuf),
    /// The disk cannot be written.
    #[error("cannot make the disk {}", .path.display())]
    Disk {
        /// The disk.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// How large a writable layer's disk is: 64 MiB to 16 TiB, in whole mebibytes. It is what the guest
/// sees; the host's file is sparse and takes what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StorageSize(u64);

impl StorageSize {
    /// The size of the template.
    const MIN: u64 = 64 << 20;
    /// What the largest file of a host's ext4 has.
    const MAX: u64 = 16 << 40;

    /// A disk of so many bytes.
    ///
    /// # Errors
    /// [`StorageError::Size`].
    pub fn new(bytes: u64) -> Result<Self, StorageError> {
        let fits = (Self::MIN..=Self::MAX).contains(&bytes) && bytes.is_multiple_of(1 << 20);
        if fits { Ok(Self(bytes)) } else { Err(StorageError::Size(bytes)) }
    }

    /// The bytes.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }
}

impl Default for StorageSize {
    /// 8 GiB.
    fn default() -> Self {
        Self(8 << 30)
    }
}

/// Makes the disk `path`, which must not exist, from the template of an installation. It is on the
/// host's disk when this returns (its name is, once the directory was synced), and open for reading
/// and writing, readable by its owner alone.
///
/// # Errors
/// [`StorageError`]; nothing is left at `path` then, unless it was there.
pub fn create(template: &Path, path: &Path, size: StorageSize) -> Result<File, StorageError> {
    let source = open_template(template)?;
    let failed = |source| StorageError::Disk { path: path.to_owned(), source };
    let disk = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
    let disk = disk.map_err(failed)?;
    let filled = fill(&source, &disk, size);
    filled.inspect_err(|_| drop(fs::remove_file(path))).map_err(failed)?;
    Ok(disk)
}

fn open_template(path: &Path) -> Result<File, StorageError> {
    /// Where a superblock has its magic number, and which (kernel: fs/ext4/ext4.h).
    const MAGIC_AT: u64 = 1024 + 56;
    const MAGIC: [u8; 2] = 0xef53_u16.to_le_bytes();
    let failed = |source| StorageError::Template { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    let mut magic = [0; 2];
    let sized = found.is_file() && (MAGIC_AT + 2..=StorageSize::MIN).contains(&found.len());
    if !sized || file.read_exact_at(&mut magic, MAGIC_AT).map_err(failed).map(|()| magic)? != MAGIC {
        return Err(StorageError::NoTemplate(path.to_owned()));
    }
    Ok(file)
}

/// Copies what is not zero, a few dozen KiB: less than a reflink is worth. The template may have
/// lost its holes on its way here.
fn fill(template: &File, disk: &File, size: StorageSize) -> io::Result<()> {
    const BLOCK: usize = 4096;
    let mut at = 0;
    let mut block = [0; BLOCK];
    while let Some(data) = next_data(template, at)? {
        at = data - data % BLOCK as u64;
        let read = template.read_at(&mut block, at)?;
        if read == 0 {
            break;
        }
        let (bytes, _) = block.split_at(read);
        if bytes.iter().any(|byte| *byte != 0) {
            disk.write_all_at(bytes, at)?;
        }
        at += read as u64;
    }
    disk.set_len(size.get())?;
    disk.sync_all()
}

/// The first byte from `at` on that is no hole.
fn next_data(file: &File, at: u64) -> io::Result<Option<u64>> {
    match seek(file, SeekFrom::Data(at)) {
        Ok(data) => Ok(Some(data)),
        Err(Errno::NXIO) => Ok(None),
        // A file system that knows no holes.
        Err(Errno::INVAL) => Ok(Some(at)),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    fn template(at: &Path) -> PathBuf {
        let path = at.join("storage.ext4");
        let file = File::create(&path).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(&0xef53_u16.to_le_bytes(), 1080).unwrap();
        file.write_all_at(b"middle", (40 << 20) - 3).unwrap();
        file.write_all_at(b"end", (64 << 20) - 3).unwrap();
        // Zeros that are no hole.
        file.write_all_at(&[0; 1 << 20], 8 << 20).unwrap();
        path
    }

    #[test]
    fn a_disk_is_a_sparse_copy_of_its_own_size() {
        let top = tempfile::tempdir().unwrap();
        let (template, path) = (template(top.path()), top.path().join("disk.raw"));
        let size = StorageSize::new(100 << 30).unwrap();
        let disk = create(&template, &path, size).unwrap();
        let found = disk.metadata().unwrap();
        assert_eq!((found.len(), found.permissions().mode() & 0o777), (100 << 30, 0o600));
        assert!(found.blocks() * 512 <= 64 << 10, "{} blocks", found.blocks());
        let mut copied = vec![0; 64 << 20];
        disk.read_exact_at(&mut copied, 0).unwrap();
        assert!(copied == fs::read(&template).unwrap());
        // Nobody's disk is overwritten, nor removed.
        let error = create(&template, &path, size).unwrap_err();
        assert!(error.to_string().contains("disk.raw") && path.exists(), "{error}");
    }

    #[test]
    fn what_fails_leaves_nothing_and_says_which_file() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("disk.raw");
        let size = StorageSize::default();
        let wrong = top.path().join("wrong");
        fs::write(&wrong, [7; 4096]).unwrap();
        let large = top.path().join("large");
        File::create(&large).unwrap().set_len(65 << 20).unwrap();
        for (template, word) in [
            (top.path().join("absent"), "absent"),
            (wrong, "no ext4"),
            (large, "at most 64M"),
            (top.path().to_owned(), "no ext4"),
        ] {
            let error = create(&template, &path, size).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("installation"), "{error}");
            assert!(!path.exists());
        }
        let template = template(top.path());
        let nowhere = top.path().join("no/such/disk.raw");
        let error = create(&template, &nowhere, size).unwrap_err().to_string();
        assert!(error.contains("no/such/disk.raw"), "{error}");
    }

    #[test]
    fn sizes_have_bounds() {
        assert_eq!(StorageSize::default().get(), 8 << 30);
        for bytes in [64 << 20, 100 << 20, 1 << 40, 16 << 40] {
            assert_eq!(StorageSize::new(bytes).unwrap().get(), bytes);
        }
        for bytes in [0, 1 << 20, (64 << 20) + 512, (16 << 40) + (1 << 20), u64::MAX] {
            let error = StorageSize::new(bytes).unwrap_err().to_string();
            assert!(error.contains("64M to 16T"), "{error}");
        }
    }
}
