//! OCI images: references, store, layers, and the read-only file system image.
//!
//! A [`Reference`] is parsed from the IMAGE argument of the command line. A [`Store`] resolves it
//! to an [`Image`]: the image's configuration and an opened read-only EROFS file system with all
//! layers merged, to be attached to a machine as a disk. It consists of a metadata file and a file
//! with the contents of each layer, which images share. They are built once and cached under keys
//! that depend only on the contents of the layers.
//!
//! The crate is synchronous, prints nothing, needs no privileges, unpacks nothing to the host's
//! file system and is independent of machines. Everything it reads (layouts, archives, layers) is
//! untrusted.

mod blob;
mod cache;
mod changes;
mod descriptor;
mod digest;
mod erofs;
mod error;
mod health;
mod layer;
mod limits;
mod local;
mod lock;
mod merge;
mod name;
mod num;
mod progress;
mod reference;
mod removed;
mod rootfs;
mod source;
mod store;
mod sys;
mod tar;
mod transfer;
mod tree;
pub mod trusted;
mod unpacker;
mod version;
mod zstd;

pub use cache::CacheError;
pub use descriptor::Descriptor;
pub use digest::{Digest, DigestError};
pub use erofs::WriteError;
pub use error::{ImageError, Told, UnpackerError};
pub use health::{HealthCheckError, ImageHealthCheck, RawConfig};
pub use layer::LayerError;
pub use limits::Limits;
pub use local::{
    Adding, Begun, Found, Hold, InUse, Ingest, LocalError, LocalStore, Removal, Removing, StoredImage,
};
pub use name::{ImageName, NameError};
pub use oci_spec::image::{Config, ImageConfiguration};
pub use progress::{ImageStage, Progress, Silent};
pub use reference::{Reference, ReferenceError};
pub use removed::Removed;
pub use rootfs::RootfsError;
pub use source::{Document, SourceError};
pub use store::{Image, ImagePlan, PlannedLayer, Store, StoreOptions};
pub use sys::Room;
pub use tar::{Damage, TarError};
pub use transfer::{ARCHIVE, ArchiveFormat, ArchiveOrder, Input, TransferError};
pub use tree::TreeError;
pub use unpacker::{Order, Unpacker};
pub use zstd::Decoder as ZstdDecoder;

/// Entry points for fuzzing.
#[doc(hidden)]
pub mod fuzz {
    use crate::erofs::NullSink;
    use crate::tar::TarReader;
    use crate::tree::Tree;
    use crate::{Limits, layer};

    /// Merges the two halves of `data` as the uncompressed tar streams of two layers. Whether both
    /// were accepted.
    pub fn layers(data: &[u8]) -> bool {
        let limits = Limits {
            entries: 10_000,
            metadata_bytes: 1 << 20,
            walked_names: 1 << 20,
            disk_bytes: 1 << 30,
            ..Limits::default()
        };
        let mut tree = Tree::new(&limits);
        let (lower, upper) = data.split_at(data.len() / 1024 * 512);
        [lower, upper].into_iter().all(|mut data| {
            let (mut sink, mut keep) = (NullSink::default(), |_: &_| Ok(()));
            layer::apply(&mut TarReader::new(&mut data), &mut tree, &mut sink, &mut keep, &mut || true)
                .is_ok()
        })
    }
}
