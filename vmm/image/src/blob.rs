//! Blobs: stretches of bytes in a file or in memory, and the verified, decompressed stream of a
//! layer.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::digest::{Digest, Hasher};
use crate::layer::LayerError;
use crate::num::{at_most, fits, to_u64};
use crate::tar::TarInput;
use crate::zstd;

/// Bytes handed from one thread to the other at a time.
const CHUNK: usize = 256 << 10;
/// Chunks under way.
const CHUNKS: usize = 8;

/// Bytes of an image, somewhere.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    /// For messages: the file, and the part of it.
    pub(crate) name: String,
    pub(crate) bytes: Bytes,
}

/// Where a blob's bytes are.
#[derive(Clone, Debug)]
pub(crate) enum Bytes {
    /// A stretch of a file.
    File {
        file: Arc<File>,
        offset: u64,
        size: u64,
    },
    Memory(Arc<[u8]>),
}

impl Blob {
    pub(crate) fn size(&self) -> u64 {
        match &self.bytes {
            Bytes::File { size, .. } => *size,
            Bytes::Memory(bytes) => to_u64(bytes.len()),
        }
    }

    pub(crate) fn reader(&self) -> BlobReader {
        BlobReader { bytes: self.bytes.clone(), at: 0 }
    }

    /// All of it. The caller has checked that the size is bearable.
    pub(crate) fn read_all(&self) -> io::Result<Vec<u8>> {
        // One byte more, so that the end is found without growing.
        let size: usize = fits(self.size(), "what is read whole fits into memory");
        let mut data = Vec::with_capacity(size.saturating_add(1));
        self.reader().read_to_end(&mut data)?;
        if to_u64(data.len()) != self.size() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(data)
    }
}

/// Reads a blob from its start. Several readers of one blob do not disturb each other.
pub(crate) struct BlobReader {
    bytes: Bytes,
    at: u64,
}

impl BlobReader {
    /// Passes over `n` bytes; `false` if there are not as many.
    pub(crate) fn seek_forward(&mut self, n: u64) -> bool {
        let size = match &self.bytes {
            Bytes::File { size, .. } => *size,
            Bytes::Memory(bytes) => to_u64(bytes.len()),
        };
        match self.at.checked_add(n) {
            Some(at) if at <= size => {
                self.at = at;
                true
            }
            _ => false,
        }
    }
}

impl Read for BlobReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let got = match &self.bytes {
            Bytes::File { file, offset, size } => {
                let most = at_most(size.saturating_sub(self.at), out.len());
                if most == 0 {
                    return Ok(0);
                }
                file.read_at(&mut out[..most], offset.saturating_add(self.at))?
            }
            Bytes::Memory(bytes) => {
                let at: usize = fits(self.at, "a place in memory");
                bytes.get(at..).unwrap_or_default().read(out)?
            }
        };
        self.at += to_u64(got);
        Ok(got)
    }
}

/// How a layer is compressed, told by its first bytes, as every other program does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// # Errors
    /// The name of a compression that is not supported.
    pub(crate) fn of(start: &[u8]) -> Result<Self, &'static str> {
        match start {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Self::Zstd),
            // A skippable frame, with which seekable zstd may begin.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Self::Zstd),
            [b'B', b'Z', b'h', ..] => Err("bzip2"),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Err("xz"),
            [0x04, 0x22, 0x4d, 0x18, ..] => Err("lz4"),
            _ => Ok(Self::None),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::None => "tar",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    /// A decoder of `reader`, whose bytes begin with `start` (already read from it).
    pub(crate) fn decoder<'a>(
        self,
        start: Vec<u8>,
        reader: impl Read + 'a,
    ) -> io::Result<Box<dyn Read + 'a>> {
        let whole = io::Cursor::new(start).chain(reader);
        Ok(match self {
            Self::None => Box::new(whole),
            Self::Gzip => {
                Box::new(flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(CHUNK, whole)))
            }
            Self::Zstd => Box::new(zstd::Decoder::new(BufReader::with_capacity(CHUNK, whole))),
        })
    }
}

/// Reads the first bytes, enough to tell the compression.
pub(crate) fn read_start(reader: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut start = Vec::with_capacity(8);
    reader.take(8).read_to_end(&mut start)?;
    Ok(start)
}

/// What the two threads that read a layer tell each other.
struct ReadState {
    /// Compressed bytes read.
    done: AtomicU64,
    /// Nobody wants the rest.
    stop: AtomicBool,
    /// Why the reading thread ended early.
    failure: Mutex<Option<LayerError>>,
}

/// Hashes what passes through.
struct HashingReader<'a, R> {
    inner: R,
    hasher: Option<Hasher>,
    shared: &'a ReadState,
}

impl<R: Read> Read for HashingReader<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(out)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&out[..got]);
        }
        self.shared.done.fetch_add(to_u64(got), Ordering::Relaxed);
        Ok(got)
    }
}

/// A layer as the image describes it.
#[derive(Clone, Debug)]
pub(crate) struct LayerBlob {
    pub(crate) blob: Blob,
    /// Of the stored bytes; `None` where only `diff_id` is known (docker archives).
    pub(crate) digest: Option<Digest>,
    /// Of the uncompressed bytes.
    pub(crate) diff_id: Digest,
}

/// The uncompressed stream of a layer, made by another thread.
pub(crate) struct LayerStream<'a> {
    full: Receiver<Vec<u8>>,
    empty: SyncSender<Vec<u8>>,
    chunk: Vec<u8>,
    at: usize,
    hasher: Hasher,
    /// Uncompressed bytes that may still come.
    left: &'a mut u64,
    over: bool,
    shared: &'a ReadState,
}

/// Tells how many stored bytes of a layer were read so far.
pub(crate) struct Counter<'a>(&'a AtomicU64);

impl Counter<'_> {
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl<'a> LayerStream<'a> {
    pub(crate) fn counter(&self) -> Counter<'a> {
        Counter(&self.shared.done)
    }
}

impl TarInput for LayerStream<'_> {
    fn fill(&mut self) -> io::Result<&[u8]> {
        if self.at == self.chunk.len() {
            let used = std::mem::take(&mut self.chunk);
            if used.capacity() > 0 {
                // The other thread may be gone already.
                let _ = self.empty.try_send(used);
            }
            self.at = 0;
            // An end by failure looks like an end of the stream here; the failure is told later, in
            // its own words.
            if let Ok(chunk) = self.full.recv() {
                let Some(left) = self.left.checked_sub(to_u64(chunk.len())) else {
                    self.over = true;
                    return Err(io::ErrorKind::FileTooLarge.into());
                };
                *self.left = left;
                self.hasher.update(&chunk);
                self.chunk = chunk;
            }
        }
        Ok(&self.chunk[self.at..])
    }

    fn consume(&mut self, n: usize) {
        self.at = self.chunk.len().min(self.at + n);
    }
}

impl LayerBlob {
    /// Reads, verifies and decompresses the layer on a thread of its own while `apply` reads the
    /// result on this one. `budget` is the number of uncompressed bytes that may come, `limit` its
    /// value at the start.
    ///
    /// # Errors
    /// What `apply` or the reading failed with. If the stored bytes do not have their digest, then
    /// that, whatever else failed: it is the cause.
    pub(crate) fn read(
        &self,
        budget: &mut u64,
        limit: u64,
        apply: impl FnOnce(&mut LayerStream<'_>) -> Result<(), LayerError>,
    ) -> Result<(), LayerError> {
        let shared =
            ReadState { done: AtomicU64::new(0), stop: AtomicBool::new(false), failure: Mutex::new(None) };
        let shared = &shared;
        thread::scope(|scope| {
            let (full_in, full) = sync_channel(CHUNKS);
            let (empty, empty_out) = sync_channel(CHUNKS);
            let reading = thread::Builder::new()
                .name("layer".to_owned())
                .spawn_scoped(scope, move || self.pump(shared, &full_in, &empty_out))
                .map_err(|source| LayerError::Read { name: self.blob.name.clone(), source })?;
            // Also where the two digests are the same: that says what the image claims, not what is
            // in the stream.
            let hasher = self.diff_id.hasher();
            let (chunk, at) = (Vec::new(), 0);
            let mut stream =
                LayerStream { full, empty, chunk, at, hasher, left: budget, over: false, shared };
            let applied = apply(&mut stream);
            let LayerStream { full, hasher, over, .. } = stream;
            // These have nothing to do with the layer's bytes; after others the rest is still
            // verified.
            if matches!(applied, Err(LayerError::Cancelled | LayerError::Write { .. })) {
                shared.stop.store(true, Ordering::Relaxed);
            }
            drop(full);
            if let Err(panic) = reading.join() {
                std::panic::resume_unwind(panic);
            }
            let failure = shared.failure.lock().map_or(None, |mut failure| failure.take());
            match (failure, applied) {
                (Some(corrupt @ LayerError::Digest { .. }), _) => return Err(corrupt),
                (_, _) if over => return Err(LayerError::TooLarge(limit)),
                (Some(failure), Ok(()) | Err(LayerError::Tar(_))) => return Err(failure),
                (_, Err(error)) => return Err(error),
                (None, Ok(())) => {}
            }
            let found = hasher.finish();
            if found != self.diff_id {
                return Err(LayerError::DiffId { wanted: Box::new(self.diff_id), found: Box::new(found) });
            }
            Ok(())
        })
    }

    /// Verifies the digest of the stored bytes alone. `tick` hears of bytes done; `false` ends it.
    ///
    /// # Errors
    /// They do not have it, cannot be read, or are not wanted any more.
    pub(crate) fn verify_stored(&self, tick: &mut dyn FnMut(u64) -> bool) -> Result<(), LayerError> {
        let Some(digest) = self.digest else { return Ok(()) };
        let (mut reader, mut hasher) = (self.blob.reader(), digest.hasher());
        let (mut buffer, mut done) = (vec![0; CHUNK], 0);
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return self.verify(Some(hasher)),
                Ok(got) => {
                    hasher.update(&buffer[..got]);
                    done += to_u64(got);
                    if !tick(done) {
                        return Err(LayerError::Cancelled);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(LayerError::Read { name: self.blob.name.clone(), source }),
            }
        }
    }

    /// The reading thread: stored bytes → digest → decoder → chunks.
    fn pump(&self, shared: &ReadState, full: &SyncSender<Vec<u8>>, empty: &Receiver<Vec<u8>>) {
        let hasher = self.digest.map(|digest| digest.hasher());
        let mut reader = HashingReader { inner: self.blob.reader(), hasher, shared };
        let decoded = self.decode(&mut reader, full, empty);
        let read_error = |source| LayerError::Read { name: self.blob.name.clone(), source };
        // Whatever the decoder made of it: if the stored bytes are not the right ones, that is what
        // is wrong.
        let mut rest = vec![0; CHUNK];
        let verified = loop {
            if shared.stop.load(Ordering::Relaxed) {
                break Ok(());
            }
            match reader.read(&mut rest) {
                Ok(0) => break self.verify(reader.hasher.take()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(read_error(error)),
            }
        };
        if let Err(failure) = verified.and(decoded)
            && let Ok(mut slot) = shared.failure.lock()
        {
            *slot = Some(failure);
        }
    }

    fn verify(&self, hasher: Option<Hasher>) -> Result<(), LayerError> {
        match (hasher.map(Hasher::finish), self.digest) {
            (Some(found), Some(wanted)) if found != wanted => {
                Err(LayerError::Digest { wanted: Box::new(wanted), found: Box::new(found) })
            }
            _ => Ok(()),
        }
    }

    fn decode(
        &self,
        mut reader: &mut HashingReader<'_, BlobReader>,
        full: &SyncSender<Vec<u8>>,
        empty: &Receiver<Vec<u8>>,
    ) -> Result<(), LayerError> {
        let read_error = |source| LayerError::Read { name: self.blob.name.clone(), source };
        let start = read_start(&mut reader).map_err(read_error)?;
        let compression = Compression::of(&start).map_err(LayerError::UnsupportedCompression)?;
        let failed = |source| match compression {
            Compression::None => read_error(source),
            other => LayerError::Compression { method: other.name(), source },
        };
        let mut decoder = compression.decoder(start, &mut reader).map_err(failed)?;
        loop {
            let mut chunk = empty.try_recv().unwrap_or_default();
            chunk.resize(CHUNK, 0);
            let mut filled = 0;
            while filled < CHUNK {
                match decoder.read(&mut chunk[filled..]) {
                    Ok(0) => break,
                    Ok(got) => filled += got,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(failed(error)),
                }
            }
            chunk.truncate(filled);
            // The other side hears of an end by the channel's end. It may itself have ended, for
            // its own reason.
            if filled == 0 || full.send(chunk).is_err() {
                return Ok(());
            }
        }
    }
}
