//! The root file system of a new container: image, writable layer, and the overlay of both.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::unistd::{Gid, Uid, chown};

use super::{Named, StageError, storage, volumes};
use crate::spawn::plan::{RootfsPlan, VolumePlan};
use crate::sys;

/// Mounts the image read-only below a writable layer, on its own disk or in `size` bytes of memory;
/// answers where. A root without a writable layer still gets one in memory, because mount points
/// that the image lacks must be made somewhere: it is sealed afterwards. Beside it the volumes, in
/// their order, which lie on the disk even then.
pub(super) fn mount(
    rootfs: &RootfsPlan,
    workdir: &str,
    size: u64,
) -> Result<(String, Vec<OwnedFd>), StageError> {
    sys::mount("tmpfs", workdir, "tmpfs", 0, &format!("mode=755,size={size}"))
        .step(|| format!("mount the writable layer ({size} bytes) on {workdir}"))?;
    let [lower, root] = ["lower", "root"].map(|name| format!("{workdir}/{name}"));
    let wanted = !rootfs.read_only || rootfs.volumes.iter().any(VolumePlan::is_kept);
    let disk = rootfs.upper_device.as_ref().filter(|_| wanted);
    let kept = match disk {
        Some(_) => format!("{workdir}/disk"),
        None => workdir.to_owned(),
    };
    let place = if rootfs.read_only { workdir } else { &kept };
    for directory in [&lower, &root].into_iter().chain(disk.map(|_| &kept)) {
        fs::create_dir(directory).step(|| format!("make {directory}"))?;
    }
    mount_image(rootfs, &lower)?;
    if let Some(device) = disk {
        storage::mount(device, &kept)?;
    }
    let [upper, work] = ["upper", "work"].map(|name| format!("{place}/{name}"));
    match fs::symlink_metadata(&upper) {
        Ok(_) => storage::make_directory(&upper)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => make_upper(&lower, &upper)?,
        Err(error) => return Err(error).step(|| format!("look at {upper}")),
    }
    storage::make_directory(&work)?;
    let layers = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    sys::mount("overlay", &root, "overlay", 0, &layers)
        .step(|| "mount the overlay of image and writable layer".into())?;
    let volumes = volumes::open(&rootfs.volumes, workdir, &kept, &root)?;
    Ok((root, volumes))
}

fn mount_image(rootfs: &RootfsPlan, lower: &str) -> Result<(), StageError> {
    let RootfsPlan { device, filesystem, .. } = rootfs;
    // A wish: without it the file system reads as it would.
    let disk = (filesystem == "erofs").then(|| begin_reading(device)).transpose();
    let data = if filesystem == "ext4" { "noload" } else { "" };
    sys::mount(device, lower, filesystem, libc::MS_RDONLY, data)
        .step(|| format!("mount the image {device} as {filesystem}"))?;
    // Until here: what was read of a disk that nobody has open any more is forgotten.
    drop(disk);
    Ok(())
}

/// The root directory of an overlay is that of the upper layer: it gets owner and mode of the
/// image's, and its name only then, so that a disk has it whole or not at all.
fn make_upper(lower: &str, upper: &str) -> Result<(), StageError> {
    let begun = format!("{upper}.new");
    storage::make_directory(&begun)?;
    let image = fs::metadata(lower).step(|| "look at the image's root".into())?;
    fs::set_permissions(&begun, image.permissions())
        .step(|| "copy the mode of the image's root directory".into())?;
    chown(begun.as_str(), Some(Uid::from_raw(image.uid())), Some(Gid::from_raw(image.gid())))
        .step(|| "copy the owner of the image's root".into())?;
    fs::rename(&begun, upper).step(|| format!("make {upper}"))
}

/// Bytes that are read around what a program touches of its image: each read is a journey to the
/// monitor and back.
const READ_AHEAD_BYTES: u32 = 512 << 10;

/// Bytes of an image's metadata that are read at once.
const METADATA_BYTES: u64 = 128 << 10;

/// Says how far to read ahead on a disk with an EROFS image, and begins to read its metadata, whose
/// first block the superblock tells (kernel: fs/erofs/erofs_fs.h). The file system itself asks for
/// it block by block. What was read is kept while the disk is open.
fn begin_reading(device: &str) -> io::Result<File> {
    const META_BLOCK_AT: u64 = 1024 + 40;
    let disk = File::open(device)?;
    sys::set_read_ahead(&disk, READ_AHEAD_BYTES)?;
    let mut block = [0; 4];
    disk.read_exact_at(&mut block, META_BLOCK_AT)?;
    let offset = i64::from(u32::from_le_bytes(block)) << 12;
    let length = METADATA_BYTES.cast_signed();
    posix_fadvise(&disk, offset, length, PosixFadviseAdvice::POSIX_FADV_WILLNEED)?;
    Ok(disk)
}
