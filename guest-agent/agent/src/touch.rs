//! Programs of the guest are told of what the host has changed in a shared directory: an attribute
//! is set that the file does not keep, and the kernel tells whoever watches the file by inotify
//! (`IN_ATTRIB`), and asks for its size and times anew.
//!
//! The agent has a mount of its own of each shared directory, which no path leads to. It can be
//! written, for the kernel sets no attribute otherwise; that nothing is written to a tree for
//! reading is the host's to see to.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::sys;

/// Where a mount is made, and lies no longer than that.
const PLACE: &str = "/run/nelly-touch";

/// Bytes of a tag (virtio 1.2, 5.11.4).
const TAG_BYTES: usize = 36;

/// The agent's own mounts, by the tags of their devices.
#[derive(Debug, Default)]
pub struct Touches(Mutex<HashMap<String, OwnedFd>>);

impl Touches {
    /// Touches what is at these paths of a shared directory; of none the directory itself. What is
    /// not there, is a link or was last changed by this guest is passed over. It waits for the
    /// host's file system.
    ///
    /// # Errors
    /// There is no such device, or it cannot be mounted.
    pub fn touch(&self, tag: &str, paths: &[Vec<u8>]) -> io::Result<()> {
        // A map that only whole entries are put into.
        let mut mounts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !mounts.contains_key(tag) {
            mounts.insert(tag.to_owned(), mount(tag)?);
        }
        let root = &mounts[tag];
        for path in paths {
            // The next look at it finds what there is.
            let _ = sys::touch(root.as_fd(), path);
        }
        Ok(())
    }
}

fn mount(tag: &str) -> io::Result<OwnedFd> {
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if tag.is_empty() || tag.len() > TAG_BYTES || !tag.bytes().all(sound) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "this is no tag"));
    }
    fs::create_dir_all(Path::new(PLACE))?;
    sys::mount(tag, PLACE, "virtiofs", libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC, "")?;
    let tree = sys::clone_tree(PLACE, false);
    sys::unmount(PLACE)?;
    tree
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_tag_is_not_mounted() {
        let touches = Touches::default();
        for tag in ["", "a/b", "..\n", "\u{e9}", &"a".repeat(TAG_BYTES + 1)] {
            assert_eq!(touches.touch(tag, &[]).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{tag:?}");
        }
    }
}
