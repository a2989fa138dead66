//! Progress reports of resolving an image.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The stage of a resolve. A cached image has no stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ImageStage {
    /// Another process builds the same image; bytes are not counted.
    Waiting,
    /// Decompressing an archive that is compressed as a whole; bytes of the compressed file.
    Archive,
    /// Reading, verifying and merging a layer; bytes of the layer as it is stored (compressed).
    Layer {
        /// 1 for the lowest layer.
        number: usize,
        /// Number of layers of the image.
        count: usize,
    },
    /// Copying a file into the local store or out of it; bytes of the file as it is stored.
    Copying,
    /// Copying a `rootfs:` directory; bytes of file contents, total unknown.
    Rootfs,
    /// Writing inodes and directories; bytes of the metadata.
    Metadata,
    /// Waiting until what was written is on the disk; bytes are not counted. Comes after each layer
    /// that is new to the cache, and at the end.
    Sync,
}

impl fmt::Display for ImageStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting => f.write_str("waiting for another process that prepares this image"),
            Self::Archive => f.write_str("decompressing the archive"),
            Self::Layer { number, count } => write!(f, "unpacking layer {number} of {count}"),
            Self::Copying => f.write_str("copying"),
            Self::Rootfs => f.write_str("reading the directory"),
            Self::Metadata => f.write_str("writing the file system"),
            Self::Sync => f.write_str("syncing"),
        }
    }
}

/// Receives the progress of a resolve, on the thread that called it.
pub trait Progress {
    /// Called when a stage begins (with `done` 0), then about once for each mebibyte, and when it
    /// ends.
    ///
    /// `done` and `total` are bytes; `total` is `None` if it is unknown.
    fn update(&mut self, stage: ImageStage, done: u64, total: Option<u64>);

    /// Called for every entry and every part of a file. `true` cancels the resolve with
    /// [`crate::ImageError::Cancelled`]; only complete layers stay in the cache.
    fn cancelled(&mut self) -> bool {
        false
    }
}

/// Ignores progress.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn update(&mut self, _stage: ImageStage, _done: u64, _total: Option<u64>) {}
}

/// A phase of a resolve as its workers see it: they report often, the watcher hears about once a
/// mebibyte.
pub(crate) struct Watch<'a> {
    progress: &'a mut dyn Progress,
    stage: ImageStage,
    pub(crate) total: Option<u64>,
    told: u64,
    done: u64,
}

impl<'a> Watch<'a> {
    pub(crate) fn begin(progress: &'a mut dyn Progress, stage: ImageStage, total: Option<u64>) -> Self {
        progress.update(stage, 0, total);
        Self { progress, stage, total, told: 0, done: 0 }
    }

    /// Whether to go on.
    pub(crate) fn tick(&mut self, done: u64) -> bool {
        self.done = done;
        if done - self.told >= 1 << 20 {
            self.told = done;
            self.progress.update(self.stage, done, self.total);
        }
        !self.progress.cancelled()
    }

    pub(crate) fn end(self) {
        self.progress.update(self.stage, self.total.unwrap_or(self.done), self.total);
    }
}
