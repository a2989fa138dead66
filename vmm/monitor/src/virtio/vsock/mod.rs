//! virtio-vsock (virtio 1.2, section 5.10) in user space: every guest connection is a Unix stream on the host.

mod backlog;
mod connection;
mod packet;
