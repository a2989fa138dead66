//! The header: every field is checked before anything else is read.

use crate::number::fits;
use crate::traits::{BYTES_MAX, SECTOR};

/// Bytes that hold the header's fields of every version.
pub(crate) const FIXED: usize = 112;
/// The format's first bytes: "QFI" and 0xfb.
const MAGIC: u32 = 0x5146_49fb;
/// Bytes of a header of version 2, and the least of version 3.
const BYTES_V2: usize = 72;
const BYTES_V3: u64 = 104;
/// Bits of a cluster's size: 512 bytes to 2 MiB.
pub(crate) const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// Most bytes of the first-level table, as in QEMU.
pub(crate) const L1_BYTES_MAX: u64 = 32 << 20;
/// Most bytes of the refcount table, as in QEMU.
pub(crate) const REFCOUNT_TABLE_BYTES_MAX: u64 = 8 << 20;
/// Most bytes of a backing file's name.
const NAME_MAX: u32 = 1023;

const INCOMPATIBLE_DIRTY: u64 = 1;
const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;

const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_BITMAPS: u32 = 0x2385_2875;

/// How clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Deflate without a zlib header.
    Zlib,
    /// Zstandard.
    Zstd,
}

/// The file that an image is a change of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingName {
    /// As the header has it: a path relative to the image's directory, unless it is absolute.
    pub name: String,
    /// Its format, if the image says it.
    pub format: Option<String>,
}

/// A header whose fields are possible in a file of its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// The logarithm of a cluster's size in bytes, 9 to 21.
    pub cluster_bits: u32,
    /// Bytes of the disk, whole sectors.
    pub size: u64,
    /// Entries of the first-level table.
    pub l1_entries: u32,
    /// Where it is in the file.
    pub l1_offset: u64,
    /// Where the refcount table is in the file.
    pub refcount_table_offset: u64,
    /// Clusters of it.
    pub refcount_table_clusters: u32,
    /// The logarithm of a refcount's bits, 0 to 6.
    pub refcount_order: u32,
    /// Snapshots inside the image.
    pub snapshots: u32,
    /// Refcounts may be wrong: it was written with lazy refcounts and not closed.
    pub dirty: bool,
    /// Somebody found that its metadata is damaged.
    pub corrupt: bool,
    /// It has bitmaps of changed blocks.
    pub bitmaps: bool,
    /// Features that a writer who does not know them must turn off.
    pub autoclear: u64,
    /// How clusters are compressed.
    pub compression: Compression,
    /// What it is a change of.
    pub backing: Option<BackingName>,
}

/// Why a header is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The first bytes are other ones.
    #[error("it is not a qcow2 image: it does not begin with the format's magic number")]
    Magic,
    /// The file is too short.
    #[error("the header is cut off: the file has {0} bytes only")]
    Short(u64),
    /// Neither 2 nor 3.
    #[error("version {0} of the format is not supported, only 2 and 3 are")]
    Version(u32),
    /// A field has an impossible value.
    #[error("the header's field {field} is {value}: {why}")]
    Field {
        /// Its name in the specification.
        field: &'static str,
        /// What it is.
        value: u64,
        /// What is wrong.
        why: &'static str,
    },
    /// A feature that is not supported.
    #[error("the image uses {0}, which Nelly does not support")]
    Feature(String),
    /// A header extension or the backing file's name is damaged.
    #[error("the header is damaged: {0}")]
    Damaged(&'static str),
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_be_bytes(word)
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) << 32 | u64::from(word(bytes, at + 4))
}

const fn wrong(field: &'static str, value: u64, why: &'static str) -> HeaderError {
    HeaderError::Field { field, value, why }
}

/// The logarithm of the cluster size, from the first bytes of a file of `file_bytes`: so much is to
/// be read for [`Header::parse`].
///
/// # Errors
/// It is no image, or the field is impossible.
pub(crate) fn cluster_bits(first: &[u8], file_bytes: u64) -> Result<u32, HeaderError> {
    if first.len() < 4 || word(first, 0) != MAGIC {
        return Err(HeaderError::Magic);
    }
    if first.len() < BYTES_V2 {
        return Err(HeaderError::Short(file_bytes));
    }
    let bits = word(first, 20);
    if CLUSTER_BITS.contains(&bits) {
        Ok(bits)
    } else {
        Err(wrong("cluster_bits", bits.into(), "clusters have 512 bytes to 2 MiB, 9 to 21 bits"))
    }
}

impl Header {
    /// Bytes of a cluster.
    #[must_use]
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Parses the first cluster of a file of `file_bytes`, or all of a shorter one.
    ///
    /// # Errors
    /// [`HeaderError`] names what is refused.
    pub fn parse(cluster: &[u8], file_bytes: u64) -> Result<Self, HeaderError> {
        let cluster_bits = cluster_bits(cluster, file_bytes)?;
        let version = word(cluster, 4);
        if !(2..=3).contains(&version) {
            return Err(HeaderError::Version(version));
        }
        match word(cluster, 32) {
            0 => {}
            1 => return Err(HeaderError::Feature("encryption (AES)".to_owned())),
            2 => return Err(HeaderError::Feature("encryption (LUKS)".to_owned())),
            other => return Err(wrong("crypt_method", other.into(), "no such method is known")),
        }
        let extra = Extra::parse(cluster, version, cluster_bits, file_bytes)?;
        let mut header = Self {
            version,
            cluster_bits,
            size: long(cluster, 24),
            l1_entries: word(cluster, 36),
            l1_offset: long(cluster, 40),
            refcount_table_offset: long(cluster, 48),
            refcount_table_clusters: word(cluster, 56),
            refcount_order: extra.refcount_order,
            snapshots: word(cluster, 60),
            dirty: extra.incompatible & INCOMPATIBLE_DIRTY != 0,
            corrupt: extra.incompatible & INCOMPATIBLE_CORRUPT != 0,
            bitmaps: false,
            autoclear: extra.autoclear,
            compression: extra.compression,
            backing: None,
        };
        header.check_size()?;
        header.check_tables(file_bytes)?;
        let format = header.read_extensions(cluster, extra.length)?;
        header.backing = backing_name(cluster)?.map(|name| BackingName { name, format });
        Ok(header)
    }

    fn check_size(&self) -> Result<(), HeaderError> {
        if self.size > BYTES_MAX {
            return Err(wrong("size", self.size, "no disk is so large"));
        }
        if !self.size.is_multiple_of(SECTOR) {
            return Err(wrong("size", self.size, "a disk has whole sectors of 512 bytes"));
        }
        let entries = u64::from(self.l1_entries);
        if entries * 8 > L1_BYTES_MAX {
            return Err(wrong("l1_size", entries, "the first-level table has at most 32 MiB"));
        }
        if entries < l1_entries(self.size, self.cluster_bits) {
            return Err(wrong("l1_size", entries, "the first-level table is too small for the disk"));
        }
        Ok(())
    }

    fn check_tables(&self, file_bytes: u64) -> Result<(), HeaderError> {
        let inside = |field, offset: u64, bytes: u64| {
            if !offset.is_multiple_of(self.cluster_size()) {
                return Err(wrong(field, offset, "it is not a multiple of the cluster size"));
            }
            if offset == 0 {
                return Err(wrong(field, offset, "the header lies there"));
            }
            match offset.checked_add(bytes) {
                Some(end) if end <= file_bytes => Ok(()),
                _ => Err(wrong(field, offset, "the table ends behind the end of the file")),
            }
        };
        if self.l1_entries > 0 {
            inside("l1_table_offset", self.l1_offset, u64::from(self.l1_entries) * 8)?;
        }
        let clusters = u64::from(self.refcount_table_clusters);
        let bytes = clusters << self.cluster_bits;
        if clusters == 0 {
            return Err(wrong("refcount_table_clusters", 0, "an image has a refcount table"));
        }
        if bytes > REFCOUNT_TABLE_BYTES_MAX {
            let why = "the refcount table has at most 8 MiB";
            return Err(wrong("refcount_table_clusters", clusters, why));
        }
        inside("refcount_table_offset", self.refcount_table_offset, bytes)
    }

    /// Reads the header's extensions; returns the backing file's format.
    fn read_extensions(&mut self, cluster: &[u8], length: usize) -> Result<Option<String>, HeaderError> {
        // The name of the backing file ends the area of extensions.
        let name = usize::try_from(long(cluster, 8)).ok().filter(|at| *at > 0);
        let end = name.map_or(cluster.len(), |at| at.min(cluster.len()));
        let (mut at, mut format) = (length, None);
        while at + 8 <= end {
            let (kind, bytes) = (word(cluster, at), word(cluster, at + 4) as usize);
            if kind == EXTENSION_END {
                break;
            }
            let body = at + 8;
            let Some(body) = body.checked_add(bytes).and_then(|stop| cluster[..end].get(body..stop)) else {
                return Err(HeaderError::Damaged("an extension is longer than the header's cluster"));
            };
            match kind {
                EXTENSION_BACKING_FORMAT => {
                    let text = std::str::from_utf8(body).ok().filter(|text| printable(text));
                    let text = text.ok_or(HeaderError::Damaged("the backing file's format is no word"))?;
                    format = Some(text.to_owned());
                }
                EXTENSION_BITMAPS => self.bitmaps = true,
                // The others change nothing, or have an incompatible feature's bit, too.
                _ => {}
            }
            at += 8 + bytes.next_multiple_of(8);
        }
        Ok(format)
    }
}

/// Entries of the first-level table that a disk of `size` bytes needs.
pub(crate) fn l1_entries(size: u64, cluster_bits: u32) -> u64 {
    // A second-level table is a cluster of entries of 8 bytes.
    size.div_ceil(1 << (2 * cluster_bits - 3))
}

/// The fields that version 3 added.
struct Extra {
    incompatible: u64,
    autoclear: u64,
    refcount_order: u32,
    compression: Compression,
    length: usize,
}

impl Extra {
    fn parse(cluster: &[u8], version: u32, cluster_bits: u32, file_bytes: u64) -> Result<Self, HeaderError> {
        if version == 2 {
            return Ok(Self {
                incompatible: 0,
                autoclear: 0,
                refcount_order: 4,
                compression: Compression::Zlib,
                length: BYTES_V2,
            });
        }
        if cluster.len() < FIXED {
            return Err(HeaderError::Short(file_bytes));
        }
        let length = u64::from(word(cluster, 100));
        if length < BYTES_V3 || !length.is_multiple_of(8) || length > 1 << cluster_bits {
            let why = "it is at least 104, a multiple of 8, and not more than a cluster";
            return Err(wrong("header_length", length, why));
        }
        let incompatible = long(cluster, 72);
        let known = INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT | INCOMPATIBLE_COMPRESSION;
        for (bit, name) in [
            (INCOMPATIBLE_DATA_FILE, "an external data file"),
            (INCOMPATIBLE_EXTENDED_L2, "extended L2 entries (subclusters)"),
        ] {
            if incompatible & bit != 0 {
                return Err(HeaderError::Feature(name.to_owned()));
            }
        }
        if incompatible & !known != 0 {
            let bit = (incompatible & !known).trailing_zeros();
            return Err(HeaderError::Feature(format!("the incompatible feature of bit {bit}")));
        }
        let kind = if length > BYTES_V3 { cluster[104] } else { 0 };
        let compression = match kind {
            0 => Compression::Zlib,
            1 => Compression::Zstd,
            other => return Err(HeaderError::Feature(format!("the compression type {other}"))),
        };
        if (kind != 0) != (incompatible & INCOMPATIBLE_COMPRESSION != 0) {
            let why = "it contradicts the feature bit of compression types";
            return Err(wrong("compression_type", kind.into(), why));
        }
        let refcount_order = word(cluster, 96);
        if refcount_order > 6 {
            return Err(wrong("refcount_order", refcount_order.into(), "refcounts have 1 to 64 bits"));
        }
        Ok(Self {
            incompatible,
            autoclear: long(cluster, 88),
            refcount_order,
            compression,
            length: fits(length, "no more than a cluster"),
        })
    }
}

fn backing_name(cluster: &[u8]) -> Result<Option<String>, HeaderError> {
    let (offset, bytes) = (long(cluster, 8), word(cluster, 16));
    if offset == 0 {
        return Ok(None);
    }
    if bytes == 0 || bytes > NAME_MAX {
        return Err(wrong("backing_file_size", bytes.into(), "a name has 1 to 1023 bytes"));
    }
    let start = usize::try_from(offset).ok();
    let end = start.and_then(|start| start.checked_add(bytes as usize));
    let name = start.zip(end).and_then(|(start, end)| cluster.get(start..end));
    let name = name.ok_or_else(|| {
        wrong("backing_file_offset", offset, "the name does not lie in the header's cluster")
    })?;
    let name = std::str::from_utf8(name).ok().filter(|name| !name.contains('\0'));
    name.map(|name| Some(name.to_owned()))
        .ok_or(HeaderError::Damaged("the backing file's name is not UTF-8 without NUL"))
}

fn printable(text: &str) -> bool {
    !text.is_empty() && text.len() <= 32 && text.chars().all(|c| c.is_ascii_graphic())
}
