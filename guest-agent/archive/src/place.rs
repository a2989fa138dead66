//! Where a copy goes: docker's rules for paths.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, openat, statat};
use rustix::io::Errno;

use crate::ArchiveError;
use crate::error::{file, shown};
use crate::sys::{self, Seen};

/// Links that are followed in one path, as many as the kernel follows.
const LINKS_MOST: usize = 40;

/// What is at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum There {
    /// Nothing.
    Nothing,
    /// A directory.
    Directory,
    /// A file.
    File,
    /// A device, a socket or a named pipe.
    Special,
}

/// The files that paths lead through.
#[derive(Debug)]
pub enum Files {
    /// All of this process, from its working directory on.
    All,
    /// Those below a directory, which is `/` and `..` of itself, whatever the links say.
    Below(OwnedFd),
}

impl Files {
    /// Opens a directory; links are followed.
    ///
    /// # Errors
    /// It is not there, or is none.
    pub fn directory(&self, path: &[u8]) -> Result<OwnedFd, ArchiveError> {
        let opened = match self {
            Self::All => {
                openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            }
            Self::Below(root) => sys::directory_in(root, path),
        };
        opened.map_err(|error| match error {
            Errno::NOENT => ArchiveError::Place(format!("there is no directory {}", shown(path))),
            Errno::NOTDIR => ArchiveError::Place(format!("{} is not a directory", shown(path))),
            error => file("open the directory", path)(error),
        })
    }

    /// What is at a path, links at its end followed.
    ///
    /// # Errors
    /// Its directory is not there, or it cannot be looked at.
    pub fn look(&self, path: &[u8]) -> Result<Found, ArchiveError> {
        // With a slash at its end it would be followed, and a file would be none.
        let mut now = without_slashes(path).to_vec();
        for _ in 0..LINKS_MOST {
            let seen = match self {
                Self::All => sys::look(CWD, &now),
                Self::Below(root) => sys::look_in(root, &now),
            };
            let there = match seen {
                Err(Errno::NOENT) => There::Nothing,
                Err(error) => return Err(file("look at", path)(error)),
                Ok(Seen::Other(FileType::Directory)) => There::Directory,
                Ok(Seen::Other(FileType::RegularFile)) => There::File,
                Ok(Seen::Other(_)) => There::Special,
                Ok(Seen::Link(to)) => {
                    let parent = split(&now).0;
                    let parent = if to.to_bytes().starts_with(b"/") { b"" } else { parent };
                    now = [parent, if parent.is_empty() { b"" } else { b"/" }, to.to_bytes()].concat();
                    continue;
                }
            };
            return Ok(Found { there, path: now });
        }
        Err(file("look at", path)(Errno::LOOP))
    }
}

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it is.
    pub there: There,
    /// Its path; there is no link at the end of this one.
    pub path: Vec<u8>,
}

/// A source's path taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The path to look up.
    pub path: Vec<u8>,
    /// The name of its copy in a directory; empty for what has none, such as `/`.
    pub name: Vec<u8>,
    /// The path ends in `/.`: of a directory only what is in it is copied.
    pub contents: bool,
    /// The path ends in `/`: it has to be a directory.
    pub directory: bool,
}

fn without_slashes(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    if end == 0 && !path.is_empty() { b"/" } else { &path[..end] }
}

/// The last name of a path.
fn last(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

/// Takes a source's path apart.
#[must_use]
pub fn source(path: &[u8]) -> Source {
    let contents = path == b"." || path.ends_with(b"/.");
    let bare = without_slashes(path);
    let name = match last(bare) {
        b"." | b".." => &[][..],
        name => name,
    };
    let directory = contents || path.ends_with(b"/") || name.is_empty();
    Source { path: bare.to_vec(), name: name.to_vec(), contents, directory }
}

impl Source {
    /// Opens the directory that the source is in, and tells its name there, with links followed if
    /// `follow` or if the path says that it is a directory.
    ///
    /// # Errors
    /// It is not there, or is no directory and the path says that it is one.
    pub fn open(&self, files: &Files, follow: bool) -> Result<(OwnedFd, Vec<u8>), ArchiveError> {
        let missing =
            || ArchiveError::Place(format!("{}: there is no such file or directory", shown(&self.path)));
        if self.name.is_empty() {
            return Ok((files.directory(&self.path)?, b".".to_vec()));
        }
        let path = if follow || self.directory { files.look(&self.path)?.path } else { self.path.clone() };
        let (parent, name) = split(&path);
        if name.is_empty() || name == b"." || name == b".." {
            return Ok((files.directory(&path)?, b".".to_vec()));
        }
        let parent = files.directory(parent).map_err(|error| match error {
            ArchiveError::Place(_) => missing(),
            error => error,
        })?;
        match statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Err(missing()),
            Err(error) => Err(file("look at", &self.path)(error)),
            Ok(found) if self.directory && FileType::from_raw_mode(found.st_mode) != FileType::Directory => {
                Err(ArchiveError::Place(format!("{} is not a directory", shown(&self.path))))
            }
            Ok(_) => Ok((parent, name.to_vec())),
        }
    }

    /// The path of the source in its archive.
    #[must_use]
    pub fn archived(&self) -> &[u8] {
        if self.name.is_empty() { b"." } else { &self.name }
    }
}

/// Whether what is named so in a directory is one, and not a link to one.
///
/// # Errors
/// It cannot be looked at.
pub fn is_directory(parent: impl AsFd, name: &[u8]) -> Result<bool, ArchiveError> {
    let found = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(file("look at", name))?;
    Ok(FileType::from_raw_mode(found.st_mode) == FileType::Directory)
}

/// The directory of a path and the last name in it, which is empty of `/`.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let bare = without_slashes(path);
    let name = last(bare);
    let parent = without_slashes(&bare[..bare.len() - name.len()]);
    (if parent.is_empty() { b"." } else { parent }, name)
}

/// Where a copy goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The directory that it is written in, which has to exist.
    pub parent: Vec<u8>,
    /// Its name there; empty: the directory itself gets what is in the source.
    pub name: Vec<u8>,
}

/// Decides where a source, of the name `name` (empty for what has none) and a directory if
/// `directory`, goes when the destination is `path`, where `found` is. `contents`: not the
/// directory, but what is in it.
///
/// # Errors
/// The two do not fit.
pub fn target(
    path: &[u8],
    found: &Found,
    name: &[u8],
    directory: bool,
    contents: bool,
) -> Result<Target, ArchiveError> {
    let says_directory = path.ends_with(b"/") || path.ends_with(b"/.") || path == b".";
    let within = |parent: &[u8], name: &[u8]| Ok(Target { parent: parent.to_vec(), name: name.to_vec() });
    let place = |sentence: &str| Err(ArchiveError::Place(format!("{} {sentence}", shown(path))));
    let bare = without_slashes(&found.path);
    match found.there {
        There::Directory if contents || name.is_empty() => within(bare, b""),
        There::Directory => within(bare, name),
        There::Special => place("is a device, a socket or a named pipe, which no copy replaces"),
        There::File if directory => place("is a file, and the source is a directory"),
        There::File if says_directory => place("is not a directory"),
        There::Nothing if says_directory && !directory => {
            place("is not there: a directory that is named with / at its end has to exist to get a file")
        }
        There::File | There::Nothing => match split(bare) {
            (_, b"" | b"." | b"..") => place("is no path of a file"),
            (parent, name) => within(parent, name),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_taken_apart() {
        for (path, bare, name, contents, directory) in [
            ("/a/b", "/a/b", "b", false, false),
            ("/a/b/", "/a/b", "b", false, true),
            ("/a/b/.", "/a/b/.", "", true, true),
            (".", ".", "", true, true),
            ("..", "..", "", false, true),
            ("/", "/", "", false, true),
            ("b", "b", "b", false, false),
        ] {
            let Source { path: found, name: found_name, contents: all, directory: dir } =
                source(path.as_bytes());
            assert_eq!((&found[..], &found_name[..]), (bare.as_bytes(), name.as_bytes()), "{path}");
            assert_eq!((all, dir), (contents, directory), "{path}");
        }
    }

    #[test]
    fn targets_are_dockers() {
        use There::{Directory, File, Nothing, Special};
        let at = |path: &str, there, directory, contents| {
            let found = Found { there, path: path.into() };
            target(path.as_bytes(), &found, b"src", directory, contents)
                .map(|one| (shown(&one.parent), shown(&one.name)))
                .ok()
        };
        let is = |parent: &str, name: &str| Some((parent.to_owned(), name.to_owned()));
        // A file.
        assert_eq!(at("/d", Nothing, false, false), is("/", "d"));
        assert_eq!(at("d", Nothing, false, false), is(".", "d"));
        assert_eq!(at("/d/", Nothing, false, false), None);
        assert_eq!(at("/x/d", File, false, false), is("/x", "d"));
        assert_eq!(at("/x/d/", File, false, false), None);
        assert_eq!(at("/x/d", Directory, false, false), is("/x/d", "src"));
        assert_eq!(at("/", Directory, false, false), is("/", "src"));
        // A directory.
        assert_eq!(at("/x/d", Nothing, true, false), is("/x", "d"));
        assert_eq!(at("/x/d/", Nothing, true, false), is("/x", "d"));
        assert_eq!(at("/x/d", File, true, false), None);
        assert_eq!(at("/x/d", Directory, true, false), is("/x/d", "src"));
        assert_eq!(at("/x/d/.", Directory, true, false), is("/x/d/.", "src"));
        // What is in a directory.
        assert_eq!(at("/x/d", Nothing, true, true), is("/x", "d"));
        assert_eq!(at("/x/d", Directory, true, true), is("/x/d", ""));
        assert_eq!(at("..", Nothing, true, false), None);
        assert_eq!(at("/dev/null", Special, false, false), None);
    }

    #[test]
    fn links_are_followed_below_their_root_and_no_further() {
        use std::os::unix::fs::symlink;
        let home = tempfile::tempdir().unwrap();
        let root = home.path().join("root");
        std::fs::create_dir_all(root.join("dir/deep")).unwrap();
        std::fs::write(root.join("dir/file"), "x").unwrap();
        std::fs::write(home.path().join("outside"), "x").unwrap();
        for (link, to) in [
            ("absolute", "/dir/file"),
            ("relative", "dir/deep/../file"),
            ("twice", "absolute"),
            ("todir", "dir/deep"),
            ("out", "../outside"),
            ("farout", "/../../outside"),
            ("hole", "dir/none"),
            ("loop", "loop"),
        ] {
            symlink(to, root.join(link)).unwrap();
        }
        let files = Files::Below(std::fs::File::open(&root).unwrap().into());
        let look = |path: &str| files.look(path.as_bytes()).map(|one| (one.there, shown(&one.path))).ok();
        let is = |there, path: &str| Some((there, path.to_owned()));
        assert_eq!(look("/absolute"), is(There::File, "/dir/file"));
        assert_eq!(look("relative"), is(There::File, "./dir/deep/../file"));
        assert_eq!(look("/twice"), is(There::File, "/dir/file"));
        assert_eq!(look("/todir").unwrap().0, There::Directory);
        assert_eq!(look("/todir/").unwrap().0, There::Directory);
        assert_eq!(look("/out").unwrap().0, There::Nothing);
        assert_eq!(look("/farout").unwrap().0, There::Nothing);
        assert_eq!(look("/../outside").unwrap().0, There::Nothing);
        assert_eq!(look("/hole"), is(There::Nothing, "//dir/none"));
        assert_eq!(look("/dir/none/deeper").map(|one| one.0), Some(There::Nothing));
        assert_eq!(look("/loop"), None);
        assert_eq!(look("/dir/file/x"), None);
        let open = |path: &str, follow| {
            source(path.as_bytes())
                .open(&files, follow)
                .map(|(_, name)| shown(&name))
                .map_err(|e| e.to_string())
        };
        assert_eq!(open("/absolute", false).unwrap(), "absolute");
        assert_eq!(open("/absolute", true).unwrap(), "file");
        assert_eq!(open("/todir/", false).unwrap(), "deep");
        assert_eq!(open("/", false).unwrap(), ".");
        assert_eq!(open("/dir/..", false).unwrap(), ".");
        assert!(open("/none/x", false).unwrap_err().contains("no such file"));
        assert!(open("/out", true).unwrap_err().contains("no such file"));
        assert!(open("/dir/file/", false).unwrap_err().contains("not a directory"));
    }
}
