//! Bounds on what an image may cost.

/// Bounds on what an image may cost, so that a small hostile file cannot fill the disk or the
/// memory.
///
/// Exceeding one is an error that names the limit and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the file system image, holes included. At most 16 TiB, what the format can address.
    /// Whatever it says, an image takes no more than fifteen sixteenths of what is free where the
    /// cache lies.
    pub disk_bytes: u64,
    /// Bytes that all layers may decompress to, padding and overwritten files included.
    pub unpacked_bytes: u64,
    /// Files, directories and links of all layers together.
    pub entries: u64,
    /// Bytes of names, symbolic link targets and extended attributes of all layers together.
    pub metadata_bytes: u64,
    /// Names looked at in the paths, links and whiteouts of all layers together: what merging them
    /// costs in time.
    pub walked_names: u64,
    /// Bytes of one index, manifest or configuration.
    pub json_bytes: u64,
    /// Layers of one image.
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
