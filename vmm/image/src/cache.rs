//! The cache directory: its version, locks, and atomic publication of finished images.
//!
//! ```text
//! version               which layout this is
//! images/KEY.erofs      finished images, never changed
//! locks/KEY             held while KEY is built, removed afterwards
//! scratch/              images in the making, where the file system has no files without names
//! ```
//!
//! An image in the making has no name: whatever kills its maker, nothing stays.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use thiserror::Error;

use crate::digest::Digest;
use crate::erofs::{BLOCK_SIZE, check_superblock};
use crate::sys;

/// What the `version` file of a cache directory holds.
const VERSION: &str = "nelly-cache 1\n";

/// Why the cache directory cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CacheError {
    /// A system call on a file of the cache failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as in "cannot open".
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The `version` file is of another program version.
    #[error(
        "{} says {found:?}, and this program knows only {:?}; remove the directory or name another",
        path.display(),
        VERSION.trim_end()
    )]
    Version {
        /// The `version` file.
        path: PathBuf,
        /// Its first bytes.
        found: String,
    },
}

fn io_error(action: &'static str, path: &Path, source: io::Error) -> CacheError {
    CacheError::Io { action, path: path.to_owned(), source }
}

/// A cache directory, which need not exist yet.
#[derive(Debug)]
pub(crate) struct Cache {
    dir: PathBuf,
}

/// An image found in the cache.
#[derive(Debug)]
pub(crate) struct Cached {
    pub(crate) file: File,
    pub(crate) bytes: u64,
    pub(crate) path: PathBuf,
}

/// Holds the right to build one image, until dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    path: PathBuf,
    _file: File,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Still locked: whoever waits finds after its turn comes that the name is gone, and takes a new file.
        let _ = fs::remove_file(&self.path);
    }
}

/// A file in the making.
#[derive(Debug)]
pub(crate) struct Scratch {
    pub(crate) file: File,
    /// Its name, where files without one do not exist; removed on drop.
    name: Option<PathBuf>,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            let _ = fs::remove_file(name);
        }
    }
}

impl Scratch {
    /// The file, for reading only.
    pub(crate) fn read_only(&self) -> io::Result<File> {
        match &self.name {
            Some(name) => File::open(name),
            None => sys::reopen_read_only(&self.file),
        }
    }
}

impl Cache {
    /// Checks the version of `dir` if it has one.
    pub(crate) fn open(dir: &Path) -> Result<Self, CacheError> {
        let path = dir.join("version");
        let mut found = Vec::new();
        match File::open(&path) {
            Ok(file) => {
                file.take(64).read_to_end(&mut found).map_err(|source| io_error("read", &path, source))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => found.extend(VERSION.as_bytes()),
            Err(source) => return Err(io_error("open", &path, source)),
        }
        if found != VERSION.as_bytes() {
            let found = String::from_utf8_lossy(&found).trim_end().to_owned();
            return Err(CacheError::Version { path, found });
        }
        Ok(Self { dir: dir.to_owned() })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the image of this key belongs.
    pub(crate) fn image_path(&self, key: &Digest) -> PathBuf {
        self.dir.join("images").join(format!("{}.erofs", key.hex()))
    }

    /// The image of this key, if it is there and whole.
    pub(crate) fn find(&self, key: &Digest) -> Result<Option<Cached>, CacheError> {
        let path = self.image_path(key);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(io_error("open", &path, source)),
        };
        let metadata = file.metadata().map_err(|source| io_error("look at", &path, source))?;
        let mut block = [0; BLOCK_SIZE];
        let whole = metadata.is_file()
            && file.read_exact_at(&mut block, 0).is_ok()
            && check_superblock(&block, metadata.len());
        Ok(whole.then(|| Cached { file, bytes: metadata.len(), path }))
    }

    /// Makes the directories and the version file.
    pub(crate) fn prepare(&self) -> Result<(), CacheError> {
        for name in ["images", "locks", "scratch"] {
            let path = self.dir.join(name);
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(|source| io_error("create", &path, source))?;
        }
        let path = self.dir.join("version");
        if path.exists() {
            return Ok(());
        }
        let scratch = self.scratch("version")?;
        scratch
            .file
            .write_all_at(VERSION.as_bytes(), 0)
            .map_err(|source| io_error("write", &path, source))?;
        match self.link(scratch, &path) {
            // Another process was faster; it wrote the same.
            Err(CacheError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    /// The right to build the image of this key. `waiting` is called once if another process has it.
    pub(crate) fn lock(&self, key: &Digest, waiting: &mut dyn FnMut()) -> Result<Lock, CacheError> {
        let path = self.dir.join("locks").join(key.hex());
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .map_err(|source| io_error("open", &path, source))?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => {
                    waiting();
                    rustix::io::retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::LockExclusive))
                        .map_err(|error| io_error("lock", &path, error.into()))?;
                }
                Err(error) => return Err(io_error("lock", &path, error.into())),
            }
            // The one who had it removed the name; only the file that has it counts.
            let ours = file.metadata().map_err(|source| io_error("look at", &path, source))?;
            if fs::metadata(&path).is_ok_and(|named| named.ino() == ours.ino() && named.dev() == ours.dev()) {
                let lock = Lock { path, _file: file };
                self.remove_stale(&key.hex());
                self.sweep(&lock);
                return Ok(lock);
            }
        }
    }

    /// Takes the locks that killed builders left, and removes what belongs to them.
    fn sweep(&self, own: &Lock) {
        let Ok(list) = fs::read_dir(self.dir.join("locks")) else { return };
        for entry in list.flatten().filter(|entry| entry.path() != own.path) {
            let Ok(file) = File::open(entry.path()) else { continue };
            if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                self.remove_stale(&entry.file_name().to_string_lossy());
                // Whoever opened it just now finds the name gone, and takes a new file.
                drop(Lock { path: entry.path(), _file: file });
            }
        }
    }

    /// Removes what a killed builder left. Only the holder of the lock makes files of this prefix.
    fn remove_stale(&self, prefix: &str) {
        let Ok(list) = fs::read_dir(self.dir.join("scratch")) else { return };
        for entry in list.flatten() {
            if entry.file_name().to_string_lossy().starts_with(prefix) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// A new empty file, without a name where that can be, else one that begins with `prefix`.
    pub(crate) fn scratch(&self, prefix: &str) -> Result<Scratch, CacheError> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let dir = self.dir.join("scratch");
        match sys::nameless(&dir) {
            Ok(file) => return Ok(Scratch { file, name: None }),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(source) => return Err(io_error("create a file in", &dir, source)),
        }
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!("{prefix}.{}.{count}", std::process::id()));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|source| io_error("create", &path, source))?;
        Ok(Scratch { file, name: Some(path) })
    }

    /// A new empty file that nobody will name.
    pub(crate) fn spool(&self) -> Result<File, CacheError> {
        let scratch = self.scratch("spool")?;
        let path = scratch.name.as_deref().unwrap_or(&self.dir);
        // The name goes here, where there is one; the descriptor stays.
        scratch.file.try_clone().map_err(|source| io_error("open", path, source))
    }

    /// Gives a finished file its name.
    fn link(&self, mut scratch: Scratch, path: &Path) -> Result<(), CacheError> {
        match scratch.name.take() {
            None => sys::publish(&scratch.file, path).map_err(|source| io_error("create", path, source)),
            Some(name) => fs::rename(name, path).map_err(|source| io_error("create", path, source)),
        }
    }

    /// Publishes a finished image, whose bytes are on the disk afterwards. The lock proves that nobody else does.
    pub(crate) fn publish(&self, _lock: &Lock, key: &Digest, scratch: Scratch) -> Result<Cached, CacheError> {
        let path = self.image_path(key);
        rustix::fs::fchmod(&scratch.file, rustix::fs::Mode::from_raw_mode(0o444))
            .map_err(|error| io_error("change the mode of", &path, error.into()))?;
        // Without this a crash of the host could leave a name with less than the whole file behind it.
        scratch.file.sync_data().map_err(|source| io_error("sync", &path, source))?;
        // What is there is damaged, or it would have been used.
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(io_error("replace", &path, source)),
        }
        self.link(scratch, &path)?;
        match self.find(key)? {
            Some(cached) => Ok(cached),
            None => Err(io_error("read back", &path, io::ErrorKind::InvalidData.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_version_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        Cache::open(dir.path()).unwrap().prepare().unwrap();
        Cache::open(dir.path()).unwrap();
        for found in ["", "nelly-cache 2\n", &"x".repeat(1000)] {
            fs::write(dir.path().join("version"), found).unwrap();
            assert!(matches!(Cache::open(dir.path()), Err(CacheError::Version { .. })), "{found}");
        }
    }

    #[test]
    fn a_directory_that_does_not_exist_stays_so() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("a/b");
        let cache = Cache::open(&missing).unwrap();
        assert!(cache.find(&Digest::sha256(b"")).unwrap().is_none());
        assert!(!missing.exists());
    }

    #[test]
    fn one_lock_at_a_time_and_no_file_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        cache.prepare().unwrap();
        let key = Digest::sha256(b"k");
        let inside = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let lock = cache.lock(&key, &mut || ()).unwrap();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        std::thread::yield_now();
                        assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1);
                        drop(lock);
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(dir.path().join("locks")).unwrap().count(), 0);
    }

    #[test]
    fn stale_files_go_when_the_lock_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        cache.prepare().unwrap();
        let (key, other) = (Digest::sha256(b"k"), Digest::sha256(b"other"));
        let (dead, path) =
            (Digest::sha256(b"dead"), |key: &Digest| dir.path().join("scratch").join(key.hex()));
        let scratch = |key: &Digest| path(key).with_extension("1.0");
        let held = cache.lock(&other, &mut || ()).unwrap();
        for key in [&key, &other, &dead] {
            fs::write(scratch(key), "x").unwrap();
        }
        // A killed process leaves its lock's name, and nobody holds it.
        let name = dir.path().join("locks").join(dead.hex());
        fs::write(&name, "").unwrap();
        let _lock = cache.lock(&key, &mut || ()).unwrap();
        assert!(!scratch(&key).exists() && !scratch(&dead).exists() && !name.exists());
        assert!(scratch(&other).exists() && held.path.exists());
    }
}
