//! Why a file was not fetched.

use std::io;
use std::path::PathBuf;

use nelly_disk::ImageError;
use nelly_image::Digest;
use nelly_image::UnpackerError;
use nelly_image::trusted::TrustError;
use nelly_registry::RegistryError;
use thiserror::Error;

/// Why a file was not fetched. Words of a server or of an archive in a message have no control
/// characters.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The server did not give it.
    #[error(transparent)]
    Server(#[from] RegistryError),
    /// It has another checksum. What came was removed.
    #[error("{what} has the checksum {found}, and not {wanted}")]
    Checksum {
        /// Where it came from.
        what: String,
        /// What it should have.
        wanted: Box<Digest>,
        /// What it has.
        found: String,
    },
    /// There is a file of this name already.
    #[error("{} exists already", .0.display())]
    Exists(PathBuf),
    /// The program that unpacks files is not there.
    #[error(transparent)]
    Unpacker(#[from] UnpackerError),
    /// It was not unpacked.
    #[error("cannot unpack {what}: {why}")]
    Unpack {
        /// Where it came from.
        what: String,
        /// The unpacker's words.
        why: String,
    },
    /// The archive does not have the file.
    #[error("{what}: {why}")]
    NoMember {
        /// Where it came from.
        what: String,
        /// The unpacker's words.
        why: String,
    },
    /// A file of an archive was named, and it is none.
    #[error("{0} is no archive (zip, tar) of which a file could be taken")]
    NoArchive(String),
    /// It is no disk that a machine could have.
    #[error("{what} is no disk that nelly can use: {why}")]
    NoDisk {
        /// Where it came from.
        what: String,
        /// Why.
        why: String,
    },
    /// It says what an image cannot say.
    #[error("{what} is no disk that nelly can use")]
    Image {
        /// Where it came from.
        what: String,
        /// Why.
        source: ImageError,
    },
    /// There is no room for it.
    #[error("{what} needs {wanted} bytes, and the file system of {} has room for {room}", dir.display())]
    NoRoom {
        /// Where it comes from.
        what: String,
        /// Where it would go.
        dir: PathBuf,
        /// Bytes that it needs.
        wanted: u64,
        /// Bytes that there are.
        room: u64,
    },
    /// A file or a directory of this host cannot be used.
    #[error("cannot use {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The cache's directory cannot be used.
    #[error(transparent)]
    Directory(#[from] TrustError),
}

impl FetchError {
    /// A stable word for programs, `snake_case`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Server(error) => error.code(),
            Self::Checksum { .. } => "checksum_mismatch",
            Self::Exists(_) => "exists",
            Self::NoMember { .. } => "no_member",
            Self::Unpacker(_) | Self::Unpack { .. } => "unpack_failed",
            Self::NoArchive(_) | Self::NoDisk { .. } | Self::Image { .. } => "not_a_disk",
            Self::NoRoom { .. } => "no_room",
            Self::File { .. } | Self::Directory(_) => "io",
        }
    }
}

/// Names the file of an error of the system.
pub(crate) fn of_file(path: &std::path::Path) -> impl Fn(io::Error) -> FetchError + '_ {
    |source| FetchError::File { path: path.to_owned(), source }
}
