//! How the files of a container differ from its image. Both are looked at side by side, as they
//! are: the container's root, where the overlay has hidden what was deleted, and the image, mounted
//! once more. So whiteouts and directories that hide those of the image need no reading here, and
//! it makes no difference whether the writable layer is on a disk or in memory.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nelly_protocol::messages::{self as m, change::Kind};
use nix::sched::{CloneFlags, unshare};

use super::report::Report;
use crate::sys;

/// Deepest directory that is looked into; a path cannot be used beyond.
const DEPTH_MOST: usize = 2048;

/// Most entries of one directory.
const ENTRIES_MOST: usize = 1 << 20;

/// Where the image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its block device.
    pub device: String,
    /// The file system on it.
    pub filesystem: String,
    /// An empty directory to mount it on.
    pub workdir: String,
}

fn tried<T>(what: impl FnOnce() -> String, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|error| io::Error::new(error.kind(), format!("cannot {}: {error}", what())))
}

/// Writes a record for each difference.
pub(super) fn report(image: &Image, first: BorrowedFd<'_>, report: &mut Report) -> io::Result<()> {
    let lower = tried(|| format!("mount the image {}", image.device), mount(image))?;
    // The root and the working directory become those of the container's mounts.
    tried(|| "join the container's mounts".to_owned(), sys::join_namespaces(first, libc::CLONE_NEWNS))?;
    sys::capabilities::apply(DAC_READ_SEARCH, DAC_READ_SEARCH, 0, 0)?;
    // Relative paths are the image's, absolute ones the container's. Neither is followed through a
    // link at its end; one that the container puts in the middle leads nowhere but into its own.
    nix::unistd::fchdir(lower.as_fd())?;
    Walk { upper: "/".into(), lower: ".".into(), device: fs::metadata("/")?.dev() }.changes(report)
}

/// CAP_DAC_READ_SEARCH, the only one that the walk needs.
const DAC_READ_SEARCH: u64 = 1 << 2;

/// Mounts the image in a mount namespace of this process. It stays for as long as its root is open.
fn mount(image: &Image) -> io::Result<File> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    sys::set_propagation("/", libc::MS_PRIVATE | libc::MS_REC)?;
    let data = if image.filesystem == "ext4" { "noload" } else { "" };
    sys::mount(&image.device, &image.workdir, &image.filesystem, libc::MS_RDONLY, data)?;
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(&image.workdir)
}

/// Receives differences.
trait Sink {
    fn change(&mut self, kind: Kind, path: &Path) -> io::Result<()>;
    fn note(&mut self, sentence: &str) -> io::Result<()>;
}

impl Sink for Report {
    fn change(&mut self, kind: Kind, path: &Path) -> io::Result<()> {
        let path = path.as_os_str().as_bytes().to_vec();
        self.record(&m::Change { kind: kind.into(), path, ..Default::default() })
    }

    fn note(&mut self, sentence: &str) -> io::Result<()> {
        Self::note(self, sentence)
    }
}

/// Two trees.
struct Walk {
    upper: PathBuf,
    lower: PathBuf,
    /// The device of the upper tree's directories: others are of other mounts.
    device: u64,
}

/// Directories above what is looked at, and whether they were told of.
#[derive(Default)]
struct Above(Vec<(PathBuf, bool)>);

impl Above {
    /// Tells of a difference, and before it of the directories that it is in: a change in a
    /// directory is one of the directory.
    fn tell(&mut self, sink: &mut impl Sink, kind: Kind, path: &Path) -> io::Result<()> {
        for (directory, told) in &mut self.0 {
            if !std::mem::replace(told, true) {
                sink.change(Kind::CHANGED, directory)?;
            }
        }
        sink.change(kind, path)
    }
}

/// What stands under a name in the two trees.
#[derive(Default)]
struct Pair {
    upper: Option<Metadata>,
    lower: Option<Metadata>,
}

impl Walk {
    fn changes(&self, sink: &mut impl Sink) -> io::Result<()> {
        self.directory(Path::new(""), true, &mut Above::default(), sink)
    }

    /// Compares a directory, `path` below both roots, that is in the upper tree, and in the lower
    /// if `both`.
    fn directory(&self, path: &Path, both: bool, above: &mut Above, sink: &mut impl Sink) -> io::Result<()> {
        let mut pairs: BTreeMap<OsString, Pair> = BTreeMap::new();
        let upper = self.upper.join(path);
        match entries(&upper) {
            Ok(found) => {
                for (name, metadata) in found {
                    pairs.entry(name).or_default().upper = Some(metadata);
                }
            }
            Err(error) => return sink.note(&format!("cannot read {}: {error}", upper.display())),
        }
        if both {
            let lower = self.lower.join(path);
            for (name, metadata) in
                tried(|| format!("read {} of the image", path.display()), entries(&lower))?
            {
                pairs.entry(name).or_default().lower = Some(metadata);
            }
        }
        for (name, pair) in pairs {
            self.pair(&path.join(name), &pair, above, sink)?;
        }
        Ok(())
    }

    fn pair(&self, path: &Path, pair: &Pair, above: &mut Above, sink: &mut impl Sink) -> io::Result<()> {
        let shown = Path::new("/").join(path);
        let Some(upper) = &pair.upper else { return above.tell(sink, Kind::DELETED, &shown) };
        if upper.is_dir() && upper.dev() != self.device {
            // Something is mounted there.
            return Ok(());
        }
        let kind = match &pair.lower {
            None => Some(Kind::ADDED),
            Some(lower) => self.differs(path, upper, lower).then_some(Kind::CHANGED),
        };
        if let Some(kind) = kind {
            above.tell(sink, kind, &shown)?;
        }
        if !upper.is_dir() {
            return Ok(());
        }
        if above.0.len() >= DEPTH_MOST {
            return sink.note(&format!("{} is too deep to be looked into", shown.display()));
        }
        let both = pair.lower.as_ref().is_some_and(Metadata::is_dir);
        above.0.push((shown, kind.is_some()));
        let done = self.directory(path, both, above, sink);
        above.0.pop();
        done
    }

    /// Times and sizes of directories say nothing: what is in them is compared itself.
    fn differs(&self, path: &Path, upper: &Metadata, lower: &Metadata) -> bool {
        let owned = |one: &Metadata| (one.mode(), one.uid(), one.gid());
        if owned(upper) != owned(lower) {
            return true;
        }
        if upper.is_dir() {
            return false;
        }
        let held = |one: &Metadata| (one.size(), one.mtime(), one.mtime_nsec(), one.rdev());
        if held(upper) != held(lower) {
            return true;
        }
        upper.is_symlink()
            && fs::read_link(self.upper.join(path)).ok() != fs::read_link(self.lower.join(path)).ok()
    }
}

/// The entries of a directory; those that are gone by the time they are looked at are left out.
fn entries(path: &Path) -> io::Result<Vec<(OsString, Metadata)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        // Not through a link.
        if let Ok(metadata) = entry.metadata() {
            found.push((entry.file_name(), metadata));
        }
        if found.len() > ENTRIES_MOST {
            return Err(io::Error::other(format!("it has more than {ENTRIES_MOST} entries")));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[derive(Default)]
    struct Seen(Vec<String>, Vec<String>);

    impl Sink for Seen {
        fn change(&mut self, kind: Kind, path: &Path) -> io::Result<()> {
            let letter = match kind {
                Kind::ADDED => 'A',
                Kind::DELETED => 'D',
                _ => 'C',
            };
            self.0.push(format!("{letter} {}", path.display()));
            Ok(())
        }

        fn note(&mut self, sentence: &str) -> io::Result<()> {
            self.1.push(sentence.to_owned());
            Ok(())
        }
    }

    #[test]
    fn trees_are_compared_by_what_docker_calls_a_change() {
        let home = tempfile::tempdir().expect("a directory");
        let [upper, lower] = ["upper", "lower"].map(|name| home.path().join(name));
        let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        for root in [&upper, &lower] {
            for directory in ["same", "changed/deep", "kind"] {
                fs::create_dir_all(root.join(directory)).expect("made");
            }
            for file in ["same/file", "changed/deep/file", "changed/mode", "kind/x"] {
                fs::write(root.join(file), "text").expect("written");
                File::options()
                    .write(true)
                    .open(root.join(file))
                    .expect("open")
                    .set_modified(time)
                    .expect("set");
            }
        }
        fs::write(lower.join("gone"), "").expect("written");
        fs::create_dir_all(lower.join("gone-dir/below")).expect("made");
        fs::write(upper.join("changed/deep/file"), "other text").expect("written");
        fs::set_permissions(upper.join("changed/mode"), fs::Permissions::from_mode(0o600)).expect("set");
        fs::create_dir(upper.join("new")).expect("made");
        fs::write(upper.join("new/file"), "").expect("written");
        symlink("/etc", upper.join("new/link")).expect("made");
        fs::remove_dir_all(lower.join("kind")).expect("removed");
        fs::write(lower.join("kind"), "a file that became a directory").expect("written");
        let device = fs::metadata(&upper).expect("there").dev();
        let mut seen = Seen::default();
        Walk { upper, lower, device }.changes(&mut seen).expect("compared");
        assert_eq!(
            seen.0,
            [
                "C /changed",
                "C /changed/deep",
                "C /changed/deep/file",
                "C /changed/mode",
                "D /gone",
                "D /gone-dir",
                "C /kind",
                "A /kind/x",
                "A /new",
                "A /new/file",
                "A /new/link",
            ]
        );
        assert!(seen.1.is_empty(), "{:?}", seen.1);
    }
}
