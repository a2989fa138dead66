//! A directory tree of the host for a guest: a server of the FUSE protocol as virtio-fs carries it
//! (virtio 1.2, section 5.11), without virtio and without guest memory. docs/shares.md says what it
//! promises.
//!
//! The guest is hostile. Requests are decoded by [`wire`], which is pure; every access to the host
//! goes from a directory's descriptor by one checked name to an entry that is not followed if it is
//! a symbolic link, so that nothing leads out of the tree. What a guest may make this process hold
//! is bounded by [`Options`].
//!
//! What the host changes is seen when names and attributes that were told are no longer valid
//! ([`CacheMode`]). The protocol has no way over virtio to tell a driver earlier. [`Watch`] tells
//! what changes in the host's tree, and whoever has it has a program of the guest touch the file
//! ([`TOUCH`]).

mod cache;
mod config;
mod errno;
mod nodes;
mod owner;
mod server;
mod stream;
mod sys;
mod watch;
pub mod wire;

pub use config::{CacheMode, Locks, Options, Owners, Tree};
pub use errno::Errno;
pub use server::{FILE_NAME, Server, TOUCH, Usage};
pub use watch::{Told, Watch};
