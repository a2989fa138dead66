//! The bytes behind virtio-blk: raw files; knows no device.
