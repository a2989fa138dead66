//! Linux resolves a path below a directory itself.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat, openat2, readlinkat};
use rustix::io::Errno;

use super::{DIRECTORY, Seen};

/// How often a path is looked up again because something was renamed meanwhile. Whoever renames
/// without an end gets an error, and not a process that never ends.
const TRIES_MOST: usize = 1000;

/// A descriptor of what is there, whatever it is: nothing is opened that could answer.
const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// File systems that hold no files of anybody: proc, sysfs, cgroup2.
const NO_FILES: [u64; 3] = [0x9fa0, 0x6265_6572, 0x6367_7270];

/// Looks up a path until nothing comes in between.
fn undisturbed<T>(mut look: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for _ in 1..TRIES_MOST {
        match look() {
            Err(Errno::AGAIN | Errno::INTR) => {}
            found => return found,
        }
    }
    look()
}

fn beneath(root: impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    // It also follows none of the links of /proc, which lead elsewhere.
    undisturbed(|| openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT))
}

fn seen(opened: &OwnedFd) -> Result<Seen, Errno> {
    match FileType::from_raw_mode(fstat(opened)?.st_mode) {
        FileType::Symlink => Ok(Seen::Link(readlinkat(opened, "", Vec::new())?)),
        other => Ok(Seen::Other(other)),
    }
}

/// Opens the directory at `path`, links followed, with `root` as `/` and as `..` of itself.
pub(crate) fn directory_in(root: impl AsFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    beneath(root, path, DIRECTORY)
}

/// What is at `path`, with `root` as `/` and as `..` of itself.
pub(crate) fn look_in(root: impl AsFd, path: &[u8]) -> Result<Seen, Errno> {
    seen(&beneath(root, path, LOOK)?)
}

/// What is at `path`, from the directory `from` on.
pub(crate) fn look(from: impl AsFd, path: &[u8]) -> Result<Seen, Errno> {
    seen(&openat(from, path, LOOK, Mode::empty())?)
}

/// What tells a file from all others.
pub(crate) fn identity(found: &Stat) -> (u64, u64) {
    (found.st_dev, found.st_ino)
}

/// Whether the file system's files are made up by the kernel when they are read.
pub(crate) fn makes_files_up(opened: impl AsFd) -> Result<bool, Errno> {
    let kind = rustix::fs::fstatfs(opened)?.f_type;
    Ok(NO_FILES.iter().any(|magic| u64::try_from(kind) == Ok(*magic)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_renamed_without_an_end_is_an_error() {
        let mut tries = 0;
        let disturbed = undisturbed(|| -> Result<(), Errno> {
            tries += 1;
            Err(Errno::AGAIN)
        });
        assert_eq!((disturbed, tries), (Err(Errno::AGAIN), TRIES_MOST));
        let mut answers = vec![Ok(5), Err(Errno::INTR), Err(Errno::AGAIN)];
        assert_eq!(undisturbed(|| answers.pop().unwrap()), Ok(5));
        assert_eq!(undisturbed(|| Err::<(), _>(Errno::NOENT)), Err(Errno::NOENT));
    }
}
