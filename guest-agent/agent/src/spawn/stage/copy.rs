//! Copies a tree of files with all that belongs to them: owners, modes, times, extended attributes,
//! hard links, devices. Links are copied as they are, never followed.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat};
use nix::sys::time::TimeSpec;

use crate::sys;

/// Fills the empty directory `to` with what is in the directory `from`, and makes it look the same.
pub(super) fn tree(from: &Path, to: &Path) -> io::Result<()> {
    let mut links = HashMap::new();
    let mut begun = vec![(from.to_owned(), to.to_owned())];
    // Not by recursion: how deep it goes, the image decides.
    let mut done = 0;
    while let Some((from, to)) = begun.get(done).cloned() {
        done += 1;
        for entry in fs::read_dir(&from)? {
            let name = entry?.file_name();
            let (from, to) = (from.join(&name), to.join(&name));
            let found = fs::symlink_metadata(&from)?;
            if found.is_dir() {
                DirBuilder::new().mode(0o700).create(&to)?;
                begun.push((from, to));
            } else {
                one(&from, &to, &found, &mut links)?;
            }
        }
    }
    // Only now, deepest first: what was made in a directory changed its times.
    begun.iter().rev().try_for_each(|(from, to)| dress(from, to, &fs::symlink_metadata(from)?))
}

/// Copies what is no directory.
fn one(from: &Path, to: &Path, found: &Metadata, links: &mut HashMap<(u64, u64), PathBuf>) -> io::Result<()> {
    let file = (found.dev(), found.ino());
    if found.nlink() > 1 {
        if let Some(first) = links.get(&file) {
            return fs::hard_link(first, to);
        }
        links.insert(file, to.to_owned());
    }
    let kind = found.mode() & libc::S_IFMT;
    match kind {
        libc::S_IFREG => drop(io::copy(&mut File::open(from)?, &mut File::create_new(to)?)?),
        libc::S_IFLNK => symlink(fs::read_link(from)?, to)?,
        _ => mknod(to, SFlag::from_bits_truncate(kind), Mode::S_IRUSR, found.rdev())?,
    }
    dress(from, to, found)
}

/// Owner first, which takes set-id bits and capabilities away; times last.
fn dress(from: &Path, to: &Path, found: &Metadata) -> io::Result<()> {
    lchown(to, Some(found.uid()), Some(found.gid()))?;
    if !found.is_symlink() {
        fs::set_permissions(to, fs::Permissions::from_mode(found.mode() & 0o7777))?;
    }
    sys::copy_attributes(from, to)?;
    let [accessed, modified] = [(found.atime(), found.atime_nsec()), (found.mtime(), found.mtime_nsec())]
        .map(|(seconds, nanoseconds)| TimeSpec::new(seconds, nanoseconds));
    Ok(utimensat(AT_FDCWD, to, &accessed, &modified, UtimensatFlags::NoFollowSymlink)?)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Owners, devices and attributes of the system need root, and are judged in containers.
    #[test]
    fn a_copy_looks_the_same() {
        let top = tempfile::tempdir().expect("a directory");
        let (from, to) = (top.path().join("from"), top.path().join("to"));
        fs::create_dir(&to).expect("made");
        let script = "set -e; mkdir -p from/deep/er; cd from; echo text >file; ln file deep/hard; chmod 4750 file; \
            ln -s /etc/passwd link; mkfifo pipe; chmod 2711 deep/er; chmod 500 .; touch -d @1000000000 deep file; \
            touch -hd @1100000000 link";
        let made = Command::new("sh").args(["-c", script]).current_dir(top.path()).status();
        assert!(made.expect("a shell").success());
        tree(&from, &to).expect("copied");
        let listed = |path: &Path| {
            let words = [
                "-c",
                "find . -printf '%p %y %m %n %l %T@\\n' | sort; cat file; \
                [ file -ef deep/hard ] && echo same",
            ];
            let output = Command::new("sh").args(words).current_dir(path).output().expect("a shell");
            String::from_utf8(output.stdout).expect("UTF-8")
        };
        assert!(listed(&to).contains("same") && listed(&to).contains("1100000000"), "{}", listed(&to));
        assert_eq!(listed(&from), listed(&to));
        for path in [&from, &to] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o700)).expect("removable");
        }
    }
}
