//! A tree of the host's files behind the device: [`nelly_share::Server`].

use std::fs::File;
use std::io;

use nelly_disk::{ReadBuffer, WriteBuffer};
use nelly_share::{CacheMode, Locks, Options, Owners, Server, Tree};

use super::FileServer;

/// A directory, or a single file, of the host.
pub struct SharedTree(Server);

impl SharedTree {
    /// Shares what `opened` is. As root the guest sees and sets the owners that files have on the
    /// host; otherwise files belong to the user of this process, and what the guest sets is kept
    /// beside them. With `host_locks` locks hold between guests and programs of the host, too.
    ///
    /// # Errors
    /// It is neither a directory nor a regular file, or the host lacks something.
    pub fn new(opened: File, read_only: bool, host_locks: bool) -> io::Result<Self> {
        let kind = opened.metadata()?.file_type();
        let tree = match (kind.is_dir(), kind.is_file()) {
            (true, _) => Tree::Directory(opened.into()),
            (_, true) => Tree::File(opened.into()),
            _ => {
                let text = "it is neither a directory nor a regular file";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
        };
        let owners = match rustix::process::geteuid().is_root() {
            true => Owners::Kept,
            false => Owners::Mapped { uid: 0, gid: 0 },
        };
        // A wait for a lock is the device's to repeat: none waits in the server.
        let locks = if host_locks { Locks::Host { waiters: 0 } } else { Locks::Guest };
        let options = Options { read_only, owners, cache: CacheMode::Auto, locks, ..Options::default() };
        Server::new(tree, options).map(Self)
    }
}

impl FileServer for SharedTree {
    fn handle(&self, request: &dyn WriteBuffer, reply: &mut dyn ReadBuffer) -> usize {
        self.0.handle(request, reply)
    }

    fn reset(&self) {
        self.0.reset();
    }
}
