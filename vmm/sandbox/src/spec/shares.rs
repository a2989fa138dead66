//! Directories and files of the host that a container has, spelled as docker's bind mounts.
//!
//! What is asked for is looked at once, when the sandbox is made: its path is written down with its
//! links resolved, and whether it is a directory. Each start opens it again by that path and
//! follows no link any more: a guest that may write to a directory above it cannot lead the next
//! start elsewhere.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nelly_vmm::config::{MAX_SHARES, ShareTag};
use nelly_vmm::sys::files;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// A directory or a file of the host in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Its path on the host: absolute and without links.
    pub source: PathBuf,
    /// Where it is mounted: absolute and without `.` and `..`.
    pub path: String,
    /// Nothing in it can be written, whatever the guest does.
    #[serde(default)]
    pub read_only: bool,
    /// It is a file.
    #[serde(default)]
    pub file: bool,
}

/// What was asked for, and not yet looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareRequest {
    /// A path of the host, absolute or from the current directory.
    pub source: PathBuf,
    /// Where it is to be mounted, as in [`Share`].
    pub path: String,
    /// As in [`Share`].
    pub read_only: bool,
}

/// A directory or file of the host that cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// There is nothing.
    #[error(
        "cannot share {}: there is nothing on this host; make it first, for example with `mkdir -p`, since Nelly makes no directory that was only misspelled",
        .0.display()
    )]
    Missing(PathBuf),
    /// It was there when the sandbox was made.
    #[error(
        "cannot share {}: it is not there any more; put it back, or make the sandbox anew without it",
        .0.display()
    )]
    Gone(PathBuf),
    /// It was something else when the sandbox was made.
    #[error(
        "cannot share {}: it is {now}, and was {was} when the sandbox was made; put it back, or make the sandbox anew",
        .path.display()
    )]
    Changed {
        /// The path.
        path: PathBuf,
        /// What it is.
        now: &'static str,
        /// What it was.
        was: &'static str,
    },
    /// The system refuses it, or it is of a kind that cannot be shared.
    #[error("cannot share {}", .path.display())]
    Host {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A path that is no text.
    #[error("cannot share {}: the path is not UTF-8", .0.display())]
    Text(PathBuf),
    /// Whoever writes there says what Nelly does on this host.
    #[error(
        "cannot share {} for writing: Nelly's own files ({}) are in it or around it, and a guest that may change them is no longer confined; share a directory beside them, or share it read-only (:ro)",
        .path.display(),
        .own.display()
    )]
    Own {
        /// The path.
        path: PathBuf,
        /// Nelly's directory.
        own: PathBuf,
    },
    /// Each has a device.
    #[error(
        "{0} directories and files of the host are asked for, and a sandbox has at most {MAX_SHARES}: share a directory that contains several of them"
    )]
    TooMany(usize),
}

impl ShareRequest {
    /// Looks at what is asked for. `own` are directories that no guest may write to.
    ///
    /// # Errors
    /// It cannot be shared.
    pub fn resolve(&self, own: &[PathBuf]) -> Result<Share, ShareError> {
        let source = match fs::canonicalize(&self.source) {
            Ok(source) => source,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ShareError::Missing(self.source.clone()));
            }
            Err(source) => return Err(ShareError::Host { path: self.source.clone(), source }),
        };
        if source.to_str().is_none() {
            return Err(ShareError::Text(source));
        }
        if let Some(own) = own.iter().find(|own| !self.read_only && meet(&source, own)) {
            return Err(ShareError::Own { path: source, own: own.clone() });
        }
        let file = !fs::metadata(&source).is_ok_and(|found| found.is_dir());
        let share = Share { source, path: self.path.clone(), read_only: self.read_only, file };
        share.open().map(|_opened| share)
    }
}

/// Whether one is the other, or is in it. What is not there yet counts by what is above it.
fn meet(source: &Path, own: &Path) -> bool {
    let there = own.ancestors().find_map(|above| Some((fs::canonicalize(above).ok()?, above)));
    let own = match there.and_then(|(place, above)| Some(place.join(own.strip_prefix(above).ok()?))) {
        Some(own) => own,
        None => own.to_owned(),
    };
    own.starts_with(source) || source.starts_with(&own)
}

/// Looks at all that are asked for.
///
/// # Errors
/// One cannot be shared, or they are too many.
pub fn resolve(asked: &[ShareRequest], own: &[PathBuf]) -> Result<Vec<Share>, ShareError> {
    if asked.len() > MAX_SHARES {
        return Err(ShareError::TooMany(asked.len()));
    }
    asked.iter().map(|request| request.resolve(own)).collect()
}

impl Share {
    /// Opens it for the monitor.
    ///
    /// # Errors
    /// It is not what it was, or this process may not use it.
    pub fn open(&self) -> Result<OwnedFd, ShareError> {
        let path = || self.source.clone();
        let opened = match files::open_shared_without_links(&self.source, self.read_only) {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ShareError::Gone(path())),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::LOOP) => {
                let (now, was) = ("behind a symbolic link", "not");
                return Err(ShareError::Changed { path: path(), now, was });
            }
            Err(source) => return Err(ShareError::Host { path: path(), source }),
        };
        let kind = |file: bool| if file { "a file" } else { "a directory" };
        let found = fs::File::from(opened);
        let metadata = found.metadata().map_err(|source| ShareError::Host { path: path(), source })?;
        let file = !metadata.is_dir();
        if file != self.file {
            return Err(ShareError::Changed { path: path(), now: kind(file), was: kind(self.file) });
        }
        Ok(found.into())
    }
}

/// Opens all of them, in their order.
///
/// # Errors
/// As [`Share::open`].
pub fn open(shares: &[Share]) -> Result<Vec<OwnedFd>, ShareError> {
    shares.iter().map(Share::open).collect()
}

/// The tag of the device of a container's share of this number.
///
/// # Panics
/// There is no such number: a sandbox has at most [`MAX_SHARES`].
#[must_use]
pub fn tag(number: usize) -> ShareTag {
    ShareTag::new(format!("share{number}")).expect("a small number makes a short tag")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn request(source: &Path, read_only: bool) -> ShareRequest {
        ShareRequest { source: source.to_owned(), path: "/x".to_owned(), read_only }
    }

    #[test]
    fn what_is_shared_is_looked_at_once_and_opened_without_links() {
        let top = tempfile::tempdir().unwrap();
        let real = top.path().canonicalize().unwrap();
        let at = |name: &str| real.join(name);
        fs::create_dir_all(at("a/b")).unwrap();
        fs::write(at("file"), "x").unwrap();
        symlink("a", at("link")).unwrap();
        let share = request(&at("link/b/../b"), false).resolve(&[]).unwrap();
        assert_eq!((share.source.clone(), share.file), (at("a/b"), false));
        share.open().unwrap();
        assert!(request(&at("file"), true).resolve(&[]).unwrap().file);
        let error = request(&at("none"), true).resolve(&[]).unwrap_err();
        assert!(error.to_string().contains("mkdir -p"), "{error}");
        // A guest that may write to the directory above swaps it.
        fs::rename(at("a"), at("moved")).unwrap();
        let error = share.open().unwrap_err().to_string();
        assert!(error.contains("not there any more"), "{error}");
        symlink("moved", at("a")).unwrap();
        let error = share.open().unwrap_err().to_string();
        assert!(error.contains("symbolic link"), "{error}");
        fs::remove_file(at("a")).unwrap();
        fs::create_dir(at("a")).unwrap();
        fs::write(at("a/b"), "").unwrap();
        let error = share.open().unwrap_err().to_string();
        assert!(error.contains("it is a file, and was a directory"), "{error}");
        rustix::fs::mkfifoat(rustix::fs::CWD, at("fifo"), rustix::fs::Mode::RUSR).unwrap();
        let error = request(&at("fifo"), true).resolve(&[]).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("a FIFO") && source.contains("directory or a regular file"), "{source}");
    }

    #[test]
    fn what_this_user_may_not_write_is_refused_unless_it_is_read_only() {
        if rustix::process::geteuid().is_root() {
            // Nothing is refused to root.
            return;
        }
        let top = tempfile::tempdir().unwrap();
        let file = top.path().canonicalize().unwrap().join("file");
        fs::write(&file, "x").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o400)).unwrap();
        assert!(request(&file, false).resolve(&[]).is_err());
        request(&file, true).resolve(&[]).unwrap();
    }

    #[test]
    fn nellys_own_files_are_shared_for_reading_alone() {
        let top = tempfile::tempdir().unwrap();
        let real = top.path().canonicalize().unwrap();
        let own = [real.join("home/.local/share/nelly"), real.join("home/.cache/nelly")];
        fs::create_dir_all(own[0].join("sandboxes")).unwrap();
        fs::create_dir_all(real.join("home/work")).unwrap();
        symlink(own[0].join("sandboxes"), real.join("home/work/link")).unwrap();
        for bad in
            ["", "home", "home/.local/share/nelly", "home/.local/share/nelly/sandboxes", "home/work/link"]
        {
            let error = request(&real.join(bad), false).resolve(&own).unwrap_err().to_string();
            assert!(error.contains("Nelly's own files") && error.contains(":ro"), "{bad}: {error}");
            request(&real.join(bad), true).resolve(&own).unwrap();
        }
        assert!(request(Path::new("/"), false).resolve(&own).is_err());
        // A directory that is not there yet counts, too.
        fs::create_dir_all(real.join("home/.cache")).unwrap();
        assert!(request(&real.join("home/.cache"), false).resolve(&own).is_err());
        request(&real.join("home/work"), false).resolve(&own).unwrap();
    }

    #[test]
    fn there_is_a_most() {
        let top = tempfile::tempdir().unwrap();
        let many = |count| vec![request(top.path(), true); count];
        assert_eq!(resolve(&many(MAX_SHARES), &[]).unwrap().len(), 32);
        let error = resolve(&many(MAX_SHARES + 1), &[]).unwrap_err().to_string();
        assert!(error.starts_with("33 directories") && error.contains("at most 32"), "{error}");
        assert_eq!((tag(0).as_str(), tag(31).as_str()), ("share0", "share31"));
    }
}
