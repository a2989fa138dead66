//! What of a file has come: a part beside the file that it will be, with which a later call goes
//! on.

use std::fs::{File, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nelly_image::Digest;
use nelly_registry::{
    Client, FileCredentials, FileRequest, FileSink, FileUrl, FileVersion, Had, RegistryError,
};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha512};

use crate::error::{FetchError, of_file};
use crate::watch::{Stage, Watch};

/// How often one that waits for another process looks again.
const PATIENCE: Duration = Duration::from_millis(50);
/// Most bytes of what is known of a part.
const NOTE: u64 = 64 << 10;
/// What is left free in a file system that gets a file.
const SPARE: u64 = 16 << 20;

/// What is known of a part. The URL may have secrets in it; only its owner can read this.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    url: String,
    etag: Option<String>,
    last_modified: Option<String>,
    size: Option<u64>,
}

impl Note {
    fn version(&self) -> FileVersion {
        FileVersion { etag: self.etag.clone(), last_modified: self.last_modified.clone(), size: self.size }
    }
}

/// The part of a file, which no other process has while this is there.
#[derive(Debug)]
pub(crate) struct Part {
    file: File,
    path: PathBuf,
    note: PathBuf,
    room_for: Option<u64>,
}

/// What has come whole.
pub(crate) struct Downloaded {
    pub(crate) version: FileVersion,
    pub(crate) sha256: Digest,
    pub(crate) sha512: Digest,
}

impl Downloaded {
    /// Compares with a checksum that is given.
    pub(crate) fn has(&self, wanted: &Digest) -> Result<(), Box<Digest>> {
        let found = match wanted {
            Digest::Sha256(_) => self.sha256,
            Digest::Sha512(_) => self.sha512,
        };
        if found == *wanted { Ok(()) } else { Err(Box::new(found)) }
    }
}

impl Part {
    /// The part of the file that will be called `target`: `target.part`. Waits for a process that
    /// has it.
    pub(crate) fn of(
        target: &Path,
        watch: &mut dyn Watch,
        over: &dyn Fn() -> bool,
    ) -> Result<Self, FetchError> {
        let beside = |ending: &str| {
            let mut name = target.as_os_str().to_owned();
            name.push(ending);
            PathBuf::from(name)
        };
        let (path, note) = (beside(".part"), beside(".part.json"));
        loop {
            let file = open(&path).map_err(of_file(&path))?;
            loop {
                match file.try_lock() {
                    Ok(()) => break,
                    Err(TryLockError::WouldBlock) => {
                        watch.at(Stage::Elsewhere, 0, None);
                        if over() {
                            return Err(RegistryError::Cancelled.into());
                        }
                        std::thread::sleep(PATIENCE);
                    }
                    Err(TryLockError::Error(error)) => return Err(of_file(&path)(error)),
                }
            }
            let part = Self { file, path: path.clone(), note: note.clone(), room_for: None };
            // Whoever had it may have given it its name, or removed it.
            if part.is_named() {
                return Ok(part);
            }
        }
    }

    /// Fetches the rest. `None`: it is the version `known`, and nothing came.
    pub(crate) fn fetch(
        &mut self,
        client: &Client,
        (url, credentials): (&FileUrl, Option<&FileCredentials>),
        known: Option<&FileVersion>,
        (verified, most): (bool, u64),
        watch: &mut dyn Watch,
    ) -> Result<Option<FileVersion>, FetchError> {
        let text = url.text();
        let note = self.read_note().filter(|note| note.url == text);
        if note.is_none() {
            // What another URL gave, or nobody knows.
            self.file.set_len(0).map_err(of_file(&self.path))?;
        }
        let at = self.file.metadata().map_err(of_file(&self.path))?.len();
        let version = note.map(|note| note.version()).unwrap_or_default();
        let whole = version.size;
        let mut coming = Coming { part: self, url: text, at, version, total: whole, unlooked: 0, watch };
        let request = FileRequest { url, credentials, known, verified, most };
        let had = client.file(&request, &mut coming);
        let room_for = self.room_for;
        match had {
            Ok(Had::Known) => Ok(None),
            Ok(Had::All(version)) => Ok(Some(version)),
            Err(RegistryError::Kept { what, source }) if source.kind() == io::ErrorKind::StorageFull => {
                let dir = self.path.parent().unwrap_or(Path::new("/")).to_owned();
                let room = nelly_image::trusted::free_bytes(&self.file).ok().flatten().unwrap_or(0);
                let wanted = room_for.unwrap_or_else(|| room.saturating_add(1));
                Err(FetchError::NoRoom { what, dir, wanted, room })
            }
            Err(error) => Err(error.into()),
        }
    }

    fn read_note(&self) -> Option<Note> {
        let mut text = Vec::new();
        File::open(&self.note).ok()?.take(NOTE).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Reads all of it, for its checksums.
    pub(crate) fn verify(
        &mut self,
        version: FileVersion,
        watch: &mut dyn Watch,
    ) -> Result<Downloaded, FetchError> {
        let failed = of_file(&self.path);
        let total = self.file.metadata().map_err(&failed)?.len();
        (&self.file).seek(SeekFrom::Start(0)).map_err(&failed)?;
        let (sha256, sha512) =
            digests(&self.file, |done| watch.at(Stage::Verify, done, Some(total))).map_err(&failed)?;
        Ok(Downloaded { version, sha256, sha512 })
    }

    /// Its own name.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file, to be read from its beginning.
    pub(crate) fn file(&self) -> Result<&File, FetchError> {
        (&self.file).seek(SeekFrom::Start(0)).map_err(of_file(&self.path))?;
        Ok(&self.file)
    }

    /// Gives it its name, which must be free.
    pub(crate) fn finish(&self, target: &Path) -> Result<(), FetchError> {
        if std::fs::symlink_metadata(target).is_ok() {
            return Err(FetchError::Exists(target.to_owned()));
        }
        self.file.sync_all().map_err(of_file(&self.path))?;
        std::fs::rename(&self.path, target).map_err(of_file(target))?;
        // There is nothing that it would tell of any more.
        let _ = std::fs::remove_file(&self.note);
        Ok(())
    }

    /// Lets others have it. What nothing came of is gone.
    pub(crate) fn clear(self) {
        if self.file.metadata().is_ok_and(|meta| meta.len() == 0) && self.is_named() {
            self.discard();
        }
    }

    /// Whether its name leads to it.
    fn is_named(&self) -> bool {
        let (own, named) = (self.file.metadata(), std::fs::symlink_metadata(&self.path));
        matches!((own, named), (Ok(own), Ok(named)) if (own.dev(), own.ino()) == (named.dev(), named.ino()))
    }

    /// Removes it, for it is needed no more.
    pub(crate) fn discard(&self) {
        // What stays is begun anew, since its checksum or its version is another one.
        let _ = std::fs::remove_file(&self.note);
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The digests of all that a file has from where it is read next.
pub(crate) fn digests(mut file: &File, mut at: impl FnMut(u64)) -> io::Result<(Digest, Digest)> {
    let (mut sha256, mut sha512) = (Sha256::new(), Sha512::new());
    let (mut buffer, mut done) = (vec![0; 1 << 20], 0);
    loop {
        let got = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        sha256.update(&buffer[..got]);
        sha512.update(&buffer[..got]);
        done += got as u64;
        at(done);
    }
    Ok((Digest::Sha256(sha256.finalize().into()), Digest::Sha512(sha512.finalize().into())))
}

/// Opens or makes a file of this user alone; a link is not followed.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?);
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    // Whoever may write to it could change it after its checksum was compared.
    let own = meta.uid() == rustix::process::geteuid().as_raw();
    if !own || meta.nlink() > 1 || meta.mode() & 0o022 != 0 {
        let why = "it is there already, and others may write to it; remove it";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    Ok(file)
}

/// A part whose rest comes.
struct Coming<'a> {
    part: &'a mut Part,
    url: String,
    at: u64,
    version: FileVersion,
    total: Option<u64>,
    /// Bytes since somebody looked how much room there is.
    unlooked: u64,
    watch: &'a mut dyn Watch,
}

impl FileSink for Coming<'_> {
    fn there(&self) -> (u64, FileVersion) {
        (self.at, self.version.clone())
    }

    fn begins(&mut self, from: u64, version: &FileVersion) -> io::Result<()> {
        self.part.file.set_len(from)?;
        (&self.part.file).seek(SeekFrom::Start(from))?;
        let FileVersion { etag, last_modified, size } = version.clone();
        let note = Note { url: self.url.clone(), etag, last_modified, size };
        // One that is cut is none, and the part is then begun anew.
        let _ = std::fs::remove_file(&self.part.note);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::open(&self.part.note, flags, Mode::RUSR | Mode::WUSR)?;
        File::from(file).write_all(&serde_json::to_vec(&note)?)?;
        (self.at, self.version, self.total) = (from, version.clone(), version.size);
        if let (Some(total), Some(room)) = (version.size, nelly_image::trusted::free_bytes(&self.part.file)?)
        {
            let rest = total.saturating_sub(from);
            self.part.room_for = Some(rest);
            if rest.saturating_add(SPARE) > room {
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<bool> {
        // A server that does not say how much there is may send more than there is room for.
        self.unlooked += bytes.len() as u64;
        if self.unlooked >= SPARE / 2 {
            self.unlooked = 0;
            if nelly_image::trusted::free_bytes(&self.part.file)?.is_some_and(|room| room < SPARE) {
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
        (&self.part.file).write_all(bytes)?;
        self.at += bytes.len() as u64;
        self.watch.at(Stage::Download, self.at, self.total);
        Ok(true)
    }
}
