//! What fills a partition, by its magic number, with its label and UUID as `blkid` tells them.

use super::FsError;
use super::fat::Fat;
use crate::le::{text, u16_at, u32_at, uuid};
use crate::number::at_most;
use crate::traits::ReadAt;

/// A file system, or what else fills a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FsKind {
    /// ext2, ext3 or ext4.
    Ext,
    /// FAT12, FAT16 or FAT32.
    Fat,
    /// Known by name only.
    Other(&'static str),
}

impl std::fmt::Display for FsKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Ext => "ext4",
            Self::Fat => "vfat",
            Self::Other(name) => name,
        })
    }
}

/// See [`identify`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// What it is.
    pub kind: FsKind,
    /// `LABEL=`; empty without one.
    pub label: String,
    /// `UUID=`, in small letters except FAT's; empty without one.
    pub uuid: String,
}

/// A magic number: where, what, whose, and where UUID and label are.
struct Magic {
    at: usize,
    bytes: &'static [u8],
    name: &'static str,
    uuid: Option<usize>,
    label: Option<(usize, usize)>,
}

const fn magic(at: usize, bytes: &'static [u8], name: &'static str) -> Magic {
    Magic { at, bytes, name, uuid: None, label: None }
}

const MAGICS: &[Magic] = &[
    Magic { at: 0, bytes: b"XFSB", name: "xfs", uuid: Some(32), label: Some((108, 12)) },
    Magic {
        at: 0x10040,
        bytes: b"_BHRfS_M",
        name: "btrfs",
        uuid: Some(0x10020),
        label: Some((0x1012b, 256)),
    },
    Magic { at: 4086, bytes: b"SWAPSPACE2", name: "swap", uuid: Some(1036), label: Some((1052, 16)) },
    magic(0, b"LUKS\xba\xbe", "LUKS (encrypted)"),
    magic(512, b"LABELONE", "LVM"),
    magic(0, b"hsqs", "squashfs"),
    magic(32769, b"CD001", "iso9660"),
    magic(1024, &[0x10, 0x20, 0xf5, 0xf2], "f2fs"),
    magic(1024, &[0xe2, 0xe1, 0xf5, 0xe0], "erofs"),
    magic(0, &[0xc6, 0x85, 0x73, 0xf6], "bcachefs"),
    magic(4096, &[0xfc, 0x4e, 0x2b, 0xa9], "a RAID member (md)"),
];

/// Bytes from the start in which all of this lies.
const HEAD: usize = 0x1022b;

/// Looks at what fills `disk`; `None` when nothing is known of it.
///
/// # Errors
/// The disk cannot be read.
pub fn identify(disk: &dyn ReadAt) -> Result<Option<Identity>, FsError> {
    let mut head = vec![0; HEAD];
    let have = at_most(disk.len(), HEAD);
    disk.read_exact_at(&mut &mut head[..have], 0)?;
    if let Some(magic) = MAGICS.iter().find(|magic| head[magic.at..].starts_with(magic.bytes)) {
        let label = magic.label.map(|(at, len)| text(&head[at..at + len]));
        let id = magic.uuid.map(|at| uuid(&head[at..at + 16]));
        let kind = FsKind::Other(magic.name);
        return Ok(Some(Identity { kind, label: label.unwrap_or_default(), uuid: id.unwrap_or_default() }));
    }
    if u16_at(&head, 1024 + 0x38) == 0xef53 {
        let (label, id) = (text(&head[1024 + 0x78..][..16]), uuid(&head[1024 + 0x68..][..16]));
        return Ok(Some(Identity { kind: FsKind::Ext, label, uuid: id }));
    }
    if super::fat::looks_like(&head) {
        let (label, serial) = match Fat::open(disk).and_then(|fat| Ok((fat.label()?, fat.serial()))) {
            Ok(found) => found,
            // It is told when it is opened what is wrong with it.
            Err(FsError::Read(error)) => return Err(error.into()),
            Err(_) => (String::new(), u32_at(&head, 0x43)),
        };
        let uuid = format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff);
        return Ok(Some(Identity { kind: FsKind::Fat, label, uuid }));
    }
    Ok(None)
}
