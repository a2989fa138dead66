//! Images of disks that were fetched. Each version has a file of its own, which is never written
//! nor replaced: what a machine wrote may lie above it.

use std::fs::{File, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use nelly_disk::NewFile;
use nelly_image::Digest;
use nelly_image::trusted::TrustedDir;
use nelly_registry::FileVersion;
use serde::{Deserialize, Serialize};

use crate::download::{Downloaded, Part};
use crate::error::{FetchError, of_file};
use crate::fetcher::{Fetcher, Wanted, exists, open_source};
use crate::look::{self, DiskFormat};
use crate::packing::Packing;
use crate::source::Source;
use crate::watch::Watch;

/// The file that tells of the newest version.
pub(crate) const ENTRY: &str = "entry.json";
/// The name that a download would have.
pub(crate) const DOWNLOAD: &str = "download";
/// Most bytes of an entry.
const ENTRY_MAX: u64 = 64 << 10;
/// Longest part of a name that comes from a URL.
const STEM: usize = 80;

/// The directory of fetched images.
#[derive(Debug)]
pub struct DiskCache {
    dir: PathBuf,
}

/// An image in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cached {
    /// Its file, which must not be written.
    pub path: PathBuf,
    /// Its format.
    pub format: DiskFormat,
    /// The SHA-256 digest of what came, before it was unpacked.
    pub sha256: Digest,
    /// Bytes of the file.
    pub bytes: u64,
    /// Whether it came now, and was not there before.
    pub fresh: bool,
}

/// What is kept of the newest version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    schema: u32,
    /// Its file, in the same directory.
    file: String,
    format: String,
    sha256: String,
    sha512: String,
    /// Bytes that came.
    size: Option<u64>,
    etag: Option<String>,
    last_modified: Option<String>,
}

impl Entry {
    fn version(&self) -> Option<FileVersion> {
        let (etag, last_modified) = (self.etag.clone(), self.last_modified.clone());
        let told = etag.is_some() || last_modified.is_some();
        told.then_some(FileVersion { etag, last_modified, size: self.size })
    }

    /// What came has this digest, by the same algorithm as another.
    fn digest(&self, like: &Digest) -> &str {
        match like {
            Digest::Sha256(_) => &self.sha256,
            Digest::Sha512(_) => &self.sha512,
        }
    }

    fn has(&self, checksum: &Digest) -> bool {
        self.digest(checksum) == checksum.to_string()
    }
}

impl DiskCache {
    /// The cache in a directory, which is made when something is fetched.
    #[must_use]
    pub fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where versions of what comes from a place are.
    fn place(&self, text: &str, member: Option<&str>) -> PathBuf {
        let whole = format!("{text}\n{}", member.unwrap_or_default());
        let hex = Digest::sha256(whole.as_bytes()).hex();
        self.dir.join(&hex[..16])
    }

    /// The image of a URL that is there, with this checksum if one is given; nobody is asked.
    ///
    /// # Errors
    /// The cache cannot be used.
    pub fn find(
        &self,
        source: &Source,
        member: Option<&str>,
        checksum: Option<&Digest>,
    ) -> Result<Option<Cached>, FetchError> {
        let Source::Url(url) = source else { return Ok(None) };
        let place = self.place(&url.text(), member);
        if TrustedDir::open(&place)?.is_none() {
            return Ok(None);
        }
        let entry = read(&place).filter(|entry| checksum.is_none_or(|checksum| entry.has(checksum)));
        Ok(entry.and_then(|entry| cached(&place, &entry, false)))
    }

    /// Fetches an image, unless the one that is there is the newest, or has the checksum. `said` is
    /// its format, if somebody says it.
    ///
    /// # Errors
    /// [`FetchError`].
    pub fn pull(
        &self,
        fetcher: &Fetcher<'_>,
        wanted: &Wanted<'_>,
        said: Option<DiskFormat>,
        watch: &mut dyn Watch,
    ) -> Result<Cached, FetchError> {
        match wanted.source {
            Source::Url(url) => {
                let place = self.place(&url.text(), wanted.member);
                TrustedDir::make(&place)?;
                let mut part = Part::of(&place.join(DOWNLOAD), watch, &|| fetcher.over())?;
                let pulled = pull(fetcher, wanted, (&place, said), &mut part, watch);
                part.clear();
                pulled
            }
            Source::File(path) => {
                let file = open_source(path)?;
                let came = fetcher.verified(wanted, &file, path, watch)?;
                let place = self.place(&came.sha256.to_string(), wanted.member);
                TrustedDir::make(&place)?;
                // Two who take in the same file wait for each other, too.
                let part = Part::of(&place.join(DOWNLOAD), watch, &|| fetcher.over())?;
                let taken = take_in_file(fetcher, wanted, (&place, said), &file, &came, watch);
                part.clear();
                taken
            }
        }
    }
}

/// What is known of the newest version. One that cannot be read is none.
fn read(place: &Path) -> Option<Entry> {
    let mut text = Vec::new();
    File::open(place.join(ENTRY)).ok()?.take(ENTRY_MAX).read_to_end(&mut text).ok()?;
    let entry: Entry = serde_json::from_slice(&text).ok()?;
    (entry.schema == 1 && is_name(&entry.file)).then_some(entry)
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains('/') && !name.starts_with('.')
}

fn write(place: &Path, entry: &Entry) -> Result<(), FetchError> {
    let (path, next) = (place.join(ENTRY), place.join("entry.json.next"));
    let failed = of_file(&next);
    let text = serde_json::to_vec_pretty(entry).map_err(|error| failed(error.into()))?;
    let mut file = File::create(&next).map_err(&failed)?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(&failed)?;
    std::fs::rename(&next, &path).map_err(of_file(&path))
}

/// The image of an entry, if it is there.
fn cached(place: &Path, entry: &Entry, fresh: bool) -> Option<Cached> {
    let path = place.join(&entry.file);
    let meta = std::fs::symlink_metadata(&path).ok().filter(std::fs::Metadata::is_file)?;
    let (format, sha256) = (DiskFormat::of_word(&entry.format)?, entry.sha256.parse().ok()?);
    Some(Cached { path, format, sha256, bytes: meta.len(), fresh })
}

/// Fetches what a URL has, with the lock of its place.
fn pull(
    fetcher: &Fetcher<'_>,
    wanted: &Wanted<'_>,
    (place, said): (&Path, Option<DiskFormat>),
    part: &mut Part,
    watch: &mut dyn Watch,
) -> Result<Cached, FetchError> {
    let fits = |entry: &Entry| said.is_none_or(|said| said.word() == entry.format);
    let entry = read(place).filter(fits);
    let there = entry.as_ref().and_then(|entry| cached(place, entry, false));
    if let (Some(entry), Some(there), Some(checksum)) = (&entry, &there, wanted.checksum)
        && entry.has(checksum)
    {
        return Ok(there.clone());
    }
    let known = there.as_ref().and(entry.as_ref()).and_then(Entry::version);
    let Some(came) = fetcher.download(part, wanted, known.as_ref(), watch)? else {
        let entry = entry.expect("only a version that is there is known");
        return match wanted.checksum {
            // What was looked for above is not what the server has.
            Some(checksum) => {
                let (what, found) = (wanted.source.shown(), entry.digest(checksum).to_owned());
                Err(FetchError::Checksum { what, wanted: Box::new(*checksum), found })
            }
            None => Ok(there.expect("it is there")),
        };
    };
    if let (Some(entry), Some(there)) = (entry, there)
        && entry.sha256 == came.sha256.to_string()
    {
        // The same bytes, by another name of the server's.
        let (etag, last_modified) = (came.version.etag, came.version.last_modified);
        write(place, &Entry { etag, last_modified, ..entry })?;
        part.discard();
        return Ok(there);
    }
    let packing = fetcher.packing(wanted, part.file()?)?;
    if packing == Packing::None {
        let format =
            look::format(&wanted.source.shown(), part.file()?, said).inspect_err(|_| part.discard())?;
        let target = place.join(name(wanted, &came, format));
        if target.exists() {
            part.discard();
        } else {
            part.finish(&target)?;
        }
        keep(wanted, place, &came, &target, format)
    } else {
        let format = |file: &File| look::format(&wanted.source.shown(), file, said);
        let taken = take_in(fetcher, wanted, place, part.file()?, &came, &format, watch);
        // What came is needed no more, and if it cannot be used, the server may have another one.
        part.discard();
        taken
    }
}

/// Takes in a file of this host. A guest may have written it, so its name says what it is.
fn take_in_file(
    fetcher: &Fetcher<'_>,
    wanted: &Wanted<'_>,
    (place, said): (&Path, Option<DiskFormat>),
    file: &File,
    came: &Downloaded,
    watch: &mut dyn Watch,
) -> Result<Cached, FetchError> {
    let inner = wanted.member.or_else(|| wanted.source.name()).unwrap_or_default();
    let inner = if wanted.member.is_some() { inner } else { Packing::of_name(inner).1 };
    let by_name = if inner.ends_with(".qcow2") { DiskFormat::Qcow2 } else { DiskFormat::Raw };
    let said = said.unwrap_or(by_name);
    let fits = |entry: &Entry| entry.format == said.word();
    if let Some(there) = read(place).filter(fits).and_then(|entry| cached(place, &entry, false)) {
        return Ok(there);
    }
    let format = |file: &File| look::format(&wanted.source.shown(), file, Some(said));
    take_in(fetcher, wanted, place, file, came, &format, watch)
}

/// Unpacks or copies `from` into the place.
fn take_in(
    fetcher: &Fetcher<'_>,
    wanted: &Wanted<'_>,
    place: &Path,
    from: &File,
    came: &Downloaded,
    format: &dyn Fn(&File) -> Result<DiskFormat, FetchError>,
    watch: &mut dyn Watch,
) -> Result<Cached, FetchError> {
    // Its name is known when it is; none of an image ends so.
    let spot = place.join("unpacked");
    let new = fetcher.unpacked(wanted, from, &spot, watch)?;
    let format = format(new.file())?;
    let target = place.join(name(wanted, came, format));
    if !target.exists() {
        finish(new, &spot, &target)?;
    }
    keep(wanted, place, came, &target, format)
}

fn finish(new: NewFile, spot: &Path, target: &Path) -> Result<(), FetchError> {
    new.finish().map_err(|error| exists(spot, error))?;
    std::fs::rename(spot, target).map_err(of_file(target))
}

/// Notes the newest version, if it is a disk that can be used.
fn keep(
    wanted: &Wanted<'_>,
    place: &Path,
    came: &Downloaded,
    target: &Path,
    format: DiskFormat,
) -> Result<Cached, FetchError> {
    if let Err(error) = look::usable(&wanted.source.shown(), target, format) {
        // There is no entry of it, so nothing lies above it.
        let _ = std::fs::remove_file(target);
        return Err(error);
    }
    std::fs::set_permissions(target, Permissions::from_mode(0o400)).map_err(of_file(target))?;
    let file = target.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    let FileVersion { etag, last_modified, size } = came.version.clone();
    let (sha256, sha512) = (came.sha256.to_string(), came.sha512.to_string());
    let format = format.word().to_owned();
    let entry = Entry { schema: 1, file, format, sha256, sha512, size, etag, last_modified };
    write(place, &entry)?;
    let missing = || of_file(target)(std::io::ErrorKind::NotFound.into());
    cached(place, &entry, true).ok_or_else(missing)
}

/// The name of a version's file: for people, and different for each. It has the whole digest, for
/// what is there counts as what came: a server could make two files with one short name.
fn name(wanted: &Wanted<'_>, came: &Downloaded, format: DiskFormat) -> String {
    let own = wanted.member.map_or_else(|| wanted.source.name(), |member| member.rsplit('/').next());
    let own = Packing::of_name(own.unwrap_or("disk")).1;
    let own =
        [".qcow2", ".raw", ".img"].into_iter().find_map(|ending| own.strip_suffix(ending)).unwrap_or(own);
    let letter = |c: char| if c.is_ascii_alphanumeric() || "._-+~".contains(c) { c } else { '_' };
    let own: String = own.chars().map(letter).take(STEM).collect();
    let own = own.trim_start_matches('.');
    let own = if own.is_empty() { "disk" } else { own };
    format!("{own}-{}.{}", came.sha256.hex(), format.word())
}
