//! `nelly boot --image`: which kernel, initrds and command line the disk image's own boot loader
//! would take, found out on this host and put into memory files for the monitor.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use nelly_cloud::{BootPlan, CloudError, Image, KERNEL_MAX, Parts, find_entry};
use nelly_vmm::config::{FileSource, MemorySize};
use nelly_vmm::sys::anonymous;
use nelly_vmm::sys::files::Accept;

use crate::boot_args::BootArgs;
use crate::boot_disk::DiskFlag;
use crate::fail::{Hint, Usage};
use crate::image_plan::{CONSOLE, advised};
use crate::machine::{Boot, open};
use crate::out;

/// What a user says of how an image boots.
#[derive(Debug)]
struct Choice<'a> {
    /// A kernel to boot instead of the image's.
    kernel: Option<&'a Path>,
    /// An initrd to boot with instead of the image's.
    initrd: Option<&'a Path>,
    /// Title, id or kernel of an entry to take instead of the image's default.
    entry: Option<&'a str>,
    /// Bytes of the machine's memory.
    memory: u64,
    /// Whether nothing shall be made.
    dry_run: bool,
}

/// What a machine boots by `--kernel` and `--initrd`, or else from `image`. What is to be open when
/// the monitor starts is added to `files`.
///
/// # Errors
/// A file cannot be used, or the image boots nothing.
pub(crate) fn what_boots(
    args: &BootArgs,
    image: Option<&DiskFlag>,
    memory: MemorySize,
    files: &mut Vec<OwnedFd>,
) -> Result<Boot> {
    let (kernel, initrd) = (args.kernel.as_deref(), args.initrd.as_deref());
    for (flag, path) in [("--kernel", kernel), ("--initrd", initrd)] {
        path.map(|path| open(flag, path, Accept::Regular)).transpose()?;
    }
    if let Some(image) = image {
        let entry = args.entry.as_deref();
        let choice = Choice { kernel, initrd, entry, memory: memory.get(), dry_run: args.machine.dry_run };
        return find(image, &choice, files);
    }
    let kernel = kernel.ok_or_else(|| Usage::error("one of --kernel and --image is needed"))?;
    let source = |path: &Path| FileSource::Path(path.to_owned());
    Ok(Boot {
        kernel: source(kernel),
        initrd: initrd.map(source),
        command_line: String::new(),
        of_image: false,
    })
}

/// Finds out what the image of a flag boots, and says what a user has to know of it. What is to be
/// open when the monitor starts is added to `files`.
///
/// # Errors
/// The image cannot be used, or it boots nothing.
fn find(disk: &DiskFlag, choice: &Choice<'_>, files: &mut Vec<OwnedFd>) -> Result<Boot> {
    let opened = disk.look()?;
    let failed = |error: CloudError| advised(error, disk.path());
    let parts = Parts::read(&*opened).map_err(failed)?;
    let image = Image::open(&parts).map_err(failed)?;
    let plan = find_entry(&image, Some(CONSOLE), choice.entry).map_err(failed)?;
    fits(&plan, choice, disk.path())?;
    tell(&plan, choice, disk);
    let entry = plan.entry();
    let mut made = |name: &str, write: &dyn Fn(&mut File) -> Result<u64, CloudError>| {
        if choice.dry_run {
            return Ok(FileSource::Fd(0));
        }
        memory_file(name, write, files).with_context(|| format!("--image {}", disk.path().display()))
    };
    let kernel = match choice.kernel {
        Some(path) => FileSource::Path(path.to_owned()),
        None => made("kernel", &|out| image.copy(&entry.kernel, KERNEL_MAX, out))?,
    };
    let initrd = match choice.initrd {
        Some(path) => Some(FileSource::Path(path.to_owned())),
        None if entry.initrds.is_empty() => None,
        None => Some(made("initrd", &|out| image.copy_initrds(entry, out))?),
    };
    Ok(Boot { kernel, initrd, command_line: plan.command_line, of_image: true })
}

/// The user that cloud-init in an image makes by itself, if the image says so.
pub(crate) fn default_user(disk: &DiskFlag) -> Option<String> {
    let opened = disk.look().ok()?;
    let parts = Parts::read(&*opened).ok()?;
    let image = Image::open(&parts).ok()?;
    image.default_user()
}

/// Refuses files that the machine's memory cannot hold before they fill that of this host.
fn fits(plan: &BootPlan, choice: &Choice<'_>, path: &Path) -> Result<()> {
    let entry = plan.entry();
    let kernel = if choice.kernel.is_some() { 0 } else { entry.kernel.bytes };
    let initrds = entry.initrds.iter().map(|initrd| initrd.bytes);
    let initrds = if choice.initrd.is_some() { 0 } else { initrds.fold(0, u64::saturating_add) };
    let bytes = kernel.saturating_add(initrds);
    if bytes >= choice.memory {
        let (bytes, memory) = (bytes >> 20, choice.memory >> 20);
        let message = format!(
            "--image {}: its kernel and initrd have {bytes} MiB, and the machine has {memory} MiB of memory",
            path.display()
        );
        return Err(Hint::error(message, "give the machine more memory with --memory"));
    }
    Ok(())
}

/// Says what a user cannot see in the guest.
fn tell(plan: &BootPlan, choice: &Choice<'_>, disk: &DiskFlag) {
    let path = disk.path().display();
    for note in &plan.notes {
        out::message(format_args!("{path}: {note}"));
    }
    if choice.kernel.is_none() && choice.initrd.is_none() {
        for driver in plan.drivers.missing() {
            let kernel = plan.drivers.release.as_deref().unwrap_or("its kernel");
            out::message(format_args!(
                "{path}: {kernel} will not find its disk: the driver {} is {}",
                driver.name, driver.place
            ));
        }
    }
    if disk.is_ephemeral_unasked() {
        out::message(format_args!(
            "{path} stays as it is, and what the guest writes is gone when the machine ends; \
             ,overlay=PATH keeps it, and ,rw writes into the image"
        ));
    }
}

/// A file in memory that the monitor, which this process becomes, inherits.
fn memory_file(
    name: &str,
    write: &dyn Fn(&mut File) -> Result<u64, CloudError>,
    files: &mut Vec<OwnedFd>,
) -> Result<FileSource> {
    let mut file = anonymous::memory_file(name).context("cannot create a memory file")?;
    if write(&mut file)? == 0 {
        return Err(anyhow!("its {name} is empty"));
    }
    match anonymous::seal(&file) {
        // Where there are no seals, the monitor copies what it would map.
        Err(error) if error.kind() == std::io::ErrorKind::Unsupported => {}
        sealed => sealed.context("cannot seal a memory file")?,
    }
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).context("cannot pass a descriptor on")?;
    let number = file.as_raw_fd().cast_unsigned();
    files.push(file.into());
    Ok(FileSource::Fd(number))
}
