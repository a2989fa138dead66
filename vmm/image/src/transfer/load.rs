//! Archives into the local store.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::path::Path;

use super::{TransferError, confined};
use crate::blob::{Blob, Compression, read_start};
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::limits::Limits;
use crate::local::{Adding, Begun, LocalError, LocalStore, StoredImage};
use crate::name::ImageName;
use crate::num::to_u64;
use crate::progress::{ImageStage, Progress, Watch};
use crate::source::{
    Archive, DockerItem, SourceError, SpoolError, docker_items, host_architecture, image_blobs,
    layout_images, load_descriptor, load_docker_item, open_blob, open_regular,
};
use crate::unpacker::Unpacker;

/// Bytes copied at a time.
const CHUNK: usize = 1 << 20;
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Where an archive comes from. It may be compressed.
pub enum Input<'a> {
    /// A file with random access.
    File(&'a Path),
    /// A pipe, read to its end.
    Stream(&'a mut dyn Read),
}

impl LocalStore {
    /// Adds the images of an OCI or docker archive, with the names that it gives them, or the one
    /// with `name`. Images without a name are added without one.
    ///
    /// With an `unpacker`, its program reads the tar archive and what is compressed, confined to
    /// that; this process reads the documents in it, and copies what has the digests that they say.
    ///
    /// # Errors
    /// [`TransferError`]; then nothing was added, unless the caller cancelled: what was copied
    /// until then need not be copied again.
    pub fn load(
        &self,
        input: Input<'_>,
        name: Option<&ImageName>,
        limits: &Limits,
        unpacker: Option<&Unpacker>,
        progress: &mut dyn Progress,
    ) -> Result<Vec<StoredImage>, TransferError> {
        let adding = self.add()?;
        let loaded = Self::load_blobs(&adding, input, name, limits, unpacker, progress);
        let added = adding.into_added();
        if let Err(error) = &loaded
            && !matches!(error, TransferError::Cancelled)
        {
            // The error is what counts; what cannot be removed now is by the next prune.
            let _ = Self::open(self.path()).and_then(|store| store.take_back(&added));
        }
        loaded
    }

    fn load_blobs(
        adding: &Adding,
        input: Input<'_>,
        name: Option<&ImageName>,
        limits: &Limits,
        unpacker: Option<&Unpacker>,
        progress: &mut dyn Progress,
    ) -> Result<Vec<StoredImage>, TransferError> {
        let room = adding.room()?;
        let mut spool = || Ok(adding.spool()?);
        let (whole, name_of_archive) = match input {
            Input::File(path) => {
                let (file, size) = open_regular(path)?;
                (Whole::File { file, size }, path.display().to_string())
            }
            Input::Stream(stream) => (Whole::Stream(stream), "standard input".to_owned()),
        };
        let archive = match unpacker {
            Some(unpacker) => {
                confined::read(unpacker, whole, &name_of_archive, &mut spool, room, limits, progress)?
            }
            None => opened(whole, &name_of_archive, &mut spool, room, limits, progress)?,
        };
        let mut loader = Loader { adding, archive: &archive, limits, progress };
        let images = if archive.has("oci-layout") && archive.has("index.json") {
            loader.layout(name)?
        } else {
            loader.docker(name)?
        };
        let mut added = Vec::new();
        for (descriptor, names) in images {
            if names.is_empty() {
                adding.set_name(None, &descriptor)?;
                added.push(StoredImage { name: None, descriptor });
                continue;
            }
            for name in names {
                adding.set_name(Some(&name), &descriptor)?;
                added.push(StoredImage { name: Some(name), descriptor: descriptor.clone() });
            }
        }
        Ok(added)
    }
}

/// An archive that is not looked into yet.
pub(super) enum Whole<'a> {
    /// A file of so many bytes.
    File { file: File, size: u64 },
    /// A pipe.
    Stream(&'a mut dyn Read),
}

/// Opens an archive, with a file of `spool` for what is compressed or comes through a pipe, of
/// which at most `room` bytes are kept.
pub(super) fn opened(
    whole: Whole<'_>,
    name: &str,
    spool: &mut dyn FnMut() -> Result<File, TransferError>,
    room: u64,
    limits: &Limits,
    progress: &mut dyn Progress,
) -> Result<Archive, TransferError> {
    let name = name.to_owned();
    let (file, size) = match whole {
        Whole::File { file, size } => (file, size),
        Whole::Stream(stream) => keep(stream, spool()?, room, limits, progress)?,
    };
    let mut archive = Archive::of_file(file, size, name, limits, &mut || progress.cancelled())?;
    if archive.needs_spool() {
        let mut watch = Watch::begin(progress, ImageStage::Archive, None);
        let spooled = archive.spool(spool()?, room, &mut |done, total| {
            watch.total = Some(total);
            watch.tick(done)
        });
        match spooled {
            Ok(true) => watch.end(),
            Ok(false) => return Err(TransferError::Cancelled),
            Err(SpoolError::Source(source)) => return Err(source.into()),
            Err(SpoolError::Write(source)) => return Err(TransferError::Spool(source)),
        }
    }
    Ok(archive)
}

/// Keeps the decompressed bytes of a stream in `file`; gives it back with their number.
fn keep(
    mut stream: &mut dyn Read,
    file: File,
    room: u64,
    limits: &Limits,
    progress: &mut dyn Progress,
) -> Result<(File, u64), TransferError> {
    let start = read_start(&mut stream).map_err(TransferError::Read)?;
    let compression = Compression::of(&start).map_err(|method| {
        let what = format!("is compressed with {method}; only gzip, zstd and no compression are supported");
        SourceError::Unsupported { name: "the archive".to_owned(), what }
    })?;
    let mut decoder = compression.decoder(start, stream).map_err(TransferError::Read)?;
    let mut watch = Watch::begin(progress, ImageStage::Archive, None);
    let most = room.min(limits.unpacked_bytes);
    let (mut buffer, mut size, mut out) = (vec![0; CHUNK], 0, &file);
    loop {
        let got = match decoder.read(&mut buffer) {
            Ok(0) => break,
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(TransferError::Read(error)),
        };
        size += to_u64(got);
        if size > most {
            return Err(TransferError::Spool(crate::erofs::no_room(most)));
        }
        out.write_all(&buffer[..got]).map_err(TransferError::Spool)?;
        if !watch.tick(size) {
            return Err(TransferError::Cancelled);
        }
    }
    watch.end();
    drop(decoder);
    Ok((file, size))
}

/// An image of an archive, its blobs being in the store, and its names.
type Loaded = (Descriptor, Vec<ImageName>);

struct Loader<'a> {
    adding: &'a Adding,
    archive: &'a Archive,
    limits: &'a Limits,
    progress: &'a mut dyn Progress,
}

/// The names that an archive gives to an image.
fn names(words: &[String]) -> Result<Vec<ImageName>, TransferError> {
    let parse = |word: &String| {
        let failed = |source| TransferError::Name { word: word.chars().take(160).collect(), source };
        word.parse().map_err(failed)
    };
    words.iter().map(parse).collect()
}

/// The names of one of `count` images: those of the archive, or the one that was given.
fn names_of(
    given: Option<&ImageName>,
    words: &[String],
    count: usize,
) -> Result<Vec<ImageName>, TransferError> {
    match given {
        None => names(words),
        Some(_) if count != 1 => Err(TransferError::Several(count)),
        Some(name) => Ok(vec![name.clone()]),
    }
}

impl Loader<'_> {
    /// The images of an OCI layout. Several names of one image are several entries.
    fn layout(&mut self, given: Option<&ImageName>) -> Result<Vec<Loaded>, TransferError> {
        let listed = layout_images(self.archive, self.limits)?;
        let count = listed.iter().map(|(descriptor, _)| descriptor.digest).collect::<HashSet<_>>().len();
        let mut loaded = Vec::new();
        for (descriptor, word) in listed {
            let names = names_of(given, word.as_slice(), count)?;
            // An image that this host cannot run may be kept; one that nobody can may not.
            match load_descriptor(self.archive, &descriptor, host_architecture(), self.limits) {
                Ok(_) | Err(SourceError::Platform { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            for blob in image_blobs(self.archive, &descriptor, self.limits)? {
                self.copy(&open_blob(self.archive, &blob)?, &blob.digest)?;
            }
            loaded.push((descriptor, names));
        }
        Ok(loaded)
    }

    /// The images of a docker archive, which get manifests of our own.
    fn docker(&mut self, given: Option<&ImageName>) -> Result<Vec<Loaded>, TransferError> {
        let items = docker_items(self.archive, self.limits)?;
        let mut loaded = Vec::new();
        for item in &items {
            let names = names_of(given, &item.tags(), items.len())?;
            loaded.push((self.docker_item(item)?, names));
        }
        Ok(loaded)
    }

    fn docker_item(&mut self, item: &DockerItem) -> Result<Descriptor, TransferError> {
        let (image, config) = load_docker_item(self.archive, item, host_architecture(), self.limits)?;
        let mut layers = Vec::new();
        for layer in &image.layers {
            let blob = layer.open(self.archive)?.blob;
            let start = read_start(&mut blob.reader()).map_err(TransferError::Read)?;
            let compression = Compression::of(&start).map_err(|method| {
                let what = format!("is compressed with {method}; only gzip, zstd and no compression work");
                SourceError::Unsupported { name: blob.name.clone(), what }
            })?;
            let (suffix, digest) = match compression {
                Compression::None => ("", layer.diff_id),
                Compression::Gzip => ("+gzip", self.hash(&blob)?),
                Compression::Zstd => ("+zstd", self.hash(&blob)?),
            };
            self.copy(&blob, &digest)?;
            let media_type = format!("{LAYER}{suffix}");
            layers.push(Descriptor { media_type, digest, size: blob.size() });
        }
        let config_digest = Digest::sha256(&config);
        self.adding.put_blob(&config_digest, &config)?;
        let json = |media_type: &str, digest: &Digest, size: u64| serde_json::json!({ "mediaType": media_type, "digest": digest.to_string(), "size": size });
        let layers: Vec<_> =
            layers.iter().map(|layer| json(&layer.media_type, &layer.digest, layer.size)).collect();
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": json(CONFIG, &config_digest, to_u64(config.len())),
            "layers": layers,
        });
        let manifest = manifest.to_string();
        let digest = Digest::sha256(manifest.as_bytes());
        self.adding.put_blob(&digest, manifest.as_bytes())?;
        Ok(Descriptor { media_type: MANIFEST.to_owned(), digest, size: to_u64(manifest.len()) })
    }

    /// The digest of a blob of the archive.
    fn hash(&mut self, blob: &Blob) -> Result<Digest, TransferError> {
        let mut hasher = Digest::sha256(b"").hasher();
        self.pass(blob, 0, &mut |bytes| {
            hasher.update(bytes);
            Ok(())
        })?;
        Ok(hasher.finish())
    }

    /// Reads a blob from `offset` on.
    fn pass(
        &mut self,
        blob: &Blob,
        offset: u64,
        take: &mut dyn FnMut(&[u8]) -> Result<(), LocalError>,
    ) -> Result<(), TransferError> {
        let read_error = |source| SourceError::Io { name: blob.name.clone(), source };
        let mut watch = Watch::begin(self.progress, ImageStage::Copying, Some(blob.size()));
        let mut reader = blob.reader();
        // The blob is as long as announced, and what is there of it is not longer.
        reader.seek_forward(offset);
        let (mut buffer, mut done) = (vec![0; CHUNK], offset);
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(got) => {
                    take(&buffer[..got])?;
                    done += to_u64(got);
                    if !watch.tick(done) {
                        return Err(TransferError::Cancelled);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(read_error(error).into()),
            }
        }
        watch.end();
        Ok(())
    }

    /// Copies a blob into the store, unless it is there.
    fn copy(&mut self, blob: &Blob, digest: &Digest) -> Result<(), TransferError> {
        let adding = self.adding;
        loop {
            let progress = &mut *self.progress;
            let mut ingest = match adding.begin_blob(digest, blob.size(), &mut || progress.cancelled())? {
                Begun::There => return Ok(()),
                Begun::GaveUp => return Err(TransferError::Cancelled),
                Begun::Write(ingest) => ingest,
            };
            let resumed = ingest.offset();
            self.pass(blob, resumed, &mut |bytes| ingest.write(bytes))?;
            match ingest.finish() {
                // What was there before was no beginning of it; that is gone now.
                Err(LocalError::WrongDigest { .. }) if resumed > 0 => {}
                finished => return Ok(finished?),
            }
        }
    }
}
