//! Pointers to blobs (OCI image specification, descriptor).

use crate::digest::Digest;

/// A pointer to a blob: a manifest, an index, a configuration or a layer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Descriptor {
    /// What the blob is, such as `application/vnd.oci.image.manifest.v1+json`.
    pub media_type: String,
    /// The digest of its bytes.
    pub digest: Digest,
    /// Their number.
    pub size: u64,
}
