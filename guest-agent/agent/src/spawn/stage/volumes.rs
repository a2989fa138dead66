//! Volumes: directories beside the writable layer, `volumes/NAME`, and directories and files of the
//! host, mounted into the container.
//!
//! They are no overlay, so that an overlay can be mounted on top of them by what runs in the
//! container. A new one is filled under another name, and has its own only when it is whole. What
//! is the host's is mounted by its tag at a place of which no container has a path, and lasts in
//! the container's mounts alone.

use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use super::places::{self, ROOT, TargetKind};
use super::{Named, StageError, copy, storage};
use crate::spawn::plan::{MountPlan, VolumePlan, VolumeSource};
use crate::sys::{self, MountAttributes};

/// Makes those volumes that are missing below `kept`, from what the root file system at `root` has
/// where they will be mounted, mounts what is the host's below `workdir`, and opens all of them.
pub(super) fn open(
    volumes: &[VolumePlan],
    workdir: &str,
    kept: &str,
    root: &str,
) -> Result<Vec<OwnedFd>, StageError> {
    let directory = format!("{kept}/volumes");
    if volumes.iter().any(VolumePlan::is_kept) {
        storage::make_directory(&directory)?;
    }
    let open = |volume: &VolumePlan| match &volume.source {
        VolumeSource::Kept { name, copy_up } => {
            let place = format!("{directory}/{name}");
            if fs::symlink_metadata(&place).is_err() {
                fill((name, *copy_up), &volume.path, &directory, root, &place)?;
            }
            storage::make_directory(&place)?;
            sys::clone_tree(&place, false).step(|| format!("open {volume} for {}", volume.path))
        }
        VolumeSource::Shared { tag, file } => open_shared(volume, tag, *file, workdir),
    };
    volumes.iter().map(open).collect()
}

/// What a file system device with a single file calls it.
const SINGLE_FILE: &str = "file";

/// Mounts the file system of a device, and opens it, or its single file.
fn open_shared(volume: &VolumePlan, tag: &str, file: bool, workdir: &str) -> Result<OwnedFd, StageError> {
    let path = &volume.path;
    let shares = format!("{workdir}/shares");
    storage::make_directory(&shares)?;
    let place = format!("{shares}/{tag}");
    storage::make_directory(&place)?;
    // For reading is the container's mount alone: what touches has another one (see `touch`).
    sys::mount(tag, &place, "virtiofs", 0, "").step(|| format!("mount {volume} for {path}"))?;
    let wanted = if file { format!("{place}/{SINGLE_FILE}") } else { place };
    sys::clone_tree(&wanted, false).step(|| format!("open {volume} for {path}"))
}

/// Makes a new volume, which has a name and is perhaps filled. No name begins with a dot, so
/// nothing else is called what it is meanwhile.
fn fill(
    (name, copy_up): (&str, bool),
    path: &str,
    directory: &str,
    root: &str,
    place: &str,
) -> Result<(), StageError> {
    let begun = format!("{directory}/.{name}.new");
    match fs::remove_dir_all(&begun) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).step(|| format!("remove what was begun of the volume {name}"));
        }
        _ => {}
    }
    storage::make_directory(&begun)?;
    let source = places::make(root, path, TargetKind::Directory)
        .step(|| format!("make the mount point {path} of the volume {name}"))?;
    if copy_up {
        copy::tree(Path::new(&source), Path::new(&begun))
            .step(|| format!("fill the volume {name} with what the image has at {path}"))?;
    }
    fs::rename(&begun, place).step(|| format!("make the volume {name}"))
}

/// Mounts a volume, after the root was changed.
pub(super) fn mount(volume: &VolumePlan, tree: BorrowedFd<'_>) -> Result<(), StageError> {
    let VolumePlan { source, path, read_only } = volume;
    let end = match source {
        VolumeSource::Shared { file: true, .. } => TargetKind::File,
        _ => TargetKind::Directory,
    };
    let place = places::make(ROOT, path, end).step(|| format!("make the mount point {path} of {volume}"))?;
    if is_kernels(&place) {
        let refused = io::Error::from_raw_os_error(libc::EPERM);
        return Err(refused).step(|| format!("mount {volume} on {path}, which is {place}"));
    }
    sys::move_tree(tree, &place).step(|| format!("mount {volume} on {path}"))?;
    let read_only = if *read_only { libc::MS_RDONLY } else { 0 };
    sys::mount_attributes(&place, MountAttributes { set: read_only, clear: 0 })
        .step(|| format!("make {volume} read-only"))
}

/// Whether a place is the root itself, which a mount would not replace, or of the proc file system,
/// whose files programs believe.
fn is_kernels(place: &str) -> bool {
    let place = Path::new(place);
    place == Path::new(ROOT) || place.starts_with("/proc")
}

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// The next mount's.
    Mount,
    /// The volume's of this index.
    Volume(usize),
}

/// The order of mounts and volumes: mounts in theirs, a volume before the first mount below it, and
/// before a volume below it.
pub(super) fn turns(volumes: &[VolumePlan], mounts: &[MountPlan]) -> Vec<Turn> {
    if volumes.is_empty() {
        return vec![Turn::Mount; mounts.len()];
    }
    let mut waiting: Vec<usize> = (0..volumes.len()).collect();
    waiting.sort_by_key(|index| Path::new(&volumes[*index].path).components().count());
    let mut turns = Vec::with_capacity(volumes.len() + mounts.len());
    for mount in mounts {
        let above = |index: &usize| {
            let (volume, mount) = (Path::new(&volumes[*index].path), Path::new(&mount.destination));
            volume != mount && mount.starts_with(volume)
        };
        turns.extend(waiting.iter().copied().filter(above).map(Turn::Volume));
        waiting.retain(|index| !above(index));
        turns.push(Turn::Mount);
    }
    turns.extend(waiting.into_iter().map(Turn::Volume));
    turns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spawn::mount_options;

    fn volume(path: &str) -> VolumePlan {
        let source = VolumeSource::Kept { name: "v".to_owned(), copy_up: true };
        VolumePlan { source, path: path.to_owned(), read_only: false }
    }

    #[test]
    fn what_lies_below_a_volume_comes_after_it() {
        let mounts = ["/proc", "/dev", "/dev/pts", "/data/cache", "/run"].map(|path| MountPlan {
            destination: path.to_owned(),
            kind: "tmpfs".to_owned(),
            source: String::new(),
            options: mount_options::parse::<&str>(&[]).expect("no options"),
        });
        let volumes = ["/run/lock", "/data/", "/data/db", "/dev", "/database"].map(volume);
        use Turn::{Mount, Volume};
        let expected =
            [Mount, Mount, Volume(3), Mount, Volume(1), Mount, Mount, Volume(4), Volume(0), Volume(2)];
        assert_eq!(turns(&volumes, &mounts), expected);
        assert_eq!(turns(&[], &mounts), [Mount; 5]);
    }

    #[test]
    fn a_volume_is_filled_once_and_whole() {
        let top = tempfile::tempdir().expect("a directory");
        let at = |path: &str| top.path().join(path);
        let text = |path: &str| fs::read_to_string(at(path)).expect(path);
        fs::create_dir_all(at("root/srv/data")).expect("made");
        std::os::unix::fs::symlink("/srv/data", at("root/data")).expect("linked");
        fs::write(at("root/srv/data/file"), "image").expect("written");
        // What a guest that was killed left.
        fs::create_dir_all(at("volumes/.v.new/half")).expect("made");
        let [kept, root] = ["", "root"].map(|path| at(path).to_str().expect("UTF-8").to_owned());
        let fill_it = |name: &str, copy_up: bool, path: &str| {
            let place = format!("{kept}/volumes/{name}");
            fill((name, copy_up), path, &format!("{kept}/volumes"), &root, &place).expect("filled");
        };
        fill_it("v", true, "/data");
        assert_eq!(text("volumes/v/file"), "image");
        assert!(!at("volumes/v/half").exists() && !at("volumes/.v.new").exists());
        fill_it("w", false, "/data");
        assert!(fs::read_dir(at("volumes/w")).expect("made").next().is_none());
        fill_it("x", true, "/missing/below");
        assert!(at("volumes/x").is_dir() && at("root/missing/below").is_dir());
    }

    #[test]
    fn volumes_keep_away_from_the_root_and_from_proc() {
        for (place, refused) in
            [("/", true), ("/proc", true), ("/proc/sys", true), ("/process", false), ("/data", false)]
        {
            assert_eq!(is_kernels(place), refused, "{place}");
        }
    }
}
