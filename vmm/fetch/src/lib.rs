//! Images of disks, and other files, from URLs and from files of this host.
//!
//! A [`Fetcher`] downloads a file with the client of registries, which resumes what was cut,
//! compares its checksum, and has it unpacked by the confined program `nelly-unpack`.
//! [`Fetcher::save`] gives it a name of the caller's; a [`DiskCache`] keeps images of disks, each
//! version under a name of its own, because what a machine writes may lie above one of them.
//! Everything that a server says is untrusted: sizes are bounded, names of files come from the URL
//! alone and are checked, and an image that names other files of this host is refused.

mod cache;
mod download;
mod error;
mod fetcher;
mod kept;
mod look;
mod packing;
mod source;
mod unpacking;
mod watch;

pub use cache::{Cached, DiskCache};
pub use error::FetchError;
pub use fetcher::{Fetcher, Saved, Wanted, archive_packing};
pub use kept::{KeptDisk, KeptError};
pub use look::DiskFormat;
pub use packing::Packing;
pub use source::Source;
pub use watch::{Stage, Unwatched, Watch};
