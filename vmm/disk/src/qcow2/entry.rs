//! Entries of the first- and second-level tables, as plain data.

use std::io;

/// The cluster that the entry names has a refcount of exactly 1: it may be written in place.
pub(crate) const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// Reads as zeroes, of version 3.
pub(crate) const ZERO: u64 = 1;
/// Bits of an offset: 9 to 55.
pub(crate) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Most bytes that a file of ours can have: offsets are below it.
pub(crate) const FILE_MAX: u64 = 1 << 55;

/// Sizes that follow from the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) version: u32,
    pub(crate) cluster_bits: u32,
    pub(crate) refcount_order: u32,
}

impl Geometry {
    pub(crate) fn cluster(self) -> u64 {
        1 << self.cluster_bits
    }

    /// Entries of a second-level table.
    pub(crate) fn l2_entries(self) -> u64 {
        self.cluster() / 8
    }

    /// Refcounts of a refcount block.
    pub(crate) fn block_entries(self) -> u64 {
        (self.cluster() * 8) >> self.refcount_order
    }

    /// Bytes of the part of a table that is read and written at once.
    pub(crate) fn slice(self) -> u64 {
        self.cluster().min(4096)
    }
}

/// What a cluster of the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// What the backing file has, or zeroes.
    Unallocated,
    /// Zeroes, without space in the file.
    Zero,
    /// Zeroes, with space in the file from this offset on.
    ZeroAt { host: u64, copied: bool },
    /// The bytes from this offset on.
    Data { host: u64, copied: bool },
    /// So many compressed bytes from this offset on.
    Compressed { host: u64, bytes: u64 },
}

/// The error of metadata that cannot be.
pub(crate) fn corrupt(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the qcow2 image is damaged: {}", what.into()))
}

impl Entry {
    /// Decodes an entry of a second-level table.
    pub(crate) fn decode(raw: u64, geometry: Geometry) -> io::Result<Self> {
        if raw & COMPRESSED != 0 {
            return Self::decode_compressed(raw, geometry);
        }
        let (host, copied) = (raw & OFFSET, raw & COPIED != 0);
        if raw & !(OFFSET | COPIED | ZERO) != 0 {
            return Err(corrupt(format!("the L2 entry {raw:#x} has reserved bits")));
        }
        if !host.is_multiple_of(geometry.cluster()) || host >= FILE_MAX {
            return Err(corrupt(format!("the L2 entry {raw:#x} has an impossible offset")));
        }
        match (raw & ZERO != 0, host) {
            (true, _) if geometry.version < 3 => {
                Err(corrupt(format!("the L2 entry {raw:#x} is of a newer version of the format")))
            }
            (true, 0) => Ok(Self::Zero),
            (true, host) => Ok(Self::ZeroAt { host, copied }),
            (false, 0) if copied => Err(corrupt("an L2 entry names the header's cluster")),
            (false, 0) => Ok(Self::Unallocated),
            (false, host) => Ok(Self::Data { host, copied }),
        }
    }

    fn decode_compressed(raw: u64, geometry: Geometry) -> io::Result<Self> {
        // The number of sectors has as many bits as make two clusters.
        let offset_bits = 62 - (geometry.cluster_bits - 8);
        let host = raw & ((1 << offset_bits) - 1);
        let sectors = (raw & !(COPIED | COMPRESSED)) >> offset_bits;
        let bytes = (sectors + 1) * 512 - host % 512;
        if raw & COPIED != 0 || host < geometry.cluster() || host + bytes > FILE_MAX {
            return Err(corrupt(format!("the L2 entry {raw:#x} of a compressed cluster is impossible")));
        }
        Ok(Self::Compressed { host, bytes })
    }

    /// The entry for data at `host` that nobody else uses.
    pub(crate) fn data(host: u64) -> u64 {
        host | COPIED
    }

    /// Whether it reads as zeroes whatever the backing file has.
    pub(crate) fn is_zero(self) -> bool {
        matches!(self, Self::Zero | Self::ZeroAt { .. })
    }

    /// The clusters of the file that it uses, by number.
    pub(crate) fn hosts(self, geometry: Geometry) -> std::ops::Range<u64> {
        let bits = geometry.cluster_bits;
        match self {
            Self::Unallocated | Self::Zero => 0..0,
            Self::Data { host, .. } | Self::ZeroAt { host, .. } => host >> bits..(host >> bits) + 1,
            Self::Compressed { host, bytes } => host >> bits..((host + bytes - 1) >> bits) + 1,
        }
    }
}

/// Decodes an entry of the first-level table, or of the refcount table if `flags` is 0: an offset
/// of a cluster, or 0.
pub(crate) fn table_offset(raw: u64, flags: u64, geometry: Geometry, what: &str) -> io::Result<u64> {
    let host = raw & OFFSET;
    let odd = !host.is_multiple_of(geometry.cluster()) || host >= FILE_MAX || raw & !(OFFSET | flags) != 0;
    if odd || (host == 0 && raw != 0) {
        return Err(corrupt(format!("the entry {raw:#x} of the {what} is impossible")));
    }
    Ok(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEOMETRY: Geometry = Geometry { version: 3, cluster_bits: 16, refcount_order: 4 };

    #[test]
    fn entries_are_what_the_specification_says() {
        let host = 0x5_0000;
        for (raw, found) in [
            (0, Entry::Unallocated),
            (1, Entry::Zero),
            (host | COPIED, Entry::Data { host, copied: true }),
            (host, Entry::Data { host, copied: false }),
            (host | COPIED | 1, Entry::ZeroAt { host, copied: true }),
            (COMPRESSED | 2 << 54 | 0x5_0123, Entry::Compressed { host: 0x5_0123, bytes: 1536 - 0x123 }),
        ] {
            assert_eq!(Entry::decode(raw, GEOMETRY).unwrap(), found, "{raw:#x}");
        }
        let old = Geometry { version: 2, ..GEOMETRY };
        assert!(Entry::decode(1, old).is_err(), "no zero clusters in version 2");
        for raw in [
            COPIED,
            host | 2,
            host | 1 << 56,
            0x8000,
            1 << 55,
            COMPRESSED | 0x100,
            COMPRESSED | COPIED | host,
        ] {
            assert!(Entry::decode(raw, GEOMETRY).is_err(), "{raw:#x}");
        }
        assert_eq!(Entry::Compressed { host: 0x1_ffff, bytes: 2 }.hosts(GEOMETRY), 1..3);
        assert_eq!(Entry::Compressed { host: 0x1_ffff, bytes: 1 }.hosts(GEOMETRY), 1..2);
    }

    #[test]
    fn every_entry_is_decoded_or_refused() {
        for bits in super::super::header::CLUSTER_BITS {
            let geometry = Geometry { cluster_bits: bits, ..GEOMETRY };
            for raw in
                (0..64).flat_map(|bit| [1 << bit, u64::MAX >> bit, u64::MAX << bit, COMPRESSED | 1 << bit])
            {
                if let Ok(entry) = Entry::decode(raw, geometry) {
                    let hosts = entry.hosts(geometry);
                    assert!(hosts.end << bits <= FILE_MAX + (1 << bits), "{raw:#x}");
                }
            }
        }
    }
}
