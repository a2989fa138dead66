//! Programs of the guest are told of what the host has changed in a shared directory: an attribute
//! is set that the file does not keep, and the kernel tells whoever watches the file by inotify
//! (`IN_ATTRIB`), and asks for its size and times anew.
//!
//! It is done by a process of its own, a copy of the agent with one thread, in mounts of its own:
//! whatever makes the host's file system or a file of a hostile container wait for ever, the agent
//! does not, and no container has a path to its mount. That can be written, for the kernel sets no
//! attribute otherwise; that nothing is written to a tree for reading is the host's to see to.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use crate::sys::{self, CloneRequest};

/// How long the process may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Where the process has its mount.
const PLACE: &str = "/run/nelly-touch";

/// Bytes of a tag (virtio 1.2, 5.11.4).
const TAG_BYTES: usize = 36;

/// Makes the process that touches what is at these paths of a shared directory; the empty path is
/// the directory itself. What is not there or was last changed by this guest is passed over.
/// Answers its pidfd; it is to be reaped as every child.
///
/// # Errors
/// The tag is none, and those of clone3(2).
pub fn launch(tag: &str, paths: &[Vec<u8>]) -> io::Result<OwnedFd> {
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if tag.is_empty() || tag.len() > TAG_BYTES || !tag.bytes().all(sound) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "this is no tag"));
    }
    fs::create_dir_all(PLACE)?;
    let null = File::open("/dev/null")?;
    let descriptors = [null.as_fd(), null.as_fd(), null.as_fd()];
    let namespaces = libc::CLONE_NEWNS;
    let request = CloneRequest { namespaces, cgroup: None, pid_namespace: None, descriptors: &descriptors };
    let (_, pidfd) = sys::clone_child(&request, || child(tag, paths))?;
    Ok(pidfd)
}

fn child(tag: &str, paths: &[Vec<u8>]) -> i32 {
    // The agent's own hook ends the machine.
    drop(std::panic::take_hook());
    // Before any process of a container when memory is short.
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
    match touch(tag, paths) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

fn touch(tag: &str, paths: &[Vec<u8>]) -> io::Result<()> {
    // What is mounted here appears nowhere else.
    sys::set_propagation("/", libc::MS_REC | libc::MS_PRIVATE)?;
    sys::mount(tag, PLACE, "virtiofs", libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC, "")?;
    let root = File::open(PLACE)?;
    for path in paths {
        // What is not told now is seen by the next look.
        let _ = sys::touch(root.as_fd(), path);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_tag_is_not_mounted() {
        for tag in ["", "a/b", "..\n", "\u{e9}", &"a".repeat(TAG_BYTES + 1)] {
            assert_eq!(launch(tag, &[]).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{tag:?}");
        }
    }
}
