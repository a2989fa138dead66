//! What changes in a tree of the host, for a guest that is to be told of it ([`crate::TOUCH`]).
//!
//! Directories are watched one by one, those near the root first, as many as there may be, and none
//! of a file system that is mounted below the root. Nothing
//! leads out of the tree: each is reached from the root's descriptor by single names, of which none
//! is followed if it is a symbolic link.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::config::Tree;
use crate::errno::Errno;
use crate::server::FILE_NAME;
use crate::sys::{self, ChangeKind, S_IFDIR};

/// Paths that are told at once. Beyond, it is told that some were lost.
const TOLD_MAX: usize = 4096;

/// Directories that one call looks through.
const DIRECTORIES_AT_ONCE: usize = 256;

/// Bytes of a path that is told.
const PATH_MAX: usize = 4095;

/// What has changed since it was last asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Paths below the root of what changed, with `/` between names; the empty one is the root. Of
    /// what is gone, the directory is told that it was in.
    pub paths: BTreeSet<Vec<u8>>,
    /// There were more.
    pub lost: bool,
}

/// A tree that is watched.
#[derive(Debug)]
pub struct Watch {
    changes: OwnedFd,
    root: OwnedFd,
    /// The directories that are watched, by the system's numbers.
    directories: HashMap<i32, Vec<u8>>,
    /// The root's file system.
    device: u64,
    /// Directories that are to be watched, and whether what is in them is to be told.
    waiting: VecDeque<(Vec<u8>, bool)>,
    /// Changes were lost, and so perhaps directories: all are to be looked through again.
    is_stale: bool,
    /// There may be changes that were not read.
    has_more: bool,
    max: usize,
    is_full: bool,
}

impl Watch {
    /// Watches the root of `tree`, or the file. [`Self::read`] adds the directories below, of which
    /// at most `max` are watched at a time, and no more than an eighth of what this user may.
    ///
    /// # Errors
    /// The system cannot watch, or no more for this user, or the descriptor is not what `tree`
    /// says.
    pub fn new(tree: Tree, max: usize) -> io::Result<Self> {
        let failed = |error: Errno| io::Error::from_raw_os_error(error.number());
        let (root, is_file) = match tree {
            Tree::Directory(fd) => (fd, false),
            Tree::File(fd) => (fd, true),
        };
        let stat = sys::stat(root.as_fd()).map_err(failed)?;
        if (stat.kind() == S_IFDIR) == is_file {
            return Err(io::Error::other("what is to be watched is not what it is said to be"));
        }
        let changes = sys::changes().map_err(failed)?;
        let number = sys::watch(changes.as_fd(), root.as_fd()).map_err(failed)?;
        let name = if is_file { FILE_NAME.as_bytes().to_vec() } else { Vec::new() };
        let directories = HashMap::from([(number, name)]);
        let waiting = if is_file { VecDeque::new() } else { VecDeque::from([(Vec::new(), false)]) };
        Ok(Self {
            changes,
            root,
            directories,
            device: stat.identity.device,
            waiting,
            is_stale: false,
            has_more: false,
            max: max.min(sys::watches_max() / 8).max(1),
            is_full: false,
        })
    }

    /// Whether there is nothing to do before the descriptor is readable. If not, the next
    /// [`Self::read`] goes on with what the last one left.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && !self.is_stale && !self.has_more
    }

    /// Whether there are or were directories that are not watched, because there are too many.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.is_full
    }

    /// What has changed since. It does not wait for changes: the descriptor is readable when there
    /// are some. It looks through some of the directories that are not watched yet.
    ///
    /// # Errors
    /// The system's.
    pub fn read(&mut self) -> io::Result<Told> {
        let mut told = Told::default();
        let (mut forgotten, mut away) = (Vec::new(), Vec::new());
        let (directories, waiting, max) = (&self.directories, &mut self.waiting, self.max);
        let is_full = &mut self.is_full;
        let read = sys::read_changes(self.changes.as_fd(), |change| {
            match change.kind {
                ChangeKind::Lost => told.lost = true,
                ChangeKind::Forgotten if directories.contains_key(&change.watch) => {
                    forgotten.push(change.watch);
                }
                _ => {}
            }
            let Some(directory) = directories.get(&change.watch) else { return };
            match change.kind {
                ChangeKind::Lost | ChangeKind::Forgotten => {}
                ChangeKind::Gone => told.add(directory.clone()),
                ChangeKind::Away => {
                    if change.is_dir {
                        away.push(join(directory, change.name));
                    }
                    told.add(directory.clone());
                }
                ChangeKind::New | ChangeKind::Changed => {
                    let path = join(directory, change.name);
                    if change.is_dir && change.kind == ChangeKind::New {
                        // What was made in it before it is watched is as new as it is.
                        match directories.len() + waiting.len() < max {
                            true => waiting.push_back((path.clone(), true)),
                            false => *is_full = true,
                        }
                    }
                    told.add(path);
                }
            }
        });
        self.has_more = read.map_err(|error| io::Error::from_raw_os_error(error.number()))?;
        for number in forgotten {
            self.directories.remove(&number);
        }
        // Where it is now may be outside. If it is inside, it is new there.
        away.iter().for_each(|path| self.leave(path));
        self.is_stale |= told.lost;
        if self.is_stale && self.waiting.is_empty() {
            self.is_stale = false;
            self.waiting.push_back((Vec::new(), false));
        }
        for _ in 0..DIRECTORIES_AT_ONCE {
            let Some((path, new)) = self.waiting.pop_front() else { break };
            // What is gone meanwhile, or may not be read, is nobody's loss.
            let added = self.add(&path, new.then_some(&mut told));
            // The user's own limit, or ours.
            if matches!(added, Err(Errno::NOSPC)) || self.directories.len() >= self.max {
                self.is_full |= !self.waiting.is_empty();
                self.waiting.clear();
            }
        }
        Ok(told)
    }

    /// Ends the watch of a directory and of those below it.
    fn leave(&mut self, path: &[u8]) {
        let is_below = |other: &[u8]| {
            other.strip_prefix(path).is_some_and(|rest| matches!(rest.first(), None | Some(b'/')))
        };
        let changes = &self.changes;
        self.directories.retain(|number, other| {
            let leaves = is_below(other);
            if leaves {
                sys::unwatch(changes.as_fd(), *number);
            }
            !leaves
        });
        self.waiting.retain(|(other, new)| *new || !is_below(other));
    }

    /// Watches a directory, and has those in it wait; what is in it is told if that is asked for.
    fn add(&mut self, path: &[u8], mut told: Option<&mut Told>) -> Result<(), Errno> {
        let directory = self.open(path)?;
        if sys::stat(directory.as_fd())?.identity.device != self.device {
            return Ok(());
        }
        let number = sys::watch(self.changes.as_fd(), directory.as_fd())
            .inspect_err(|error| self.is_full |= *error == Errno::NOSPC)?;
        if self.directories.len() >= self.max && !self.directories.contains_key(&number) {
            sys::unwatch(self.changes.as_fd(), number);
            self.is_full = true;
            return Ok(());
        }
        self.directories.insert(number, path.to_vec());
        let entries = sys::open_dir(directory.as_fd())?;
        let mut is_end = false;
        while !is_end {
            is_end = true;
            sys::read_dir(entries.as_fd(), |_, _, kind, name| {
                is_end = false;
                if matches!(name.to_bytes(), b"." | b"..") {
                    return;
                }
                let below = join(path, name.to_bytes());
                let is_dir = match kind {
                    DT_DIR => true,
                    DT_UNKNOWN => {
                        sys::stat_at(directory.as_fd(), name).is_ok_and(|stat| stat.kind() == S_IFDIR)
                    }
                    _ => false,
                };
                let has_room = self.directories.len() + self.waiting.len() < self.max;
                if is_dir && below.len() <= PATH_MAX && has_room {
                    self.waiting.push_back((below.clone(), told.is_some()));
                } else if is_dir {
                    self.is_full = true;
                }
                if let Some(told) = &mut told {
                    told.add(below);
                }
            })?;
        }
        Ok(())
    }

    /// A directory below the root, from name to name.
    fn open(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let mut fd = self.root.try_clone().map_err(Errno::from)?;
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            let name = CString::new(name).map_err(|_| Errno::INVAL)?;
            fd = sys::open_path(fd.as_fd(), &name)?;
        }
        if sys::stat(fd.as_fd())?.kind() == S_IFDIR { Ok(fd) } else { Err(Errno::NOTDIR) }
    }
}

const DT_UNKNOWN: u8 = 0;
const DT_DIR: u8 = 4;

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.changes.as_fd()
    }
}

impl Told {
    fn add(&mut self, path: Vec<u8>) {
        if self.lost || path.len() > PATH_MAX {
            self.lost = true;
        } else {
            self.paths.insert(path);
            if self.paths.len() > TOLD_MAX {
                self.paths.clear();
                self.lost = true;
            }
        }
    }
}

/// An entry of a directory; the directory itself if there is no name.
fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    match (directory, name) {
        (_, b"") => directory.to_vec(),
        (b"", _) => name.to_vec(),
        _ => [directory, b"/", name].concat(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::path::Path;

    use super::*;

    fn watch(path: &Path, max: usize) -> Watch {
        let mut watch =
            Watch::new(Tree::Directory(File::open(path).expect("there").into()), max).expect("watched");
        while !watch.is_idle() {
            assert_eq!(watch.read().expect("read"), Told::default());
        }
        watch
    }

    /// Everything is told at once, for the system tells it before a call that changes returns.
    fn told(watch: &mut Watch) -> Vec<String> {
        let told = watch.read().expect("read");
        assert!(!told.lost);
        told.paths.into_iter().map(|path| String::from_utf8(path).expect("text")).collect()
    }

    #[test]
    fn what_the_host_changes_is_told_by_its_path() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        fs::create_dir_all(at("a/b")).unwrap();
        fs::write(at("a/b/old"), "1").unwrap();
        let mut watch = watch(scratch.path(), 100);
        assert_eq!(told(&mut watch), Vec::<String>::new());
        fs::write(at("a/b/old"), "2").unwrap();
        fs::write(at("top"), "").unwrap();
        assert_eq!(told(&mut watch), ["a/b/old", "top"]);
        fs::set_permissions(at("a"), fs::Permissions::from_mode(0o750)).unwrap();
        assert_eq!(told(&mut watch), ["a"]);
        // Of what is gone, where it was.
        fs::remove_file(at("top")).unwrap();
        fs::rename(at("a/b/old"), at("a/new")).unwrap();
        assert_eq!(told(&mut watch), ["", "a/b", "a/new"]);
        // What is in a new directory, and what changes there later.
        fs::create_dir_all(at("c/d/e")).unwrap();
        fs::write(at("c/d/e/f"), "").unwrap();
        assert_eq!(told(&mut watch), ["c", "c/d", "c/d/e", "c/d/e/f"]);
        fs::write(at("c/d/e/f"), "1").unwrap();
        assert_eq!(told(&mut watch), ["c/d/e/f"]);
        // A directory that is moved is known by its new path, with all that is in it.
        fs::rename(at("c/d"), at("a/d")).unwrap();
        assert_eq!(told(&mut watch), ["a/d", "a/d/e", "a/d/e/f", "c"]);
        fs::write(at("a/d/e/f"), "2").unwrap();
        assert_eq!(told(&mut watch), ["a/d/e/f"]);
        // One that is moved out of the tree is none of it any more.
        let outside = tempfile::tempdir().unwrap();
        fs::rename(at("a/d"), outside.path().join("d")).unwrap();
        assert_eq!(told(&mut watch), ["a"]);
        fs::write(outside.path().join("d/e/f"), "3").unwrap();
        assert_eq!(told(&mut watch), Vec::<String>::new());
        fs::remove_dir_all(at("a")).unwrap();
        told(&mut watch);
        assert_eq!(watch.directories.len(), 2, "{watch:?}");
        assert!(!watch.is_full());
    }

    #[test]
    fn nothing_outside_of_the_tree_is_watched() {
        let scratch = tempfile::tempdir().unwrap();
        let (tree, outside) = (scratch.path().join("tree"), scratch.path().join("outside"));
        fs::create_dir(&tree).unwrap();
        fs::create_dir(&outside).unwrap();
        symlink(&outside, tree.join("link")).unwrap();
        let mut watch = watch(&tree, 100);
        symlink("../outside", tree.join("later")).unwrap();
        assert_eq!(told(&mut watch), ["later"]);
        fs::write(outside.join("file"), "").unwrap();
        assert_eq!(told(&mut watch), Vec::<String>::new());
        assert_eq!(watch.directories.len(), 1);
    }

    #[test]
    fn too_many_directories_and_changes_are_told_to_be_so() {
        let scratch = tempfile::tempdir().unwrap();
        for number in 0..20 {
            fs::create_dir_all(scratch.path().join(format!("{number:02}/below"))).unwrap();
        }
        let mut full = watch(scratch.path(), 10);
        assert!(full.is_full() && full.directories.len() == 10);
        // Those near the root come first.
        assert!(full.directories.values().all(|path| !path.ends_with(b"below")), "{full:?}");
        fs::create_dir(scratch.path().join("more")).unwrap();
        assert_eq!(told(&mut full), ["more"]);
        assert_eq!(full.directories.len(), 10);
        for number in 0..600 {
            fs::create_dir_all(scratch.path().join(format!("more/{number}"))).unwrap();
        }
        let many = watch(scratch.path(), 500);
        assert!(many.is_full() && many.directories.len() == 500, "{}", many.directories.len());
        fs::remove_dir_all(scratch.path().join("more")).unwrap();
        fs::create_dir(scratch.path().join("more")).unwrap();
        let mut all = watch(scratch.path(), 100);
        assert!(!all.is_full() && all.directories.len() == 42);
        for number in 0..=TOLD_MAX {
            File::create(scratch.path().join(format!("00/{number}"))).unwrap();
        }
        let told = all.read().unwrap();
        assert!(told.lost && told.paths.is_empty());
    }

    #[test]
    fn a_single_file_is_told_by_the_name_that_the_guest_has_for_it() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("settings");
        fs::write(&path, "1").unwrap();
        let open = || File::open(&path).unwrap().into();
        let mut watch = Watch::new(Tree::File(open()), 10).unwrap();
        fs::write(scratch.path().join("other"), "").unwrap();
        assert_eq!(told(&mut watch), Vec::<String>::new());
        fs::write(&path, "2").unwrap();
        assert_eq!(told(&mut watch), [FILE_NAME]);
        assert!(Watch::new(Tree::Directory(open()), 10).is_err());
    }
}
