//! What a file that was fetched is: a disk byte for byte, a qcow2 image, or none that can be used.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use nelly_disk::{Format, image_info};

use crate::error::{FetchError, of_file};
use crate::packing::Packing;

/// The format of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFormat {
    /// The disk byte for byte.
    Raw,
    /// QEMU's format.
    Qcow2,
}

impl DiskFormat {
    /// Its word, which is the ending of names, too.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }

    pub(crate) fn of_word(word: &str) -> Option<Self> {
        [Self::Raw, Self::Qcow2].into_iter().find(|format| format.word() == word)
    }
}

/// Formats of others, which would be taken for raw disks: what they begin with, and their names.
const FOREIGN: [(&[u8], &str); 4] =
    [(b"KDMV", "VMDK"), (b"vhdxfile", "VHDX"), (b"conectix", "VHD"), (b"<<< ", "VDI")];

/// The first bytes of a file.
pub(crate) fn head(file: &File) -> std::io::Result<Vec<u8>> {
    let mut head = vec![0; 512];
    let mut filled = 0;
    while filled < head.len() {
        match file.read_at(&mut head[filled..], filled as u64)? {
            0 => break,
            got => filled += got,
        }
    }
    head.truncate(filled);
    Ok(head)
}

/// What `file` is: what a user says, else what its bytes do, which no guest wrote.
pub(crate) fn format(what: &str, file: &File, said: Option<DiskFormat>) -> Result<DiskFormat, FetchError> {
    let head = head(file).map_err(of_file(Path::new(what)))?;
    let refused = |why: &str| FetchError::NoDisk { what: what.to_owned(), why: why.to_owned() };
    if head.is_empty() {
        return Err(refused("it is empty"));
    }
    let found = if head.starts_with(b"QFI\xfb") { DiskFormat::Qcow2 } else { DiskFormat::Raw };
    let format = said.unwrap_or(found);
    if format == DiskFormat::Qcow2 || said.is_some() {
        return Ok(format);
    }
    if let Some((_, name)) = FOREIGN.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Err(refused(&format!("it is an image of the format {name}; qemu-img converts it to qcow2")));
    }
    if Packing::of_bytes(&head) != Packing::None {
        return Err(refused("it is packed once more"));
    }
    if head.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'<') {
        return Err(refused("it is a page of HTML or XML, such as a server's message"));
    }
    Ok(format)
}

/// Whether a machine may have the image at `path`: it leads to no other file of this host.
pub(crate) fn usable(what: &str, path: &Path, format: DiskFormat) -> Result<(), FetchError> {
    if format == DiskFormat::Raw {
        return Ok(());
    }
    let info = image_info(path, Format::Qcow2)
        .map_err(|source| FetchError::Image { what: what.to_owned(), source })?;
    match info.header.and_then(|header| header.backing) {
        Some(_) => {
            let why = "it is a change of another image, which it names as a file of this host";
            Err(FetchError::NoDisk { what: what.to_owned(), why: why.to_owned() })
        }
        None => Ok(()),
    }
}
