//! `nelly boot --image`: which kernel, initrds and command line the disk image's own boot loader
//! would take, found out on this host by a process that has the image alone, and put into memory
//! files for the monitor.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Error, Result, anyhow};
use nelly_cloud::{AskError, BootPlan, Wanted};
use nelly_vmm::config::{FileSource, MemorySize};
use nelly_vmm::sys::anonymous;
use nelly_vmm::sys::files::Accept;

use crate::boot_args::BootArgs;
use crate::boot_disk::DiskFlag;
use crate::fail::{Hint, Usage};
use crate::image_plan::{CONSOLE, advised, reader};
use crate::machine::{self, Boot, open};
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
    kernel.map(machine::kernel).transpose()?;
    initrd.map(|path| open("--initrd", path, Accept::Regular)).transpose()?;
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
    let chain = disk.look()?;
    let file = |name: &str, own: Option<&Path>| {
        (own.is_none() && !choice.dry_run).then(|| anonymous::memory_file(name)).transpose()
    };
    let no_file = || "cannot create a memory file";
    let kernel_file = file("kernel", choice.kernel).with_context(no_file)?;
    let initrd_file = file("initrd", choice.initrd).with_context(no_file)?;
    let wanted = Wanted::Plan {
        console: Some(CONSOLE.to_owned()),
        entry: choice.entry.map(ToOwned::to_owned),
        kernel: kernel_file.is_some(),
        initrd: initrd_file.is_some(),
        below: choice.memory,
    };
    let outputs: Vec<&File> = kernel_file.iter().chain(&initrd_file).collect();
    let found = reader()?.plan(&chain, &wanted, &outputs).map_err(|error| match error {
        AskError::TooLarge(bytes) => too_large(bytes, choice, disk.path()),
        other => advised(other, disk.path()),
    })?;
    fits(&found.plan, choice, disk.path())?;
    tell(&found.plan, choice, disk);
    let entry = found.plan.entry();
    let mut made = |name: &str, file: Option<File>| match file {
        Some(file) => {
            memory_file(name, file, files).with_context(|| format!("--image {}", disk.path().display()))
        }
        None => Ok(FileSource::Fd(0)),
    };
    let kernel = match choice.kernel {
        Some(path) => FileSource::Path(path.to_owned()),
        None => made("kernel", kernel_file)?,
    };
    let initrd = match choice.initrd {
        Some(path) => Some(FileSource::Path(path.to_owned())),
        None if entry.initrds.is_empty() => None,
        None => Some(made("initrd", initrd_file)?),
    };
    Ok(Boot { kernel, initrd, command_line: found.plan.command_line, of_image: true })
}

/// The user that cloud-init in an image makes by itself, if the image says so.
pub(crate) fn default_user(disk: &DiskFlag) -> Option<String> {
    reader().ok()?.user(&disk.look().ok()?).ok()?
}

/// Refuses files that the machine's memory cannot hold, also those that nobody wrote.
fn fits(plan: &BootPlan, choice: &Choice<'_>, path: &Path) -> Result<()> {
    let entry = plan.entry();
    let kernel = if choice.kernel.is_some() { 0 } else { entry.kernel.bytes };
    let initrds = entry.initrds.iter().map(|initrd| initrd.bytes);
    let initrds = if choice.initrd.is_some() { 0 } else { initrds.fold(0, u64::saturating_add) };
    let bytes = kernel.saturating_add(initrds);
    if bytes >= choice.memory { Err(too_large(bytes, choice, path)) } else { Ok(()) }
}

fn too_large(bytes: u64, choice: &Choice<'_>, path: &Path) -> Error {
    let (bytes, memory) = (bytes >> 20, choice.memory >> 20);
    let message = format!(
        "--image {}: its kernel and initrd have {bytes} MiB, and the machine has {memory} MiB of memory",
        path.display()
    );
    Hint::error(message, "give the machine more memory with --memory")
}

/// Notes that are shown, and bytes of each: an image says what its files are called.
const NOTES_SHOWN: usize = 64;
const NOTE_SHOWN: usize = 1024;

/// Says what a user cannot see in the guest.
fn tell(plan: &BootPlan, choice: &Choice<'_>, disk: &DiskFlag) {
    let path = disk.path().display();
    for note in plan.notes.iter().take(NOTES_SHOWN) {
        let end = note.floor_char_boundary(NOTE_SHOWN);
        out::message(format_args!("{path}: {}", &note[..end]));
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
fn memory_file(name: &str, file: File, files: &mut Vec<OwnedFd>) -> Result<FileSource> {
    // What was to be written there is believed as little as the image is.
    if file.metadata().context("cannot look at a memory file")?.len() == 0 {
        return Err(anyhow!("its {name} is empty"));
    }
    // It is not sealed, so that the monitor copies it. It would map a sealed one, in small pages: a
    // guest that unpacks its kernel and uses its initrd's memory again pays for each of them twice.
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).context("cannot pass a descriptor on")?;
    let number = file.as_raw_fd().cast_unsigned();
    files.push(file.into());
    Ok(FileSource::Fd(number))
}
