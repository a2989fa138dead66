//! OCI images: references, store, layers, the read-only file system image.
//!
//! A [`Reference`] is the IMAGE word of the command line. A [`Store`] turns it into an [`Image`]: the image's
//! configuration and an opened read-only EROFS file system that holds every layer merged, ready to be attached to a
//! machine as a disk. The file is made once and cached under a key that depends only on the layers' contents.
//!
//! The crate is synchronous, prints nothing, needs no privilege, unpacks nothing onto the host's file system and
//! knows no machine. Everything it reads (layouts, archives, layers) is untrusted.

mod cache;
mod digest;
mod error;
mod limits;
mod progress;
mod reference;
mod store;

pub use cache::CacheError;
pub use digest::{Digest, DigestError};
pub use error::ImageError;
pub use limits::Limits;
pub use oci_spec::image::ImageConfiguration;
pub use progress::{Phase, Progress, Silent};
pub use reference::{Reference, ReferenceError};
pub use store::{Image, Plan, PlannedLayer, Store, StoreOptions};
