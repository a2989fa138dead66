//! Fetching one file.

use std::fs::File;
use std::path::{Path, PathBuf};

use nelly_disk::NewFile;
use nelly_image::{Digest, Unpacker};
use nelly_registry::{Client, FileCredentials, FileVersion};

use crate::download::{Downloaded, Part, digests};
use crate::error::{FetchError, of_file};
use crate::look;
use crate::packing::Packing;
use crate::source::Source;
use crate::unpacking::Unpacking;
use crate::watch::{Stage, Watch};

/// What is wanted, and how.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Where it is.
    pub source: &'a Source,
    /// What the server is shown.
    pub credentials: Option<&'a FileCredentials>,
    /// The checksum of what comes, before it is unpacked.
    pub checksum: Option<&'a Digest>,
    /// How it is packed; else its name says it, or its first bytes.
    pub packing: Option<Packing>,
    /// The file of an archive that is wanted; else the only one.
    pub member: Option<&'a str>,
    /// Most bytes that come, and that come out of it.
    pub most: u64,
    /// Whether it has to be a disk. [`Fetcher::save`] then refuses what is none; an image in the
    /// cache always is one.
    pub disk: bool,
}

/// Fetches files.
#[derive(Debug)]
pub struct Fetcher<'a> {
    /// The client, which knows proxies, certificates and patience.
    pub client: &'a Client,
    /// The program that unpacks.
    pub unpacker: &'a Unpacker,
}

/// A file that has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Where it is.
    pub path: PathBuf,
    /// The SHA-256 digest of what came, before it was unpacked.
    pub sha256: Digest,
    /// Bytes of the file.
    pub bytes: u64,
}

impl Fetcher<'_> {
    /// Fetches a file to `target`, which must not exist, and whose directory must. What came of one
    /// that was interrupted is `target.part`, and the next call goes on there.
    ///
    /// # Errors
    /// [`FetchError`].
    pub fn save(
        &self,
        wanted: &Wanted<'_>,
        target: &Path,
        watch: &mut dyn Watch,
    ) -> Result<Saved, FetchError> {
        if std::fs::symlink_metadata(target).is_ok() {
            return Err(FetchError::Exists(target.to_owned()));
        }
        let sha256 = match wanted.source {
            Source::File(path) => {
                let file = open_source(path)?;
                let found = self.verified(wanted, &file, path, watch)?;
                self.take_out(wanted, &file, target, watch)?;
                found.sha256
            }
            Source::Url(_) => {
                let mut part = Part::of(target, watch, &|| self.over())?;
                // Whoever had it may have made it.
                if std::fs::symlink_metadata(target).is_ok() {
                    part.discard();
                    return Err(FetchError::Exists(target.to_owned()));
                }
                let done = self.save_part(wanted, target, &mut part, watch);
                part.clear();
                done?
            }
        };
        let bytes = std::fs::metadata(target).map_err(of_file(target))?.len();
        Ok(Saved { path: target.to_owned(), sha256, bytes })
    }

    /// Fetches what a URL has, with the lock of its part.
    fn save_part(
        &self,
        wanted: &Wanted<'_>,
        target: &Path,
        part: &mut Part,
        watch: &mut dyn Watch,
    ) -> Result<Digest, FetchError> {
        let came = self.download(part, wanted, None, watch)?.expect("no version is known");
        match self.packing(wanted, part.file()?)? {
            Packing::None => {
                if wanted.disk {
                    let what = wanted.source.shown();
                    let disk = look::format(&what, part.file()?, None)
                        .and_then(|format| look::usable(&what, part.path(), format));
                    if let Err(error) = disk {
                        part.discard();
                        return Err(error);
                    }
                }
                part.finish(target)?;
            }
            _ => {
                let taken = self.take_out(wanted, part.file()?, target, watch);
                part.discard();
                taken?;
            }
        }
        Ok(came.sha256)
    }

    pub(crate) fn over(&self) -> bool {
        self.client.cancel().is_cancelled()
    }

    /// Downloads all of a part and compares its checksum; `None`: the server has the version
    /// `known`.
    pub(crate) fn download(
        &self,
        part: &mut Part,
        wanted: &Wanted<'_>,
        known: Option<&FileVersion>,
        watch: &mut dyn Watch,
    ) -> Result<Option<Downloaded>, FetchError> {
        let Source::Url(url) = wanted.source else { unreachable!("a file of this host is not downloaded") };
        let bounds = (wanted.checksum.is_some(), wanted.most);
        let version = part.fetch(self.client, (url, wanted.credentials), known, bounds, watch)?;
        let Some(version) = version else { return Ok(None) };
        let came = part.verify(version, watch)?;
        if let Some(checksum) = wanted.checksum
            && let Err(found) = came.has(checksum)
        {
            part.discard();
            let (what, wanted) = (wanted.source.shown(), Box::new(*checksum));
            return Err(FetchError::Checksum { what, wanted, found: found.to_string() });
        }
        Ok(Some(came))
    }

    /// The digests of a file of this host, of which one may be given.
    pub(crate) fn verified(
        &self,
        wanted: &Wanted<'_>,
        file: &File,
        path: &Path,
        watch: &mut dyn Watch,
    ) -> Result<Downloaded, FetchError> {
        let total = file.metadata().map_err(of_file(path))?.len();
        let (sha256, sha512) =
            digests(file, |done| watch.at(Stage::Verify, done, Some(total))).map_err(of_file(path))?;
        rewind(file, path)?;
        let came = Downloaded { version: FileVersion::default(), sha256, sha512 };
        if let Some(checksum) = wanted.checksum
            && let Err(found) = came.has(checksum)
        {
            let what = format!("{}, which stays as it is,", wanted.source.shown());
            return Err(FetchError::Checksum { what, wanted: Box::new(*checksum), found: found.to_string() });
        }
        Ok(came)
    }

    /// How what came is packed: what the user says, else its name, else its bytes, where it comes
    /// from a server and not from a guest.
    pub(crate) fn packing(&self, wanted: &Wanted<'_>, file: &File) -> Result<Packing, FetchError> {
        let named = || wanted.source.name().map_or(Packing::None, |name| Packing::of_name(name).0);
        let packing = wanted.packing.unwrap_or_else(named);
        let looks = packing == Packing::None && wanted.packing.is_none() && wanted.source.path().is_none();
        let packing = if looks {
            let head = look::head(file).map_err(of_file(Path::new(&wanted.source.shown())))?;
            Packing::of_bytes(&head)
        } else {
            packing
        };
        if wanted.member.is_none() {
            return Ok(packing);
        }
        packing.archive().ok_or_else(|| FetchError::NoArchive(wanted.source.shown()))
    }

    /// Writes what is in `from` to the new file `target`.
    fn take_out(
        &self,
        wanted: &Wanted<'_>,
        from: &File,
        target: &Path,
        watch: &mut dyn Watch,
    ) -> Result<(), FetchError> {
        let new = self.unpacked(wanted, from, target, watch)?;
        let what = wanted.source.shown();
        let format = wanted.disk.then(|| look::format(&what, new.file(), None)).transpose()?;
        new.finish().map_err(|error| exists(target, error))?;
        // It had no name before that it could be looked at by.
        if let Some(format) = format
            && let Err(error) = look::usable(&what, target, format)
        {
            std::fs::remove_file(target).map_err(of_file(target))?;
            return Err(error);
        }
        Ok(())
    }

    /// What is in `from`, in a file that will be `target`.
    pub(crate) fn unpacked(
        &self,
        wanted: &Wanted<'_>,
        from: &File,
        target: &Path,
        watch: &mut dyn Watch,
    ) -> Result<NewFile, FetchError> {
        let new = NewFile::private(target).map_err(|error| exists(target, error))?;
        let what = wanted.source.shown();
        let packing = self.packing(wanted, from)?;
        if packing == Packing::None {
            let (mut from, mut to) = (from, new.file());
            std::io::copy(&mut from, &mut to).map_err(of_file(target))?;
            return Ok(new);
        }
        let unpacking = Unpacking { what: &what, packing, member: wanted.member, most: wanted.most };
        unpacking.run(self.unpacker, from, new.file(), watch, &|| self.over())?;
        Ok(new)
    }
}

/// How the archive at `path` is packed, by its first bytes, which no guest may have written, else
/// by its name. `None` if neither says that it is one.
///
/// # Errors
/// It cannot be read.
pub fn archive_packing(path: &Path) -> Result<Option<Packing>, FetchError> {
    let head = look::head(&open_source(path)?).map_err(of_file(path))?;
    let named = || Packing::of_name(path.file_name()?.to_str()?).0.archive();
    Ok(Packing::of_bytes(&head).archive().or_else(named))
}

/// Opens a regular file of this host.
pub(crate) fn open_source(path: &Path) -> Result<File, FetchError> {
    let failed = of_file(path);
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NONBLOCK;
    let file =
        rustix::fs::open(path, flags, rustix::fs::Mode::empty()).map_err(|error| failed(error.into()))?;
    let file = File::from(file);
    if !file.metadata().map_err(&failed)?.is_file() {
        return Err(failed(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is no regular file")));
    }
    Ok(file)
}

fn rewind(mut file: &File, path: &Path) -> Result<(), FetchError> {
    std::io::Seek::rewind(&mut file).map_err(of_file(path))
}

pub(crate) fn exists(target: &Path, error: std::io::Error) -> FetchError {
    if error.kind() == std::io::ErrorKind::AlreadyExists {
        return FetchError::Exists(target.to_owned());
    }
    of_file(target)(error)
}
