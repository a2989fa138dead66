//! OCI images: references, store, layers, the read-only file system image.
