//! The cache directory: its version, locks, and atomic publication of finished files.
//!
//! ```text
//! version               the layout of the cache
//! images/KEY.erofs      metadata of finished images, never changed
//! layers/KEY.data       contents of the files of a layer, never changed
//! layers/KEY.changes    the changes of the layer, published after its data file
//! verified/DIGEST       empty files: the layers of this manifest were verified
//! locks/KEY             locked while KEY is built, removed afterwards
//! scratch/              unfinished files, if the file system does not support O_TMPFILE
//! ```
//!
//! An unfinished file has no name, so nothing is left behind if its builder is killed. All files
//! must belong to the caller or root, and are accessed through file descriptors
//! ([`crate::trusted`]); files of other users are refused, and links are not followed.

mod collect;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{FlockOperation, Mode};
use rustix::io::Errno;
use thiserror::Error;

use crate::digest::Digest;
use crate::erofs::{BLOCK, BLOCK_SIZE, check_superblock};
use crate::lock::{GiveUp, lock_name};
use crate::sys;
use crate::trusted::{TrustError, TrustedDir, io_error};
use crate::version;

/// The contents of the `version` file of a cache directory.
const VERSION: &str = "nelly-cache 1\n";

/// The mode of a file that is finished, and that it has from the beginning: whoever makes it has
/// the only descriptor that writes to it.
const FINISHED: Mode = Mode::RUSR.union(Mode::RGRP).union(Mode::ROTH);

/// Why the cache directory cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CacheError {
    /// A file of the cache cannot be used or is not trusted.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The `version` file is from another version of the program.
    #[error(
        "{} contains {found:?}, but this program supports only {:?}; remove the directory, or choose another with NELLY_HOME",
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

/// A cache directory, which may not exist yet.
#[derive(Debug)]
pub(crate) struct Cache {
    path: PathBuf,
    /// The directory, if it existed when the cache was opened.
    dir: Option<TrustedDir>,
}

/// The open directories of the cache, for adding an image.
#[derive(Debug)]
pub(crate) struct Workshop {
    dir: TrustedDir,
    images: TrustedDir,
    layers: TrustedDir,
    verified: TrustedDir,
    locks: TrustedDir,
    scratch: TrustedDir,
}

/// An image found in the cache: its metadata, then the contents of its layers.
#[derive(Debug)]
pub(crate) struct Cached {
    pub(crate) files: Vec<File>,
    pub(crate) paths: Vec<PathBuf>,
    /// Of all files.
    pub(crate) bytes: u64,
}

/// A layer found in the cache.
#[derive(Debug)]
pub(crate) struct CachedLayer {
    pub(crate) changes: File,
    pub(crate) data_bytes: u64,
}

/// A lock for building one image or layer, released on drop.
#[derive(Debug)]
pub(crate) struct Lock<'a> {
    locks: &'a TrustedDir,
    name: String,
    _file: File,
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        // The file is still locked. A waiting process gets the lock after that, finds that the name
        // is gone, and creates a new file.
        let _ = self.locks.remove(&self.name);
    }
}

/// An unfinished file.
#[derive(Debug)]
pub(crate) struct Scratch<'a> {
    pub(crate) file: File,
    scratch: &'a TrustedDir,
    /// Its name, if the file system does not support files without a name; removed on drop.
    name: Option<String>,
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            let _ = self.scratch.remove(name);
        }
    }
}

impl Scratch<'_> {
    /// The file, opened for reading only.
    pub(crate) fn read_only(&self) -> Result<File, CacheError> {
        match &self.name {
            Some(name) => Ok(self
                .scratch
                .read(name)?
                .ok_or_else(|| io_error("open", &self.scratch.path().join(name), Errno::NOENT))?),
            None => Ok(sys::reopen_read_only(&self.file)
                .map_err(|source| io_error("reopen a file in", self.scratch.path(), source))?),
        }
    }
}

/// Checks the version of `dir`. False if it has no version file.
fn check_version(dir: &TrustedDir) -> Result<bool, CacheError> {
    match version::read(dir)? {
        None => Ok(false),
        Some(found) if found == VERSION.as_bytes() => Ok(true),
        Some(found) => {
            let (path, found) = (dir.path().join(version::NAME), version::shown(&found));
            Err(CacheError::Version { path, found })
        }
    }
}

fn image_name(key: &Digest) -> String {
    format!("{}.erofs", key.hex())
}

fn manifest_name(manifest: &Digest) -> String {
    format!("{}-{}", manifest.algorithm(), manifest.hex())
}

/// Whether the layers of this manifest were verified.
fn was_verified(verified: &TrustedDir, manifest: &Digest) -> Result<bool, CacheError> {
    Ok(verified.read(manifest_name(manifest))?.is_some())
}

fn data_name(layer: &Digest) -> String {
    format!("{}.data", layer.hex())
}

fn changes_name(layer: &Digest) -> String {
    format!("{}.changes", layer.hex())
}

/// One of an image's files.
struct Part {
    file: File,
    bytes: u64,
    path: PathBuf,
}

/// The file of this name, if it is there and has whole blocks.
fn part_in(dir: &TrustedDir, name: &str) -> Result<Option<Part>, CacheError> {
    let Some(file) = dir.read(name)? else { return Ok(None) };
    let path = dir.path().join(name);
    let bytes = file.metadata().map_err(|source| io_error("look at", &path, source))?.len();
    Ok((bytes % BLOCK == 0).then_some(Part { file, bytes, path }))
}

/// The image of this key and these layers, if all of it is there and whole.
fn find_in(
    images: &TrustedDir,
    layers: &TrustedDir,
    key: &Digest,
    layer_keys: &[Digest],
) -> Result<Option<Cached>, CacheError> {
    let Some(Part { file, mut bytes, path }) = part_in(images, &image_name(key))? else { return Ok(None) };
    let mut block = [0; BLOCK_SIZE];
    if file.read_exact_at(&mut block, 0).is_err() {
        return Ok(None);
    }
    let (mut files, mut paths) = (vec![file], vec![path]);
    for layer in layer_keys {
        let Some(part) = part_in(layers, &data_name(layer))? else { return Ok(None) };
        bytes = bytes.saturating_add(part.bytes);
        if part.bytes > 0 {
            files.push(part.file);
            paths.push(part.path);
        }
    }
    Ok(check_superblock(&block, bytes).then_some(Cached { files, paths, bytes }))
}

impl Cache {
    /// Opens `path` if it exists, and checks its version file, if there is one.
    pub(crate) fn open(path: &Path) -> Result<Self, CacheError> {
        let dir = TrustedDir::open(path)?;
        if let Some(dir) = &dir {
            check_version(dir)?;
        }
        Ok(Self { path: path.to_owned(), dir })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the files of the image of this key and these layers belong.
    pub(crate) fn image_paths(&self, key: &Digest, layer_keys: &[Digest]) -> Vec<PathBuf> {
        let layers = self.path.join("layers");
        let mut paths = vec![self.path.join("images").join(image_name(key))];
        paths.extend(layer_keys.iter().map(|layer| layers.join(data_name(layer))));
        paths
    }

    /// The image of this key and these layers, if it is there and whole, and was there when the
    /// cache was opened.
    pub(crate) fn find(&self, key: &Digest, layer_keys: &[Digest]) -> Result<Option<Cached>, CacheError> {
        let Some(dir) = &self.dir else { return Ok(None) };
        let Some(images) = dir.subdirectory("images")? else { return Ok(None) };
        let Some(layers) = dir.subdirectory("layers")? else { return Ok(None) };
        find_in(&images, &layers, key, layer_keys)
    }

    /// Whether the layers of this manifest were verified.
    pub(crate) fn has_verified(&self, manifest: &Digest) -> Result<bool, CacheError> {
        let Some(dir) = &self.dir else { return Ok(false) };
        let Some(verified) = dir.subdirectory("verified")? else { return Ok(false) };
        was_verified(&verified, manifest)
    }

    /// Creates the directories and the version file.
    pub(crate) fn prepare(&self) -> Result<Workshop, CacheError> {
        let dir = TrustedDir::make(&self.path)?;
        let versioned = check_version(&dir)?;
        let [images, layers, verified, locks, scratch] =
            ["images", "layers", "verified", "locks", "scratch"].map(|name| dir.make_subdirectory(name));
        let workshop = Workshop {
            dir,
            images: images?,
            layers: layers?,
            verified: verified?,
            locks: locks?,
            scratch: scratch?,
        };
        if !versioned {
            workshop.write_version()?;
        }
        Ok(workshop)
    }
}

impl Workshop {
    fn write_version(&self) -> Result<(), CacheError> {
        let path = self.dir.path().join("version");
        let scratch = self.scratch("version")?;
        scratch
            .file
            .write_all_at(VERSION.as_bytes(), 0)
            .map_err(|source| io_error("write", &path, source))?;
        match link(scratch, &self.dir, "version") {
            // Another process was faster and wrote the same contents.
            Err(TrustError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => Ok(other?),
        }
    }

    /// The image of this key and these layers, if it is there and whole.
    pub(crate) fn find(&self, key: &Digest, layer_keys: &[Digest]) -> Result<Option<Cached>, CacheError> {
        find_in(&self.images, &self.layers, key, layer_keys)
    }

    /// The layer of this key, if both of its files are there.
    pub(crate) fn find_layer(&self, layer: &Digest) -> Result<Option<CachedLayer>, CacheError> {
        let Some(changes) = self.layers.read(changes_name(layer))? else { return Ok(None) };
        let data = part_in(&self.layers, &data_name(layer))?;
        Ok(data.map(|data| CachedLayer { changes, data_bytes: data.bytes }))
    }

    /// Removes a layer that is damaged.
    pub(crate) fn remove_layer(&self, _lock: &Lock<'_>, layer: &Digest) -> Result<(), CacheError> {
        self.layers.remove(changes_name(layer))?;
        self.layers.remove(data_name(layer))?;
        Ok(())
    }

    /// Whether the layers of this manifest were verified.
    pub(crate) fn has_verified(&self, manifest: &Digest) -> Result<bool, CacheError> {
        was_verified(&self.verified, manifest)
    }

    /// Records that the layers of this manifest were verified.
    pub(crate) fn remember(&self, manifest: &Digest) -> Result<(), CacheError> {
        self.verified.open_or_make(&manifest_name(manifest))?;
        Ok(())
    }

    /// How much an image may write.
    pub(crate) fn room(&self) -> Result<sys::Room, CacheError> {
        let path = self.dir.path();
        Ok(sys::Room::of(&self.dir).map_err(|source| io_error("look at the file system of", path, source))?)
    }

    /// Locks the image or layer with this key for building. If another process holds the lock,
    /// `give_up` is asked while waiting; `None` if it says so.
    pub(crate) fn lock(
        &self,
        key: &Digest,
        give_up: &mut GiveUp<'_>,
    ) -> Result<Option<Lock<'_>>, CacheError> {
        let name = key.hex();
        let Some(file) = lock_name(&self.locks, &name, give_up)? else { return Ok(None) };
        let lock = Lock { locks: &self.locks, name, _file: file };
        self.remove_stale(&key.hex());
        self.sweep(&lock);
        Ok(Some(lock))
    }

    /// Takes over the locks of killed builders and removes their files.
    fn sweep(&self, own: &Lock<'_>) {
        let Ok(names) = self.locks.names() else { return };
        for name in names.into_iter().filter(|name| *name != *own.name) {
            let Ok(Some(file)) = self.locks.read(&name) else { continue };
            let name = name.to_string_lossy().into_owned();
            // A name that leads to another file by now is another process's lock.
            let lock = || rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
            if rustix::io::retry_on_intr(lock).is_ok() && self.locks.leads_to(&name, &file).unwrap_or(false) {
                self.remove_stale(&name);
                // A process that has just opened it finds the name gone and creates a new file.
                drop(Lock { locks: &self.locks, name, _file: file });
            }
        }
    }

    /// Removes the files of a killed builder. Only the holder of the lock creates files with this
    /// prefix.
    fn remove_stale(&self, prefix: &str) {
        let Ok(names) = self.scratch.names() else { return };
        for name in names.iter().filter(|name| name.to_string_lossy().starts_with(prefix)) {
            let _ = self.scratch.remove(name);
        }
    }

    /// A new empty file, without a name if possible, otherwise with a name that begins with
    /// `prefix`.
    pub(crate) fn scratch(&self, prefix: &str) -> Result<Scratch<'_>, CacheError> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let scratch = &self.scratch;
        match sys::nameless(scratch, FINISHED) {
            Ok(file) => return Ok(Scratch { file, scratch, name: None }),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(source) => return Err(io_error("create a file in", scratch.path(), source).into()),
        }
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{prefix}.{}.{count}", std::process::id());
        Ok(Scratch { file: scratch.make_new_as(&name, FINISHED)?, scratch, name: Some(name) })
    }

    /// A new empty file that will not get a name.
    pub(crate) fn spool(&self) -> Result<File, CacheError> {
        let scratch = self.scratch("spool")?;
        // The name, if there is one, is removed here; the file descriptor stays open.
        Ok(scratch
            .file
            .try_clone()
            .map_err(|source| io_error("open a file in", self.scratch.path(), source))?)
    }

    /// Publishes the metadata of a finished image, whose layers were published before. The lock
    /// proves that no other process does the same. `None` if a layer is gone by now.
    pub(crate) fn publish(
        &self,
        _lock: &Lock<'_>,
        key: &Digest,
        layer_keys: &[Digest],
        scratch: Scratch<'_>,
    ) -> Result<Option<Cached>, CacheError> {
        publish(scratch, &self.images, &image_name(key))?;
        self.find(key, layer_keys)
    }

    /// Publishes a finished layer: its contents first, so that whoever finds its changes finds
    /// both.
    pub(crate) fn publish_layer(
        &self,
        lock: &Lock<'_>,
        layer: &Digest,
        data: Scratch<'_>,
        changes: Scratch<'_>,
    ) -> Result<(), CacheError> {
        // What is there is damaged, or it would have been used.
        self.remove_layer(lock, layer)?;
        publish(data, &self.layers, &data_name(layer))?;
        publish(changes, &self.layers, &changes_name(layer))
    }
}

/// Gives a finished file its name for good. Its bytes are on the disk before: a crash of the host
/// could leave a name with less than the whole file behind it otherwise.
fn publish(scratch: Scratch<'_>, dir: &TrustedDir, name: &str) -> Result<(), CacheError> {
    let path = dir.path().join(name);
    scratch.file.sync_data().map_err(|source| io_error("sync", &path, source))?;
    dir.remove(name)?;
    Ok(link(scratch, dir, name)?)
}

/// Links a finished file to its name.
fn link(mut scratch: Scratch<'_>, dir: &TrustedDir, name: &str) -> Result<(), TrustError> {
    let linked = match scratch.name.take() {
        None => sys::publish(&scratch.file, dir, name),
        Some(old) => rustix::fs::renameat(scratch.scratch, old, dir, name).map_err(io::Error::from),
    };
    linked.map_err(|source| io_error("create", &dir.path().join(name), source))
}

#[cfg(test)]
mod tests;
