//! Adding images to the local store: blobs, then the name.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{FlockOperation, Mode};

use super::{INDEX, INDEX_MAX, LocalError, VERSION, check_version, read_index};
use crate::descriptor::Descriptor;
use crate::digest::{Digest, Hasher};
use crate::lock::{GiveUp, lock, lock_name};
use crate::name::ImageName;
use crate::num::to_u64;
use crate::sys;
use crate::trusted::{TrustError, TrustedDir, io_error};
use crate::version;

/// Bytes read at a time.
const CHUNK: usize = 1 << 20;

/// The store, opened for adding images. Threads and processes add at the same time.
#[derive(Debug)]
pub struct Adding {
    dir: TrustedDir,
    blobs: TrustedDir,
    partial: TrustedDir,
    /// Locked together with all others who add.
    _adding: File,
    /// What was not there before.
    added: Mutex<HashSet<Digest>>,
}

/// What became of a wish to write a blob.
#[derive(Debug)]
pub enum Begun<'a> {
    /// The blob is there already.
    There,
    /// It is to be written, from [`Ingest::offset`] on.
    Write(Box<Ingest<'a>>),
    /// Another process writes it, and the caller gave up waiting.
    GaveUp,
}

/// A blob that is being written. If it is dropped before it is finished, or its process killed,
/// then what was written stays and is resumed.
#[derive(Debug)]
pub struct Ingest<'a> {
    adding: &'a Adding,
    file: File,
    name: String,
    digest: Digest,
    size: u64,
    offset: u64,
    hasher: Hasher,
}

/// Holds the lock of `index.json`.
pub(super) struct IndexLock(#[expect(dead_code, reason = "the lock ends with the file")] File);

/// Waits for the lock of `index.json`, which is held for moments only.
pub(super) fn lock_index(dir: &TrustedDir) -> Result<IndexLock, LocalError> {
    let file = dir.open_or_make("lock")?;
    lock(&file, dir, "lock", FlockOperation::LockExclusive, &mut || false)?;
    Ok(IndexLock(file))
}

/// Replaces the file `name` of `dir` as a whole. The caller holds the lock of the index.
pub(super) fn replace(
    dir: &TrustedDir,
    name: &str,
    bytes: &[u8],
    _lock: &IndexLock,
) -> Result<(), LocalError> {
    let new = format!("{name}.new");
    // Of a process that was killed.
    dir.remove(&new)?;
    let file = dir.make_new(&new)?;
    let path = dir.path().join(&new);
    let written = file.write_all_at(bytes, 0).and_then(|()| file.sync_data());
    if let Err(source) = written {
        dir.remove(&new)?;
        return Err(io_error("write", &path, source).into());
    }
    dir.rename(&new, dir, name)?;
    Ok(dir.sync()?)
}

/// Writes the list of images.
pub(super) fn write_index(
    dir: &TrustedDir,
    index: &super::StoreIndex,
    lock: &IndexLock,
) -> Result<(), LocalError> {
    let path = dir.path().join(INDEX);
    let text =
        serde_json::to_vec(index).map_err(|source| LocalError::Index { path: path.clone(), source })?;
    if to_u64(text.len()) > INDEX_MAX {
        return Err(LocalError::IndexTooLong { path });
    }
    replace(dir, INDEX, &text, lock)
}

impl Adding {
    pub(super) fn begin(path: &Path) -> Result<Self, LocalError> {
        let dir = TrustedDir::make(path)?;
        let blobs = dir.make_subdirectory("blobs")?;
        blobs.make_subdirectory("sha256")?;
        let partial = dir.make_subdirectory("partial")?;
        if !check_version(&dir)? {
            let held = lock_index(&dir)?;
            if !check_version(&dir)? {
                replace(&dir, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, &held)?;
                let index = read_index(&dir)?;
                write_index(&dir, &index, &held)?;
                replace(&dir, version::NAME, VERSION.as_bytes(), &held)?;
            }
        }
        let adding = dir.open_or_make("adding")?;
        // Who removes blobs does so at once or not at all.
        lock(&adding, &dir, "adding", FlockOperation::LockShared, &mut || false)?;
        Ok(Self { dir, blobs, partial, _adding: adding, added: Mutex::default() })
    }

    /// Ends the adding; the blobs that it added.
    pub(crate) fn into_added(self) -> HashSet<Digest> {
        self.added.into_inner().expect("nobody panics while it is changed")
    }

    fn blobs_of(&self, digest: &Digest) -> Result<TrustedDir, TrustError> {
        self.blobs.make_subdirectory(digest.algorithm())
    }

    /// Whether the blob is there with this size.
    ///
    /// # Errors
    /// [`LocalError`]: its file is not trusted.
    pub fn has_blob(&self, digest: &Digest, size: u64) -> Result<bool, LocalError> {
        let blobs = self.blobs_of(digest)?;
        let Some(file) = blobs.read(digest.hex())? else { return Ok(false) };
        let path = || blobs.path().join(digest.hex());
        let found = file.metadata().map_err(|source| io_error("look at", &path(), source))?;
        Ok(found.len() == size)
    }

    /// Begins to write a blob of `size` bytes. If another process or thread writes the same one,
    /// this waits until that has ended, and asks `give_up` meanwhile: `true` ends the wait.
    ///
    /// # Errors
    /// [`LocalError`]: the store cannot be written, or a file of it is not trusted.
    pub fn begin_blob(
        &self,
        digest: &Digest,
        size: u64,
        give_up: &mut dyn FnMut() -> bool,
    ) -> Result<Begun<'_>, LocalError> {
        if self.has_blob(digest, size)? {
            return Ok(Begun::There);
        }
        let name = digest.hex();
        let Some(file) = lock_name(&self.partial, &name, give_up as &mut GiveUp<'_>)? else {
            return Ok(Begun::GaveUp);
        };
        // Whoever held the lock may have written it.
        if self.has_blob(digest, size)? {
            self.partial.remove(&name)?;
            return Ok(Begun::There);
        }
        let path = self.partial.path().join(&name);
        let mut hasher = digest.hasher();
        let offset = match rehash(&file, size, &mut hasher) {
            Ok(Some(offset)) => offset,
            // Longer than the blob: of no use.
            Ok(None) => {
                file.set_len(0).map_err(|source| io_error("write", &path, source))?;
                hasher = digest.hasher();
                0
            }
            Err(source) => return Err(io_error("read", &path, source).into()),
        };
        let digest = *digest;
        Ok(Begun::Write(Box::new(Ingest { adding: self, file, name, digest, size, offset, hasher })))
    }

    /// Adds a small blob, such as a manifest, and verifies that it has this digest.
    ///
    /// # Errors
    /// [`LocalError`]: it does not, or the store cannot be written.
    pub fn put_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<(), LocalError> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let mut hasher = digest.hasher();
        hasher.update(bytes);
        let found = hasher.finish();
        if found != *digest {
            return Err(LocalError::WrongDigest { wanted: Box::new(*digest), found: Box::new(found) });
        }
        if self.has_blob(digest, to_u64(bytes.len()))? {
            return Ok(());
        }
        // Nobody waits for it, so it has a name of its own.
        let name =
            format!("{}.{}.{}", digest.hex(), std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        self.partial.remove(&name)?;
        let file = self.partial.make_new(&name)?;
        let written = file
            .write_all_at(bytes, 0)
            .map_err(|source| io_error("write", &self.partial.path().join(&name), source).into())
            .and_then(|()| self.publish(&file, &name, digest));
        if written.is_err() {
            self.partial.remove(&name)?;
        }
        written
    }

    /// A new file without a name, which ends with its descriptor.
    pub(crate) fn spool(&self) -> Result<File, LocalError> {
        match sys::nameless(&self.partial, Mode::RUSR | Mode::WUSR) {
            Ok(file) => Ok(file),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                let name = format!("spool.{}", std::process::id());
                self.partial.remove(&name)?;
                let file = self.partial.make_new(&name)?;
                self.partial.remove(&name)?;
                Ok(file)
            }
            Err(source) => Err(io_error("create a file in", self.partial.path(), source).into()),
        }
    }

    /// How many bytes of a blob are not there: less than `size` if it was begun.
    ///
    /// # Errors
    /// As [`Adding::has_blob`].
    pub fn missing(&self, digest: &Digest, size: u64) -> Result<u64, LocalError> {
        if self.has_blob(digest, size)? {
            return Ok(0);
        }
        let Some(begun) = self.partial.read(digest.hex())? else { return Ok(size) };
        let path = || self.partial.path().join(digest.hex());
        let begun = begun.metadata().map_err(|source| io_error("look at", &path(), source))?;
        Ok(size.saturating_sub(begun.len()))
    }

    /// The bytes that may be written: all but a sixteenth of the free space.
    ///
    /// # Errors
    /// The file system cannot be asked.
    pub fn room(&self) -> Result<u64, LocalError> {
        let room = sys::Room::of(&self.dir)
            .map_err(|source| io_error("look at the file system of", self.dir.path(), source))?;
        Ok(room.bytes)
    }

    /// Gives a whole blob its name for good.
    fn publish(&self, file: &File, name: &str, digest: &Digest) -> Result<(), LocalError> {
        let blobs = self.blobs_of(digest)?;
        let path = blobs.path().join(digest.hex());
        file.sync_data().map_err(|source| io_error("sync", &path, source))?;
        self.partial.rename(name, &blobs, &digest.hex())?;
        self.added.lock().expect("nobody panics while it is changed").insert(*digest);
        rustix::fs::fchmod(file, Mode::from_raw_mode(0o444))
            .map_err(|error| io_error("change the mode of", &path, error))?;
        Ok(())
    }

    /// Lets `name` mean the image that `descriptor` points to, whose blobs were added before; with
    /// `None`, adds that image without a name. What the name meant before stays without it.
    ///
    /// # Errors
    /// [`LocalError`]: the manifest is not in the store, or the store cannot be written.
    pub fn set_name(&self, name: Option<&ImageName>, descriptor: &Descriptor) -> Result<(), LocalError> {
        if !self.has_blob(&descriptor.digest, descriptor.size)? {
            return Err(LocalError::NoBlob(Box::new(descriptor.digest)));
        }
        // After a crash of the host an image that is listed has its blobs.
        self.blobs_of(&descriptor.digest)?.sync()?;
        let held = lock_index(&self.dir)?;
        let mut index = read_index(&self.dir)?;
        index.set(name, descriptor);
        write_index(&self.dir, &index, &held)
    }
}

/// Hashes what a file has already, at most `size` bytes; `None` if it has more.
fn rehash(file: &File, size: u64, hasher: &mut Hasher) -> io::Result<Option<u64>> {
    if file.metadata()?.size() > size {
        return Ok(None);
    }
    let mut buffer = vec![0; CHUNK];
    let mut offset = 0;
    loop {
        match file.read_at(&mut buffer, offset) {
            Ok(0) => return Ok(Some(offset)),
            Ok(got) => {
                hasher.update(&buffer[..got]);
                offset += to_u64(got);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

impl Ingest<'_> {
    /// How many bytes of the blob are there: where writing begins or goes on.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The size of the blob in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Forgets what is there, because it cannot be continued.
    ///
    /// # Errors
    /// [`LocalError`]: the file cannot be written.
    pub fn restart(&mut self) -> Result<(), LocalError> {
        self.file.set_len(0).map_err(|source| io_error("write", &self.path(), source))?;
        (self.offset, self.hasher) = (0, self.digest.hasher());
        Ok(())
    }

    fn path(&self) -> PathBuf {
        self.adding.partial.path().join(&self.name)
    }

    fn forget(&self) -> Result<(), LocalError> {
        Ok(self.adding.partial.remove(&self.name)?)
    }

    /// Adds the next bytes.
    ///
    /// # Errors
    /// [`LocalError`]: there are more than the blob has, or they could not be written. If the disk
    /// is full, what was there is removed.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), LocalError> {
        let end = self.offset.saturating_add(to_u64(bytes.len()));
        if end > self.size {
            let digest = Box::new(self.digest);
            self.forget()?;
            return Err(LocalError::WrongSize { digest, wanted: self.size, found: end });
        }
        if let Err(source) = self.file.write_all_at(bytes, self.offset) {
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
                self.forget()?;
            }
            return Err(io_error("write", &self.path(), source).into());
        }
        self.hasher.update(bytes);
        self.offset = end;
        Ok(())
    }

    /// Verifies the blob and gives it its name.
    ///
    /// # Errors
    /// [`LocalError`]: bytes are missing (those that came are kept for the next time), they do not
    /// have the digest (then they are removed), or the store cannot be written.
    pub fn finish(self) -> Result<(), LocalError> {
        if self.offset != self.size {
            let digest = Box::new(self.digest);
            return Err(LocalError::WrongSize { digest, wanted: self.size, found: self.offset });
        }
        let found = self.hasher.clone().finish();
        if found != self.digest {
            self.forget()?;
            return Err(LocalError::WrongDigest { wanted: Box::new(self.digest), found: Box::new(found) });
        }
        self.adding.publish(&self.file, &self.name, &self.digest)
    }
}
