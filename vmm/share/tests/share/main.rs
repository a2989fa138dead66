//! A guest that speaks FUSE to a server over a temporary tree.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bounds;
mod coherence;
mod confined;
mod files;
mod guest;
mod listing;
mod locks;
mod owners;
mod read_only;
mod single;
mod touches;
mod xattrs;
