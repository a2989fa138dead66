//! Paths of the container that may have to be made: mount points, nodes, files, the working
//! directory.
//!
//! One rule for all of them, docker's: symbolic links are followed within the container's root,
//! dangling ones too, and what is missing at their end is made. The answer is a path without links.
//! Links are read, not walked through, so that what /proc shows of open files leads nowhere; the
//! process's root is the container's by then, so that nobody who swaps a directory leads out of it.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

/// What is made at the end of a path when nothing is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TargetKind {
    /// A directory; nothing else may be there.
    Directory,
    /// An empty file; anything may be there.
    File,
}

/// The root of all paths, once it is the container's.
pub(super) const ROOT: &str = "/";

/// Most links on one path; the kernel's own number.
const MOST_LINKS: usize = 40;

/// Finds `path` below `root`, making what is missing.
pub(super) fn make(root: &str, path: &str, end: TargetKind) -> io::Result<String> {
    let place = walk(Path::new(root), Path::new(path), Some(end))?;
    // System calls of ours take text; a link to a name that is none is nothing that anybody wants
    // to mount on.
    place.into_os_string().into_string().map_err(|_| io::Error::from_raw_os_error(libc::EILSEQ))
}

/// Whether there is something at `path` below `root`. Nothing is made.
pub(super) fn is_there(root: &str, path: &str) -> bool {
    walk(Path::new(root), Path::new(path), None).is_ok()
}

/// Without an `end`, what is missing is an error.
fn walk(root: &Path, path: &Path, end: Option<TargetKind>) -> io::Result<PathBuf> {
    let mut place = root.to_owned();
    // How far below the root, and what is still to be walked, the next part last.
    let (mut depth, mut links) = (0usize, 0usize);
    let mut rest = parts(path);
    while let Some(part) = rest.pop() {
        let Some(name) = part else {
            if depth > 0 {
                place.pop();
                depth -= 1;
            }
            continue;
        };
        place.push(name);
        depth += 1;
        let directory = !rest.is_empty() || end == Some(TargetKind::Directory);
        match fs::symlink_metadata(&place) {
            Ok(found) if found.is_symlink() => {
                links += 1;
                if links > MOST_LINKS {
                    return Err(io::Error::from_raw_os_error(libc::ELOOP));
                }
                let target = fs::read_link(&place)?;
                place.pop();
                depth -= 1;
                if target.is_absolute() {
                    root.clone_into(&mut place);
                    depth = 0;
                }
                rest.extend(parts(&target));
            }
            Ok(found) if directory && !found.is_dir() => {
                return Err(io::Error::from_raw_os_error(libc::ENOTDIR));
            }
            Ok(_) => {}
            Err(error) if error.kind() != io::ErrorKind::NotFound || end.is_none() => return Err(error),
            Err(_) if directory => DirBuilder::new().mode(0o755).create(&place)?,
            Err(_) => {
                OpenOptions::new().write(true).create_new(true).mode(0o644).open(&place)?;
            }
        }
    }
    Ok(place)
}

/// The parts of a path, the last one first; nothing stands for "..".
fn parts(path: &Path) -> Vec<Option<OsString>> {
    let part = |component| match component {
        Component::Normal(name) => Some(Some(name.to_owned())),
        Component::ParentDir => Some(None),
        Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
    };
    path.components().rev().filter_map(part).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_within_the_root_and_what_is_missing_is_made() {
        let top = tempfile::tempdir().expect("a directory");
        let root = top.path().join("root");
        fs::create_dir_all(root.join("etc")).expect("made");
        fs::write(root.join("file"), "x").expect("written");
        for (link, target) in [
            ("dangling", "/run/target"),
            ("relative", "etc/../srv/data"),
            ("out", "../../../outside"),
            ("etc/resolv.conf", "../run/stub"),
            ("around", "around"),
            ("chain", "dangling/deeper"),
        ] {
            symlink(target, root.join(link)).expect("linked");
        }
        for (path, end, expected) in [
            ("/a/b", TargetKind::Directory, "a/b"),
            ("/a/../c", TargetKind::Directory, "c"),
            ("/../../d", TargetKind::Directory, "d"),
            ("/dangling", TargetKind::Directory, "run/target"),
            ("/dangling/below", TargetKind::Directory, "run/target/below"),
            ("/chain", TargetKind::Directory, "run/target/deeper"),
            ("/relative", TargetKind::Directory, "srv/data"),
            ("/out/here", TargetKind::File, "outside/here"),
            ("/etc/resolv.conf", TargetKind::File, "run/stub"),
            ("/file", TargetKind::File, "file"),
            ("/etc", TargetKind::File, "etc"),
            ("/", TargetKind::Directory, ""),
        ] {
            let place = make(root.to_str().expect("UTF-8"), path, end).expect(path);
            assert_eq!(Path::new(&place), root.join(expected), "{path}");
            let found = fs::symlink_metadata(root.join(expected)).expect(path);
            assert!(found.is_dir() || end == TargetKind::File && found.is_file(), "{path}");
        }
        assert!(!top.path().join("outside").exists());
        assert_eq!(fs::read_to_string(root.join("file")).expect("still there"), "x");
        for (path, end, code) in [
            ("/around/x", TargetKind::Directory, libc::ELOOP),
            ("/file", TargetKind::Directory, libc::ENOTDIR),
            ("/file/x", TargetKind::File, libc::ENOTDIR),
        ] {
            let error = make(root.to_str().expect("UTF-8"), path, end).expect_err(path);
            assert_eq!(error.raw_os_error(), Some(code), "{path}");
        }
    }
}
