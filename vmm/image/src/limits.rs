//! Limits on the resources that an image may use.

use serde::{Deserialize, Serialize};

/// Limits on the resources that an image may use, so that a small hostile file cannot fill the disk
/// or the memory.
///
/// Exceeding one is an error that names the limit and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Size of the file system image in bytes, including holes. At most 16 TiB, the limit of the
    /// format. Regardless of this limit, an image uses at most fifteen sixteenths of the free space
    /// of the cache's file system.
    pub disk_bytes: u64,
    /// Bytes of all uncompressed layers, including padding and overwritten files.
    pub unpacked_bytes: u64,
    /// Number of files, directories and links in all layers.
    pub entries: u64,
    /// Bytes of paths, names, symbolic link targets and extended attributes in all layers.
    pub metadata_bytes: u64,
    /// Number of path components looked up for the paths, links and whiteouts of all layers, which
    /// limits the time for merging them.
    pub walked_names: u64,
    /// Size of one index, manifest or configuration in bytes.
    pub json_bytes: u64,
    /// Number of layers.
    pub layers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            disk_bytes: 64 << 30,
            unpacked_bytes: 64 << 30,
            entries: 4_000_000,
            metadata_bytes: 512 << 20,
            walked_names: 64 << 20,
            json_bytes: 4 << 20,
            layers: 512,
        }
    }
}
